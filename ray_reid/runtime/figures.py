"""Pictures of a run, drawn from arrays; no state, no screen, one small PNG each."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ray_reid import places
from ray_reid.images import Pixels
from ray_reid.places import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Frame = Literal["match", "other", "query", "plain"]
# Okabe and Ito's colours stay apart for colour-blind readers; wrong results are dashed as well.
FRAMES: Mapping[Frame, tuple[str, str]] = {
    "match": ("#009e5a", "solid"),
    "other": ("#d62728", (0, (4, 2))),  # type: ignore[dict-item]
    "query": ("#333333", "solid"),
    "plain": ("#eeeeee", "solid"),
}
MODEL, REFERENCE = "#0072b2", "#999999"
MARKERS = "o^sDvP*X<>ph"
DPI = 110
# More identities than this cannot be told apart by colour.
MAX_COLOURS = 20
# Pixels that all images of a contact sheet share, so that its PNG stays below 1.5 MB.
SHEET_PIXELS = 640_000


@dataclass(frozen=True)
class Card:
    """One image of a ranked list or a contact sheet."""

    pixels: Pixels
    caption: str
    frame: Frame = "plain"


def ranked_lists(rows: Sequence[Sequence[Card]], captions: Sequence[str]) -> "Figure":
    """Draw one query a row, its results to the right, nearest first.

    Args:
        rows: Each the query, then its results; rows may differ in length.
        captions: A line above each row.
    """
    columns = max(len(row) for row in rows)
    shape = _shape([card.pixels for row in rows for card in row])
    proportion = shape[0] / shape[1]
    # Inches: tall images are drawn narrower, so that a list of people fits a screen as well.
    lines = max(card.caption.count("\n") + 1 for row in rows for card in row)
    wide, above, gap = 1.12 / max(1.0, proportion) ** 0.5, 0.24, 0.08
    below = 0.12 * (lines + 1)
    tall = wide * proportion + above + below
    whole_width, whole_height = columns * (wide + gap) + gap, len(rows) * tall + gap
    figure = _figure(whole_width, whole_height)
    for row, (cards, caption) in enumerate(zip(rows, captions, strict=True)):
        top = whole_height - row * tall - above
        bottom = (top - wide * proportion) / whole_height
        for column, card in enumerate(cards):
            left = (gap + column * (wide + gap)) / whole_width
            size = wide / whole_width, wide * proportion / whole_height
            _card(figure.add_axes((left, bottom, *size)), card, shape)
        figure.text(gap / whole_width, (top + 0.05) / whole_height, caption, fontsize=8)
    return figure


def activation_maps(
    images: Sequence[Pixels], maps: NDArray[np.float32], captions: Sequence[str]
) -> "Figure":
    """Draw each image beside itself under the heat of its map.

    Args:
        images: (H, W, 3) each.
        maps: (N, h, w) in [0, 1]; 1 is where the network looks most.
        captions: One line an image.
    """
    columns = min(3, len(images))
    lines = -(-len(images) // columns)
    height, width = _shape(images)
    tall = 1.45 * height / width + 0.35
    figure = _figure(2 * 1.45 * columns + 0.3 * columns, tall * lines + 0.1)
    grid = figure.subplots(lines, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (pixels, heat, caption) in enumerate(zip(images, maps, captions, strict=True)):
        plain, heated = grid[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
        whole = _fit(pixels, (height, width))
        plain.imshow(whole)
        plain.set_title(caption, fontsize=8, loc="left", pad=3)
        heated.imshow(_heat(whole, heat))
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.3 / (tall * lines), 0.05, 0.28)
    return figure


def contact_sheet(groups: Mapping[str, Sequence[Card]], columns: int = 8) -> "Figure":
    """Draw images in a grid, each above its caption and all below the heading of their group.

    An image keeps its proportions; what it leaves of its cell is grey.

    Args:
        groups: Heading to images; an empty heading takes no room.
        columns: Images side by side.

    Raises:
        ValueError: If there is no image.
    """
    cards = [card for group in groups.values() for card in group]
    if not cards:
        raise ValueError("a contact sheet needs an image")
    columns = max(1, min(columns, max(len(group) for group in groups.values())))
    cell = _cell(cards)
    gap, title, line = 8, 26, 11
    # A letter of this size is about 5 pixels wide.
    texts = [textwrap.wrap(card.caption, cell[1] // 5, max_lines=3) for card in cards]
    tall = cell[0] + 4 + line * max(len(text) for text in texts) + gap
    tops, height = [], gap
    for heading, group in groups.items():
        tops.append(height)
        height += (title if heading else 0) + tall * -(-len(group) // columns)
    width = gap + columns * (cell[1] + gap)
    # A heading may be wider than few images; its letters are about 8 pixels wide.
    width = max([width, *(gap + 8 * len(heading) for heading in groups)])
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    figure = _figure(width / DPI, height / DPI)
    left_out = iter(texts)
    for (heading, group), top in zip(groups.items(), tops, strict=True):
        if heading:
            _text(figure, heading, (gap, top + 2), canvas.shape, 9)
        for place, card in enumerate(group):
            x = gap + place % columns * (cell[1] + gap)
            y = top + (title if heading else 0) + place // columns * tall
            canvas[y : y + cell[0], x : x + cell[1]] = _matted(card, cell)
            _text(figure, "\n".join(next(left_out)), (x, y + cell[0] + 3), canvas.shape, 6)
    figure.figimage(canvas, resize=False)
    return figure


def scatter(
    points: NDArray[np.floating[Any]], identities: Sequence[str], cameras: Sequence[str]
) -> "Figure":
    """Draw (N, 2) points, a colour for each identity and a marker for each camera.

    Raises:
        ValueError: If there are more identities than colours.
    """
    names, places = sorted(set(identities)), sorted(set(cameras))
    if len(names) > MAX_COLOURS:
        raise ValueError(f"{len(names)} identities are more than {MAX_COLOURS} colours can show")
    figure = _figure(8.4, 5.6)
    axes = figure.add_axes((0.015, 0.02, 0.72, 0.96))
    colours = _colours(len(names))
    camera, identity = np.asarray(cameras), np.asarray(identities)
    for number, place in enumerate(places):
        at = camera == place
        shades = [colours[names.index(name)] for name in identity[at]]
        marker = MARKERS[number % len(MARKERS)]
        axes.scatter(
            points[at, 0], points[at, 1], c=shades, marker=marker, s=34, alpha=0.85, linewidths=0
        )
    axes.set_xticks([])
    axes.set_yticks([])
    _keys(figure, names, colours, places)
    return figure


def cmc_curves(curves: Mapping[str, NDArray[np.float64]], max_rank: int = 50) -> "Figure":
    """Draw CMC curves: the share of queries with a true match among the first k images.

    Args:
        curves: Name to (G,) shares, rank 1 first; the first is the model, the others are grey.
        max_rank: Where the axis ends, or at the end of the longest curve.
    """
    end = min(max_rank, max(len(curve) for curve in curves.values()))
    figure, axes = _plot(6.4, 3.6)
    for number, (name, curve) in enumerate(curves.items()):
        colour, style = (MODEL, "-") if number == 0 else (REFERENCE, "--")
        ranks = np.arange(1, min(end, len(curve)) + 1)
        label = f"{name} (rank-1 {100 * curve[0]:.1f} %)"
        axes.plot(ranks, 100 * curve[: len(ranks)], style, color=colour, lw=2, label=label)
    axes.set_xlim(1, max(end, 2))
    axes.set_xticks([1, *range(5, end + 1, 5)] if end <= 25 else [1, *range(10, end + 1, 10)])
    axes.set_ylim(0, 102)
    axes.set_xlabel("rank k")
    axes.set_ylabel("queries with a true match in the first k, %")
    axes.legend(loc="lower right", frameon=False)
    return figure


def distribution(curves: Mapping[str, Sequence[float]], what: str, of: str) -> "Figure":
    """Draw which share of some things has at most so many: one rising line a set of counts.

    Args:
        curves: Name to the count of each thing.
        what: What is counted, for the axis.
        of: The things, for the axis.
    """
    figure, axes = _plot(6.4, 4.0)
    colours = _colours(len(curves))
    styles = ("-", "--", "-.", ":")
    for number, (name, counts) in enumerate(curves.items()):
        ordered = np.sort(np.asarray(counts, dtype=np.float64))
        shares = 100 * np.arange(1, len(ordered) + 1) / max(1, len(ordered))
        axes.step(
            np.r_[0.0, ordered], np.r_[0.0, shares], where="post", label=name,
            color=colours[number], linestyle=styles[number % len(styles)], linewidth=1.6,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_ylim(0, 102)
    axes.set_xlabel(what)
    axes.set_ylabel(f"{of} with at most so many, %")
    axes.legend(loc="best", frameon=False, fontsize=8)
    return figure


def training_curve(history: Sequence[Mapping[str, float]]) -> "Figure":
    """Draw what was measured in each epoch, one small panel a quantity."""
    names = [name for name in history[0] if name != "epoch"]
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure = _figure(2.1 * columns, 1.8 * lines)
    epochs = [step["epoch"] + 1 for step in history]
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, columns, number)
        axes.plot(epochs, [step.get(name, np.nan) for step in history], ".-", color=MODEL, ms=5)
        axes.set_title(name.replace("_", " "), fontsize=9, loc="left")
        _plain(axes)
        axes.set_xlabel("epoch", fontsize=8)
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.locator_params(axis="y", nbins=5)
    figure.tight_layout(pad=0.6)
    return figure


def png(figure: "Figure") -> bytes:
    """Encode a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def save(figure: "Figure", file: Place) -> None:
    """Write a figure: PNG for curves and dots, JPEG (`.jpg`) for what shows photographs."""
    kind, lossy = ("jpg", {"quality": 88}) if file.suffix == ".jpg" else ("png", {})
    with places.created(file) as picture:
        figure.savefig(picture, format=kind, dpi=DPI, pil_kwargs=lossy)


