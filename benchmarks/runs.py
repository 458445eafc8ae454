"""What does the run store cost? The jobs of a finished run again, without their work.

Every job says what it said then, at once, so that only keys, manifests, the pointer, the lock and
the marks of readers take time; the reference is how long the jobs took. MLflow's part and that of
the report are apart.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.reporting import Figure, arguments, report

from ray_reid import pipelines
from ray_reid.runtime.facts import Facts, parse
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import Manifest, RunState, reading
from ray_reid.runtime.run import Run, open_run

BAR = 0.03
"""Of the run's own time."""
READERS = 20


class Untracked:
    """A tracker that keeps nothing."""

    @contextmanager
    def job(self, *_: Any) -> Iterator["Untracked"]:
        """The run of a job."""
        yield self

    def log(self, *_: Any) -> None:
        """Forget what a job says."""


def replayed(state: RunState, manifest: Manifest) -> Job:
    """A job that has nothing to do and says what it said."""
    job = next(job for job in pipelines.PIPELINES[state.recipe.name] if job.name == manifest.job)
    facts = parse(job.name, manifest.facts, job.facts)
    # Files are the work of a job; none are made here.
    facts = facts.model_copy(update={"pictures": {}, "model": None})

    def work(_: Work) -> Facts:
        return facts

    return replace(job, work=work, uses_ray=False)


def performed(run: Run, jobs: list[Job]) -> float:
    """Seconds of all jobs, one after the other."""
    started = time.perf_counter()
    for job in jobs:
        run.perform(job)
    return time.perf_counter() - started


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Replay a run in an empty directory, then once more where all is there."""
    state = RunState.read(options.run)
    manifests = state.manifests()
    took = sum(manifest.seconds for manifest in manifests)
    jobs = [replayed(state, manifest) for manifest in manifests]
    of = f"{len(jobs)} jobs, reference their work"
    untracked: Any = Untracked()
    with tempfile.TemporaryDirectory(prefix="runs-") as directory:
        path = Path(directory) / "run"
        path.mkdir()
        empty = replace(state, path=path, keys={})
        first = performed(Run(empty, untracked, lambda: None), jobs)
        yield Figure(f"store, {of}", first, "s", took, BAR)
        again = performed(Run(RunState.read(path), untracked, lambda: None), jobs)
        yield Figure("store, where all is done before; reference the first time", again, "s", first)
        started = time.perf_counter()
        for _ in range(READERS):
            with reading(path):
                pass
        each = (time.perf_counter() - started) / READERS
        yield Figure("a reader opens and leaves a run", each, "s")
        yield Figure("files of the store", sum(map(Path.is_file, path.rglob("*"))), "files")
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        whole = sum(file.stat().st_size for file in options.run.rglob("*") if file.is_file())
        yield Figure("bytes of the store; reference the run", size / 1e6, "MB", whole / 1e6)
        started = time.perf_counter()
        with open_run(Path(directory) / "tracked", state.recipe, lambda: None) as held:
            performed(held, jobs)
        tracked = time.perf_counter() - started
        yield Figure("with MLflow but its files, reference their work", tracked, "s", took)
        # What is written replaces a name and leaves the run as it is.
        copy = shutil.copytree(options.run, Path(directory) / "copy", copy_function=os.link)
        started = time.perf_counter()
        pipelines.write_report(replace(state, path=copy))
        yield Figure("report, reference their work", time.perf_counter() - started, "s", took)


def main() -> None:
    """Parse the options and print."""
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run")
    options = parser.parse_args()
    if not (options.run / "run.json").is_file():
        sys.exit(f"runs: there is no run in {str(options.run)!r}; 'make demo' makes one, or --run")
    report(measure(options), options.json)


if __name__ == "__main__":
    main()
