"""The picture of a sweep: a line, bars, a heat map or panels of dots, as its parameters ask."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_reid.experiments import figures_compare
from ray_reid.recipe import sweeps
from ray_reid.runtime.figures import MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
# From such a ratio of the largest to the smallest value on, an axis is logarithmic.
WIDE = 15
MOST_CURVES = 8
"""Settings whose epochs one picture shows."""


def sweep(rows: Rows, parameters: Sequence[str], metric: str) -> "Figure":
    """Draw a metric over the settings of a sweep.

    Args:
        rows: Of the sweep's table; every one has values of the metric.
        parameters: Dotted keys of the sweep; empty where its settings are arms.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("a sweep needs a setting that was trained to the end")
    columns = {key: [row["changes"][key] for row in rows] for key in parameters}
    if not parameters or (len(parameters) == 1 and not _are_numbers(columns[parameters[0]])):
        shown = dict.fromkeys([metric, "rank-1" if metric != "rank-1" else "mAP"])
        return figures_compare.arms(
            {row["setting"]: {name: row[name]["values"] for name in shown} for row in rows}
        )
    if len(parameters) == 1:
        return _line(rows, parameters[0], metric)
    if len(parameters) == 2 and _repeats(columns):
        return _heat_map(rows, columns, metric)
    return _panels(rows, columns, metric)


def curves(values: Mapping[str, Sequence[float]], what: str) -> "Figure":
    """Draw a figure over the epochs, a line for each setting (Diffusion-ReID, Fig. 8).

    Args:
        values: Setting to one share between 0 and 1 an epoch; at most `MOST_CURVES` settings.
        what: The figure.
    """
    figure = _figure(6.4, 3.6)
    axes = figure.add_subplot()
    styles = itertools.product(("-", "--"), figures_compare.COLOURS)
    for (name, shares), (dashes, colour) in zip(values.items(), styles, strict=False):
        epochs = range(1, len(shares) + 1)
        found = [100 * share for share in shares]
        axes.plot(epochs, found, dashes, color=colour, lw=1.8, marker="o", ms=3, label=name)
    axes.legend(frameon=False, fontsize=8)
    _plain(axes, "epoch", f"{what}, %")
    figure.tight_layout(pad=0.6)
    return figure


def _line(rows: Rows, key: str, metric: str) -> "Figure":
    """Means with their deviations over one parameter, and a dot for each seed."""
    figure = _figure(6.4, 3.6)
    axes = figure.add_subplot()
    order = sorted(rows, key=lambda row: row["changes"][key])
    values = [row["changes"][key] for row in order]
    shares = [[100 * share for share in row[metric]["values"]] for row in order]
    means = [statistics.fmean(found) for found in shares]
    deviations = [statistics.stdev(found) if len(found) > 1 else 0.0 for found in shares]
    axes.errorbar(values, means, yerr=deviations, fmt="-o", color=MODEL, lw=2, ms=5, capsize=3)
    for value, found in zip(values, shares, strict=True):
        ink = figures_compare.INK
        axes.plot([value] * len(found), found, "o", ms=3, mfc="white", mec=ink, mew=0.7)
    _scale(axes, values)
    _plain(axes, key, f"{metric}, %")
    figure.tight_layout(pad=0.6)
    return figure


def _heat_map(rows: Rows, columns: Mapping[str, Sequence[Any]], metric: str) -> "Figure":
    """The means over two parameters, with the deviations where there are several seeds."""
    (across, down), places = columns, {key: _in_order(values) for key, values in columns.items()}
    grid = np.full((len(places[down]), len(places[across])), np.nan)
    figure = _figure(1.6 + 0.95 * grid.shape[1], 1.2 + 0.5 * grid.shape[0])
    axes = figure.add_subplot()
    texts = {}
    for row in rows:
        at = tuple(places[key].index(sweeps.spell(row["changes"][key])) for key in (down, across))
        grid[at] = 100 * row[metric]["mean"]
        std = row[metric]["std"]
        texts[at] = f"{grid[at]:.1f}" + ("" if std is None else f"\n+- {100 * std:.1f}")
    image = axes.imshow(grid, cmap="viridis", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (line, column), text in texts.items():
        ink = "white" if grid[line, column] <= middle else "black"
        axes.text(column, line, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(grid.shape[1]), places[across], fontsize=8)
    axes.set_yticks(range(grid.shape[0]), places[down], fontsize=8)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(down, fontsize=8)
    figure.colorbar(image, label=f"{metric}, %")
    figure.tight_layout(pad=0.6)
    return figure


def _panels(rows: Rows, columns: Mapping[str, Sequence[Any]], metric: str) -> "Figure":
    """A panel for each parameter; every setting is a dot in each."""
    figure = _figure(min(3.2 * len(columns), 12.8), 3.2 * -(-len(columns) // 4))
    means = [100 * row[metric]["mean"] for row in rows]
    for number, (key, values) in enumerate(columns.items(), start=1):
        axes = figure.add_subplot(-(-len(columns) // 4), min(len(columns), 4), number)
        if _are_numbers(values):
            axes.plot(values, means, "o", color=MODEL, ms=5, alpha=0.8)
            _scale(axes, values)
        else:
            names = _in_order(values)
            places = [names.index(sweeps.spell(value)) for value in values]
            axes.plot(places, means, "o", color=MODEL, ms=5, alpha=0.8)
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        _plain(axes, key, f"{metric}, %")
    figure.tight_layout(pad=0.6)
    return figure


def _repeats(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether two parameters make a grid, at least half full, and not a cloud."""
    sizes = [len(_in_order(values)) for values in columns.values()]
    count = len(next(iter(columns.values())))
    return min(sizes) > 1 and 2 * count >= sizes[0] * sizes[1]


def _in_order(values: Sequence[Any]) -> list[str]:
    """Each value once: numbers by size, anything else as it comes."""
    ordered = sorted(values) if _are_numbers(values) else values
    return list(dict.fromkeys(sweeps.spell(value) for value in ordered))


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _scale(axes: "Axes", values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) / min(values) >= WIDE:
        axes.set_xscale("log")
    distinct = sorted(set(values))
    if len(distinct) <= 8:
        axes.set_xticks(distinct, [sweeps.spell(value) for value in distinct])
        axes.set_xticks([], minor=True)


def _plain(axes: "Axes", across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure
