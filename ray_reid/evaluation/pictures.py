"""Which images of an evaluation are shown: chosen by a rule that the caption states."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_reid import images, storage
from ray_reid.places import Place
from ray_reid.ranking import metrics
from ray_reid.ranking.metrics import Metrics
from ray_reid.ranking.scoring import Side
from ray_reid.recipe.evaluate import Evaluate
from ray_reid.runtime import figures
from ray_reid.runtime.figures import Card

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ReadImages = Callable[[Sequence[str]], Mapping[str, bytes]]
"""Encoded images by observation id."""
ReadPaths = Callable[[Sequence[str]], Mapping[str, str | None]]
"""Files that they were read from by observation id; null where that is not known."""

RULE = (
    "The queries lie evenly spaced in the list of all queries sorted by average precision, "
    "worst to best; nobody picked them."
)
LABEL_LENGTH = 12


class Maps(Protocol):
    """What the pictures need of a model package."""

    def activation_maps(self, inputs: Sequence[bytes]) -> NDArray[np.float32]:
        """Give (N, h, w) in [0, 1] for encoded images."""
        ...


def draw(
    query: Side,
    gallery: Side,
    found: Mapping[str, Metrics],
    read: ReadImages,
    model: Maps | None,
    spec: Evaluate,
    out: Place,
    paths: ReadPaths = lambda ids: dict.fromkeys(ids),
) -> dict[str, str]:
    """Write the pictures of an evaluation into a directory.

    Args:
        query: The queries.
        gallery: What they were searched in.
        found: Name to forward metrics; the first are the model's.
        read: Fetches images of the test.
        model: Gives the activation maps; null leaves them out.
        spec: How many of what.
        out: An existing directory.
        paths: Fetches what files images were read from; those of the rankings are named.

    Returns:
        File name to caption, in the order in which to show them.
    """
    ap = next(iter(found.values())).ap
    figures.save(_ranked(query, gallery, ap, read, spec, paths), out / "ranked_list.jpg")
    curves = {name: result.cmc for name, result in found.items()}
    figures.save(figures.cmc_curves(curves), out / "cmc.png")
    captions = {
        "ranked_list.jpg": "Each row is a query, then the gallery images nearest to it with their "
        "similarity. Green: the same identity. Red, dashed: another. Images of the query's "
        f"identity and camera are left out, as the protocol says. {RULE}",
        "cmc.png": "The share of queries that find a true match among the first k images.",
    }
    chosen = _subset(query, gallery, spec.max_tsne)
    # Of embeddings that are all the same there is nothing to project.
    if len(chosen) > 3 and np.ptp(_joined(query, gallery)[chosen], axis=0).max() > 0:
        figures.save(_scatter(query, gallery, chosen), out / "tsne.png")
        captions["tsne.png"] = (
            "t-SNE of the embeddings: colour is the identity, shape the camera. At most "
            f"{figures.MAX_COLOURS} identities, evenly spaced in the list of all."
        )
    if model is not None and spec.num_maps:
        figures.save(_maps(query, ap, read, model, spec.num_maps), out / "activation_maps.jpg")
        captions["activation_maps.jpg"] = (
            f"Where the network responds, from dark (least) to bright (most). {RULE}"
        )
    return captions


def spread(ap: NDArray[np.float64], count: int) -> list[int]:
    """Query rows evenly spaced over the sorted average precisions, worst first; no skipped one."""
    valid = np.flatnonzero(~np.isnan(ap))
    ranked = valid[np.argsort(ap[valid], kind="stable")]
    return [int(row) for row in ranked[storage.evenly_spaced(len(ranked), count)]]


def ranking(query: Side, gallery: Side, row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Gallery rows of one query without junk, nearest first, and their similarities.

    Of equally similar images the wrong ones come first, as in the metrics.
    """
    own = metrics.unit(query.embedding[row : row + 1], "query")[0]
    similarity = metrics.unit(gallery.embedding, "gallery") @ own
    identity, camera = query.identity[row], query.camera[row]
    match = np.array([identity is not None and other == identity for other in gallery.identity])
    near = np.array([camera is not None and other == camera for other in gallery.camera])
    order = np.lexsort((match, -np.rint(similarity * metrics.GRID)))
    kept = order[~(match & near)[order]]
    return kept, similarity[kept]


def _ranked(
    query: Side,
    gallery: Side,
    ap: NDArray[np.float64],
    read: ReadImages,
    spec: Evaluate,
    paths: ReadPaths,
) -> "Figure":
    rankings = {row: ranking(query, gallery, row) for row in spread(ap, spec.num_ranked)}
    shown = {row: [int(at) for at in found[: spec.top_k]] for row, (found, _) in rankings.items()}
    ids = {query.observation_id[row] for row in shown}
    ids |= {gallery.observation_id[at] for top in shown.values() for at in top}
    pixels = {key: images.decode(encoded) for key, encoded in read(sorted(ids)).items()}
    files = {key: path for key, path in paths(sorted(ids)).items() if path is not None}

    def about(side: Side, row: int) -> str:
        file = files.get(side.observation_id[row])
        return _about(side, row) + (f"\n{_short(file)}" if file else "")

    rows, captions = [], []
    for row, (found, similarity) in rankings.items():
        identity = query.identity[row]
        cards = [Card(pixels[query.observation_id[row]], f"query {about(query, row)}", "query")]
        for at, value in zip(shown[row], similarity, strict=False):
            frame: figures.Frame = "match" if gallery.identity[at] == identity else "other"
            caption = f"{value:.2f} {about(gallery, at)}"
            cards.append(Card(pixels[gallery.observation_id[at]], caption, frame))
        rows.append(cards)
        matches = sum(gallery.identity[at] == identity for at in found)
        captions.append(
            f"AP {ap[row]:.2f}, above {int((ap < ap[row]).sum())} of {(~np.isnan(ap)).sum()} "
            f"queries; true matches: {matches} of {len(found)} gallery images"
        )
    return figures.ranked_lists(rows, captions)


def _maps(
    query: Side, ap: NDArray[np.float64], read: ReadImages, model: Maps, count: int
) -> "Figure":
    rows = spread(ap, count)
    ids = [query.observation_id[row] for row in rows]
    encoded = read(ids)
    heat = model.activation_maps([encoded[key] for key in ids])
    captions = [_about(query, row).replace("\n", ", ") for row in rows]
    return figures.activation_maps([images.decode(encoded[key]) for key in ids], heat, captions)


def _subset(query: Side, gallery: Side, limit: int) -> list[int]:
    """Rows of query and gallery together: all images of some identities, at most `limit`."""
    identity = [*query.identity, *gallery.identity]
    names = sorted({name for name in identity if name is not None})
    shown = {names[place] for place in storage.evenly_spaced(len(names), figures.MAX_COLOURS)}
    rows = [row for row, name in enumerate(identity) if name in shown]
    return [rows[place] for place in storage.evenly_spaced(len(rows), limit)]


def _scatter(query: Side, gallery: Side, rows: Sequence[int]) -> "Figure":
    from sklearn.manifold import TSNE

    embedding = _joined(query, gallery)[rows]
    # The default perplexity of 30 must stay below the number of points.
    perplexity = min(30.0, (len(rows) - 1) / 3)
    projection = TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=0)
    points = projection.fit_transform(metrics.unit(embedding, "shown").astype(np.float32))
    identity = [[*query.identity, *gallery.identity][row] for row in rows]
    camera = [[*query.camera, *gallery.camera][row] for row in rows]
    labels = {name: _label(name) for name in set(identity)}
    if len(set(labels.values())) < len(labels):
        # Two sources may number their identities alike.
        labels = {name: str(name) for name in labels}
    return figures.scatter(
        points, [labels[name] for name in identity], [place or "none" for place in camera]
    )


def _joined(query: Side, gallery: Side) -> NDArray[np.float32]:
    return np.concatenate([query.embedding, gallery.embedding])


def _about(side: Side, row: int) -> str:
    identity, camera = side.identity[row], side.camera[row]
    place = "no camera" if camera is None else f"cam {_short(camera)}"
    return f"{'distractor' if identity is None else _label(identity)}\n{place}"


def _label(identity: str | None) -> str:
    return _short(str(identity).rpartition(":")[2])


def _short(text: str) -> str:
    short = text if len(text) <= LABEL_LENGTH else f"..{text[2 - LABEL_LENGTH :]}"
    # Matplotlib reads what stands between two dollars as mathematics.
    return short.replace("$", r"\$")
