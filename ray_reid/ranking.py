"""Counting kernels of `metrics`: how many gallery items are as similar to a query as its matches.

Rows are compared twice. `proxies` is the product in single precision, in blocks, with a proven bound
of its error; the kernels decide by it every pair that the bound lets them decide. The few pairs left
are computed by `_grid` in double precision with the sums in a fixed order, so what is counted is a
function of the two rows alone: no block size, number of threads or BLAS can change a figure. Should
the single precision leave too many (a collapsed model, whose images are all alike), the rest of the
blocks are products in double precision.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Done = TypeVar("Done")

# Similarities are compared on this grid; see `metrics`.
GRID = 2.0**30
# Cells into which the span of a query's thresholds is divided.
BINS = 4096
# Of a block, the share of pairs above which recomputing them costs more than double precision.
TOO_MANY = 0.1
# Queries in a block at most: enough for a product at full speed.
ROWS = 512
CENTRE_ROWS = 1024
UNLIMITED = 1 << 62

compiled = numba.njit(cache=True, nogil=True)
# The number of BLAS threads belongs to the process, so one caller at a time may change it.
_blas = threading.Lock()


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
        query_labels: (Q, 2) camera and clothes; -1 is null.
        item_labels: (2, I) likewise.
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
def _norms(rows: Floats, out: Floats) -> None:
    for n in range(len(rows)):
        out[n] = np.sqrt(_dot(rows[n], rows[n]))


@compiled
def _unit(rows: Floats, norm: Floats, take: Integers, centre: Floats, out: Floats) -> float:
    """Write the unit rows `take` minus a centre; return the length of the longest."""
    longest = 0.0
    for n in range(len(take)):
        row, scale = rows[take[n]], 1.0 / norm[take[n]]
        for i in range(len(row)):
            out[n, i] = np.float64(row[i]) * scale - centre[i]
        longest = max(longest, _dot(out[n], out[n]))
    return np.sqrt(longest)


@compiled
def _grid(
    row: Floats, norm: float, gallery: Floats, gallery_norm: Floats, images: Integers
) -> int:
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
def _nearest(block: Floats, first: Integers, out: Floats) -> None:
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
        own_first = min(max(scene.own[query + row, 0] - item, 0), num_columns)
        own_last = min(max(scene.own[query + row, 1] - item, own_first), num_columns)
        for side in range(2):
            start, stop = (0, own_first) if side == 0 else (own_last, num_columns)
            values = block[row, start:stop]
            _cells(values, scaling[0], scaling[1], cell)
            num_kept = 0
            for column in range(len(values)):
                kept[num_kept] = column
                num_kept += cell[column] > 0
            for at in range(num_kept):
                column = kept[at]
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
    place = np.cumsum(place)
    order = np.empty(len(rows), dtype=np.int64)
    for at, column in enumerate(columns):
        order[place[column]] = at
        place[column] += 1
    for at in order:
        row, number = rows[at], item + columns[at]
        images = image[first[number] : first[number + 1]]
        own_row, own_norm = queries[query + row], query_norm[query + row]
        exact = _grid(own_row, own_norm, gallery, gallery_norm, images)
        reached = _up_to(grids[ends[row] : ends[row + 1]], exact)
        counts[ends[row] + row + reached] += 1


@compiled
def score(
    counts: Integers, ends: Integers, trapezoid: bool, ap: Floats, inp: Floats, first: Integers
) -> None:
    """Average precision, inverse negative penalty and first rank from the counts of some queries."""
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
def _project(rows: Floats, norm: Floats, centre: Floats, out: Floats) -> None:
    for n in range(len(rows)):
        out[n] = _dot(rows[n], centre) / norm[n]


def norms(rows: Floats) -> Floats:
    """(N,) lengths of the rows."""
    out = np.empty(len(rows))
    _norms(rows, out)
    return out


class Proxies:
    """The similarity matrix of a scene, block by block in single or double precision."""

    def __init__(self, scene: Scene, size: int, workers: "Workers") -> None:
        """Prepare blocks of at most about `size` similarities."""
        self.scene = scene
        num_queries, (num_images, dimensions) = len(scene.query), scene.gallery.shape
        # As many stripes as keep every worker busy to the end.
        rows = min(ROWS, max(1, math.isqrt(size)))
        stripes = workers.count * math.ceil(num_queries / (workers.count * rows))
        self.rows = math.ceil(num_queries / stripes)
        self.tiles = _tiles(scene.first, max(1, size // self.rows))
        self.single_is_vain = False
        """Whether single precision has left too many pairs undecided."""
        self._nothing = np.zeros(dimensions)
        sample = np.arange(0, num_images, max(1, num_images // CENTRE_ROWS))
        some = np.empty((len(sample), dimensions))
        _unit(scene.gallery, scene.gallery_norm, sample, self._nothing, some)
        # Any centre gives the same ranking. What is left of the rows near the mean is short, and
        # with it the rounding error.
        self._centre = some.mean(axis=0)
        self.shift = np.empty(num_queries)
        self._query = np.empty((num_queries, dimensions), dtype=np.float32)
        self._gallery = np.empty((num_images, dimensions), dtype=np.float32)
        workers.map(self._prepare_queries, self.stripes())
        self._longest = workers.map(self._prepare_tile, self.tiles)

    def stripes(self) -> list[slice]:
        """The queries in blocks."""
        count = len(self.scene.query)
        return [slice(at, min(at + self.rows, count)) for at in range(0, count, self.rows)]

    def block(self, rows: slice, tile: int, kind: type[np.floating[Any]]) -> tuple[Floats, float]:
        """Similarities of some queries to the items of a tile, less `shift`, and their error."""
        scene, items = self.scene, self.tiles[tile]
        first = scene.first[items.start : items.stop + 1]
        images = slice(first[0], first[-1])
        if kind is np.float32:
            query, gallery = self._query[rows], self._gallery[images]
        else:
            query = np.empty((rows.stop - rows.start, scene.query.shape[1]))
            gallery = np.empty((images.stop - images.start, scene.query.shape[1]))
            take = np.arange(rows.start, rows.stop)
            _unit(scene.query, scene.query_norm, take, self._nothing, query)
            _unit(scene.gallery, scene.gallery_norm, scene.image[images], self._centre, gallery)
        block = query @ gallery.T
        if len(first) - 1 < block.shape[1]:
            reduced = np.empty((len(block), len(first) - 1), dtype=kind)
            _nearest(block, first, reduced)
            block = reduced
        return block, self._error(tile, kind)

    def _error(self, tile: int, kind: type[np.floating[Any]]) -> float:
        """How far a block may be from `_grid` before it rounds to the grid.

        A sum of n products in any order is off by at most n u / (1 - n u) times the lengths of both
        rows (Higham, 2002, section 3.1), u being half the distance from 1 to the next number. Eight
        more roundings are allowed for: of the rows, the threshold and the sum.
        """
        terms = self.scene.query.shape[1] + 8
        loss = terms * float(np.finfo(kind).eps) / 2
        # The definition itself, the shift and the lengths are in double precision.
        return loss / (1 - loss) * self._longest[tile] + 4 * terms * float(np.finfo(float).eps)

    def _prepare_queries(self, rows: slice) -> None:
        scene, take = self.scene, np.arange(rows.start, rows.stop)
        _unit(scene.query, scene.query_norm, take, self._nothing, self._query[rows])
        _project(
            scene.query[rows], scene.query_norm[rows], self._centre, self.shift[rows]
        )

    def _prepare_tile(self, items: slice) -> float:
        scene = self.scene
        images = slice(scene.first[items.start], scene.first[items.stop])
        take, out = scene.image[images], self._gallery[images]
        return _unit(scene.gallery, scene.gallery_norm, take, self._centre, out)


def _tiles(first: Integers, images: int) -> list[slice]:
    """The items in blocks of at most so many images, or of one item."""
    tiles, start = [], 0
    while start < len(first) - 1:
        stop = int(np.searchsorted(first, first[start] + images, "right")) - 1
        tiles.append(slice(start, max(stop, start + 1)))
        start = tiles[-1].stop
    return tiles


class Workers:
    """As many threads as BLAS has, each of which calls BLAS with one."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool, self.count = pool, count

    def map(self, work: Callable[[Any], Done], parts: Sequence[Any]) -> list[Done]:
        """The work on every part, in order."""
        if self.count == 1 or len(parts) == 1:
            return [work(part) for part in parts]
        return list(self._pool.map(work, parts))


