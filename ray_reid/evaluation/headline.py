"""What the evaluate job says of itself, and its headline: the figures and what they stand on."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ray_reid.evaluation import refinement
from ray_reid.evaluation.refinement import RefinementFacts
from ray_reid.ranking.open_set import Level
from ray_reid.ranking.protocol_scores import RANKS, SUBJECT_RANKS
from ray_reid.ranking.scoring import UNREFINED
from ray_reid.recipe.base import Frozen
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.sections import Section, Table, flat

HEADLINE = (
    "mAP",
    *(f"rank-{k}" for k in RANKS),
    *(f"subject-rank-{k}" for k in SUBJECT_RANKS),
    "mINP",
)
REFERENCE = "reference_"
"""Begins the names of what the colour histogram scores: the floor, with no learning in it."""
MODEL, FLOOR = "model", "colour histogram (no learning)"


class OpenSetFacts(Frozen):
    """Thresholds of the answers match and possible, or why there are none."""

    missing: str | None = None
    match: float = 0.0
    possible: float = 0.0
    cameras: int = 0
    """Camera pairs with thresholds of their own."""
    levels: dict[str, Level] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)


class EvaluateFacts(Facts):
    """What the evaluate job says."""

    stamp: dict[str, Any] = Field(default_factory=dict)
    """What the figures depend on besides the model."""
    postprocess: dict[str, tuple[dict[str, str | int], ...]] = Field(default_factory=dict)
    """What each step changed, by case."""
    open_set: OpenSetFacts | None = None
    refinement: RefinementFacts | None = None


def section(facts: EvaluateFacts) -> Section:
    """Show the headline figures, what they were measured on, and what came after the ranking."""
    # A run of an earlier release may lack some.
    names = tuple(name for name in HEADLINE if name in facts.metrics)
    rows = _rows(facts, names)
    table = Table("Results", ("", *names), rows, _sentence(facts.stamp), measured=True)
    refined = refinement.table(facts.refinement)
    return Section(
        tables=(table, *(() if refined is None else (refined,))),
        notes=(*_changes(facts), *refinement.notes(facts.refinement), *_thresholds(facts.open_set)),
        details=flat(facts.stamp),
    )


def _rows(facts: EvaluateFacts, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Name and percentages of each line of the headline table, the model's cases first."""
    cases = facts.stamp["cases"]
    both = facts.stamp["both_directions"] or facts.stamp.get("by_source", False)
    # The headline is the first case, or the mean of both directions or of all sources.
    named = {"": "mean" if both else cases[0], **{f"{c}_": c for c in cases[0 if both else 1 :]}}
    rows = []
    for prefix, case in named.items() if len(cases) > 1 else (("", ""),):
        rows.append((f"{MODEL}, {case}" if case else MODEL, *_cells(facts.metrics, names, prefix)))
    if facts.refinement is not None:
        rows.insert(1, (f"{MODEL}, without variants", *_cells(facts.metrics, names, UNREFINED)))
    return (*rows, (FLOOR, *_cells(facts.metrics, names, REFERENCE)))


def _cells(values: Mapping[str, float], names: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Percentages; of several draws with their standard deviation."""
    spread = {name: values.get(f"{prefix}{name}_std") for name in names}
    return tuple(
        f"{100 * values[prefix + name]:.1f} " + ("%" if std is None else f"+- {100 * std:.1f} %")
        for name, std in spread.items()
    )


def _sentence(stamp: Mapping[str, Any]) -> str:
    query, gallery = stamp["query"], stamp["gallery"]
    ways = "both directions, mean" if stamp["both_directions"] else "queries in gallery"
    if stamp.get("by_source"):
        ways = "each source by itself, and their mean"
    if stamp["draws"] > 1:
        ways = f"{ways}, " if stamp.get("by_source") else ""
        ways += f"mean of {stamp['draws']} random draws"
    return (
        f"{query['images']} queries, {gallery['images']} gallery images, {query['identities']} "
        f"identities; {ways}; protocol {stamp['protocol']}, AP {stamp['average_precision']}; "
        f"skipped queries: {sum(stamp['skipped'].values())}; "
        f"images dropped at ingest: {sum(stamp['dropped'].values())}; "
        f"post-processing: {', then '.join(stamp['postprocess']) or 'none'}."
    )


def _changes(facts: EvaluateFacts) -> list[str]:
    """Say what the steps of a post-processing changed."""
    said = []
    for case, changes in facts.postprocess.items():
        for change in changes:
            counts = (f"{value} {name}" for name, value in change.items() if name != "step")
            said.append(f"{case}, {change['step']}: {', '.join(counts)}".replace("_", " "))
    return said


def _thresholds(facts: OpenSetFacts | None) -> list[str]:
    """Say what the thresholds of the open set are worth."""
    if facts is None:
        return []
    if facts.missing is not None:
        return [f"No thresholds for match and possible: {facts.missing}"]
    said = []
    for name, value in (("match", facts.match), ("possible", facts.possible)):
        level = facts.levels[name]
        tar, low, high = (100 * share for share in (level.tar, level.tar_low, level.tar_high))
        said.append(
            f"{name} above {value:.3f}: TAR {tar:.1f} % ({low:.1f} to {high:.1f} %) at "
            f"{level.far:.2g} false matches, {level.target:g} asked for; "
            f"{facts.cameras} camera pairs have thresholds of their own"
        )
    return said
