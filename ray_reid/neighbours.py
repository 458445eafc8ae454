"""Nearest neighbours among many embeddings: unit rows, exact and approximate search, on every core.

Similarity is the cosine of unit rows in float32. A row is always its own nearest neighbour; of
equally similar rows the one that was given first is nearer.
"""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

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
# Rows that stand for all others where the least similar one is looked for approximately.
SAMPLE = 1024
_ALONE = Lock()


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest rows of every row, and how far the farthest is."""

    rows: NDArray[np.int32]
    """(N, k), itself first, then the nearest; -1 where an approximate search found fewer."""
    lowest: Floats
    """(N,) least similarity of each row to any; of an approximate search, to any of a sample."""


@contextmanager
def every_core() -> Iterator[Executor]:
    """Threads, one for each that BLAS would use, in which BLAS itself uses one.

    What a thread has multiplied it works on while that is in its cache. Only one caller at a time
    gets the cores, because the number of BLAS threads is the whole process's.
    """
    from threadpoolctl import ThreadpoolController

    with _ALONE:
        blas = ThreadpoolController().select(user_api="blas")
        count = max((library.num_threads for library in blas.lib_controllers), default=1)
        with blas.limit(limits=1), ThreadPoolExecutor(count) as pool:
            yield pool


def slices(size: int, step: int, start: int = 0) -> list[slice]:
    """Cut `start` to `size` into slices of at most `step`."""
    return [slice(first, min(first + step, size)) for first in range(start, size, step)]


def unit(embeddings: Any, side: str) -> Floats:
    """L2-normalise (N, D) embeddings, of NumPy or torch; zero rows stay zero.

    Raises:
        ValueError: If they are not a non-empty (N, D) array of finite numbers.
    """
    rows = on_host(embeddings)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{side} embeddings must be (N, D) with N, D > 0, not {rows.shape}")
    result = np.empty(rows.shape, dtype=np.float32)
    into_unit(rows, result, side, 0)
    return result


def into_unit(rows: NDArray[Any], out: Floats, side: str, start: int) -> None:
    """Write the L2-normalised (N, D) rows to `out`; the first is called `start` in an error."""
    from ray_reid.rerank_kernels import normalise

    broken = normalise(np.ascontiguousarray(rows), out)
    if broken >= 0:
        raise ValueError(
            f"{side} embedding {start + broken} is not finite; embeddings must not hold NaN or "
            "infinity"
        )


def on_host(embeddings: Any) -> NDArray[Any]:
    """Embeddings of NumPy or torch as float32 or float64 in main memory."""
    tensor = embeddings.detach().cpu() if hasattr(embeddings, "detach") else embeddings
    rows = np.asarray(tensor)
    return rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float64)


def check_dimensions(query: Floats, gallery: Floats) -> None:
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


def _exact(rows: Floats, k: int) -> Neighbours:
    from ray_reid.rerank_kernels import keep_down, keep_right

    size = len(rows)
    similarity = np.full((size, k), -np.inf, dtype=np.float32)
    found = np.full((size, k), -1, dtype=np.int32)
    last = np.full(size, -np.inf, dtype=np.float32)
    lowest = np.full(size, np.inf, dtype=np.float32)
    state = similarity, found, last, lowest
    blocks = slices(size, BLOCK)
    locks = {block.start: Lock() for block in blocks}

    def multiply(pair: tuple[slice, slice]) -> None:
        here, there = pair
        product = rows[here] @ rows[there].T
        if here == there:
            np.fill_diagonal(product, np.inf)
        with locks[here.start]:
            keep_right(product, here.start, there.start, *state)
        if here != there:
            with locks[there.start]:
                keep_down(product, here.start, there.start, *state)

    # Neighbours in this order share no block, so that threads seldom wait for one another.
    pairs = [
        (blocks[at], blocks[at + shift])
        for shift in range(len(blocks))
        for at in range(len(blocks) - shift)
    ]
    with every_core() as pool:
        list(pool.map(multiply, pairs))
    return Neighbours(found, lowest)


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


def _approximate(rows: Floats, k: int, probes: int = 16) -> Neighbours:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "approximate neighbours need faiss; add one of the extras: pip install '.[faiss-cpu]' "
            "or, for CUDA, '.[faiss-gpu]'"
        ) from error

    size, dimensions = rows.shape
    cells = max(1, size // CELL)
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(dimensions), dimensions, cells, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter = TRAINING_ROUNDS
    index.cp.spherical = True
    index.cp.max_points_per_centroid = TRAINING_ROWS_PER_CELL
    index.train(rows)
    index.add(rows)
    index.nprobe = probes
    found = np.empty((size, k), dtype=np.int32)
    for part in slices(size, 16384):
        found[part] = index.search(rows[part], k)[1]
    _put_itself_first(found)
    sample = rows[np.linspace(0, size - 1, min(size, SAMPLE)).astype(np.int64)].T
    lowest = np.empty(size, dtype=np.float32)
    with every_core() as pool:

        def look(part: slice) -> None:
            lowest[part] = (rows[part] @ sample).min(axis=1)

        list(pool.map(look, slices(size, BLOCK)))
    return Neighbours(found, lowest)


def _put_itself_first(found: NDArray[np.int32]) -> None:
    """Move each row's own number to the front, in the place of the last where it is missing."""
    own = np.arange(len(found), dtype=np.int32)
    at = (found == own[:, None]).argmax(axis=1)
    at[found[own, at] != own] = found.shape[1] - 1
    for column in range(found.shape[1] - 1, 0, -1):
        moved = at >= column
        found[moved, column] = found[moved, column - 1]
    found[:, 0] = own
