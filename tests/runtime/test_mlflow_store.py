"""The MLflow store of a folder of runs: created once, under any name, and moved with the folder."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service import utils

from ray_reid import cli
from ray_reid.recipe import recipes
from ray_reid.runtime import mlflow_store
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.tracking import Tracker


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with an empty store, to copy: its creation takes seconds."""
    folder = tmp_path_factory.mktemp("fresh") / "runs"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow_store.opened(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _run(path: Path, picture: str = "a.png") -> None:
    """A run that leaves an artifact and a registered model."""
    path.mkdir(exist_ok=True)
    (path / picture).write_text("1")
    (path / "model").mkdir(exist_ok=True)
    (path / "model" / "weights").write_text("2")
    facts = Facts(pictures={picture: ""}, model="model")
    recipe = recipes.load("baseline")
    with Tracker.open(path, recipe) as tracker, tracker.job("train", picture, []) as child:
        child.log(facts, path)


def test_a_store_is_made_whole_or_not_at_all(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {file.name for file in fresh.iterdir()} == {".mlflow.db.lock", "mlflow.db"}
    other = fresh.parent / "other"
    other.mkdir()
    # A kill left this; the next attempt must not build on it.
    (other / ".mlflow.db.partial").write_text("half")
    (other / "mlflow.db").touch()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", killed)
    with pytest.raises(KeyboardInterrupt):
        mlflow_store.opened(other)
    assert (other / "mlflow.db").stat().st_size == 0
    assert not (other / ".mlflow.db.partial").exists()


@pytest.mark.parametrize(
    "name",
    ["a b", "100%", "50%25", "what?", "#1", "été 图 \U0001f600", "o'n\"e", "a;b&c=d", "[x]*{y}"],
)
def test_a_folder_may_have_any_name(fresh: Path, tmp_path: Path, name: str) -> None:
    runs = tmp_path / name
    shutil.copytree(fresh, runs)
    _run(runs / "r")
    assert (runs / "mlflow.db").stat().st_size > 0
    assert len(list((runs / mlflow_store.ARTIFACTS).rglob("a.png"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
    uri, client = mlflow_store.opened(runs)
    (version,) = client.search_model_versions("name='ray-reid-baseline'")
    assert mlflow_store.sqlite_file(uri) == runs / "mlflow.db"
    assert client.list_artifacts(version.run_id, "model")[0].path == "model/weights"


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("way", [shutil.move, shutil.copytree])
def test_artifacts_follow_a_folder_that_is_moved(
    fresh: Path, tmp_path: Path, way: Callable[[Path, Path], object]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(fresh, old)
    _run(old / "r")
    way(old, new)
    kept = _times(old)
    # MLflow caches the place of a run's artifacts; another process would not have it yet.
    utils._artifact_repos_cache.clear()
    _run(new / "r", "b.png")
    assert _times(old) == kept
    kept_here = {path.name for path in (new / mlflow_store.ARTIFACTS).rglob("*.png")}
    assert kept_here == {"a.png", "b.png"}
    _, client = mlflow_store.opened(new)
    versions = client.search_model_versions("name='ray-reid-baseline'")
    assert len(versions) == 2
    for version in versions:
        where = client.get_model_version_download_uri("ray-reid-baseline", version.version)
        assert where.startswith((new / mlflow_store.ARTIFACTS).as_uri() + "/")
        assert client.list_artifacts(version.run_id, "pictures")


def test_artifacts_that_lie_elsewhere_on_purpose_stay_there(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(fresh, runs)
    _, client = mlflow_store.opened(runs)
    client.create_experiment("mine", artifact_location="s3://bucket/mlartifacts")
    client.create_experiment("other", artifact_location=str(tmp_path / "elsewhere"))
    _, client = mlflow_store.opened(runs)
    assert client.get_experiment_by_name("mine").artifact_location == "s3://bucket/mlartifacts"
    assert "elsewhere" in client.get_experiment_by_name("other").artifact_location
    # Runs of another folder, whose artifacts lie beside them.
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store.store(runs))
        (tmp_path / "b").mkdir()
        _run(tmp_path / "b" / "r")
    _, client = mlflow_store.opened(runs)
    beside = (tmp_path / "b" / mlflow_store.ARTIFACTS).as_uri()
    assert client.get_experiment_by_name("baseline").artifact_location == beside


def test_a_relative_address_of_a_store_is_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("sqlite:///m.db", "sqlite+pysqlite:///m.db", f"sqlite:///{tmp_path}/m.db"):
        assert mlflow_store.sqlite_file(uri) == tmp_path / "m.db"
    for uri in ("sqlite://", "sqlite:///:memory:", "postgresql://h/m.db", "http://h"):
        assert mlflow_store.sqlite_file(uri) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            "DROP TABLE spans; UPDATE alembic_version SET version_num = '451aebb31d03'",
            "incomplete, or of another version of MLflow: move the file away",
        ),
        ("UPDATE alembic_version SET version_num = 'x'", "Detected out-of-date|another version"),
        ("DELETE FROM alembic_version", "Detected out-of-date"),
    ],
)
def test_a_damaged_store_is_explained(fresh: Path, tmp_path: Path, damage: str, said: str) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(fresh, runs)
    with closing(sqlite3.connect(runs / "mlflow.db")) as database, database:
        database.executescript(damage)
    _assert_refused(runs, said)


def test_a_file_that_is_no_database_is_explained(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("<html>no database at all</html>" * 100)
    _assert_refused(tmp_path, "move the file away")


def _assert_refused(runs: Path, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        mlflow_store.opened(runs)
    assert str(runs / "mlflow.db") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_experiment_opens_on_its_runs(
    fresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(fresh, runs)
    assert mlflow_store.newest(runs) is None
    _run(runs / "r")
    _, client = mlflow_store.opened(runs)
    found = client.get_experiment_by_name("baseline")
    assert found.tags[mlflow_store.KIND_TAG] == "custom_model_development"
    parents = {
        run.info.run_name: run.info.run_id for run in client.search_runs([found.experiment_id])
    }
    page = f"#/experiments/{found.experiment_id}/runs/{parents['r']}?workflowType=machine_learning"
    assert mlflow_store.newest(runs) == page
    # A folder of runs that may be read only.
    (runs / "mlflow.db").chmod(0o444)
    assert mlflow_store.newest(runs) == page
    monkeypatch.setattr("os.execve", lambda *_: None)
    monkeypatch.setattr("ray_reid.runtime.ports.check_port", lambda *_: None)
    assert cli.main(["ui", "--runs", str(runs), "--port", "5001"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"newest run: http://127.0.0.1:5001/{page}",
        "all runs: http://127.0.0.1:5001/#/experiments?workflowType=machine_learning",
    ]


def test_an_experiment_of_an_older_release_opens_on_its_runs(fresh: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(fresh, runs)
    _, client = mlflow_store.opened(runs)
    client.create_experiment("baseline")
    mlflow_store.experiment(client, "baseline", runs)
    found = client.get_experiment_by_name("baseline")
    assert found.tags[mlflow_store.KIND_TAG] == "custom_model_development"


def test_an_experiment_that_another_run_has_just_made_is_taken(fresh: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(fresh, runs)
    _, client = mlflow_store.opened(runs)
    made = client.create_experiment("baseline")
    real, answers = client.get_experiment_by_name, [None]

    def late(name: str) -> object:
        return answers.pop() if answers else real(name)

    client.get_experiment_by_name = late  # type: ignore[method-assign]
    assert mlflow_store.experiment(client, "baseline", runs) == made


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(fresh: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(fresh, runs)
    full = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from ray_reid import cli\n"
        "from ray_reid.recipe import recipes\n"
        "from ray_reid.runtime.tracking import Tracker\n"
        "runs = Path(sys.argv[1])\n"
        "(runs / 'r').mkdir()\n"
        "def work():\n"
        "    recipe = recipes.load('baseline')\n"
        "    with Tracker.open(runs / 'r', recipe) as tracker:\n"
        # The database file may not grow.
        "        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "        size = (runs / 'mlflow.db').stat().st_size\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 8, size // 8))\n"
        "        with tracker.job('train', 'a', []):\n"
        "            pass\n"
        "sys.exit(cli._guarded(work, False))\n"
    )
    done = subprocess.run([sys.executable, "-c", full, str(runs)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") <= 2, done.stderr
    assert "cannot use the MLflow store" in done.stderr
    assert "Traceback" not in done.stderr
