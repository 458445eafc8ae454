"""The run directory: jobs publish complete directories, are skipped when done, resume when killed.

A job works in `.work/JOB-KEY` and is published by one rename, its manifest already inside. The
key hashes the job's part of the recipe, its inputs and the package version, so a rerun after a
kill finds its own unfinished work, and a changed recipe never mixes with it.
"""

import fcntl
import hashlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_reid import storage
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.resources import RESOURCES
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.tracking import Tracker
from ray_reid.runtime.version import VERSION
from ray_reid.storage import Fingerprint

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
OUTSIDE = "outside"
"""Name of the input that no job made: the fingerprint of outside files."""


@dataclass(frozen=True)
class Manifest:
    """What a published job directory was made from, and what it says of itself."""

    job: str
    key: str
    version: str
    commit: str | None
    recipe: dict[str, Any]
    """The sections of the recipe that the result depends on."""
    inputs: dict[str, str]
    """Key of each input job, or the fingerprint of outside files."""
    facts: dict[str, Any]
    """What the job said; its `Job` has the model."""
    seconds: float

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Of the table that the job published, if it published one."""
        found = self.facts.get("fingerprint")
        return None if found is None else Fingerprint(**found)


class Run:
    """A run directory held by this process, with its recipe and its MLflow run."""

    def __init__(
        self, path: Path, recipe: Recipe, tracker: Tracker, prepare: Callable[[], None]
    ) -> None:
        """Wrap a directory that `open_run` holds; `prepare` starts Ray when a job needs it."""
        self.path = path
        self.recipe = recipe
        self.tracker = tracker
        self._prepare = prepare

    def beside(self, path: Path, recipe: Recipe) -> "Run":
        """Another directory of jobs, under the same lock and with the same MLflow run."""
        return Run(path, recipe, self.tracker, self._prepare)

    def manifests(self) -> list[Manifest]:
        """Manifests of the jobs published here, in dataflow order."""
        published = [read_manifest(self.path, name) for name in _published(self.path)]
        depth = {manifest.job: 0 for manifest in published}
        for _ in published:
            for manifest in published:
                deeper = [depth[job] + 1 for job in manifest.inputs if job in depth]
                depth[manifest.job] = max([0, *deeper])
        return sorted(published, key=lambda manifest: (depth[manifest.job], manifest.job))

    def perform(self, job: Job) -> Manifest:
        """Do a job, unless its published directory already has the same key.

        Raises:
            ValueError: If a job that it needs has not been published here, or the published
                ones do not belong together.
        """
        inputs = {name: read_manifest(self.path, name) for name in job.needs}
        _check_together(self.path, inputs)
        sources = {name: manifest.key for name, manifest in inputs.items()}
        if job.outside is not None:
            sources[OUTSIDE] = job.outside(self.recipe)
        sections = _sections(self.recipe, job.declared(self.recipe))
        key = _key(job.name, sections, sources)
        done = _done(self.path / job.name, key)
        if done is not None:
            return done
        out = self.path / ".work" / f"{job.name}-{key}"
        # A kill while publishing left finished work behind: only the rename is missing.
        if not (out / MANIFEST).exists():
            started = time.monotonic()
            facts = self._work(job, key, inputs, out)
            seconds = round(time.monotonic() - started, 3)
            manifest = Manifest(
                job.name,
                key,
                VERSION,
                _commit(),
                sections,
                sources,
                facts.model_dump(mode="json"),
                seconds,
            )
            out.mkdir(exist_ok=True)
            storage.write_text(out / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
        _publish(out, self.path / job.name, job.scratch)
        manifest = read_manifest(self.path, job.name)
        log.info("%s: published in %.1f s", job.name, manifest.seconds)
        return manifest

    def save_recipe(self) -> None:
        """Keep the recipe once its jobs have accepted it; a refused one says nothing of a run."""
        storage.write_text(self.path / "recipe.yaml", recipes.dump(self.recipe))

    def _work(self, job: Job, key: str, inputs: Mapping[str, Manifest], out: Path) -> Facts:
        out.mkdir(parents=True, exist_ok=True)
        work = Work(
            recipe=job.view(self.recipe),
            out=out,
            inputs={name: self.path / name for name in inputs},
            facts={name: manifest.facts for name, manifest in inputs.items()},
        )
        prints = [manifest.fingerprint for manifest in inputs.values()]
        read = [fingerprint for fingerprint in prints if fingerprint is not None]
        if job.uses_ray:
            self._prepare()
        log.info("%s: %s", job.name, "resumed" if any(out.iterdir()) else "started")
        try:
            with self.tracker.job(job.name, key, read) as child:
                facts = job.work(work)
                assert isinstance(facts, job.facts), f"{job.name} says {type(facts).__name__}"
                child.log(facts, out)
        finally:
            # A refusal leaves no trace.
            if not any(out.iterdir()):
                out.rmdir()
        return facts


@contextmanager
def open_run(path: Path, recipe: Recipe, prepare: Callable[[], None]) -> Iterator[Run]:
    """Hold a run directory, creating it if needed, and open its MLflow run.

    Args:
        prepare: Called before the first job that uses Ray, and again before each other.

    Raises:
        ValueError: If the directory cannot be written or another process holds it.
    """
    try:
        if path.exists() and not path.stat().st_mode & 0o222:
            raise PermissionError("it is marked read-only")
        (path / ".work").mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".work" / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot write to run directory {str(path)!r}: {reason}") from error
    try:
        _hold(lock, path)
        with Tracker.open(path, recipe) as tracker:
            yield Run(path, recipe, tracker, prepare)
    finally:
        os.close(lock)


def read_manifest(run: Path, job: str) -> Manifest:
    """Read what a published job says of itself.

    Raises:
        ValueError: If the run has no such published job.
    """
    file = run / job / MANIFEST
    if not file.is_file():
        raise ValueError(f"run {str(run)!r} has no published job {job!r}; it has {_published(run)}")
    try:
        return Manifest(**json.loads(file.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is not a manifest of this version: {error}") from error


def read_recipe(run: Path) -> Recipe:
    """Read the resolved recipe of a run.

    Raises:
        ValueError: If the directory is not a run.
    """
    file = run / "recipe.yaml"
    if not file.is_file():
        raise ValueError(f"{str(run)!r} is not a run directory: it has no recipe.yaml")
    return recipes.validate(recipes.read_yaml(file))


def is_current(run: Path, job: str) -> bool:
    """Return whether a job is published and rests on the published state of all before it."""
    if not (run / job / MANIFEST).is_file():
        return False
    # Inputs that no job made have no directory.
    inputs = {name: key for name, key in read_manifest(run, job).inputs.items() if name != OUTSIDE}
    return all(
        is_current(run, name) and read_manifest(run, name).key == key
        for name, key in inputs.items()
    )


def _published(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob(f"[!.]*/{MANIFEST}"))


def _hold(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode() or "unknown"
        raise ValueError(f"process {holder} is already working on run {str(path)!r}") from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())


def content_key(
    name: str, recipe: Recipe, sections: tuple[str, ...], inputs: Mapping[str, str]
) -> str:
    """Hash of what a result is made from: its part of the recipe, its inputs and the version."""
    return _key(name, _sections(recipe, sections), inputs)


def _sections(recipe: Recipe, names: tuple[str, ...]) -> dict[str, Any]:
    values = recipe.model_dump(mode="json")
    return {name: _without_resources(_entry(values, name)) for name in names}


def _entry(values: Any, name: str) -> Any:
    for part in name.split("."):
        # Of a section that is null, so is every entry.
        values = None if values is None else values[part]
    return values


def _without_resources(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_resources(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: _without_resources(v) for name, v in value.items() if name not in RESOURCES}


def _key(job: str, sections: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    parts = [job, VERSION, sections, inputs]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _check_together(path: Path, inputs: Mapping[str, Manifest]) -> None:
    """Follow the inputs to their own inputs, as far as those are published."""
    for name, manifest in inputs.items():
        published = set(_published(path)) & manifest.inputs.keys()
        theirs = {other: read_manifest(path, other) for other in published}
        for other, found in theirs.items():
            if found.key != manifest.inputs[other]:
                raise ValueError(
                    f"the published job {name!r} was made from another {other!r} than the "
                    f"published one; run {name!r} again first"
                )
        _check_together(path, theirs)


def _done(published: Path, key: str) -> Manifest | None:
    """The manifest of a published directory with this key.

    Raises:
        ValueError: If something else has the name of the directory.
    """
    if not published.exists():
        return None
    if not (published / MANIFEST).is_file():
        raise ValueError(f"{str(published)!r} is in the way: no job published it; move it away")
    manifest = read_manifest(published.parent, published.name)
    if manifest.key != key:
        return None
    commit = _commit()
    if manifest.commit is not None and commit not in (None, manifest.commit):
        log.info("%s: made by the code of %s, now %s", manifest.job, manifest.commit, commit)
    log.info("%s: done before, skipped", manifest.job)
    return manifest


def _publish(out: Path, published: Path, scratch: tuple[str, ...]) -> None:
    """Make a finished directory visible in one rename; what was there goes to `superseded/`."""
    for name in scratch:
        storage.remove(out / name)
    if published.exists():
        old = read_manifest(published.parent, published.name)
        aside = published.parent / "superseded" / f"{old.job}-{old.key}"
        aside.parent.mkdir(exist_ok=True)
        storage.remove(aside)
        published.rename(aside)
        log.info("%s: made from another recipe or input before; kept in %s", old.job, aside)
    out.rename(published)


def _commit() -> str | None:
    """The git commit of the code, when it runs from a checkout."""
    root = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
