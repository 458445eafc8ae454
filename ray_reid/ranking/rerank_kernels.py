"""The loops of neighbour search and k-reciprocal re-ranking, compiled.

They work on a part of the rows at a time and hold no lock of Python's, so threads run them side
by side. `start` is the number of the first row of the part.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int32]

# Similarities looked at together; one comparison tells that none of them is wanted. The loop that
# compares has no branch, so the compiler turns it into vector instructions.
WIDTH = 64


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _square(row: NDArray[Any]) -> float:
    total = 0.0
    for value in row:
        total += np.float64(value) * np.float64(value)
    return total


@numba.njit(cache=True, nogil=True)
def normalise(rows: NDArray[Any], out: Floats) -> int:
    """Write the unit rows to `out`; the first row that is not finite, or -1."""
    for i in range(len(rows)):
        square = _square(rows[i])
        if not np.isfinite(square):
            return i
        scale = 1 / np.sqrt(square) if square > 0 else 0.0
        for d in range(rows.shape[1]):
            out[i, d] = rows[i, d] * scale
    return -1


@numba.njit(cache=True, nogil=True)
def _insert(
    row: int, value: float, neighbour: int, similarity: Floats, found: Rows, last: Floats
) -> None:
    """Keep another row among the k most similar of a row, nearest first."""
    at = similarity.shape[1] - 1
    # Of equal similarities the first row is nearer, in whatever order blocks come.
    if neighbour == row or (value == similarity[row, at] and 0 <= found[row, at] < neighbour):
        return
    while at > 0 and (
        similarity[row, at - 1] < value
        or (similarity[row, at - 1] == value and found[row, at - 1] > neighbour)
    ):
        similarity[row, at] = similarity[row, at - 1]
        found[row, at] = found[row, at - 1]
        at -= 1
    similarity[row, at] = value
    found[row, at] = neighbour
    last[row] = similarity[row, -1]


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def keep_right(
    product: Floats,
    rows: Rows,
    columns: Rows,
    similarity: Floats,
    found: Rows,
    last: Floats,
    lowest: Floats,
) -> None:
    """Keep what similarities say of their rows: the nearest columns, and the least similarity."""
    height, width = product.shape
    for i in range(height):
        row = rows[i]
        low = lowest[row]
        for first in range(0, width, WIDTH):
            limit = last[row]
            wanted = False
            for j in range(first, min(first + WIDTH, width)):
                low = min(low, product[i, j])
                wanted |= product[i, j] >= limit
            if wanted:
                for j in range(first, min(first + WIDTH, width)):
                    if product[i, j] >= last[row]:
                        _insert(row, product[i, j], columns[j], similarity, found, last)
        lowest[row] = low


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def keep_down(
    product: Floats,
    start: int,
    column: int,
    similarity: Floats,
    found: Rows,
    last: Floats,
    lowest: Floats,
) -> None:
    """Keep what similarities of consecutive rows and columns say of the columns."""
    height, width = product.shape
    for i in range(height):
        for first in range(0, width, WIDTH):
            wanted = False
            for j in range(first, min(first + WIDTH, width)):
                lowest[column + j] = min(lowest[column + j], product[i, j])
                wanted |= product[i, j] >= last[column + j]
            if wanted:
                for j in range(first, min(first + WIDTH, width)):
                    if product[i, j] >= last[column + j]:
                        _insert(column + j, product[i, j], start + i, similarity, found, last)


@numba.njit(cache=True, nogil=True)
def _mutual(found: Rows, row: int, width: int, out: Rows) -> int:
    """Write the neighbours of a row that have it as theirs; how many they are."""
    count = 0
    for neighbour in found[row, :width]:
        if neighbour >= 0:
            for other in found[neighbour, :width]:
                if other == row:
                    out[count] = neighbour
                    count += 1
                    break
    return count


@numba.njit(cache=True, nogil=True)
def reciprocal(found: Rows, width: int, start: int, out: Rows, counts: Rows) -> None:
    """Write the reciprocal neighbours of each row among the nearest `width` of both."""
    for i in range(len(out)):
        counts[i] = _mutual(found, start + i, width, out[i])


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(left: Floats, right: Floats) -> np.float32:
    total = np.float32(0.0)
    for d in range(len(left)):
        total += left[d] * right[d]
    return total


@numba.njit(cache=True, nogil=True)
def expand(
    rows: Floats,
    found: Rows,
    width: int,
    half: Rows,
    half_counts: Rows,
    farthest: Floats,
    start: int,
    counts: Rows,
    columns: Rows,
    weights: Floats,
) -> int:
    """Encode rows by their expanded reciprocal neighbours; how many entries were written.

    Each candidate brings its own reciprocal neighbours of half the width if more than two thirds
    of them are already there. The weights exp(-distance) of a row sum to one.
    """
    # Stamps grow with the rows, so that nothing must be cleared between them.
    stamp = np.full(len(rows), -1, dtype=np.int32)
    near = np.empty(width, dtype=np.int32)
    end = 0
    for i in range(len(counts)):
        row = start + i
        size = _mutual(found, row, width, near)
        begin = end
        for neighbour in near[:size]:
            # Even for the row's own neighbours, odd for those that an expansion brought.
            stamp[neighbour] = 2 * i
            columns[end] = neighbour
            end += 1
        for candidate in near[:size]:
            brought = half[candidate, : half_counts[candidate]]
            shared = 0
            for neighbour in brought:
                shared += stamp[neighbour] == 2 * i
            if 3 * shared > 2 * len(brought):
                for neighbour in brought:
                    if stamp[neighbour] < 2 * i:
                        stamp[neighbour] = 2 * i + 1
                        columns[end] = neighbour
                        end += 1
        total = np.float32(0.0)
        for at in range(begin, end):
            distance = np.float32(0.0)
            # A row is at no distance from itself, whatever rounding says.
            if columns[at] != row and farthest[row] > 0:
                similarity = _dot(rows[row], rows[columns[at]])
                distance = max(np.float32(0.0), 2 - 2 * similarity) / farthest[row]
            weights[at] = np.exp(-distance)
            total += weights[at]
        for at in range(begin, end):
            weights[at] /= total
        counts[i] = end - begin
    return end


@numba.njit(cache=True, nogil=True)
def average(
    found: Rows,
    width: int,
    starts: NDArray[np.int64],
    columns: Rows,
    weights: Floats,
    start: int,
    counts: Rows,
    out_columns: Rows,
    out_weights: Floats,
) -> int:
    """Replace the encoding of a row by the mean of those of its nearest; entries written."""
    size = len(starts) - 1
    # The entry of a column in the mean; one from before `begin` is that of an earlier row.
    entry = np.full(size, -1, dtype=np.int64)
    end = 0
    for i in range(len(counts)):
        begin = end
        near = found[start + i, :width]
        share = np.float32(1.0) / np.float32(np.sum(near >= 0))
        for neighbour in near:
            if neighbour < 0:
                continue
            for at in range(starts[neighbour], starts[neighbour + 1]):
                column = columns[at]
                if entry[column] < begin:
                    entry[column] = end
                    out_columns[end] = column
                    out_weights[end] = 0.0
                    end += 1
                out_weights[entry[column]] += weights[at] * share
        counts[i] = end - begin
    return end


@numba.njit(cache=True, nogil=True)
def mix(
    similarity: Floats,
    farthest: Floats,
    starts: NDArray[np.int64],
    columns: Rows,
    weights: Floats,
    list_starts: NDArray[np.int64],
    listed: Rows,
    list_weights: Floats,
    lambda_value: float,
) -> None:
    """Turn (n, G) cosines into final distances in place.

    The n queries have sparse encodings; the gallery's are given as inverted lists, those images
    that have a weight in a column.
    """
    shared = np.zeros(similarity.shape[1], dtype=np.float32)
    own = np.float32(lambda_value)
    other = np.float32(1 - lambda_value)
    for i in range(len(similarity)):
        for at in range(starts[i], starts[i + 1]):
            weight = weights[at]
            for entry in range(list_starts[columns[at]], list_starts[columns[at] + 1]):
                shared[listed[entry]] += min(weight, list_weights[entry])
        scale = np.float32(1.0) / farthest[i] if farthest[i] > 0 else np.float32(0.0)
        for g in range(similarity.shape[1]):
            distance = max(np.float32(0.0), 2 - 2 * similarity[i, g]) * scale
            # The weights of an encoding sum to one, so minima and maxima together sum to two.
            jaccard = 1 - shared[g] / (2 - shared[g])
            similarity[i, g] = other * np.float32(jaccard) + own * distance
            shared[g] = 0.0
