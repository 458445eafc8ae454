"""What a refinement of queries gains over the share of the queries that it is made for."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray_reid.places import Place
from ray_reid.ranking.scoring import Judged
from ray_reid.recipe.base import Frozen
from ray_reid.runtime import figures
from ray_reid.runtime.facts import VariantCounts, VariantsFacts
from ray_reid.runtime.figures import MODEL, REFERENCE
from ray_reid.runtime.sections import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE = "refinement.png"
ORANGE = "#e69f00"


class RefinedShare(Frozen):
    """What a share of the queries, the least sure ones, gains and costs; shares from 0 to 1."""

    share: float
    """Asked for."""
    refined: float
    """Measured."""
    mAP: float
    rank1: float
    variants_per_query: float
    seconds_per_query: float | None


class RefinementFacts(Frozen):
    """What a refinement gains and costs."""

    queries: VariantCounts | None = None
    gate: dict[str, float] | None = None
    """The margin below which queries are refined, and the shares that lie below it."""
    curve: tuple[RefinedShare, ...] = ()
    missing: str | None = None
    """Why there is no curve."""


def facts_of(judged: Judged, variants: VariantsFacts | None) -> RefinementFacts | None:
    """Return what a refinement gains and costs; nothing where the recipe refines nothing."""
    if judged.unrefined is None:
        return None
    variants = variants or VariantsFacts()
    seconds = variants.seconds_per_query
    return RefinementFacts(
        queries=variants.counts,
        gate=None if judged.gate is None else asdict(judged.gate),
        curve=tuple(
            RefinedShare(
                **asdict(point),
                variants_per_query=point.refined * variants.num_variants,
                seconds_per_query=None if seconds is None else point.refined * seconds,
            )
            for point in judged.curve
        ),
        missing=judged.missing,
    )


def draw(facts: RefinementFacts | None, out: Place) -> dict[str, str]:
    """Write the picture of the curve; returns its file name and caption, if there is a curve."""
    if facts is None or not facts.curve:
        return {}
    figures.save(
        curve(facts.curve, None if facts.gate is None else facts.gate["measured"]), out / CURVE
    )
    caption = (
        "Refining only the queries whose first place is least sure: thresholds of one half of the "
        "identities, figures of the other."
    )
    return {CURVE: caption}


def table(facts: RefinementFacts | None) -> Table | None:
    """Lay the curve out, if there is one."""
    if facts is None or not facts.curve:
        return None
    rows = tuple(
        (
            f"{100 * point.refined:.0f} %",
            f"{100 * point.rank1:.1f} %",
            f"{100 * point.mAP:.1f} %",
            number(point.variants_per_query, 1),
            number(point.seconds_per_query, 2),
        )
        for point in facts.curve
    )
    header = ("queries refined", "rank-1", "mAP", "variants a query", "seconds a query")
    note = (
        "The least sure first: thresholds of one half of the identities, figures of the other; "
        "seconds of one actor."
    )
    return Table("Prediction refinement", header, rows, note, measured=True)


def notes(facts: RefinementFacts | None) -> list[str]:
    """Say how many queries have variants, and what the gate refines."""
    if facts is None:
        return []
    said = []
    if facts.queries is not None and facts.queries.queries:
        count = facts.queries
        said.append(f"{count.with_variants} of {count.queries} queries have variants")
    if facts.gate is not None:
        gate = facts.gate
        said.append(
            f"Refined below a margin of {gate['margin']:.3f}: {100 * gate['calibrated']:.0f} % of "
            f"the queries that it was chosen on, {100 * gate['measured']:.0f} % of the others"
        )
    if facts.missing is not None:
        said.append(f"No figures by share of queries refined: {facts.missing}")
    return said


def curve(points: Sequence[RefinedShare], gate: float | None) -> "Figure":
    """Draw rank-1 and mAP over the share of queries refined, and the seconds that it costs.

    Args:
        points: One for each share of the queries.
        gate: Share that the gate of the recipe refines; null draws none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = [100 * point.refined for point in points]
    for values, label, colour in (
        ([100 * point.rank1 for point in points], "rank-1", MODEL),
        ([100 * point.mAP for point in points], "mAP", ORANGE),
    ):
        axes.plot(shares, values, ".-", color=colour, label=label, lw=2)
    if gate is not None:
        axes.axvline(100 * gate, color=REFERENCE, ls="--", lw=1, label="gate")
    axes.set_xlabel("queries refined, %", fontsize=8)
    axes.set_ylabel("%", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    seconds = points[-1].seconds_per_query
    if seconds:
        scale: Any = (lambda share: share * seconds / 100, lambda cost: 100 * cost / seconds)
        cost = axes.secondary_xaxis("top", functions=scale)
        cost.set_xlabel("seconds of one actor for a query, on average", fontsize=8)
        cost.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout(pad=0.6)
    return figure
