"""MLflow: one parent run per pipeline, a child per job.

A job's `Facts` say what is logged; only what every job may say is read here.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ray_reid import places
from ray_reid.places import BucketPath, Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import interrupts
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.mlflow_store import (
    ARTIFACTS,
    PARENT_TAG,
    existing,
    experiment,
    explained,
    opened,
    store,
)
from ray_reid.storage import Fingerprint

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

# MLflow reserves "latest".
ALIAS = "newest"


def model_name(recipe: str) -> str:
    """Name under which a recipe's models are registered."""
    return f"ray-reid-{recipe}"


class Child:
    """The MLflow run of one job."""

    def __init__(self, client: "MlflowClient", run_id: str, model: str) -> None:
        self._client = client
        self._run = run_id
        self._model = model

    def log(self, facts: Facts, out: Place) -> None:
        """Log a job's facts; file names in them are relative to `out`.

        Raises:
            ValueError: If the store no longer takes them.
        """
        with explained(self._client.tracking_uri):
            self._log(facts, out)

    def log_input(self, fingerprint: Fingerprint) -> None:
        """Log a table that the job reads, by its fingerprint.

        Raises:
            ValueError: If the store no longer takes it.
        """
        with explained(self._client.tracking_uri):
            self._log_dataset(fingerprint, "input")

    def _log(self, facts: Facts, out: Place) -> None:
        for name, value in facts.params.items():
            self._client.log_param(self._run, name, value)
        for name, figure in facts.metrics.items():
            self._client.log_metric(self._run, _metric(name), figure)
        for step in facts.history:
            for name, figure in step.items():
                if name != "epoch":
                    self._client.log_metric(
                        self._run, _metric(name), figure, step=int(step["epoch"])
                    )
        for picture in facts.pictures:
            self._client.log_artifact(self._run, str(places.fetched(out / picture)), "pictures")
        if facts.fingerprint is not None:
            self._log_dataset(facts.fingerprint, "published")
        if facts.model is not None:
            self._register(out / facts.model)

    def _log_dataset(self, fingerprint: Fingerprint, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=fingerprint.table,
            digest=(fingerprint.images or fingerprint.ids)[:32],
            source_type="local",
            source=json.dumps({"table": fingerprint.table}),
            profile=json.dumps(asdict(fingerprint)),
        )
        tag = InputTag(key="mlflow.data.context", value=context)
        self._client.log_inputs(self._run, [DatasetInput(dataset=dataset, tags=[tag])])

    def _register(self, model: Place) -> None:
        from mlflow.exceptions import MlflowException

        self._client.log_artifacts(self._run, str(places.fetched(model)), "model")
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

    def __init__(self, run: Place, recipe: Recipe) -> None:
        """Connect to the store and find or make the recipe's experiment; `open` uses it."""
        runs = run.resolve().parent
        self._uri, self._client = opened(runs)
        if isinstance(runs, BucketPath):
            log.info("MLflow: figures in %s, artifacts in %s", self._uri, runs / ARTIFACTS)
        with explained(self._uri):
            self._experiment = experiment(self._client, recipe.name, runs)
        self._recipe = recipe
        self._state = run / ".mlflow.json"
        self._runs = _remembered(self._state)
        self._parent = ""

    @classmethod
    @contextmanager
    def open(cls, run: Place, recipe: Recipe, keeps_recipe: bool = False) -> Iterator["Tracker"]:
        """Open or reopen the parent run of a run directory and end it with the right status.

        Args:
            keeps_recipe: Whether the parent run has the recipe of somebody else, and keeps it.

        Raises:
            ValueError: If the store cannot be reached or written.
        """
        tracker = cls(run, recipe)
        with tracker._run("pipeline", run.resolve().name) as tracker._parent:
            with explained(tracker._uri):
                if not keeps_recipe:
                    tracker._log_recipe()
            yield tracker

    @contextmanager
    def job(self, name: str, key: str, inputs: Iterable[Fingerprint]) -> Iterator[Child]:
        """Open the child run of a job, or reopen that of an earlier attempt with the same key.

        Args:
            key: Hash of what the job is made from; another key is another child run.
            inputs: Fingerprints of the tables that it reads.
        """
        with self._run(f"{name}-{key}", name, {PARENT_TAG: self._parent}) as run_id:
            child = Child(self._client, run_id, model_name(self._recipe.name))
            for fingerprint in inputs:
                child.log_input(fingerprint)
            yield child

    def artifact(self, file: Place) -> None:
        """Attach a file to the parent run."""
        with explained(self._uri):
            self._client.log_artifact(self._parent, str(places.fetched(file)))

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log the pipeline's own figures to the parent run."""
        with explained(self._uri):
            for name, value in values.items():
                self._client.log_metric(self._parent, _metric(name), float(value))

    @contextmanager
    def _run(self, key: str, name: str, tags: dict[str, str] | None = None) -> Iterator[str]:
        with explained(self._uri):
            run_id = self._reopened(key) or self._created(key, name, tags)
        status = "FAILED"
        try:
            yield run_id
            status = "FINISHED"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or interrupts.came() is not None:
                status = "KILLED"
            raise
        finally:
            self._end(run_id, status)

    def _reopened(self, key: str) -> str | None:
        """Id of the run remembered under `key`, running again; none if the store lost it."""
        from mlflow.exceptions import MlflowException

        run_id = self._runs.get(key)
        if run_id is None:
            return None
        try:
            if self._client.get_run(run_id).info.lifecycle_stage == "active":
                self._client.update_run(run_id, status="RUNNING")
                return run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        log.warning("the store no longer has run %s; a new one is made", run_id)
        return None

    def _created(self, key: str, name: str, tags: dict[str, str] | None) -> str:
        created = self._client.create_run(self._experiment, run_name=name, tags=tags)
        self._runs[key] = str(created.info.run_id)
        places.write_text(self._state, json.dumps(self._runs))
        return self._runs[key]

    def _end(self, run_id: str, status: str) -> None:
        try:
            with explained(self._uri):
                self._client.set_terminated(run_id, status)
        except ValueError as error:
            if status == "FINISHED":
                raise
            # The mistake that ended the run is the one to be told.
            log.warning("%s", error)

    def _log_recipe(self) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self._parent).data.params
        flat = recipes.flatten(self._recipe.model_dump(mode="json"))
        # MLflow's parameters are write-once; a changed recipe in the same run is a tag.
        params = [Param(key, value) for key, value in flat.items() if key not in known]
        self._client.log_batch(self._parent, params=params)
        for key in (key for key in flat if key in known and known[key] != flat[key]):
            self._client.set_tag(self._parent, f"changed.{key}", flat[key])
        self._client.log_text(self._parent, recipes.dump(self._recipe), "recipe.yaml")


def download_model(uri: str, runs: Path) -> Path:
    """Fetch a registered model (`models:/NAME@ALIAS`) and return its local directory.

    Raises:
        ValueError: If there is no store yet, it cannot be reached, or has no such model.
    """
    existing(store(runs))
    tracking, _ = opened(runs)
    with explained(tracking):
        import mlflow

        mlflow.set_tracking_uri(tracking)
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))


def _remembered(state: Place) -> dict[str, str]:
    """Ids of the MLflow runs of earlier attempts; a damaged file counts as empty."""
    if not state.exists():
        return {}
    try:
        return {str(key): str(run_id) for key, run_id in json.loads(state.read_text()).items()}
    except (ValueError, AttributeError, OSError) as error:
        log.warning("%s is unreadable (%s); new MLflow runs are made", state, error)
        return {}


def _metric(name: str) -> str:
    """MLflow allows letters, digits and `_-./ ` in names."""
    return name.replace("@", "_at_")
