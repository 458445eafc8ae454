"""Ranks and ROC from the similarity matrix, of which only blocks are ever in memory.

A block is a product in single precision, with a proven bound of its error. By it `counting` decides
what the bound lets it decide; the few pairs in doubt are computed in double precision. So a count
is a function of the rows alone: no block size, number of threads or BLAS changes a figure. Where
single precision leaves too much in doubt (a collapsed model, to which all images are alike), the
rest of the blocks are products in double precision.
"""

import math
import threading

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.cores import Cores, every_core
from ray_reid.ranking.counting import (
    CELL,
    CELLS,
    GRID,
    UNLIMITED,
    Floats,
    Integers,
    Scene,
    count,
    matches,
    nearest,
    project,
    score,
    tally,
    tally_again,
    unit,
)

Precision = type[np.float32] | type[np.float64]

# Of a block, the share of pairs in doubt above which double precision costs less than they do.
TOO_MANY = 0.1
# Queries in a block at most: enough for a product at full speed.
ROWS = 512
CENTRE_ROWS = 1024


class Proxies:
    """The similarity matrix of a scene, block by block in single or double precision."""

    def __init__(self, scene: Scene, size: int, cores: Cores) -> None:
        """Prepare blocks of at most about `size` similarities."""
        self.scene = scene
        num_queries, (num_images, dimensions) = len(scene.query), scene.gallery.shape
        # As many stripes as keep every worker busy to the end.
        rows = min(ROWS, max(1, math.isqrt(size)))
        stripes = cores.count * math.ceil(num_queries / (cores.count * rows))
        self.rows = math.ceil(num_queries / stripes)
        self.tiles = _tiles(scene.first, max(1, size // self.rows))
        self.single_is_vain = False
        """Whether single precision has left too many pairs undecided."""
        self._nothing = np.zeros(dimensions)
        sample = np.arange(0, num_images, max(1, num_images // CENTRE_ROWS))
        some = np.empty((len(sample), dimensions))
        unit(scene.gallery, scene.gallery_norm, sample, self._nothing, some)
        # Any centre gives the same ranking. What is left of the rows near the mean is short, and
        # with it the rounding error.
        self._centre = some.mean(axis=0)
        self.shift = np.empty(num_queries)
        self._query = np.empty((num_queries, dimensions), dtype=np.float32)
        self._gallery = np.empty((num_images, dimensions), dtype=np.float32)
        cores.map(self._prepare_queries, self.stripes())
        self._longest = cores.map(self._prepare_tile, self.tiles)

    def stripes(self) -> list[slice]:
        """The queries in blocks."""
        count = len(self.scene.query)
        return [slice(at, min(at + self.rows, count)) for at in range(0, count, self.rows)]

    def block(self, rows: slice, tile: int, kind: Precision) -> tuple[Floats, float]:
        """Similarities of some queries to the items of a tile, less `shift`, and their error."""
        scene, items = self.scene, self.tiles[tile]
        first = scene.first[items.start : items.stop + 1]
        images = slice(first[0], first[-1])
        query: Floats
        gallery: Floats
        if kind is np.float32:
            query, gallery = self._query[rows], self._gallery[images]
        else:
            query = np.empty((rows.stop - rows.start, scene.query.shape[1]))
            gallery = np.empty((images.stop - images.start, scene.query.shape[1]))
            take = np.arange(rows.start, rows.stop)
            unit(scene.query, scene.query_norm, take, self._nothing, query)
            unit(scene.gallery, scene.gallery_norm, scene.image[images], self._centre, gallery)
        block = _product(query, gallery)
        if len(first) - 1 < block.shape[1]:
            reduced = np.empty((len(block), len(first) - 1), dtype=kind)
            nearest(block, first, reduced)
            block = reduced
        return block, self._error(tile, kind)

    @property
    def largest_error(self) -> float:
        """Bound for every block in single precision."""
        return max(self._error(tile, np.float32) for tile in range(len(self.tiles)))

    def _error(self, tile: int, kind: Precision) -> float:
        """How far a block may be from `_grid` before it rounds to the grid.

        A sum of n products in any order is off by at most n u / (1 - n u) times the lengths of both
        rows (Higham, 2002, section 3.1), u being half the distance from 1 to the next number. Nine
        more roundings are allowed for: of the rows, the threshold and the sums.
        """
        terms = math.ceil(self.scene.query.shape[1] / 2) + 9
        loss = terms * float(np.finfo(kind).eps) / 2
        # The definition itself, the shift and the lengths are in double precision.
        return loss / (1 - loss) * self._longest[tile] + 8 * terms * float(np.finfo(float).eps)

    def _prepare_queries(self, rows: slice) -> None:
        scene, take = self.scene, np.arange(rows.start, rows.stop)
        unit(scene.query, scene.query_norm, take, self._nothing, self._query[rows])
        project(scene.query[rows], scene.query_norm[rows], self._centre, self.shift[rows])

    def _prepare_tile(self, items: slice) -> float:
        scene = self.scene
        images = slice(scene.first[items.start], scene.first[items.stop])
        take, out = scene.image[images], self._gallery[images]
        return unit(scene.gallery, scene.gallery_norm, take, self._centre, out)


def _product(query: Floats, gallery: Floats) -> Floats:
    """All inner products, of two halves each: a sum of half the length has half the error."""
    half = query.shape[1] // 2
    product: Floats = query[:, :half] @ gallery[:, :half].T
    product += query[:, half:] @ gallery[:, half:].T
    return product


def _tiles(first: Integers, images: int) -> list[slice]:
    """The items in blocks of at most so many images, or of one item."""
    tiles, start = [], 0
    while start < len(first) - 1:
        stop = int(np.searchsorted(first, first[start] + images, "right")) - 1
        tiles.append(slice(start, max(stop, start + 1)))
        start = tiles[-1].stop
    return tiles


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
    with every_core() as cores:
        proxies = Proxies(scene, size, cores)

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

        cores.map(stripe, proxies.stripes())
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


def separate(
    scene: Scene, rule: int, found: Integers, places: Integers, size: int
) -> tuple[Integers, Integers]:
    """Similarities of genuine pairs, and of some impostor pairs, on the grid.

    Radix selection: one pass over the matrix finds the cells in which the impostors lie, a second
    one their steps. Memory does not grow with the matrix.

    Args:
        scene: Queries that have an identity.
        rule: See `matches`.
        found: (Q,) number of matches of each.
        places: Which impostors are asked for; 0 is the most similar one.
        size: Similarities in memory at a time.

    Returns:
        All genuine similarities, and those of the impostors asked for.
    """
    with every_core() as cores:
        proxies = Proxies(scene, size, cores)

        def first_pass(rows: slice) -> tuple[Integers, Integers]:
            ends = np.r_[0, np.cumsum(found[rows])]
            coarse = np.zeros(CELLS, dtype=np.int64)
            for tile, items in enumerate(proxies.tiles):
                block, _ = proxies.block(rows, tile, np.float32)
                tally(scene, block, proxies.shift[rows], rows.start, items.start, coarse)
            return matches(scene, rule, rows.start, rows.stop, ends), coarse

        stripes = cores.map(first_pass, proxies.stripes())
        genuine = np.concatenate([part for part, _ in stripes])
        coarse = np.sum([part for _, part in stripes], axis=0)
        # An order statistic moves by no more than the values do.
        reach = math.ceil(proxies.largest_error * GRID / CELL) + 1
        asked = np.zeros(CELLS, dtype=bool)
        asked[_cell_of(coarse, places)] = True
        marked, near = _widened(asked, reach), _widened(asked, 2 * reach)
        place = np.where(marked, (np.cumsum(marked) - 1) * CELL, -1)
        precise = coarse[near].sum() > TOO_MANY * coarse.sum()
        kind: Precision = np.float64 if precise else np.float32
        coarse[:] = 0
        fine = np.zeros(int(marked.sum()) * CELL, dtype=np.int64)
        together = threading.Lock()

        def second_pass(rows: slice) -> None:
            own_coarse, own_fine = np.zeros_like(coarse), np.zeros_like(fine)
            shift = proxies.shift[rows]
            for tile, items in enumerate(proxies.tiles):
                block, error = proxies.block(rows, tile, kind)
                tally_again(
                    scene,
                    block,
                    error,
                    shift,
                    rows.start,
                    items.start,
                    near,
                    place,
                    own_coarse,
                    own_fine,
                )
            with together:
                np.add(coarse, own_coarse, out=coarse)
                np.add(fine, own_fine, out=fine)

        cores.map(second_pass, proxies.stripes())
    cells = _cell_of(coarse, places)
    above = coarse.sum() - np.cumsum(coarse)
    impostors = np.empty(len(places), dtype=np.int64)
    for at, (cell, wanted) in enumerate(zip(cells, places, strict=True)):
        steps = fine[place[cell] : place[cell] + CELL]
        step = _cell_of(steps, np.array([wanted - above[cell]]))[0]
        impostors[at] = cell * CELL + step - int(GRID)
    return genuine, impostors


def _cell_of(counts: Integers, places: Integers) -> Integers:
    """The cell that holds each place from the top, 0 being the last filled one."""
    return len(counts) - 1 - np.searchsorted(np.cumsum(counts[::-1]), places, "right")


def _widened(marks: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Marks on all cells within some of a marked one."""
    wide = np.convolve(marks, np.ones(2 * by + 1, dtype=np.int64), "full")
    return wide[by : by + len(marks)] > 0
