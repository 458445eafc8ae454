"""The MLflow store of a folder of runs: created once, shared by all runs, moved with the folder.

For runs on a disk it is a SQLite file. MLflow creates its tables one by one at the file's final
path: two processes would collide, and a kill would leave half of the tables. MLflow also stores
absolute paths of artifacts, which are wrong after the folder was moved.
"""

import fcntl
import logging
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from ray_reid.places import BucketPath, Place

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Tag of an experiment: MLflow's pages open on its training runs, not on traces of LLMs."""
PAGES = "workflowType=machine_learning"
"""Query that an address of MLflow 3.17 needs for the same."""
ALL_RUNS = f"#/experiments?{PAGES}"
"""Path of the page that lists the experiments on an MLflow server."""
ARTIFACTS = "mlartifacts"
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's tables with absolute URIs of artifacts."""
DAMAGED = (
    r"table \S+ already exists|duplicate column|no such (table|column)|malformed|"
    r"not a database|locate revision"
)
"""Errors of a database whose tables are incomplete, or of another version of MLflow."""
# MLflow's own defaults call home, and wait for minutes when a server does not answer.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
LOG_LEVELS = {
    # The creation of the tables logs a hundred migrations that tell a user nothing.
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,
    # MLflow logs the traceback of an error that it also raises.
    "mlflow.store": logging.CRITICAL,
    # Each try to reach a server is a line; the last one's error is the message anyway.
    "urllib3.connectionpool": logging.ERROR,
}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
RUNS = Path("runs")
"""Default parent of the run directories."""
# MLflow's server has no authentication.
HOST = "127.0.0.1"


def store(runs: Place) -> str:
    """The tracking URI: `MLFLOW_TRACKING_URI`, else a SQLite file beside the run directories.

    A bucket holds no database: beside runs there it is `runs/mlflow.db` on this machine.

    Raises:
        ValueError: If no URI can name the file.
    """
    local = runs.resolve() if isinstance(runs, Path) else RUNS.resolve()
    return os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(local / "mlflow.db")


def opened(runs: Place) -> tuple[str, "MlflowClient"]:
    """Connect to the store of a folder of runs, and create it if needed.

    Returns:
        The tracking URI and a client.

    Raises:
        ValueError: If the store cannot be reached, written or read.
    """
    uri = store(runs)
    with explained(uri):
        _check(uri)
        file = sqlite_file(uri)
        if file is None:
            return uri, _client(uri)
        with (file.parent / f".{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists() or not file.stat().st_size:
                _make(file)
            # It adds the tables that an older MLflow did not have.
            client = _client(uri)
            if isinstance(runs, Path) and not os.environ.get("MLFLOW_TRACKING_URI"):
                _follow(file)
    return uri, client


def experiment(client: "MlflowClient", recipe: str, runs: Place) -> str:
    """Find or create the experiment of a recipe; returns its id."""
    from mlflow.exceptions import MlflowException

    # An experiment keeps its artifacts in one place.
    name = recipe if isinstance(runs, Path) else f"{recipe} in {runs}"
    location = None
    if isinstance(runs, BucketPath):
        location = str(runs / ARTIFACTS)
    elif client.tracking_uri.startswith("sqlite:"):
        location = (runs / ARTIFACTS).as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            made = client.create_experiment(name, location, tags={KIND_TAG: KIND})
            return str(made)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # Another run has just created it.
            found = client.get_experiment_by_name(name)
    assert found is not None, f"MLflow says that {name!r} exists, but does not return it"
    if found.lifecycle_stage == "deleted":
        log.warning("the experiment %s was deleted from the store; it is restored", name)
        client.restore_experiment(found.experiment_id)
    if KIND_TAG not in found.tags:
        client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
    return str(found.experiment_id)


def server_command(runs: Path, port: int) -> tuple[str, list[str], dict[str, str]]:
    """Return program, arguments and environment of an MLflow server on the store of `runs`.

    Raises:
        ValueError: If there is no store yet, or it cannot be used.
    """
    uri = existing(store(runs))
    server = ["server", "--backend-store-uri", uri, "--host", HOST, "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", *server, "--workers", "1"]
    return sys.executable, command, {**os.environ, **quiet}


def newest(runs: Path) -> str | None:
    """Return the path of the newest run's page on an MLflow server; None if there is no run.

    Raises:
        ValueError: If there is no store yet, or it cannot be used.
    """
    uri = existing(store(runs))
    with explained(uri):
        client = opened(runs)[1] if _is_writable(uri) else _client(uri)
        known = [found.experiment_id for found in client.search_experiments()]
        found = client.search_runs(known, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        return None
    (run,) = found
    parent = run.data.tags.get(PARENT_TAG, run.info.run_id)
    return f"#/experiments/{run.info.experiment_id}/runs/{parent}?{PAGES}"


def existing(uri: str) -> str:
    """Return the URI of a store.

    Raises:
        ValueError: If it names a SQLite file that does not exist.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise ValueError(f"no MLflow store at {uri!r} yet: run a recipe first, or give --runs")
    return uri


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store; None for any other store."""
    if not re.match(r"sqlite(\+\w+)?:///", uri):
        return None
    from sqlalchemy import make_url

    name = make_url(uri).database
    return Path(name).absolute() if name and name != ":memory:" else None


def _sqlite_uri(file: Path) -> str:
    from sqlalchemy import make_url

    # MLflow creates the parent folder of what it reads as a path; quoted, that is the current one.
    for path in (str(file), quote(str(file), safe="")):
        if make_url(f"sqlite:///{path}").database == str(file):
            return f"sqlite:///{path}"
    raise ValueError(
        f"no SQLite address can name {str(file)!r}: rename the folder, or set MLFLOW_TRACKING_URI"
    )


def _make(file: Path) -> None:
    """Create the tables in another file and rename it, so that a kill leaves no half store."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    aside = file.with_name(f".{file.name}.partial")
    left = (aside, aside.with_name(f"{aside.name}-journal"))
    for path in left:
        path.unlink(missing_ok=True)
    try:
        kept = (file.parent / ARTIFACTS).as_uri()
        made = SqlAlchemyStore(_sqlite_uri(aside), kept)  # type: ignore[no-untyped-call]
        made.engine.dispose()
        aside.replace(file)
    finally:
        for path in left:
            path.unlink(missing_ok=True)


def _follow(file: Path) -> None:
    """Update the URIs of artifacts after the folder of runs was moved or copied.

    Artifacts that lie elsewhere on purpose, such as those of runs in another folder, stay there.
    """
    folder = file.parent / ARTIFACTS
    here = folder.as_uri()
    with closing(sqlite3.connect(file, timeout=30)) as database, database:
        named = database.execute("SELECT DISTINCT artifact_location FROM experiments")
        places = [place for (place,) in named if place and place != here]
        for place in places:
            if not place.startswith("file:") or place.rpartition("/")[2] != ARTIFACTS:
                continue
            if _path(place).exists() and not _holds_some(folder, database, place):
                continue
            for table, column in ARTIFACT_COLUMNS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (here, len(place) + 1, place, len(place) + 1, f"{place}/"),
                )
            log.info("MLflow: artifacts are in %s, no longer in %s", here, place)


def _holds_some(folder: Path, database: sqlite3.Connection, place: str) -> bool:
    """Return whether a folder has artifacts of a run that the store expects in `place`."""
    runs = database.execute(
        "SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) = ?",
        (len(place) + 1, f"{place}/"),
    )
    return any((folder / uri[len(place) + 1 :]).exists() for (uri,) in runs)


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn an error of MLflow or its database into one sentence that names the store.

    Raises:
        ValueError: The sentence.
    """
    # MLflow reads them at its import, which happens nowhere earlier.
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # After MLflow's import, which sets them too.
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error) as error:
        raise ValueError(_sentence(uri, str(error))) from error


def _sentence(uri: str, reason: str) -> str:
    # Of the nested exceptions of an HTTP request the innermost says what happened; of those of a
    # database the first line; both after names of classes.
    innermost = reason.strip().rpartition("(Caused by ")[2].removesuffix('"))')
    first = re.sub(r"^(\(\S+\)|\w+\(\"\w+\(.*?\):) ", "", innermost.partition("\n")[0])
    named = "of MLFLOW_TRACKING_URI " if os.environ.get("MLFLOW_TRACKING_URI") else ""
    said = f"cannot use the MLflow store {named}{uri!r}: {first}"
    if re.search(DAMAGED, first):
        said += (
            "; its tables are incomplete, or of another version of MLflow: move the file away, "
            "and the next run creates a new one; results do not depend on it"
        )
    # Without the user and password of an address.
    return re.sub(r"//[^/@\s]*@", "//", said)


def _check(uri: str) -> None:
    """Refuse a database that cannot be used, at once: MLflow would retry for minutes."""
    from sqlalchemy import create_engine

    try:
        urlsplit(uri)
        if not uri.startswith(DATABASES):
            return
        file = sqlite_file(uri)
        if file is not None:
            _check_writable(file)
            file.parent.mkdir(parents=True, exist_ok=True)
        create_engine(uri).connect().close()
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(_sentence(uri, str(error))) from error


def _is_writable(uri: str) -> bool:
    file = sqlite_file(uri)
    try:
        if file is not None:
            _check_writable(file)
    except PermissionError:
        return False
    return True


def _check_writable(file: Path) -> None:
    """Refuse a file or folder that SQLite could not write: its journal lies beside the file."""
    there = next(path for path in (file, *file.parents) if path.exists())
    for path in (there, there.parent) if there == file else (there,):
        # To root everything is writable; a folder without any write bit is so on purpose.
        if not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK):
            raise PermissionError(f"{str(path)!r} is not writable")


def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)
