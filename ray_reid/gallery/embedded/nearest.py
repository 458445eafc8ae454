"""Exact search of unit-norm vectors where they lie, memory-mapped: nothing is copied.

One or two queries are a product of matrix and vector, which takes both cores and the memory's
whole speed; more are faiss's, which keeps the best of each block as it goes. Both were measured:
benchmarks/gallery.py.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ray_reid.gallery.embedded.segment import Vectors
from ray_reid.gallery.embedded.where import Mask

Numbers = NDArray[np.int64]
Found = tuple[Vectors, Numbers]
"""(Q, K) similarities, highest first, and row numbers; -1 where there are no more rows."""

# faiss multiplies one query after another below this many; from 20 on BLAS is 8 times faster.
BLAS_QUERIES = 20
MATVEC_QUERIES = 2
# Rows asked for beyond k, so that a few dead ones need no second search.
MARGIN = 64
# Below this share of rows, it is faster to copy them together than to look at all.
FEW = 0.1
_BLOCK = 32768
_CHUNK = 256
# Queries whose candidates are copied together.
_TOGETHER = 8


def search(vectors: Vectors, queries: Vectors, k: int, mask: Mask | None = None) -> Found:
    """The k nearest of the rows of the mask, or of all.

    Args:
        vectors: (N, D) float32, C order.
        queries: (Q, D) float32, C order.
    """
    count = len(vectors) if mask is None else int(mask.sum())
    if not count or not len(queries):
        return _nothing(len(queries))
    k = min(k, count)
    if mask is None or count == len(vectors):
        return _of_all(vectors, queries, k)
    if count < FEW * len(vectors):
        return _gathered(vectors, queries, k, mask)
    if len(queries) <= MATVEC_QUERIES:
        return _products(vectors, queries, k, mask)
    return overfetched(
        lambda some, wanted: _of_all(vectors, some, wanted), vectors, queries, k, mask
    )


def overfetched(
    find: Callable[[Vectors, int], Found], vectors: Vectors, queries: Vectors, k: int, mask: Mask
) -> Found:
    """The k nearest of the mask, by asking for a few more of all and leaving out what is not.

    A query whose answer holds too few is asked again of the rows of the mask alone.

    Args:
        find: Searches all the vectors.
    """
    similarity, number = find(queries, num_overfetched(k, int(mask.sum()), len(mask)))
    kept = mask[number] & (number >= 0)
    first = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    similarity = np.take_along_axis(similarity, first, 1)
    number = np.take_along_axis(number, first, 1)
    poor = kept.sum(axis=1) < k
    if poor.any():
        similarity[poor], number[poor] = _gathered(vectors, queries[poor], k, mask)
    return similarity, number


def num_overfetched(k: int, count: int, rows: int) -> int:
    """How many of all rows to ask for, to have k of the `count` that fit, most of the time."""
    return min(k + rows - count, math.ceil(k * rows / count) + MARGIN)


def among(vectors: Vectors, queries: Vectors, candidates: Numbers, k: int) -> Found:
    """The k nearest of some rows for each query, (Q, C) and -1 where there is none."""
    similarity = np.empty(candidates.shape, np.float32)
    for start in range(0, len(queries), _TOGETHER):
        rows = slice(start, start + _TOGETHER)
        chosen = vectors[candidates[rows]]
        similarity[rows] = np.matmul(chosen, queries[rows, :, None])[..., 0]
    similarity[candidates < 0] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(candidates, order, 1)


def merged(first: Found, second: Found, k: int) -> Found:
    """The k nearest of two answers about different rows."""
    similarity = np.concatenate([first[0], second[0]], axis=1)
    number = np.concatenate([first[1], second[1]], axis=1)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(number, order, 1)


def _of_all(vectors: Vectors, queries: Vectors, k: int) -> Found:
    if len(queries) <= MATVEC_QUERIES:
        return _products(vectors, queries, k, None)
    import faiss

    faiss.cvar.distance_compute_blas_threshold = BLAS_QUERIES
    similarity, number = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return similarity, number


def _products(vectors: Vectors, queries: Vectors, k: int, mask: Mask | None) -> Found:
    found = [_best(vectors @ query, k, mask) for query in queries]
    return np.stack([one[0] for one in found]), np.stack([one[1] for one in found])


def _best(similarity: Vectors, k: int, mask: Mask | None) -> Found:
    """The k highest of one query: the k-th highest of the chunks' best leaves few to sort."""
    if mask is not None:
        similarity[~mask] = -np.inf
    whole = len(similarity) // _CHUNK
    candidates = np.arange(len(similarity))
    if whole > 4 * k:
        best = similarity[: whole * _CHUNK].reshape(whole, _CHUNK).max(axis=1)
        floor = np.partition(best, whole - k)[whole - k]
        candidates = np.flatnonzero(similarity >= floor)
    order = np.argsort(-similarity[candidates], kind="stable")[:k]
    return similarity[candidates[order]], candidates[order]


def _gathered(vectors: Vectors, queries: Vectors, k: int, mask: Mask) -> Found:
    rows = np.flatnonzero(mask)
    found = _nothing(len(queries))
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        similarity, number = _of_all(vectors[some], queries, min(k, len(some)))
        found = merged(found, (similarity, some[number]), k)
    return found


def _nothing(num_queries: int) -> Found:
    return np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), np.int64)