@contextmanager
def workers() -> Iterator[Workers]:
    """Take BLAS's threads for a while."""
    with _blas:
        blas = ThreadpoolController().select(user_api="blas")
        count = max((library["num_threads"] for library in blas.info()), default=1)
        with blas.limit(limits=1), ThreadPoolExecutor(count) as pool:
            yield Workers(pool, count)


def rank(
    scene: Scene, rule: int, found: Integers, trapezoid: bool, size: int
) -> tuple[Floats, Floats, Integers]:
    """AP, INP and first rank of every query, by blocks of `size` similarities a thread.

    Args:
        scene: Queries that have a match.
        rule: See `matches`.
        found: (Q,) number of matches of each.
        trapezoid: Which average precision.
        size: Similarities in memory at a time.
    """
    ap, inp = np.empty(len(found)), np.empty(len(found))
    first = np.empty(len(found), dtype=np.int64)
    with workers() as hands:
        proxies = Proxies(scene, size, hands)

        def stripe(rows: slice) -> None:
            ends = np.r_[0, np.cumsum(found[rows])]
            grids = matches(scene, rule, rows.start, rows.stop, ends)
            counts = np.zeros(len(grids) + len(ends) - 1, dtype=np.int64)
            for tile in range(len(proxies.tiles)):
                at = 0
                if not proxies.single_is_vain:
                    at = _count(proxies, rows, 0, tile, grids, ends, counts)
                if at < len(ends) - 1:
                    proxies.single_is_vain = True
                    _count(proxies, rows, at, tile, grids, ends, counts)
            score(counts, ends, trapezoid, ap[rows], inp[rows], first[rows])

        hands.map(stripe, proxies.stripes())
    return ap, inp, first


def _count(
    proxies: Proxies,
    rows: slice,
    done: int,
    tile: int,
    grids: Integers,
    ends: Integers,
    counts: Integers,
) -> int:
    """Count one block after its first `done` rows; return the number of its rows then done."""
    left = slice(rows.start + done, rows.stop)
    precise = proxies.single_is_vain
    block, error = proxies.block(left, tile, np.float64 if precise else np.float32)
    return done + count(
        proxies.scene,
        block,
        error,
        proxies.shift[left],
        left.start,
        proxies.tiles[tile].start,
        grids,
        ends[done:],
        UNLIMITED if precise else int(TOO_MANY * block.size),
        counts[done:],
    )
