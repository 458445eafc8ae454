"""Retrieval metrics as Market-1501 defines them (Zheng et al., ICCV 2015), in plain NumPy.

AP is the rectangle, the mean of the precisions at the true matches, or the trapezoid of the
data set's own code, which averages each with the precision just before it: half a point to three
apart. mINP is the mean share of true matches among the images down to the last of them (Ye et al.,
TPAMI 2021).
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Labels = Sequence[Hashable] | NDArray[Any]
"""One label per row; None or NaN is null. Arrow columns and pandas series do too."""
Protocol = Literal["market", "sc", "cc"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
AveragePrecision = Literal["rectangle", "trapezoid"]
AVERAGE_PRECISIONS: tuple[str, ...] = get_args(AveragePrecision)

# Similarities are compared on this grid. It is coarse enough that equal vectors tie although the
# matrix product adds in another order for every row, and finer than float32 embeddings can tell.
GRID = 2.0**30
EXCLUDED = np.iinfo(np.int32).min
# Similarities in memory at a time: 16 MB in double precision.
BLOCK = 2_000_000


@dataclass(frozen=True, eq=False)
class Metrics:
    """What a set of queries found in a gallery; every share is between 0 and 1."""

    mAP: float
    cmc: NDArray[np.float64]
    """(G,) share of queries with a true match among the first 1, 2, ... images."""
    mINP: float
    num_queries: int
    """Queries that were scored."""
    num_skipped: int
    """Queries left out because no true match of theirs is in the gallery."""
    ap: NDArray[np.float64]
    """(Q,) average precision of each query, NaN where it was skipped."""

    def rank(self, k: int) -> float:
        """CMC at rank k; in a gallery of fewer images, at its last rank."""
        return float(self.cmc[min(k, len(self.cmc)) - 1])


def evaluate(
    query: NDArray[Any],
    gallery: NDArray[Any],
    *,
    query_identity: Labels,
    gallery_identity: Labels,
    query_camera: Labels | None = None,
    gallery_camera: Labels | None = None,
    query_clothes: Labels | None = None,
    gallery_clothes: Labels | None = None,
    protocol: Protocol = "market",
    average_precision: AveragePrecision = "rectangle",
    gallery_track: Labels | None = None,
) -> Metrics:
    """Rank the gallery for every query by cosine similarity and score the rankings.

    `query` is (Q, D) and `gallery` (G, D), of any length: they are normalised here, and a zero row
    is similar to nothing. Gallery images of the query's identity from the query's camera are junk:
    they are taken out of its ranking. A null camera equals no camera, and a null identity (a
    distractor) no identity. A query without a true match is skipped and counted. Ties are
    pessimistic: of equally similar images (to 2**-30) the wrong ones come first, so no order of
    the rows changes a figure.

    Args:
        protocol: What else of the query's identity is junk. `market`: nothing, it does not look at
            clothes. `cc` (clothes-changing): images in the query's clothes. `sc` (same clothes):
            images in others. Null clothes are like no others, so `cc` keeps them.
        average_precision: Which of the two definitions; see the module.
        gallery_track: With it the gallery is one of tracks, each as similar as the most similar
            of its images (VeRi-776, image to track); a null track is an image of its own.

    Raises:
        ValueError: If a choice is unknown, shapes or lengths disagree, an embedding is not finite,
            only one side has cameras, a protocol lacks its clothes, a track mixes identities,
            cameras or clothes, or no query has a true match.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose from {list(PROTOCOLS)}")
    if average_precision not in AVERAGE_PRECISIONS:
        raise ValueError(
            f"unknown average_precision {average_precision!r}; choose from "
            f"{list(AVERAGE_PRECISIONS)}"
        )
    if protocol != "market" and query_clothes is None:
        raise ValueError(f"protocol {protocol!r} needs query_clothes and gallery_clothes")
    queries, images = unit(query, "query"), unit(gallery, "gallery")
    if queries.shape[1] != images.shape[1]:
        raise ValueError(
            f"query embeddings have {queries.shape[1]} dimensions but gallery embeddings "
            f"{images.shape[1]}; both must come from one model"
        )
    sizes = len(queries), len(images)
    identity = _codes("identity", sizes, query_identity, gallery_identity)
    camera = _codes("camera", sizes, query_camera, gallery_camera)
    clothes = _codes("clothes", sizes, query_clothes, gallery_clothes)
    starts = None
    if gallery_track is not None:
        order, starts = _tracks(gallery_track, len(images))
        images = images[order]
        labels = {"identity": identity, "camera": camera, "clothes": clothes}
        identity, camera, clothes = (
            (codes[0], _of_tracks(name, codes[1][order], starts)) for name, codes in labels.items()
        )
    pairs = _Pairs(identity, camera, clothes, protocol)
    ap, inp, first = _score(queries, images, pairs, average_precision, starts)
    valid = first > 0
    if not valid.any():
        raise ValueError(_nothing(sizes, identity))
    return Metrics(
        mAP=float(ap[valid].mean()),
        cmc=np.cumsum(np.bincount(first[valid] - 1, minlength=len(identity[1]))) / valid.sum(),
        mINP=float(inp[valid].mean()),
        num_queries=int(valid.sum()),
        num_skipped=int((~valid).sum()),
        ap=ap,
    )


