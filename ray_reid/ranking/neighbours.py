"""Nearest neighbours among many embeddings: unit rows, exact and approximate search, on every core.

Similarity is the cosine of unit rows in float32. A row is always its own nearest neighbour; of
equally similar rows the one that was given first is nearer.
"""

from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.cores import every_core

Floats = NDArray[np.float32]
Search = Literal["exact", "approximate"]
SEARCHES: tuple[str, ...] = get_args(Search)

# A float32 product of two such blocks and one of the blocks stay in the cache of a core.
BLOCK = 512
# Similarities on a torch device at a time: 256 MB.
DEVICE_BLOCK = 2**26
# Cells are small, so that probing a fixed number of them costs a row the same in any gallery.
CELL = 128
TRAINING_ROWS_PER_CELL = 40
TRAINING_ROUNDS = 6
PROBES = 16
VISITORS = 4096
# Rows that stand for all others where the least similar one is looked for approximately.
SAMPLE = 1024


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest rows of every row, and how far the farthest is."""

    rows: NDArray[np.int32]
    """(N, k), itself first, then the nearest; -1 where an approximate search found fewer."""
    lowest: Floats
    """(N,) least similarity of each row to any; of an approximate search, to any of a sample."""


def slices(size: int, step: int, start: int = 0) -> list[slice]:
    """Cut `start` to `size` into slices of at most `step`."""
    return [slice(first, min(first + step, size)) for first in range(start, size, step)]


def unit(embeddings: Any, side: str) -> Floats:
    """L2-normalise (N, D) embeddings, of NumPy or torch; zero rows stay zero.

    Raises:
        ValueError: If they are not a non-empty (N, D) array of finite numbers.
    """
    rows = _of_rows(embeddings, side)
    result = np.empty(rows.shape, dtype=np.float32)
    into_unit(rows, result, side)
    return result


def unit_together(query: Any, gallery: Any) -> Floats:
    """L2-normalise both sides into one (Q + G, D) array, queries first.

    Raises:
        ValueError: If one is not a non-empty array of finite numbers, or they differ in D.
    """
    queries, images = _of_rows(query, "query"), _of_rows(gallery, "gallery")
    check_dimensions(queries, images)
    result = np.empty((len(queries) + len(images), queries.shape[1]), dtype=np.float32)
    into_unit(queries, result[: len(queries)], "query")
    into_unit(images, result[len(queries) :], "gallery")
    return result


def into_unit(rows: NDArray[Any], out: Floats, side: str, start: int = 0) -> None:
    """Write the L2-normalised (N, D) rows to `out`; the first is called `start` in an error."""
    from ray_reid.ranking.rerank_kernels import normalise

    broken = normalise(np.ascontiguousarray(rows), out)
    if broken >= 0:
        raise ValueError(
            f"{side} embedding {start + broken} is not finite; embeddings must not hold NaN or "
            "infinity"
        )


def on_host(embeddings: Any) -> NDArray[Any]:
    """Embeddings of NumPy or torch as float32 or float64 in main memory."""
    # NumPy has no bfloat16.
    given = embeddings.detach().float().cpu() if hasattr(embeddings, "detach") else embeddings
    rows = np.asarray(given)
    if rows.dtype in (np.float32, np.float64):
        return rows
    return rows.astype(np.float32 if rows.dtype == np.float16 else np.float64)


def _of_rows(embeddings: Any, side: str) -> NDArray[Any]:
    rows = on_host(embeddings)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{side} embeddings must be (N, D) with N, D > 0, not {rows.shape}")
    return rows


def check_dimensions(query: NDArray[Any], gallery: NDArray[Any]) -> None:
    """Raise ValueError if two sides cannot come from one model."""
    if query.shape[-1] != gallery.shape[-1]:
        raise ValueError(
            f"query embeddings have {query.shape[-1]} dimensions but gallery embeddings "
            f"{gallery.shape[-1]}; both must come from one model"
        )


def nearest(rows: Floats, k: int, search: Search = "exact", device: str = "cpu") -> Neighbours:
    """Find the `k` nearest among all rows for each of the (N, D) unit rows.

    The exact search multiplies every pair once, N * N * D multiplications and additions in all,
    and keeps N * k of the products. The approximate one looks into a fixed number of the cells of
    an inverted file.

    Args:
        device: Where the exact search multiplies; torch does it anywhere but on the `cpu`.

    Raises:
        ValueError: If the search is unknown.
        ModuleNotFoundError: If the search is approximate and faiss is not installed.
    """
    if search not in SEARCHES:
        raise ValueError(f"unknown neighbours {search!r}; choose from {list(SEARCHES)}")
    k = min(k, len(rows))
    if search == "approximate":
        return _approximate(rows, k)
    return _exact(rows, k) if device == "cpu" else on_device(rows, k, device)


@dataclass(frozen=True, eq=False)
class _Found:
    """What a search knows so far; the kernels write to it."""

    similarity: Floats
    rows: NDArray[np.int32]
    last: Floats
    """(N,) similarity that another row must exceed, or equal, to be among the k nearest."""
    lowest: Floats

    @classmethod
    def nothing(cls, size: int, k: int) -> "_Found":
        """Each row knows itself, and as the nearest whatever rounding says."""
        similarity = np.full((size, k), -np.inf, dtype=np.float32)
        rows = np.full((size, k), -1, dtype=np.int32)
        similarity[:, 0], rows[:, 0] = np.inf, np.arange(size)
        return cls(
            similarity, rows, similarity[:, -1].copy(), np.full(size, np.inf, dtype=np.float32)
        )

    def arrays(self) -> tuple[Floats, NDArray[np.int32], Floats, Floats]:
        return self.similarity, self.rows, self.last, self.lowest


def _exact(rows: Floats, k: int) -> Neighbours:
    from ray_reid.ranking.rerank_kernels import keep_down, keep_right

    found = _Found.nothing(len(rows), k)
    numbers = np.arange(len(rows), dtype=np.int32)
    blocks = slices(len(rows), BLOCK)
    locks = {block.start: Lock() for block in blocks}

    def multiply(pair: tuple[slice, slice]) -> None:
        here, there = pair
        product = rows[here] @ rows[there].T
        with locks[here.start]:
            keep_right(product, numbers[here], numbers[there], *found.arrays())
        if here != there:
            with locks[there.start]:
                keep_down(product, here.start, there.start, *found.arrays())

    # In this order the next pair has other blocks, so that threads seldom wait for one another.
    pairs = (
        (blocks[at], blocks[at + shift])
        for shift in range(len(blocks))
        for at in range(len(blocks) - shift)
    )
    with every_core() as cores:
        cores.map(multiply, pairs)
    return Neighbours(found.rows, found.lowest)


def on_device(rows: Floats, k: int, device: str) -> Neighbours:
    """The exact search with torch on its own device; of equally similar rows any comes first."""
    import torch

    everything = torch.from_numpy(rows).to(device)
    found = np.empty((len(rows), k), dtype=np.int32)
    lowest = np.empty(len(rows), dtype=np.float32)
    for part in slices(len(rows), max(1, DEVICE_BLOCK // len(rows))):
        product = everything[part] @ everything.T
        lowest[part] = product.amin(dim=1).cpu().numpy()
        product.diagonal(part.start).fill_(torch.inf)
        found[part] = product.topk(k, dim=1).indices.cpu().numpy()
    return Neighbours(found, lowest)


def _approximate(rows: Floats, k: int) -> Neighbours:
    """Multiply the rows that probe a cell with those in it, one cell after another."""
    from ray_reid.ranking.rerank_kernels import keep_right

    probed = _cells(rows)
    members, starts = _by_cell(probed[:, :1])
    visitors, visitor_starts = _by_cell(probed)
    found = _Found.nothing(len(rows), k)
    lock = Lock()

    def visit(pair: tuple[slice, slice]) -> None:
        there, here = visitors[pair[0]], members[pair[1]]
        product = rows[there] @ rows[here].T
        # A row visits many cells; keeping is a small part of the work.
        with lock:
            keep_right(product, there, here, *found.arrays())

    # A cell may be large, where many rows are alike.
    pairs = (
        (there, here)
        for cell in range(len(starts) - 1)
        for here in slices(starts[cell + 1], VISITORS, starts[cell])
        for there in slices(visitor_starts[cell + 1], VISITORS, visitor_starts[cell])
    )
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64)]

    def look_afar(part: slice) -> None:
        found.lowest[part] = np.minimum(found.lowest[part], (rows[part] @ sample.T).min(axis=1))

    with every_core() as cores:
        cores.map(visit, pairs)
        cores.map(look_afar, slices(len(rows), BLOCK))
    return Neighbours(found.rows, found.lowest)


def _cells(rows: Floats) -> NDArray[np.int64]:
    """The cells of k-means that each row probes, the one it is in first."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "approximate neighbours need faiss; add one of the extras: pip install '.[faiss-cpu]' "
            "or, for CUDA, '.[faiss-gpu]'"
        ) from error

    size, dimensions = rows.shape
    kmeans = faiss.Kmeans(
        dimensions,
        max(1, size // CELL),
        niter=TRAINING_ROUNDS,
        spherical=True,
        max_points_per_centroid=TRAINING_ROWS_PER_CELL,
        min_points_per_centroid=1,
    )
    kmeans.train(rows)
    probed: NDArray[np.int64] = kmeans.index.search(rows, min(PROBES, kmeans.k))[1]
    return probed


def _by_cell(cells: NDArray[np.int64]) -> tuple[NDArray[np.int32], list[int]]:
    """Rows in order of their (N, n) cells, each under all of its own, and where a cell begins."""
    order = np.argsort(cells, axis=None, kind="stable")
    starts = np.searchsorted(cells.ravel()[order], np.arange(cells.max() + 2))
    return (order // cells.shape[1]).astype(np.int32), starts.tolist()
