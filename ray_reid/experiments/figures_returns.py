"""The picture of the synthetic-return report: what added images gain, a panel for each budget."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_reid.experiments import figures_compare, returns_table
from ray_reid.experiments.returns import ADDED
from ray_reid.experiments.returns_table import BUDGETS
from ray_reid.runtime.figures import MODEL, REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "kept": (MODEL, "o"),
    "all": ("#e69f00", "s"),
    "random": ("#009e73", "^"),
    "real": (figures_compare.INK, "D"),
}
# Curves stand this far apart, so that their intervals can be told apart.
APART = 1.035


def curves(found: Mapping[str, Any]) -> "Figure":
    """Draw gains in mAP over the number of added images; a ring is where to stop.

    Args:
        found: What `returns_table.result` returns; it has a point.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    budgets = [one for one in BUDGETS if any(p["budget"] == one for p in found["points"])]
    figure = Figure(figsize=(0.8 + 4.4 * len(budgets), 4.1), facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for axes, budget in zip(panels, budgets, strict=True):
        _panel(axes, found, budget)
    panels[0].set_ylabel("gain in mAP over real images only, points", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.tight_layout(pad=0.6, rect=(0, 0.07, 1, 1))
    return figure


def _panel(axes: "Axes", found: Mapping[str, Any], budget: str) -> None:
    axes.axhline(0, color=REFERENCE, lw=1.2, zorder=1)
    stops = {one["arm"]: one["stop"] for one in found["advice"] if one["budget"] == budget}
    every = {arm: returns_table.intervals(found, budget, arm) for arm in ADDED}
    curves = {arm: curve for arm, curve in every.items() if curve}
    for place, (arm, curve) in enumerate(curves.items()):
        colour, marker = STYLES[arm]
        across = [images * APART ** (place - 1.5) for images, _ in curve]
        means = [100 * gain.mean for _, gain in curve]
        # Of intervals without a width the arithmetic may make less than none.
        spans = [
            [100 * max(0.0, gain.mean - gain.low) for _, gain in curve],
            [100 * max(0.0, gain.high - gain.mean) for _, gain in curve],
        ]
        style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5, "lw": 1.5}
        axes.errorbar(across, means, yerr=spans, label=ADDED[arm], capsize=2, elinewidth=1, **style)
        names = [p["setting"] for p in found["points"] if (p["budget"], p["arm"]) == (budget, arm)]
        if stops[arm] is not None:
            where = names.index(stops[arm])
            axes.plot(across[where], means[where], "o", ms=12, mfc="none", mec=colour, mew=1.5)
    axes.set_xscale("log")
    shown = curves["all"] if "all" in curves else next(iter(curves.values()))
    ticks = sorted({round(images) for images, _ in shown})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_title(BUDGETS[budget], fontsize=9)
    axes.set_xlabel("images added", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
