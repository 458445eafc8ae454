"""The similarity matrix in blocks, of which only a few are ever in memory.

A block is a product in single or double precision, with a proven bound of its error; the kernels
decide by it what the bound lets them decide.
"""

import math

import numpy as np

from ray_reid.ranking.cores import Cores
from ray_reid.ranking.inputs import RankingInput
from ray_reid.ranking.similarity_kernels import Floats, Integers, nearest, project, unit

Precision = type[np.float32] | type[np.float64]

# Of a block, the share of pairs in doubt above which double precision costs less than they do.
TOO_MANY = 0.1
# Queries in a block at most: enough for a product at full speed.
ROWS = 512
CENTRE_ROWS = 1024


class Proxies:
    """The similarity matrix of some inputs, block by block in single or double precision."""

    def __init__(self, inputs: RankingInput, size: int, cores: Cores) -> None:
        """Prepare blocks of at most about `size` similarities."""
        self.inputs = inputs
        num_queries, (num_images, dimensions) = len(inputs.query), inputs.gallery.shape
        # As many stripes as keep every worker busy to the end.
        rows = min(ROWS, max(1, math.isqrt(size)))
        stripes = cores.count * math.ceil(num_queries / (cores.count * rows))
        self.rows = math.ceil(num_queries / stripes)
        self.tiles = _tiles(inputs.first, max(1, size // self.rows))
        self.single_is_vain = False
        """Whether single precision has left too many pairs undecided."""
        self._nothing = np.zeros(dimensions)
        sample = np.arange(0, num_images, max(1, num_images // CENTRE_ROWS))
        centre_rows = np.empty((len(sample), dimensions))
        unit(inputs.gallery, inputs.gallery_norm, sample, self._nothing, centre_rows)
        # Any centre gives the same ranking. What is left of the rows near the mean is short, and
        # with it the rounding error.
        self._centre = centre_rows.mean(axis=0)
        self.shift = np.empty(num_queries)
        self._query = np.empty((num_queries, dimensions), dtype=np.float32)
        self._gallery = np.empty((num_images, dimensions), dtype=np.float32)
        cores.map(self._prepare_queries, self.stripes())
        self._longest = cores.map(self._prepare_tile, self.tiles)

    def stripes(self) -> list[slice]:
        """The queries in blocks."""
        count = len(self.inputs.query)
        return [slice(at, min(at + self.rows, count)) for at in range(0, count, self.rows)]

    def block(self, rows: slice, tile: int, kind: Precision) -> tuple[Floats, float]:
        """Similarities of some queries to the items of a tile, less `shift`, and their error."""
        inputs, items = self.inputs, self.tiles[tile]
        first = inputs.first[items.start : items.stop + 1]
        images = slice(first[0], first[-1])
        query: Floats
        gallery: Floats
        if kind is np.float32:
            query, gallery = self._query[rows], self._gallery[images]
        else:
            query = np.empty((rows.stop - rows.start, inputs.query.shape[1]))
            gallery = np.empty((images.stop - images.start, inputs.query.shape[1]))
            take = np.arange(rows.start, rows.stop)
            unit(inputs.query, inputs.query_norm, take, self._nothing, query)
            unit(inputs.gallery, inputs.gallery_norm, inputs.image[images], self._centre, gallery)
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
        """How far a block may be from the definition before that rounds to the grid.

        A sum of n products in any order is off by at most n u / (1 - n u) times the lengths of both
        rows (Higham, 2002, section 3.1), u being half the distance from 1 to the next number. Nine
        more roundings are allowed for: of the rows, the threshold and the sums.
        """
        terms = math.ceil(self.inputs.query.shape[1] / 2) + 9
        loss = terms * float(np.finfo(kind).eps) / 2
        # The definition itself, the shift and the lengths are in double precision.
        return loss / (1 - loss) * self._longest[tile] + 8 * terms * float(np.finfo(float).eps)

    def _prepare_queries(self, rows: slice) -> None:
        inputs, take = self.inputs, np.arange(rows.start, rows.stop)
        unit(inputs.query, inputs.query_norm, take, self._nothing, self._query[rows])
        project(inputs.query[rows], inputs.query_norm[rows], self._centre, self.shift[rows])

    def _prepare_tile(self, items: slice) -> float:
        inputs = self.inputs
        images = slice(inputs.first[items.start], inputs.first[items.stop])
        take, out = inputs.image[images], self._gallery[images]
        return unit(inputs.gallery, inputs.gallery_norm, take, self._centre, out)


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
