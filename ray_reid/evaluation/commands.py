"""Commands of `ray-reid` that tell of runs: what they hold, and what they no longer need."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

from ray_reid.runtime.arguments import place

Command = tuple[
    Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int | None], str
]
"""What adds its arguments, what does it, and its purpose."""


def _add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place)
    parser.add_argument("job", help="name of a job, such as train")


def _path(options: argparse.Namespace) -> None:
    from ray_reid.runtime.results import RunState

    print(RunState.read(options.run).folder(options.job))


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=place, help="parent of the run directories")


def _runs(options: argparse.Namespace) -> None:
    from ray_reid.evaluation.runs import overview
    from ray_reid.runtime.sections import aligned

    print(aligned(overview(options.folder)))


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=place, help="run directory")
    parser.add_argument("second", type=place, help="run directory")


def _diff(options: argparse.Namespace) -> None:
    from ray_reid.evaluation import runs
    from ray_reid.runtime.sections import aligned

    found = runs.difference(options.first, options.second)
    names = [str(path) for path in (options.first, options.second)]
    shown = runs.tables(found, names)
    print("\n\n".join(f"{table.title}\n{aligned(table)}" for table in shown))


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place)
    parser.add_argument("--yes", action="store_true", help="remove what is listed")


def _prune(options: argparse.Namespace) -> None:
    from ray_reid.runtime.prune import leftovers, prune

    found = prune(options.run) if options.yes else leftovers(options.run)
    for one in found:
        print(f"{one.folder}: {one.num_bytes / 1e6:.1f} MB, {one.kind}")
    total = sum(one.num_bytes for one in found) / 1e6
    if not found:
        print(f"{options.run}: nothing to remove")
    elif options.yes:
        print(f"removed: {len(found)}, {total:.1f} MB")
    else:
        print(f"to be removed with --yes: {len(found)}, {total:.1f} MB")


def _add_fingerprint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=place, help="run, or any folder with tables")


def _fingerprint(options: argparse.Namespace) -> None:
    from ray_reid import storage
    from ray_reid.runtime.results import POINTER, RunState, check_layout

    check_layout(options.directory)
    is_run = (options.directory / POINTER).exists()
    tables = (
        RunState.read(options.directory).tables() if is_run else storage.tables(options.directory)
    )
    if not tables:
        raise ValueError(f"no tables under {str(options.directory)!r}")
    for name, path in tables.items():
        print(json.dumps(asdict(storage.fingerprint(path, name))))


COMMANDS: Mapping[str, Command] = {
    "runs": (_add_runs, _runs, "list the runs in a folder with their figures"),
    "diff": (_add_diff, _diff, "show what two runs differ in"),
    "path": (_add_path, _path, "print where the current result of a job is"),
    "prune": (_add_prune, _prune, "remove results that are no longer current"),
    "fingerprint": (_add_fingerprint, _fingerprint, "hash the tables of a run"),
}
