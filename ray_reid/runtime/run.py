"""A run as its driver holds it: jobs are done once, resumed when killed, and pointed at.

A job works in `RUN/<job>/<key>/` itself. The key hashes the job's part of the recipe, its inputs
and its format, so a rerun after a kill finds its own unfinished work, and a changed recipe never
mixes with it. Nothing is renamed, moved or overwritten.
"""

import hashlib
import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_reid import places
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.resources import RESOURCES
from ray_reid.runtime import interrupts
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.holding import Check, hold
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import (
    MANIFEST,
    OUTSIDE,
    POINTER,
    Manifest,
    RunState,
    current_keys,
)
from ray_reid.runtime.tracking import Tracker
from ray_reid.runtime.version import VERSION

log = logging.getLogger(__name__)

KEY_DIGITS = 12
TRIALS = "trials"
"""Folder of a run with finished trials, by their content: its experiments share them."""
MODELS, TRAININGS, REFERENCES = "models", ".trainings", "references"
"""Folders in it: models that trials share, checkpoints of trials without a result yet, and tables
that results of several recipes are made with."""


class Run:
    """A run directory held by this process, with its recipe and its MLflow run."""

    def __init__(
        self,
        state: RunState,
        tracker: Tracker,
        prepare: Callable[[], None],
        check: Check = lambda: None,
    ) -> None:
        """Wrap what `open_run` holds.

        Args:
            prepare: Starts Ray when a job needs it.
            check: Raises where the run is no longer held.
        """
        self.path = state.path
        self.recipe = state.recipe
        self.state = state
        """What is current, with the recipe of this driver."""
        self.tracker = tracker
        self._prepare = prepare
        self._check = check
        self._made: dict[str, Manifest] = {}
        self._outside: dict[str, str] = {}

    def perform(self, job: Job) -> Manifest:
        """Point at the result of a job, made from the current results of those that it needs.

        Raises:
            ValueError: If one of these has no current result of this recipe, or the job refuses
                its input.
        """
        # Before the work: what is made from the results of another recipe could not be current.
        current = _consistent(self.path, self.recipe, self.state.keys)
        manifest = self.make(job, self.recipe, current)
        self.point({job.name: manifest.key})
        return manifest

    def make(self, job: Job, recipe: Recipe, keys: Mapping[str, str]) -> Manifest:
        """Make the result of a job unless it is there; what is current stays current.

        Args:
            recipe: The run's own, or another one.
            keys: Of the results of the jobs that it needs.

        Raises:
            ValueError: If a job that it needs has no key, or the job refuses its input.
        """
        key, sections, inputs = self._identified(job, recipe, keys)
        if key not in self._made:
            interrupts.check()
            self._check()
            out = self.path / job.name / key
            if (out / MANIFEST).exists():
                self._made[key] = Manifest.read(out)
                _log_found(self._made[key])
            else:
                self._made[key] = self._done(job, key, recipe, sections, inputs)
            # Only another attempt would need it, and a kill may have left it.
            for name in job.scratch:
                places.remove(out / name)
        return self._made[key]

    def is_made(self, job: Job, recipe: Recipe, keys: Mapping[str, str]) -> bool:
        """Return whether a result is there that `make` would return at once."""
        key, *_ = self._identified(job, recipe, keys)
        return (self.path / job.name / key / MANIFEST).exists()

    def _identified(
        self, job: Job, recipe: Recipe, keys: Mapping[str, str]
    ) -> tuple[str, dict[str, Any], dict[str, str]]:
        """Key of a result, and what it is the hash of: its part of the recipe and its inputs."""
        needed = job.inputs(recipe)
        lacking = [name for name in needed if name not in keys]
        if lacking:
            raise ValueError(
                f"run {str(self.path)!r} has no current {lacking[0]!r} of this recipe, which "
                f"{job.name!r} needs; it has {sorted(keys)}"
            )
        inputs = {name: keys[name] for name in needed}
        sections = _sections(recipe, job.declared(recipe))
        if job.outside is not None:
            inputs[OUTSIDE] = self._fingerprint(job, recipe, sections)
        return _hash(job.name, job.format, sections, inputs), sections, inputs

    def point(self, keys: Mapping[str, str]) -> None:
        """Make results current, in one write with the recipe.

        What another recipe made, or was made from other results, leaves in the same write.
        """
        found = _consistent(self.path, self.recipe, {**self.state.keys, **keys})
        self._check()
        state = replace(self.state, keys=found)
        left = sorted(self.state.keys - found.keys())
        if left:
            log.info("%s: of another recipe or input, no longer current", ", ".join(left))
        state.write()
        self.state = state

    def _fingerprint(self, job: Job, recipe: Recipe, sections: Mapping[str, Any]) -> str:
        """Of the files outside; read once for all settings of a sweep that agree on them."""
        assert job.outside is not None
        covered = _sections(recipe, job.covered)
        which = json.dumps([job.name, sections, covered], sort_keys=True)
        if which not in self._outside:
            self._outside[which] = job.outside(recipe)
        return self._outside[which]

    def _done(
        self,
        job: Job,
        key: str,
        recipe: Recipe,
        sections: dict[str, Any],
        inputs: dict[str, str],
    ) -> Manifest:
        """Do a job, and complete its result with the manifest."""
        started = time.monotonic()
        facts = self._work(job, key, recipe, inputs)
        seconds = round(time.monotonic() - started, 3)
        told = facts.model_dump(mode="json")
        manifest = Manifest(job.name, key, VERSION, _commit(), sections, inputs, told, seconds)
        out = self.path / job.name / key
        out.mkdir(parents=True, exist_ok=True)
        self._check()
        manifest.write(out)
        log.info("%s: done in %.1f s", job.name, seconds)
        return manifest

    def _work(self, job: Job, key: str, recipe: Recipe, inputs: Mapping[str, str]) -> Facts:
        out = self.path / job.name / key
        folders = {name: self.path / name / inputs[name] for name in job.inputs(recipe)}
        manifests = {name: Manifest.read(folder) for name, folder in folders.items()}
        out.mkdir(parents=True, exist_ok=True)
        work = Work(
            recipe=job.view(recipe),
            out=out,
            inputs=folders,
            facts={name: manifest.facts for name, manifest in manifests.items()},
            trials=self.path / TRIALS,
        )
        prints = [manifest.fingerprint for manifest in manifests.values()]
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
            for folder in (out, out.parent):
                if not any(folder.iterdir()):
                    folder.rmdir()
        return facts