def _figure(width: float, height: float) -> "Figure":
    # The object interface needs no pyplot, hence no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _plot(width: float, height: float) -> "tuple[Figure, Axes]":
    figure = _figure(width, height)
    axes = figure.add_axes((0.11, 0.14, 0.86, 0.82))
    _plain(axes)
    return figure, axes


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=8)


def _card(axes: "Axes", card: Card, shape: tuple[int, int]) -> None:
    colour, style = FRAMES[card.frame]
    axes.imshow(_fit(card.pixels, shape))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linestyle=style, linewidth=2.6)
    axes.set_xlabel(card.caption, fontsize=6.5, labelpad=2.5, linespacing=1.1)


def _cell(cards: Sequence[Card]) -> tuple[int, int]:
    """Height and width in pixels of a contact sheet's cells, of the images' usual proportions."""
    shapes = np.array([card.pixels.shape[:2] for card in cards], dtype=float)
    proportion = float(np.clip(np.median(shapes[:, 0] / shapes[:, 1]), 0.5, 2))
    area = min(128**2, SHEET_PIXELS / len(cards))
    width = max(64, round((area / proportion) ** 0.5))
    return round(width * proportion), width


def _matted(card: Card, cell: tuple[int, int]) -> Pixels:
    """An image in the middle of a grey cell, as large as fits, in the colour of its frame."""
    from PIL import Image

    mat = Image.new("RGB", (cell[1], cell[0]), FRAMES["plain"][0])
    height, width = card.pixels.shape[:2]
    scale = min(cell[0] / height, cell[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(card.pixels).resize(size, Image.Resampling.LANCZOS)
    mat.paste(image, ((cell[1] - size[0]) // 2, (cell[0] - size[1]) // 2))
    if card.frame != "plain":
        from PIL import ImageDraw

        edge = (0, 0, cell[1] - 1, cell[0] - 1)
        ImageDraw.Draw(mat).rectangle(edge, outline=FRAMES[card.frame][0], width=3)
    return np.asarray(mat)


def _text(
    figure: "Figure", text: str, place: tuple[int, int], shape: tuple[int, ...], size: float
) -> None:
    """Write below a place, (x, y) in pixels from the top left of a sheet of (height, width)."""
    x, y = place[0] / shape[1], 1 - place[1] / shape[0]
    # People's words may hold dollars, which are not meant as mathematics.
    figure.text(x, y, text, fontsize=size, va="top", linespacing=1.1, parse_math=False)


def _keys(
    figure: "Figure", names: Sequence[str], colours: Sequence[Any], places: Sequence[str]
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker="o", color=colour, label=name)
        for name, colour in zip(names, colours, strict=True)
    ]
    shared: dict[str, Any] = {"loc": "upper left", "frameon": False, "fontsize": 7.5}
    figure.legend(handles=handles, title="identity", bbox_to_anchor=(0.74, 0.99), **shared)
    marks = [
        Line2D([], [], ls="", marker=MARKERS[n % len(MARKERS)], color="#555555", label=place)
        for n, place in enumerate(places)
    ]
    figure.legend(handles=marks, title="camera", bbox_to_anchor=(0.88, 0.99), **shared)


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "tab20"]
    return [palette(number) for number in range(count)]


def _heat(pixels: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Blend an image with its map, resized to it: the warmer, the less of the image is left."""
    from matplotlib import colormaps
    from PIL import Image

    size = (pixels.shape[1], pixels.shape[0])
    level = np.asarray(
        Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    )
    colour = 255 * colormaps["inferno"](np.clip(level, 0, 1))[..., :3]
    blended: Pixels = (0.45 * pixels + 0.55 * colour).astype(np.uint8)
    return blended


def _shape(pictures: Sequence[Pixels]) -> tuple[int, int]:
    """Common (height, width) to draw at: the median proportions, at most 128 pixels wide."""
    proportion = float(np.median([picture.shape[0] / picture.shape[1] for picture in pictures]))
    width = min(128, max(picture.shape[1] for picture in pictures))
    return max(1, round(width * proportion)), width


def _fit(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    """Resize to (height, width), as the network does: proportions are not kept."""
    from PIL import Image

    image = Image.fromarray(pixels)
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