def unit(embeddings: NDArray[Any], side: str) -> NDArray[np.float64]:
    """L2-normalise (N, D) embeddings in double precision; zero rows stay zero.

    Raises:
        ValueError: If they are not a non-empty (N, D) array of finite numbers.
    """
    rows = np.array(embeddings, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{side} embeddings must be (N, D) with N, D > 0, not {rows.shape}")
    norm = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    broken = np.flatnonzero(~np.isfinite(norm))
    if broken.size:
        raise ValueError(
            f"{side} embedding {broken[0]} is not finite, as are {broken.size} of {len(rows)}; "
            "embeddings must not hold NaN or infinity"
        )
    rows /= np.where(norm > 0, norm, 1.0)[:, None]
    return rows


class _Pairs:
    """The pairs of query and gallery rows with one identity, and which of them are junk."""

    def __init__(
        self,
        identity: tuple[NDArray[np.int64], NDArray[np.int64]],
        camera: tuple[NDArray[np.int64], NDArray[np.int64]],
        clothes: tuple[NDArray[np.int64], NDArray[np.int64]],
        protocol: str,
    ) -> None:
        self._camera, self._clothes, self._protocol = camera, clothes, protocol
        self._order = np.argsort(identity[1], kind="stable")
        in_order = identity[1][self._order]
        self._start = np.searchsorted(in_order, identity[0], "left")
        # A null identity (-1) of a query has no pairs.
        stop = np.searchsorted(in_order, identity[0], "right")
        self._count = np.where(identity[0] < 0, 0, stop - self._start)

    def of(self, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Query rows counted from `rows.start`, gallery rows, and True where the pair is junk."""
        count, start = self._count[rows], self._start[rows]
        query = np.repeat(np.arange(len(count)), count)
        within = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
        gallery = self._order[start[query] + within]
        junk = _same(self._camera, rows, query, gallery)
        if self._protocol != "market":
            same = _same(self._clothes, rows, query, gallery)
            junk |= same if self._protocol == "cc" else ~same
        return query, gallery, junk


def _same(
    codes: tuple[NDArray[np.int64], NDArray[np.int64]],
    rows: slice,
    query: NDArray[np.int64],
    gallery: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Where both of a pair have the same label, and have one."""
    label = codes[0][rows][query]
    return (label >= 0) & (label == codes[1][gallery])


def _score(
    queries: NDArray[np.float64],
    gallery: NDArray[np.float64],
    pairs: _Pairs,
    average_precision: str,
    starts: NDArray[np.int64] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """AP, INP and rank of the first true match of each query; rank 0 where there is none."""
    ap = np.full(len(queries), np.nan)
    inp = np.full(len(queries), np.nan)
    first = np.zeros(len(queries), dtype=np.int64)
    for rows, similarity in _blocks(queries, gallery, starts):
        query, column, junk = pairs.of(rows)
        positives = similarity[query, column]
        # What remains after this are the wrong images: sorted once, then counted by bisection.
        similarity[query, column] = EXCLUDED
        similarity.sort(axis=1)
        ends = np.searchsorted(query, np.arange(len(similarity)), "right")
        for row, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
            hits = np.sort(positives[start:end][~junk[start:end]])[::-1]
            if hits.size:
                above = similarity.shape[1] - np.searchsorted(similarity[row], hits, "left")
                found = np.arange(1, hits.size + 1)
                rank = above + found
                ap[rows.start + row] = _average(found, rank, average_precision)
                inp[rows.start + row] = hits.size / rank[-1]
                first[rows.start + row] = rank[0]
    return ap, inp, first


def _average(found: NDArray[np.int64], rank: NDArray[np.int64], kind: str) -> float:
    """Average precision of matches 1, 2, ... at these ranks."""
    precision = found / rank
    if kind == "trapezoid":
        # Before the first image of a ranking precision is 1.
        before = np.where(rank > 1, (found - 1) / np.maximum(rank - 1, 1), 1.0)
        precision = (precision + before) / 2
    return float(precision.mean())


def _tracks(labels: Labels, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order of the gallery in which tracks are neighbours, and where each begins in it."""
    tracks, _ = _codes("track", (size, 0), labels, [])
    alone = tracks < 0
    tracks[alone] = tracks.max(initial=0) + 1 + np.arange(alone.sum())
    order = np.argsort(tracks, kind="stable")
    return order, np.flatnonzero(np.diff(tracks[order], prepend=-1))


def _of_tracks(name: str, codes: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The one label of each track."""
    lengths = np.diff(starts, append=len(codes))
    mixed = np.flatnonzero(codes != np.repeat(codes[starts], lengths))
    if mixed.size:
        raise ValueError(
            f"{mixed.size} gallery images have another {name} than the first of their track"
        )
    return codes[starts]


def _blocks(
    queries: NDArray[np.float64], gallery: NDArray[np.float64], starts: NDArray[np.int64] | None
) -> Iterator[tuple[slice, NDArray[np.int32]]]:
    """Similarities on the grid, some queries at a time; the array is used again for the next."""
    height = min(max(1, BLOCK // len(gallery)), len(queries))
    product = np.empty((height, len(gallery)))
    for start in range(0, len(queries), height):
        rows = slice(start, min(start + height, len(queries)))
        block = product[: rows.stop - start]
        np.matmul(queries[rows], gallery.T, out=block)
        np.multiply(block, GRID, out=block)
        grid = np.rint(block, out=block).astype(np.int32)
        yield rows, grid if starts is None else np.maximum.reduceat(grid, starts, axis=1)


def _codes(
    name: str, sizes: tuple[int, int], query: Labels | None, gallery: Labels | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the labels of both sides alike; null is -1."""
    if (query is None) != (gallery is None):
        given, missing = ("query", "gallery") if gallery is None else ("gallery", "query")
        raise ValueError(f"{given}_{name} is given but {missing}_{name} is not; give both or none")
    columns = []
    for side, size, labels in zip(("query", "gallery"), sizes, (query, gallery), strict=True):
        columns.append([None] * size if labels is None else _values(labels))
        if len(columns[-1]) != size:
            raise ValueError(
                f"{side} has {size} embeddings but {len(columns[-1])} values of {side}_{name}"
            )
    distinct = dict.fromkeys([*columns[0], *columns[1]])
    number = {v: -1 if _is_null(v) else n for n, v in enumerate(distinct)}
    codes = [np.array([number[v] for v in column], dtype=np.int64) for column in columns]
    return codes[0], codes[1]


def _values(labels: Labels) -> list[Hashable]:
    # Arrays and Arrow columns become plain values, which hash far faster than their scalars.
    return list(labels.tolist() if hasattr(labels, "tolist") else labels)


def _is_null(value: Hashable) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _nothing(sizes: tuple[int, int], identity: tuple[NDArray[np.int64], NDArray[np.int64]]) -> str:
    known = int(np.isin(identity[0][identity[0] >= 0], identity[1]).sum())
    return (
        f"no query has a true match in the gallery from another camera: {sizes[0]} queries, "
        f"{sizes[1]} gallery images; {known} queries have their identity in the gallery, but only "
        "under their own camera"
    )
