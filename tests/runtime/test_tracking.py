"""MLflow: runs that go on after a kill, tables with their role, and one sentence for trouble."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import mlflow_store, tracking
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.tracking import Tracker
from ray_reid.storage import Fingerprint

PRINT = Fingerprint("ingest/observations", 3, "1" * 32, "2" * 32)


@pytest.fixture(scope="module", autouse=True)
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # One MLflow store for the module: creating its schema takes seconds.
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return recipes.load("baseline", None, [f"name={request.node.name[:60]}"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "r").mkdir()
    return tmp_path / "r"


def _known(run: Path) -> dict[str, str]:
    return json.loads((run / ".mlflow.json").read_text())


def _refused(run: Path, recipe: Recipe, match: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=match) as raised, Tracker.open(run, recipe):
        pass
    assert "\n" not in str(raised.value)
    # MLflow alone would try again for minutes.
    assert time.monotonic() - started < 15


def _inputs(uri: str, run_id: str) -> dict[str, str]:
    inputs = MlflowClient(uri).get_run(run_id).inputs.dataset_inputs
    return {entry.dataset.name: entry.tags[0].value for entry in inputs}


def test_a_changed_job_gets_a_child_of_its_own_and_a_resumed_one_goes_on(
    run: Path, recipe: Recipe, uri: str
) -> None:
    for key, figure in (("a", 1), ("a", 2), ("b", 3)):
        with Tracker.open(run, recipe) as tracker, tracker.job("train", key, []) as child:
            child.log(Facts(metrics={"figure": figure}), run)
    known = _known(run)
    assert set(known) == {"pipeline", "train-a", "train-b"}
    runs = {name: MlflowClient(uri).get_run(run_id) for name, run_id in known.items()}
    assert runs["train-a"].data.metrics == {"figure": 2}
    assert runs["train-b"].data.metrics == {"figure": 3}
    for child_run in (runs["train-a"], runs["train-b"]):
        assert child_run.data.tags[mlflow_store.PARENT_TAG] == known["pipeline"]
        assert child_run.info.status == "FINISHED"


def test_tables_are_logged_as_read_or_published(run: Path, recipe: Recipe, uri: str) -> None:
    made = dataclasses.replace(PRINT, table="embed/embeddings", images=None)
    for _ in range(2):
        with (
            Tracker.open(run, recipe) as tracker,
            tracker.job("embed", "a", iter([PRINT])) as child,
        ):
            child.log(Facts(fingerprint=made), run)
    assert _inputs(uri, _known(run)["embed-a"]) == {
        "ingest/observations": "input",
        "embed/embeddings": "published",
    }


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_damaged_state_file_counts_as_empty(
    run: Path, recipe: Recipe, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (run / ".mlflow.json").write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING, "ray_reid"), Tracker.open(run, recipe):
        pass
    assert "mlflow.json is unreadable" in caplog.text
    assert set(_known(run)) == {"pipeline"}
    assert [file.name for file in run.iterdir()] == [".mlflow.json"]


def test_a_deleted_experiment_is_restored(run: Path, recipe: Recipe, uri: str) -> None:
    client = MlflowClient(uri)
    with Tracker.open(run, recipe):
        pass
    experiment = client.get_experiment_by_name(recipe.name)
    client.delete_experiment(experiment.experiment_id)
    before = _known(run)
    with Tracker.open(run, recipe):
        pass
    assert client.get_experiment(experiment.experiment_id).lifecycle_stage == "active"
    assert client.get_run(_known(run)["pipeline"]).info.status == "FINISHED"
    assert set(_known(run)) == set(before)


@pytest.mark.parametrize("deleted", [True, False])
def test_a_run_that_is_gone_is_made_anew(
    run: Path, recipe: Recipe, uri: str, deleted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker.open(run, recipe):
        pass
    old = _known(run)["pipeline"]
    if deleted:
        MlflowClient(uri).delete_run(old)
    else:
        old = "0" * 32
        (run / ".mlflow.json").write_text(json.dumps({"pipeline": old}))
    with caplog.at_level(logging.WARNING, "ray_reid"), Tracker.open(run, recipe):
        pass
    assert f"no longer has run {old}" in caplog.text
    assert _known(run)["pipeline"] != old


def test_other_trouble_with_a_run_makes_no_second_one(run: Path, recipe: Recipe) -> None:
    from mlflow.exceptions import MlflowException

    with Tracker.open(run, recipe):
        pass
    before = _known(run)

    class Busy:
        def get_run(self, run_id: str) -> Any:
            raise MlflowException("(sqlite3.OperationalError) database is locked")

    tracker = Tracker(run, recipe)
    tracker._client = Busy()
    with pytest.raises(ValueError, match="database is locked"), tracker._run("pipeline", "r"):
        pass
    assert _known(run) == before


def test_the_mistake_of_a_job_is_told_even_when_the_store_is_lost(
    run: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def lost(*_: object) -> None:
        raise MlflowException("disk I/O error")

    def work() -> None:
        with Tracker.open(run, recipe) as tracker, tracker.job("train", "a", []):
            monkeypatch.setattr(tracker._client, "set_terminated", lost)
            raise ValueError("the job's own")

    with pytest.raises(ValueError, match="the job's own"):
        work()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://127.0.0.1:1", "'http://127.0.0.1:1': Failed to .*Connection refused$"),
        ("htp://nowhere", "'htp://nowhere'"),
        ("http://[half", r"'http://\[half': Invalid IPv6 URL"),
        ("sqlite:", "'sqlite:'"),
        ("no-such-place", "'no-such-place'"),
        ("postgresql+nodriver://me:secret@h/x", "'postgresql.nodriver://h/x'"),
    ],
)
def test_an_address_without_a_store_is_one_sentence(
    run: Path, recipe: Recipe, uri: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    _refused(run, recipe, "cannot use the MLflow store of MLFLOW_TRACKING_URI " + said)


def test_a_folder_or_file_that_cannot_be_written_is_refused_at_once(
    run: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store = run.parent / "mlflow.db"
    run.parent.chmod(0o555)
    try:
        _refused(run, recipe, f"cannot use .*{store}.*: '{run.parent}' is not writable")
    finally:
        run.parent.chmod(0o755)
    store.write_text("not a database")
    _refused(run, recipe, f"{store}.*: file is not a database")
    store.chmod(0o444)
    _refused(run, recipe, f"'{store}' is not writable")
    assert store.read_text() == "not a database"


def test_a_file_in_the_place_of_the_folder_is_refused(
    run: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    _refused(run, recipe, "cannot use the MLflow store .*(Not a directory|File exists)")


def test_a_model_that_is_not_registered_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"cannot use the MLflow store .*no-such-model"):
        tracking.download_model("models:/no-such-model@newest", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ValueError, match="no MLflow store at"):
        tracking.download_model("models:/no-such-model@newest", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_server_listens_on_this_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "mlflow.db").touch()
    _, command, environment = mlflow_store.server_command(tmp_path, 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"
    assert os.environ.items() <= environment.items()
