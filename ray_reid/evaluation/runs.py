"""Runs beside each other: what a folder of them holds, and what two of them differ in."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_reid.evaluation.evaluate import FILE
from ray_reid.evaluation.headline import HEADLINE
from ray_reid.evaluation.report import EVALUATE, headline
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.runtime.holding import driver
from ray_reid.runtime.results import POINTER, RunState
from ray_reid.runtime.sections import Table

INDIFFERENT = ("version",)
"""Entries of a stamp that make figures of two runs no less comparable."""


@dataclass(frozen=True)
class Difference:
    """What two runs differ in: dotted names, and what each of both has."""

    recipe: Mapping[str, tuple[str, str]]
    stamp: Mapping[str, tuple[str, str]]
    metrics: Mapping[str, tuple[float | None, float | None]]

    @property
    def comparable(self) -> bool:
        """Whether both were measured alike, so that their figures may be ranked."""
        return not set(self.stamp) - set(INDIFFERENT)


def overview(folder: Place) -> Table:
    """List the runs directly under a folder, the newest first.

    Raises:
        ValueError: If there is none.
    """
    found = [file.parent for file in folder.glob(f"*/{POINTER}")]
    if not found:
        raise ValueError(f"no runs in {str(folder)!r}: no folder in it has a {POINTER}")
    found.sort(key=_written, reverse=True)
    header = ("run", "recipe", "profile", "written", "state", *HEADLINE)
    return Table("Runs", header, tuple(map(_line, found)))


def difference(first: Place, second: Place) -> Difference:
    """Compare the recipes, protocol stamps and figures of two runs.

    Raises:
        ValueError: If one is no run, or is not evaluated yet.
    """
    states = [RunState.read(path) for path in (first, second)]
    whole = [state.recipe.model_dump(mode="json") for state in states]
    results = [_evaluated(state) for state in states]
    figures = [result["metrics"] for result in results]
    return Difference(
        _unlike(*whole),
        _unlike(*(result["stamp"] for result in results)),
        {name: (figures[0].get(name), figures[1].get(name)) for name in _names(*figures)},
    )


def tables(found: Difference, names: Sequence[str]) -> list[Table]:
    """Lay out a difference of runs of these names; unlike stamps give no third column."""
    shown = []
    for title, part in (("Recipe", found.recipe), ("Protocol stamp", found.stamp)):
        if part:
            shown.append(Table(title, ("", *names), tuple((n, *both) for n, both in part.items())))
    rows = []
    for name, (one, other) in found.metrics.items():
        row = [name, _percent(one), _percent(other)]
        if found.comparable:
            row.append("" if one is None or other is None else f"{100 * (other - one):+.1f}")
        rows.append(tuple(row))
    note = (
        "In percent; the last column is the second less the first, in points."
        if found.comparable
        else "In percent. The protocol stamps differ: these figures must not be ranked."
    )
    header = ("", *names, *(["difference"] if found.comparable else []))
    return [*shown, Table("Figures", header, tuple(rows), note)]


def _line(run: Place) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(_written(run)))
    try:
        state = RunState.read(run)
        figures, progress = headline(state), _progress(state)
    except ValueError as error:
        # One run that cannot be read hides no other.
        return (run.name, "-", "-", when, str(error), *("-" for _ in HEADLINE))
    recipe = state.recipe
    shown = (_percent(figures.get(name)) for name in HEADLINE)
    return (run.name, recipe.name, recipe.profile, when, progress, *shown)


def _progress(state: RunState) -> str:
    process = driver(state.path)
    if process is not None:
        return f"{process} is working"
    lacking = [job for job in state.jobs if job not in state]
    return f"lacks {', '.join(lacking)}" if lacking else "complete"


def _written(run: Place) -> float:
    return (run / POINTER).stat().st_mtime


def _evaluated(state: RunState) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((state.folder(EVALUATE) / FILE).read_text())
    return result


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _names(*values: Mapping[str, Any]) -> list[str]:
    """Names of all, in the order in which they come."""
    return list(dict.fromkeys(name for one in values for name in one))


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Entries that differ, by dotted name."""
    flat = recipes.flatten(one), recipes.flatten(other)
    return {
        name: (flat[0].get(name, "-"), flat[1].get(name, "-"))
        for name in _names(*flat)
        if flat[0].get(name) != flat[1].get(name)
    }
