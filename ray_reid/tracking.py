"""MLflow: one parent run per pipeline, a child per job. The only module that imports mlflow.

A job's facts say what is logged: `metrics` (name to number), `history` (one mapping per epoch),
`fingerprint` (of the table it published), `pictures` (file names) and `model` (a directory).
"""

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_reid import config
from ray_reid.config import Recipe

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
# MLflow reserves "latest".
ALIAS = "newest"


def store(runs: Path) -> str:
    """The tracking URI: `MLFLOW_TRACKING_URI`, else a SQLite file beside the run directories."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.resolve() / 'mlflow.db'}"


def model_name(recipe: str) -> str:
    """Name under which a recipe's models are registered."""
    return f"ray-reid-{recipe}"


class Child:
    """The MLflow run of one job."""

    def __init__(self, client: "MlflowClient", run_id: str, model: str) -> None:
        self._client = client
        self._run = run_id
        self._model = model

    def log(self, facts: Mapping[str, Any], out: Path) -> None:
        """Log a job's facts; file names in them are relative to `out`."""
        for name, value in facts.get("metrics", {}).items():
            self._client.log_metric(self._run, _metric(name), float(value))
        for step in facts.get("history", []):
            for name, value in step.items():
                if name != "epoch":
                    self._client.log_metric(
                        self._run, _metric(name), float(value), step=step["epoch"]
                    )
        for picture in facts.get("pictures", []):
            self._client.log_artifact(self._run, str(out / picture), "pictures")
        if "fingerprint" in facts:
            self._log_dataset(facts["fingerprint"])
        if "model" in facts:
            self._register(out / facts["model"])

    def _log_dataset(self, fingerprint: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=fingerprint["table"],
            digest=(fingerprint["images"] or fingerprint["ids"])[:32],
            source_type="local",
            source=json.dumps({"table": fingerprint["table"]}),
            profile=json.dumps(dict(fingerprint)),
        )
        tag = InputTag(key="mlflow.data.context", value="published")
        self._client.log_inputs(self._run, [DatasetInput(dataset=dataset, tags=[tag])])

    def _register(self, model: Path) -> None:
        from mlflow.exceptions import MlflowException

        self._client.log_artifacts(self._run, str(model), "model")
        source = f"{self._client.get_run(self._run).info.artifact_uri}/model"
        try:
            self._client.create_registered_model(self._model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(self._model, source, run_id=self._run)
        self._client.set_registered_model_alias(self._model, ALIAS, version.version)
        log.info("registered models:/%s@%s (version %s)", self._model, ALIAS, version.version)


class Tracker:
    """The MLflow run of a run directory; a rerun after a kill goes on in the same one."""

    def __init__(self, run: Path, recipe: Recipe) -> None:
        """Connect to the store and find or make the recipe's experiment; `open` uses it."""
        runs = run.resolve().parent
        self._client = _client(store(runs))
        self._recipe = recipe
        self._experiment = _experiment(self._client, recipe.name, runs)
        self._state = run / ".work" / "mlflow.json"
        known = json.loads(self._state.read_text()) if self._state.exists() else {}
        self._runs: dict[str, str] = known
        self._parent = ""

    @classmethod
    @contextmanager
    def open(cls, run: Path, recipe: Recipe) -> Iterator["Tracker"]:
        """Open or reopen the parent run of a run directory and end it with the right status."""
        tracker = cls(run, recipe)
        with tracker._run("pipeline", run.resolve().name) as tracker._parent:
            tracker._log_recipe()
            yield tracker

    @contextmanager
    def job(self, name: str) -> Iterator[Child]:
        """Open the child run of a job."""
        with self._run(name, name, {PARENT_TAG: self._parent}) as run_id:
            yield Child(self._client, run_id, model_name(self._recipe.name))

    def artifact(self, file: Path) -> None:
        """Attach a file to the parent run."""
        self._client.log_artifact(self._parent, str(file))

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log the pipeline's own figures to the parent run."""
        for name, value in values.items():
            self._client.log_metric(self._parent, _metric(name), float(value))

    @contextmanager
    def _run(self, key: str, name: str, tags: dict[str, str] | None = None) -> Iterator[str]:
        from mlflow.exceptions import MlflowException

        run_id = self._runs.get(key)
        try:
            if run_id is not None:
                self._client.update_run(run_id, status="RUNNING")
        except MlflowException:
            log.warning("the store no longer has run %s; a new one is made", run_id)
            run_id = None
        if run_id is None:
            created = self._client.create_run(self._experiment, run_name=name, tags=tags)
            run_id = str(created.info.run_id)
            self._runs[key] = run_id
            self._state.write_text(json.dumps(self._runs))
        status = "FAILED"
        try:
            yield run_id
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self._client.set_terminated(run_id, status)

    def _log_recipe(self) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self._parent).data.params
        flat = _flatten(self._recipe.model_dump(mode="json"))
        # MLflow's parameters are write-once; a changed recipe in the same run is a tag.
        params = [Param(key, value) for key, value in flat.items() if key not in known]
        self._client.log_batch(self._parent, params=params)
        for key in (key for key in flat if key in known and known[key] != flat[key]):
            self._client.set_tag(self._parent, f"changed.{key}", flat[key])
        self._client.log_text(self._parent, config.dump(self._recipe), "recipe.yaml")


def server_command(runs: Path, port: int) -> tuple[str, list[str], dict[str, str]]:
    """Program, arguments and environment of an MLflow server on the store of `runs`.

    Raises:
        ValueError: If there is no store yet.
    """
    uri = store(runs)
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ValueError(f"no MLflow store at {uri!r} yet: run a recipe first, or give --runs")
    server = ["server", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return sys.executable, [sys.executable, "-m", "mlflow", *server], {**os.environ, **quiet}


def download_model(uri: str, runs: Path) -> Path:
    """Fetch a registered model (`models:/NAME@ALIAS`) and return its local directory."""
    import mlflow

    mlflow.set_tracking_uri(store(runs))
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))


def _experiment(client: "MlflowClient", name: str, runs: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = client.tracking_uri.startswith("sqlite:")
    location = (runs / "mlartifacts").as_uri() if local else None
    return str(client.create_experiment(name, artifact_location=location))


def _client(uri: str) -> "MlflowClient":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    # Creating the SQLite schema logs a hundred migration lines that tell a user nothing.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _metric(name: str) -> str:
    """MLflow allows letters, digits and `_-./ ` in names."""
    return name.replace("@", "_at_")


def _flatten(values: Any, prefix: str = "") -> dict[str, str]:
    items: Iterable[tuple[str, Any]]
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list) and any(isinstance(value, (dict, list)) for value in values):
        items = ((str(position), value) for position, value in enumerate(values))
    else:
        return {prefix: str(values)}
    flat: dict[str, str] = {}
    for name, value in items:
        flat |= _flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat
