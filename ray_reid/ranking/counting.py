"""Kernels of `ranking`: similarities by definition, and counts of a block of approximate ones."""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

# Similarities are compared on this grid; see `metrics`.
GRID = 2.0**30
# Cells into which the span of a query's thresholds is divided.
BINS = 4096
# Where more of the items reach a threshold, it costs less to look at all than to choose them.
MOST = 0.7
UNLIMITED = 1 << 62
# For a curve they are first tallied in cells of 2**-14, of 2**16 steps of the grid each.
CELL = 1 << 16
CELLS = 2 * int(GRID) // CELL + 1

compiled = numba.njit(cache=True, nogil=True)


class Scene(NamedTuple):
    """Q queries and G images as I items of one or more images; items of an identity adjoin.

    Attributes:
        query: (Q, D) as given, not normalised.
        gallery: (G, D) likewise, in the order given.
        query_norm: (Q,) 1 for a zero row.
        gallery_norm: (G,) likewise.
        image: (G,) row of the gallery, item after item.
        first: (I + 1,) where each item begins in `image`.
        own: (Q, 2) first and last-but-one item of the query's identity.
        query_labels: (Q, 3) camera, clothes and identity; -1 is null.
        item_labels: (2, I) camera and clothes.
    """

    query: Floats
    gallery: Floats
    query_norm: Floats
    gallery_norm: Floats
    image: Integers
    first: Integers
    own: Integers
    query_labels: Integers
    item_labels: Integers


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def _dot(one: Floats, other: Floats) -> float:
    """Inner product in double precision; the compiler sums in one order, the same for all pairs."""
    total = 0.0
    for i in range(len(one)):
        total += np.float64(one[i]) * np.float64(other[i])
    return total


@compiled
def norms(rows: Floats) -> NDArray[np.float64]:
    """(N,) lengths of the rows."""
    out = np.empty(len(rows))
    for n in range(len(rows)):
        out[n] = np.sqrt(_dot(rows[n], rows[n]))
    return out


@compiled
def unit(rows: Floats, norm: Floats, take: Integers, centre: Floats, out: Floats) -> float:
    """Write the unit rows `take` minus a centre; return the length of the longest."""
    longest = 0.0
    for n in range(len(take)):
        row, scale = rows[take[n]], 1.0 / norm[take[n]]
        for i in range(len(row)):
            out[n, i] = np.float64(row[i]) * scale - centre[i]
        longest = max(longest, _dot(out[n], out[n]))
    return np.sqrt(longest)


@compiled
def _grid(row: Floats, norm: float, gallery: Floats, gallery_norm: Floats, images: Integers) -> int:
    """Similarity of a query to an item by definition, on the grid: that of its nearest image."""
    best = -UNLIMITED
    for image in images:
        cosine = _dot(row, gallery[image]) / (norm * gallery_norm[image])
        best = max(best, int(np.rint(cosine * GRID)))
    return best


@compiled
def _own_matches(
    own: Integers, labels: Integers, items: Integers, rule: int, out: NDArray[np.bool_]
) -> int:
    """Mark which items of the query's identity are matches, not junk, and count them."""
    found = 0
    for at in range(own[1] - own[0]):
        camera, clothes = items[0, own[0] + at], items[1, own[0] + at]
        same = labels[1] >= 0 and labels[1] == clothes
        right = rule == 0 or (rule == 1 and same) or (rule == 2 and not same)
        out[at] = right and not (labels[0] >= 0 and labels[0] == camera)
        found += out[at]
    return found


@compiled
def num_matches(scene: Any, rule: int) -> Integers:
    """(Q,) true matches of each query."""
    own, labels, items = scene.own, scene.query_labels, scene.item_labels
    found = np.empty(len(own), dtype=np.int64)
    is_match = np.empty(items.shape[1], dtype=np.bool_)
    for query in range(len(found)):
        found[query] = _own_matches(own[query], labels[query], items, rule, is_match)
    return found


@compiled
def matches(scene: Any, rule: int, start: int, stop: int, ends: Integers) -> Integers:
    """Similarities of the true matches of some queries on the grid, each query's ascending.

    Args:
        scene: A Scene.
        rule: What clothes a match wears; 0: any, 1: the query's, 2: others.
        start: First query.
        stop: The query after the last.
        ends: Where the matches of each of these queries begin, and the last end.
    """
    own, labels, items = scene.own, scene.query_labels, scene.item_labels
    gallery, gallery_norm, image, first = (
        scene.gallery,
        scene.gallery_norm,
        scene.image,
        scene.first,
    )
    found = np.empty(ends[-1], dtype=np.int64)
    is_match = np.empty(items.shape[1], dtype=np.bool_)
    for query in range(start, stop):
        row, norm = scene.query[query], scene.query_norm[query]
        _own_matches(own[query], labels[query], items, rule, is_match)
        at = begin = ends[query - start]
        for item in range(own[query, 0], own[query, 1]):
            if is_match[item - own[query, 0]]:
                images = image[first[item] : first[item + 1]]
                found[at] = _grid(row, norm, gallery, gallery_norm, images)
                at += 1
        found[begin:at].sort()
    return found


@compiled
def nearest(block: Floats, first: Integers, out: Floats) -> None:
    """Reduce the columns of images to items."""
    for row in range(len(block)):
        for item in range(len(first) - 1):
            best = block[row, first[item] - first[0]]
            for at in range(first[item] + 1, first[item + 1]):
                best = max(best, block[row, at - first[0]])
            out[row, item] = best


@compiled
def _cells(values: Floats, base: float, scale: float, out: NDArray[np.int32]) -> None:
    """Divide values into bins; never decreasing in the value, so bounds are placed by it too."""
    zero, top = values.dtype.type(0), values.dtype.type(BINS - 1)
    for i in range(len(values)):
        out[i] = np.int32(min(max((values[i] - base) * scale, zero), top))


@compiled
def _num_above(cells: NDArray[np.int32]) -> int:
    """How many values are not in bin 0."""
    total = np.int32(0)
    for i in range(len(cells)):
        total += np.int32(cells[i] > 0)
    return int(total)


@compiled
def _up_to(values: Any, key: Any) -> int:
    """How many of the ascending values are at most the key."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] <= key:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def count(
    scene: Any,
    block: Floats,
    error: float,
    shift: Floats,
    query: int,
    item: int,
    grids: Integers,
    ends: Integers,
    budget: int,
    counts: Integers,
) -> int:
    """Count the wrong items of a block by how many matches of the query they reach.

    Every match makes a threshold, and a band around it in which the proxy cannot tell. A table over
    the bins of the span of all thresholds gives the count at once for a bin that no band touches.

    Args:
        scene: A Scene.
        block: (R, C) similarity to within `error`, less `shift`.
        error: Bound of the proxy's error.
        shift: (R,) what has been taken from each row.
        query: The first row's query.
        item: The first column's item.
        grids: Thresholds of all rows, as `matches` gives them.
        ends: (R + 1,) where those of each row begin.
        budget: Pairs that may be recomputed before giving up.
        counts: Those of row r begin at `ends[r] + r`: items that reach 0, 1, ... of its matches.

    Returns:
        The number of rows that were counted.
    """
    own = scene.own
    num_rows, num_columns = block.shape
    room = min(budget, block.size) + num_columns
    doubt_row, doubt_column = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
    num_doubts = 0
    most = 0
    for row in range(num_rows):
        most = max(most, ends[row + 1] - ends[row])
    # Buffers of the block's own type, lest single precision be promoted.
    low, high = np.empty(most, block.dtype), np.empty(most, block.dtype)
    scaling = np.empty(2, block.dtype)
    table = np.empty(BINS, dtype=np.int32)
    low_cell, high_cell = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32)
    cell, kept = np.empty(num_columns, dtype=np.int32), np.empty(num_columns, dtype=np.int32)
    every = np.arange(num_columns).astype(np.int32)
    for row in range(num_rows):
        grid = grids[ends[row] : ends[row + 1]]
        size = len(grid)
        for k in range(size):
            threshold = (grid[k] - 0.5) / GRID - shift[row]
            low[k], high[k] = threshold - error, threshold + error
        # Two bins lie below the lowest band, so what falls into bin 0 reaches nothing.
        width = max((np.float64(high[size - 1]) - low[0]) / (BINS - 8), error)
        scaling[0], scaling[1] = low[0] - 2.0 * width, 1.0 / width
        _cells(low[:size], scaling[0], scaling[1], low_cell)
        _cells(high[:size], scaling[0], scaling[1], high_cell)
        done = 0
        for k in range(size):
            for bin_ in range(done, low_cell[k]):
                table[bin_] = k
            for bin_ in range(max(done, low_cell[k]), high_cell[k] + 1):
                table[bin_] = -1
            done = max(done, high_cell[k] + 1)
        table[done:] = size
        mine = counts[ends[row] + row : ends[row + 1] + row + 1]
        for side in range(2):
            start, stop = _others(own[query + row], item, num_columns, side)
            values = block[row, start:stop]
            _cells(values, scaling[0], scaling[1], cell)
            num_kept, which = len(values), every
            if _num_above(cell[: len(values)]) < MOST * len(values):
                num_kept, which = 0, kept
                for column in range(len(values)):
                    kept[num_kept] = column
                    num_kept += cell[column] > 0
            for at in range(num_kept):
                column = which[at]
                reached = table[cell[column]]
                if reached < 0:
                    reached = _up_to(low[:size], values[column])
                    if reached > 0 and not high[reached - 1] < values[column]:
                        doubt_row[num_doubts] = row
                        doubt_column[num_doubts] = start + column
                        num_doubts += 1
                        continue
                mine[reached] += 1
        if num_doubts > budget:
            num_rows = row + 1
            break
    rows, columns = doubt_row[:num_doubts], doubt_column[:num_doubts]
    _settle(scene, rows, columns, num_columns, query, item, grids, ends, counts)
    return num_rows


@compiled
def _settle(
    scene: Any,
    rows: NDArray[np.int32],
    columns: NDArray[np.int32],
    num_columns: int,
    query: int,
    item: int,
    grids: Integers,
    ends: Integers,
    counts: Integers,
) -> None:
    """Count the pairs in doubt by definition; see `count`."""
    gallery, gallery_norm = scene.gallery, scene.gallery_norm
    queries, query_norm = scene.query, scene.query_norm
    image, first = scene.image, scene.first
    # Column by column, so that a row of the large gallery is fetched once.
    place = np.zeros(num_columns + 1, dtype=np.int64)
    for column in columns:
        place[column + 1] += 1
    place[:] = np.cumsum(place)
    order = np.empty(len(rows), dtype=np.int64)
    for at, column in enumerate(columns):
        order[place[column]] = at
        place[column] += 1
    for pair in order:
        row, number = rows[pair], item + columns[pair]
        images = image[first[number] : first[number + 1]]
        own_row, own_norm = queries[query + row], query_norm[query + row]
        exact = _grid(own_row, own_norm, gallery, gallery_norm, images)
        reached = _up_to(grids[ends[row] : ends[row + 1]], exact)
        counts[ends[row] + row + reached] += 1


@compiled
def count_given(
    scene: Any, rule: int, similarity: Floats, ends: Integers, counts: Integers
) -> None:
    """Count the wrong items of given similarities by how many matches of the query they reach.

    Args:
        scene: A Scene, of whose embeddings nothing is read.
        rule: See `matches`.
        similarity: (Q, I) any values, compared as they are.
        ends: (Q + 1,) where the matches of each query begin.
        counts: Those of query q begin at `ends[q] + q`: items that reach 0, 1, ... of its matches.
    """
    own, labels, items = scene.own, scene.query_labels, scene.item_labels
    is_match = np.empty(items.shape[1], dtype=np.bool_)
    for query in range(len(own)):
        row, size = similarity[query], ends[query + 1] - ends[query]
        _own_matches(own[query], labels[query], items, rule, is_match)
        thresholds = np.empty(size, dtype=similarity.dtype)
        at = 0
        for item in range(own[query, 0], own[query, 1]):
            if is_match[item - own[query, 0]]:
                thresholds[at] = row[item]
                at += 1
        thresholds.sort()
        for side in range(2):
            start, stop = _others(own[query], 0, len(row), side)
            for item in range(start, stop):
                counts[ends[query] + query + _up_to(thresholds, row[item])] += 1


@compiled
def score(
    counts: Integers, ends: Integers, trapezoid: bool, ap: Floats, inp: Floats, first: Integers
) -> None:
    """Write AP, inverse negative penalty and the first rank of queries from their counts."""
    for row in range(len(ap)):
        size = ends[row + 1] - ends[row]
        above, total, rank = 0, 0.0, 0
        for found in range(1, size + 1):
            above += counts[ends[row] + row + size + 1 - found]
            rank = above + found
            precision = found / rank
            if trapezoid:
                # Before the first image of a ranking precision is 1.
                before = (found - 1) / (rank - 1) if rank > 1 else 1.0
                precision = (precision + before) / 2
            total += precision
            if found == 1:
                first[row] = rank
        ap[row], inp[row] = total / size, size / rank


@compiled
def _cell(value: float) -> int:
    return min(max(int(np.floor((value + 1.0) * GRID / CELL)), 0), CELLS - 1)


@compiled
def tally(
    scene: Any, block: Floats, shift: Floats, query: int, item: int, coarse: Integers
) -> None:
    """Add the impostor pairs of a block to `coarse`, the number in each cell, by their proxies."""
    own = scene.own
    for row in range(len(block)):
        for side in range(2):
            start, stop = _others(own[query + row], item, block.shape[1], side)
            for column in range(start, stop):
                coarse[_cell(block[row, column] + shift[row])] += 1


@compiled
def tally_again(
    scene: Any,
    block: Floats,
    error: float,
    shift: Floats,
    query: int,
    item: int,
    near: NDArray[np.bool_],
    place: Integers,
    coarse: Integers,
    fine: Integers,
) -> None:
    """Add the pairs of a block to `coarse` again, those in marked cells exactly, and to `fine`.

    Args:
        scene: A Scene.
        block: See `count`, as are `error`, `shift`, `query` and `item`.
        error: Bound.
        shift: Of each row.
        query: First.
        item: First.
        near: (CELLS,) whether a pair of this proxy may lie in a marked cell.
        place: (CELLS,) where the steps of a marked cell begin in `fine`, or -1.
        coarse: (CELLS,) pairs in each cell.
        fine: Pairs at each step of the grid, of the marked cells.
    """
    own, image, first = scene.own, scene.image, scene.first
    gallery, gallery_norm = scene.gallery, scene.gallery_norm
    for row in range(len(block)):
        own_row, own_norm = scene.query[query + row], scene.query_norm[query + row]
        for side in range(2):
            start, stop = _others(own[query + row], item, block.shape[1], side)
            for column in range(start, stop):
                value = block[row, column] + shift[row]
                cell = _cell(value)
                if near[cell]:
                    grid = int(np.rint((value - error) * GRID))
                    if grid != int(np.rint((value + error) * GRID)):
                        number = item + column
                        images = image[first[number] : first[number + 1]]
                        grid = _grid(own_row, own_norm, gallery, gallery_norm, images)
                    step = grid + int(GRID)
                    cell = int(min(max(step // CELL, 0), CELLS - 1))
                    if place[cell] >= 0:
                        fine[place[cell] + step - cell * CELL] += 1
                coarse[cell] += 1


@compiled
def _others(own: Integers, item: int, num_columns: int, side: int) -> tuple[int, int]:
    """The columns left or right of the query's own items in a block that begins with an item."""
    first = min(max(own[0] - item, 0), num_columns)
    last = min(max(own[1] - item, first), num_columns)
    return (0, first) if side == 0 else (last, num_columns)


@compiled
def project(rows: Floats, norm: Floats, centre: Floats, out: Floats) -> None:
    """Write the inner product of each unit row with a centre."""
    for n in range(len(rows)):
        out[n] = _dot(rows[n], centre) / norm[n]
