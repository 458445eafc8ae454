"""What a run has published, as whoever reads it sees it: immutable results and one pointer.

`RUN/<job>/<key>/` is a result once it has a manifest, which is written last; nothing changes it
then. `run.json` says which results are current, and is replaced in one write: a reader sees the
old state of a run or the new one, and keeps what it opened (DESIGN: runs).
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

from ray_reid import places, storage
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.storage import Fingerprint

log = logging.getLogger(__name__)

POINTER, MANIFEST = "run.json", "manifest.json"
FORMAT = 1
"""Of `run.json`."""
OUTSIDE = "outside"
"""Name of the input that no job made: the fingerprint of outside files."""
READERS = ".readers"
RENEWAL_SECONDS, MARK_SECONDS = 60.0, 300.0
"""How often a reader renews its mark, and how old one may be before it counts as left behind."""


@dataclass(frozen=True)
class Manifest:
    """What a result was made from, and what its job says of itself."""

    job: str
    key: str
    version: str
    """Release of the package; it is not part of the key."""
    commit: str | None
    recipe: dict[str, Any]
    """The sections of the recipe that the result depends on."""
    inputs: dict[str, str]
    """Key of each input job, or the fingerprint of outside files."""
    facts: dict[str, Any]
    """What the job said; its `Job` has the model."""
    seconds: float

    @classmethod
    def read(cls, folder: Place) -> Self:
        """Read the manifest of a result.

        Raises:
            ValueError: If the folder is no result, or one of another release.
        """
        file = folder / MANIFEST
        try:
            return cls(**json.loads(file.read_text()))
        except FileNotFoundError:
            raise ValueError(f"{str(folder)!r} is no result: it has no {MANIFEST}") from None
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{str(file)!r} is no manifest of this release: {error}") from error

    def write(self, folder: Place) -> None:
        """Complete a result: from now on nothing changes it."""
        places.write_text(folder / MANIFEST, json.dumps(asdict(self), indent=2) + "\n")

    @property
    def jobs(self) -> dict[str, str]:
        """Key of each job that it was made from."""
        return {name: key for name, key in self.inputs.items() if name != OUTSIDE}

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Of the table that the job published, if it published one."""
        found = self.facts.get("fingerprint")
        return None if found is None else Fingerprint(**found)


@dataclass(frozen=True)
class RunState:
    """A run at one moment: what was current when it was read."""

    path: Place
    recipe: Recipe
    keys: Mapping[str, str]
    """Key of the current result of each job."""
    jobs: tuple[str, ...] = ()
    """Of the whole pipeline, in order."""

    @classmethod
    def read(cls, path: Place) -> Self:
        """Read `run.json`.

        Raises:
            ValueError: If the directory is not a run, or one of another release.
        """
        values = _read_pointer(path)
        try:
            recipe = recipes.validate(values["recipe"])
        except ValueError as error:
            raise ValueError(f"{str(path / POINTER)!r}: {error}") from error
        return cls(path, recipe, values["current"], tuple(values["jobs"]))

    def write(self) -> None:
        """Make this the state of the run, in one atomic write."""
        values = {
            "format": FORMAT,
            "jobs": self.jobs,
            "current": dict(self.keys),
            "recipe": self.recipe.model_dump(mode="json"),
        }
        places.write_text(self.path / POINTER, json.dumps(values, indent=2) + "\n")

    def __contains__(self, job: object) -> bool:
        return job in self.keys

    def folder(self, job: str) -> Place:
        """Directory of the current result of a job.

        Raises:
            ValueError: If the job has none.
        """
        if job not in self.keys:
            raise ValueError(
                f"run {str(self.path)!r} has no current {job!r}; it has {sorted(self.keys)}"
            )
        return self.path / job / self.keys[job]

    def manifest(self, job: str) -> Manifest:
        """What the current result of a job says of itself.

        Raises:
            ValueError: If the job has none.
        """
        return Manifest.read(self.folder(job))

    def manifests(self) -> list[Manifest]:
        """Manifests of the current results, in dataflow order."""
        found = [self.manifest(name) for name in sorted(self.keys)]
        depth = dict.fromkeys(self.keys, 0)
        for _ in found:
            for one in found:
                depth[one.job] = max([0, *(depth[job] + 1 for job in one.jobs if job in depth)])
        return sorted(found, key=lambda one: (depth[one.job], one.job))

    def tables(self) -> dict[str, Place]:
        """Every table of the current results, by `job/table`."""
        return {
            f"{job}/{name}": path
            for job in sorted(self.keys)
            for name, path in storage.tables(self.folder(job)).items()
            # Beside its manifest a job may keep a Parquet file that is no table of rows.
            if path != self.folder(job)
        }


def current_keys(path: Place) -> dict[str, str]:
    """Key of the current result of each job of a run, whatever release its recipe is of.

    Raises:
        ValueError: If the directory is not a run.
    """
    return dict(_read_pointer(path)["current"])


def _read_pointer(path: Place) -> dict[str, Any]:
    file = path / POINTER
    try:
        values: Any = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        check_layout(path)
        raise ValueError(f"{str(path)!r} is not a run directory: it has no {POINTER}") from None
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {error}") from error
    found = values.get("format") if isinstance(values, dict) else values
    if found != FORMAT:
        raise ValueError(f"{str(file)!r} has format {found!r}; this release reads {FORMAT}")
    lacking = {"recipe", "current", "jobs"} - values.keys()
    if lacking:
        raise ValueError(f"{str(file)!r} is damaged: it has no {sorted(lacking)}")
    return dict(values)


def check_layout(path: Place) -> None:
    """Refuse a directory with a run of a release before 0.3, which kept a job's only result.

    Raises:
        ValueError: Says what to do.
    """
    if (path / POINTER).exists() or not (path / "recipe.yaml").is_file():
        return
    if any(path.glob(f"[!.]*/{MANIFEST}")):
        raise ValueError(
            f"run {str(path)!r} was made by a release before 0.3 and lies in its layout; run its "
            f"recipe again in a new directory: ray-reid run {path / 'recipe.yaml'} --run NEW"
        )


@contextmanager
def reading(path: Place) -> Iterator[RunState]:
    """Open a run for reading; what was current stays until this ends, whatever is pruned.

    Raises:
        ValueError: If the directory is not a run.
    """
    state = RunState.read(path)
    mark = path / READERS / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
    while _marked(mark, state):
        # Only results that are not current are pruned: what is current with the mark there, stays.
        again = RunState.read(path)
        if again.keys == state.keys:
            break
        state = again
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(mark, over), daemon=True)
    renewing.start()
    try:
        yield state
    finally:
        over.set()
        renewing.join()
        with suppress(OSError):
            mark.unlink()


def _marked(mark: Place, state: RunState) -> bool:
    """Leave the mark of a reader; none is left where nothing can be written, or pruned either."""
    try:
        mark.parent.mkdir(exist_ok=True)
        places.write_text(mark, json.dumps(dict(state.keys)) + "\n")
    except OSError:
        return False
    return True


def _renew(mark: Place, over: threading.Event) -> None:
    while not over.wait(RENEWAL_SECONDS):
        try:
            if mark.exists():
                mark.touch()
        except OSError as error:
            # The next try may be in time.
            log.warning("cannot renew the mark of this reader, %s: %s", mark, error)


def being_read(path: Place) -> set[tuple[str, str]]:
    """Jobs and keys of the results that live readers have opened."""
    found: set[tuple[str, str]] = set()
    for mark in (path / READERS).glob("[!.]*.json"):
        try:
            if time.time() - mark.stat().st_mtime < MARK_SECONDS:
                found |= set(json.loads(mark.read_text()).items())
        except FileNotFoundError:
            # Its reader has ended meanwhile.
            continue
    return found
