"""What the kernels of ranks work on: embeddings as given, and items in order of their identity.

Gallery images of one identity are laid side by side, so the wrong ones of a query are two plain
stretches of its row of similarities. An item is an image, or a track of them.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking import match_kernels, similarity_kernels
from ray_reid.ranking.labels import SIDES, Labels, Numbers, number, number_sides, split_nulls

Floats = NDArray[np.floating[Any]]
Sides = tuple[Labels | None, Labels | None]


class RankingInput(NamedTuple):
    """Q queries and G images as I items of one or more images; items of an identity adjoin.

    Attributes:
        query: (Q, D) as given, not normalised.
        gallery: (G, D) likewise, in the order given.
        query_norm: (Q,) 1 for a zero row.
        gallery_norm: (G,) likewise.
        image: (G,) row of the gallery, item after item.
        first: (I + 1,) where each item begins in `image`.
        own: (Q, 2) first item of the query's identity, and the one after its last.
        query_labels: (Q, 3) camera, clothes and identity; -1 is null.
        item_labels: (2, I) camera and clothes.
        subject: (I,) number of each item's identity, -1 for a null one.
    """

    query: Floats
    gallery: Floats
    query_norm: Floats
    gallery_norm: Floats
    image: Numbers
    first: Numbers
    own: Numbers
    query_labels: Numbers
    item_labels: Numbers
    subject: Numbers

    @property
    def num_items(self) -> int:
        """I, the length of a ranking."""
        return len(self.first) - 1

    def of_queries(self, rows: Numbers) -> "RankingInput":
        """Some queries alone, in this order."""
        return self._replace(
            query=self.query[rows],
            query_norm=self.query_norm[rows],
            own=self.own[rows],
            query_labels=self.query_labels[rows],
        )

    def by_identity(self, queries: Numbers) -> Numbers:
        """Sort queries so that those of an identity adjoin: they read the same gallery rows."""
        return queries[np.argsort(self.own[queries, 0], kind="stable")]


def prepare(
    embeddings: tuple[NDArray[Any], NDArray[Any]],
    identities: Sides,
    cameras: Sides,
    clothes: Sides,
    gallery_track: Labels | None,
) -> RankingInput:
    """Check queries and gallery and bring them into the kernels' form.

    Raises:
        ValueError: See `metrics.evaluate`.
    """
    query, query_norm, gallery, gallery_norm = _measured_sides(embeddings)
    sizes = len(query), len(gallery)
    labels = {
        "identity": number_sides("identity", sizes, *identities),
        "camera": number_sides("camera", sizes, *cameras),
        "clothes": number_sides("clothes", sizes, *clothes),
    }
    image, first = np.arange(len(gallery)), np.arange(len(gallery) + 1)
    if gallery_track is not None:
        image, starts = _tracks(gallery_track, len(gallery))
        labels = {
            name: (asking, _of_tracks(name, answering[image], starts))
            for name, (asking, answering) in labels.items()
        }
        first = np.append(starts, len(image))
    identity, camera, worn = labels.values()
    order = np.argsort(identity[1], kind="stable")
    in_order = identity[1][order]
    own = np.stack([np.searchsorted(in_order, identity[0], side) for side in ("left", "right")], 1)
    own[identity[0] < 0] = 0
    return RankingInput(
        query,
        gallery,
        query_norm,
        gallery_norm,
        *_reordered(image, first, order),
        own,
        np.stack([camera[0], worn[0], identity[0]], axis=1),
        np.stack([camera[1][order], worn[1][order]]),
        in_order,
    )


def num_matches(inputs: RankingInput, rule: int) -> Numbers:
    """(Q,) true matches of each query.

    Args:
        inputs: Queries and gallery.
        rule: What clothes a match wears; see `match_kernels`.

    Raises:
        ValueError: If no query has any.
    """
    counts: Numbers = match_kernels.num_matches(inputs, rule)
    if not counts.any():
        known = int((inputs.own[:, 0] < inputs.own[:, 1]).sum())
        raise ValueError(
            "no query has a true match in the gallery from another camera: "
            f"{len(inputs.query)} queries, {len(inputs.gallery)} gallery images; {known} queries "
            "have their identity in the gallery, but only under their own camera"
        )
    return counts


def measured(
    embeddings: NDArray[Any], side: str, kind: type[np.float32] | type[np.float64]
) -> tuple[Floats, NDArray[np.float64]]:
    """The rows in a precision, and their lengths; 1 for a zero row.

    Raises:
        ValueError: If they are not a non-empty (N, D) array of finite numbers.
    """
    rows = np.require(embeddings, kind, ["C_CONTIGUOUS", "WRITEABLE"])
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{side} embeddings must be (N, D) with N, D > 0, not {rows.shape}")
    norm = similarity_kernels.norms(rows)
    broken = np.flatnonzero(~np.isfinite(norm))
    if broken.size:
        raise ValueError(
            f"{side} embedding {broken[0]} is not finite, as are {broken.size} of {len(rows)}; "
            "embeddings must not hold NaN or infinity"
        )
    norm[norm == 0] = 1
    return rows, norm


def _measured_sides(
    embeddings: tuple[NDArray[Any], NDArray[Any]],
) -> tuple[Floats, NDArray[np.float64], Floats, NDArray[np.float64]]:
    """Rows and lengths of the queries, then of the gallery."""
    sides = [np.asarray(rows) for rows in embeddings]
    # One precision for both sides: the kernels are compiled for each.
    single = all(rows.dtype in (np.float16, np.float32) for rows in sides)
    kind = np.float32 if single else np.float64
    (query, query_norm), (gallery, gallery_norm) = (
        measured(rows, side, kind) for rows, side in zip(sides, SIDES, strict=True)
    )
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query embeddings have {query.shape[1]} dimensions but gallery embeddings "
            f"{gallery.shape[1]}; both must come from one model"
        )
    return query, query_norm, gallery, gallery_norm


def _reordered(image: Numbers, first: Numbers, order: Numbers) -> tuple[Numbers, Numbers]:
    """`image` and `first` of the items in another order."""
    lengths = np.diff(first)[order]
    starts = np.append(0, np.cumsum(lengths))
    moves = np.repeat(first[:-1][order] - starts[:-1], lengths)
    return image[moves + np.arange(len(image))], starts


def _tracks(labels: Labels, size: int) -> tuple[Numbers, Numbers]:
    """An order of the gallery in which tracks are neighbours, and where each begins in it."""
    if len(labels) != size:
        raise ValueError(f"gallery has {size} embeddings but {len(labels)} values of gallery_track")
    tracks = split_nulls(*number(labels))
    order = np.argsort(tracks, kind="stable")
    return order, np.flatnonzero(np.diff(tracks[order], prepend=-1))


def _of_tracks(name: str, numbers: Numbers, starts: Numbers) -> Numbers:
    """The one label of each track."""
    lengths = np.diff(starts, append=len(numbers))
    mixed = np.flatnonzero(numbers != np.repeat(numbers[starts], lengths))
    if mixed.size:
        raise ValueError(
            f"{mixed.size} gallery images have another {name} than the first of their track"
        )
    return numbers[starts]