@contextmanager
def open_run(
    path: Place,
    recipe: Recipe,
    prepare: Callable[[], None],
    jobs: Sequence[Job] = (),
    guest: bool = False,
) -> Iterator[Run]:
    """Hold a run directory, creating it if needed, and open its MLflow run.

    Args:
        jobs: The whole pipeline, of which some may be performed.
        guest: Whether a run that has results keeps its recipe in MLflow.
        prepare: Called before the first job that uses Ray, and again before each other.

    Raises:
        ValueError: If the directory cannot be written, holds a run of an older release, or
            another process holds it.
    """
    with hold(path) as check:
        keys = current_keys(path) if (path / POINTER).exists() else {}
        state = RunState(path, recipe, keys, tuple(job.name for job in jobs))
        with Tracker.open(path, recipe, keeps_recipe=guest and bool(keys)) as tracker:
            yield Run(state, tracker, prepare, check)


def content_key(
    name: str, version: int, recipe: Recipe, sections: tuple[str, ...], inputs: Mapping[str, str]
) -> str:
    """Hash of what a result is made from: its part of the recipe, its inputs and its format."""
    return _hash(name, version, _sections(recipe, sections), inputs)


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


def _hash(job: str, version: int, sections: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    text = json.dumps([job, version, sections, inputs], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=KEY_DIGITS // 2).hexdigest()


def _consistent(path: Place, recipe: Recipe, keys: Mapping[str, str]) -> dict[str, str]:
    """Keep the results that are of this recipe and were made from results that are kept."""
    made_from = {}
    for job, key in keys.items():
        folder = path / job / key
        if not (folder / MANIFEST).is_file():
            log.warning("%s: its result %s is gone", job, folder)
            continue
        manifest = Manifest.read(folder)
        if _is_of(manifest, recipe):
            made_from[job] = manifest.jobs
    found = {job: keys[job] for job in made_from}
    while True:
        stale = [job for job in found if not made_from[job].items() <= found.items()]
        if not stale:
            return found
        for job in stale:
            del found[job]


def _is_of(manifest: Manifest, recipe: Recipe) -> bool:
    """Whether a recipe says what a result was made by."""
    try:
        return _sections(recipe, tuple(manifest.recipe)) == manifest.recipe
    except KeyError:
        # An entry of an older release.
        return False


def _log_found(manifest: Manifest) -> None:
    commit = _commit()
    if manifest.commit is not None and commit not in (None, manifest.commit):
        log.info("%s: made by the code of %s, now %s", manifest.job, manifest.commit, commit)
    log.info("%s: done before, skipped", manifest.job)


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
