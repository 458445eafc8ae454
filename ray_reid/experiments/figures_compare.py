"""The picture of a comparison: bars of the arms, with every seed to be seen."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_reid.runtime.figures import MODEL, REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito, like those of the other pictures.
COLOURS = (MODEL, "#e69f00", "#009e73", REFERENCE)
INK = "#333333"


def arms(values: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """Draw arms from top to bottom: of each metric a bar of the mean, and a dot for each seed.

    Args:
        values: Arm to metric to the values of its seeds, shares between 0 and 1; all arms have
            the same metrics, at most four.

    Raises:
        ValueError: If there is no arm.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not values:
        raise ValueError("a comparison needs an arm")
    names = list(next(iter(values.values())))
    figure = Figure(figsize=(7.4, 0.9 + 0.24 * (len(names) + 1) * len(values)), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    thick = 0.8 / len(names)
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        for place, metrics in enumerate(values.values()):
            height = place + (number - (len(names) - 1) / 2) * thick
            _bar(axes, height, thick, metrics[name], colour, name if place == 0 else None)
    axes.set_yticks(range(len(values)), list(values), fontsize=9)
    axes.invert_yaxis()
    most = max(max(found) for metrics in values.values() for found in metrics.values())
    axes.set_xlim(0, 115 * most + 6)
    axes.set_xlabel("%", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="upper right", ncols=len(names), frameon=False, fontsize=8)
    figure.tight_layout(pad=0.6, rect=(0, 0, 1, 1 - 0.22 / figure.get_figheight()))
    return figure


def _bar(
    axes: "Axes",
    height: float,
    thick: float,
    shares: Sequence[float],
    colour: str,
    name: str | None,
) -> None:
    """The mean with its deviation, the seeds on it, and the number beside them."""
    found = [100 * share for share in shares]
    mean, right = statistics.fmean(found), max(found)
    axes.barh(height, mean, 0.92 * thick, color=colour, label=name)
    if len(found) > 1:
        deviation = statistics.stdev(found)
        axes.errorbar(mean, height, xerr=deviation, color=INK, lw=1, capsize=2)
        right = max(right, mean + deviation)
    axes.plot(found, [height] * len(found), "o", ms=3.5, mfc="white", mec=INK, mew=0.8)
    shift: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(f"{mean:.1f}", (right, height), fontsize=7.5, **shift)
