"""Similarities of genuine and of impostor pairs, over blocks of the matrix of all pairs.

Radix selection: one pass over the matrix finds the cells in which the impostors asked for lie, a
second one their steps of the grid. Memory does not grow with the matrix.
"""

import math
import threading

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.cores import Cores, every_core
from ray_reid.ranking.grid import GRID
from ray_reid.ranking.inputs import RankingInput
from ray_reid.ranking.match_kernels import match_similarities
from ray_reid.ranking.proxies import TOO_MANY, Precision, Proxies
from ray_reid.ranking.similarity_kernels import Integers
from ray_reid.ranking.tally_kernels import CELL, CELLS, tally, tally_again


def separate(
    inputs: RankingInput, rule: int, num_matches: Integers, ranks: Integers, size: int
) -> tuple[Integers, Integers]:
    """Similarities of genuine pairs, and of some impostor pairs, on the grid.

    Args:
        inputs: Queries that have an identity, and the gallery.
        rule: What clothes a match wears; see `match_kernels`.
        num_matches: (Q,) of each query.
        ranks: Which impostors are asked for; 0 is the most similar one.
        size: Similarities in memory at a time.

    Returns:
        All genuine similarities, and those of the impostors asked for.
    """
    with every_core() as cores:
        proxies = Proxies(inputs, size, cores)
        genuine, coarse = _tally_proxies(proxies, cores, rule, num_matches)
        asked = np.zeros(CELLS, dtype=bool)
        asked[_cells_of(coarse, ranks)] = True
        # An order statistic moves by no more than the values do.
        reach = math.ceil(proxies.largest_error * GRID / CELL) + 1
        marked, near = _widened(asked, reach), _widened(asked, 2 * reach)
        starts = np.where(marked, (np.cumsum(marked) - 1) * CELL, -1)
        precise = coarse[near].sum() > TOO_MANY * coarse.sum()
        kind: Precision = np.float64 if precise else np.float32
        coarse, fine = _tally_steps(proxies, cores, kind, near, starts)
    return genuine, _similarities(coarse, fine, starts, ranks)


def _tally_proxies(
    proxies: Proxies, cores: Cores, rule: int, num_matches: Integers
) -> tuple[Integers, Integers]:
    """Similarities of all genuine pairs, and about how many impostors are in each cell."""

    def tally_stripe(rows: slice) -> tuple[Integers, Integers]:
        ends = np.r_[0, np.cumsum(num_matches[rows])]
        coarse = np.zeros(CELLS, dtype=np.int64)
        for tile, items in enumerate(proxies.tiles):
            block, _ = proxies.block(rows, tile, np.float32)
            tally(proxies.inputs, block, proxies.shift[rows], rows.start, items.start, coarse)
        return match_similarities(proxies.inputs, rule, rows.start, rows.stop, ends), coarse

    stripes = cores.map(tally_stripe, proxies.stripes())
    genuine = np.concatenate([part for part, _ in stripes])
    return genuine, np.sum([part for _, part in stripes], axis=0)


def _tally_steps(
    proxies: Proxies, cores: Cores, kind: Precision, near: NDArray[np.bool_], starts: Integers
) -> tuple[Integers, Integers]:
    """Impostors in each cell, and at each step of the marked ones; see `tally_again`."""
    coarse = np.zeros(CELLS, dtype=np.int64)
    fine = np.zeros(np.count_nonzero(starts >= 0) * CELL, dtype=np.int64)
    together = threading.Lock()

    def tally_stripe(rows: slice) -> None:
        own_coarse, own_fine = np.zeros_like(coarse), np.zeros_like(fine)
        shift = proxies.shift[rows]
        for tile, items in enumerate(proxies.tiles):
            block, error = proxies.block(rows, tile, kind)
            tally_again(
                proxies.inputs,
                block,
                error,
                shift,
                rows.start,
                items.start,
                near,
                starts,
                own_coarse,
                own_fine,
            )
        with together:
            np.add(coarse, own_coarse, out=coarse)
            np.add(fine, own_fine, out=fine)

    cores.map(tally_stripe, proxies.stripes())
    return coarse, fine


def _similarities(coarse: Integers, fine: Integers, starts: Integers, ranks: Integers) -> Integers:
    """The similarity at each rank, of the counts in cells and at the steps of marked ones."""
    above = coarse.sum() - np.cumsum(coarse)
    similarities = np.empty(len(ranks), dtype=np.int64)
    for at, (cell, rank) in enumerate(zip(_cells_of(coarse, ranks), ranks, strict=True)):
        steps = fine[starts[cell] : starts[cell] + CELL]
        step = _cells_of(steps, np.array([rank - above[cell]]))[0]
        similarities[at] = cell * CELL + step - int(GRID)
    return similarities


def _cells_of(counts: Integers, ranks: Integers) -> Integers:
    """The cell that holds each rank from the top, 0 being in the last filled one."""
    return len(counts) - 1 - np.searchsorted(np.cumsum(counts[::-1]), ranks, "right")


def _widened(marks: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Marks on all cells within some of a marked one."""
    wide = np.convolve(marks, np.ones(2 * by + 1, dtype=np.int64), "full")
    return wide[by : by + len(marks)] > 0
