"""The picture of a refinement: what it gains over the share of the queries that it is made for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_reid.runtime.figures import MODEL, REFERENCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORANGE = "#e69f00"


def curve(points: Sequence[Mapping[str, Any]], gate: float | None) -> "Figure":
    """Draw rank-1 and mAP over the share of queries refined, and the seconds that it costs.

    Args:
        points: Mappings of `refined`, `mAP`, `rank1`, shares between 0 and 1, and
            `seconds_per_query`, or null.
        gate: Share that the gate of the recipe refines; null draws none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = [100 * point["refined"] for point in points]
    for name, label, colour in (("rank1", "rank-1", MODEL), ("mAP", "mAP", ORANGE)):
        axes.plot(shares, [100 * p[name] for p in points], ".-", color=colour, label=label, lw=2)
    if gate is not None:
        axes.axvline(100 * gate, color=REFERENCE, ls="--", lw=1, label="gate")
    axes.set_xlabel("queries refined, %", fontsize=8)
    axes.set_ylabel("%", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    seconds = points[-1]["seconds_per_query"]
    if seconds:
        scale: Any = (lambda share: share * seconds / 100, lambda cost: 100 * cost / seconds)
        cost = axes.secondary_xaxis("top", functions=scale)
        cost.set_xlabel("seconds of one actor for a query, on average", fontsize=8)
        cost.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout(pad=0.6)
    return figure
