"""Kernels of a verification curve: how many impostor pairs are how similar.

No list of all pairs fits into memory, so they are counted in cells of the span from -1 to 1, and in
a second pass at every step of the grid in those few cells that a curve asks about.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.grid import GRID
from ray_reid.ranking.match_kernels import wrong_columns
from ray_reid.ranking.similarity_kernels import Floats, Integers, compiled, exact

# Steps of the grid in a cell, which is 2**-14 wide, and cells from -1 to 1.
CELL = 1 << 16
CELLS = 2 * int(GRID) // CELL + 1


@compiled
def _cell(value: float) -> int:
    # Rounding may take a similarity a little beyond -1 or 1.
    return min(max(int(np.floor((value + 1.0) * GRID / CELL)), 0), CELLS - 1)


@compiled
def tally(
    inputs: Any, block: Floats, shift: Floats, query: int, item: int, coarse: Integers
) -> None:
    """Add the impostor pairs of a block to `coarse`, the number in each cell, by their proxies."""
    own = inputs.own
    for row in range(len(block)):
        for side in range(2):
            start, stop = wrong_columns(own[query + row], item, block.shape[1], side)
            for column in range(start, stop):
                coarse[_cell(block[row, column] + shift[row])] += 1


@compiled
def tally_again(
    inputs: Any,
    block: Floats,
    error: float,
    shift: Floats,
    query: int,
    item: int,
    near: NDArray[np.bool_],
    starts: Integers,
    coarse: Integers,
    fine: Integers,
) -> None:
    """Add the pairs of a block to `coarse` again, those in marked cells exactly, and to `fine`.

    Args:
        inputs: A RankingInput.
        block: (R, C) similarity to within `error`, less `shift`.
        error: Bound of the proxy's error.
        shift: (R,) what has been taken from each row.
        query: The first row's query.
        item: The first column's item.
        near: (CELLS,) whether a pair of this proxy may lie in a marked cell.
        starts: (CELLS,) where the steps of a marked cell begin in `fine`, or -1.
        coarse: (CELLS,) pairs in each cell.
        fine: Pairs at each step of the grid, of the marked cells.
    """
    own, image, first = inputs.own, inputs.image, inputs.first
    gallery, gallery_norm = inputs.gallery, inputs.gallery_norm
    for row in range(len(block)):
        own_row, own_norm = inputs.query[query + row], inputs.query_norm[query + row]
        for side in range(2):
            start, stop = wrong_columns(own[query + row], item, block.shape[1], side)
            for column in range(start, stop):
                value = block[row, column] + shift[row]
                cell = _cell(value)
                if near[cell]:
                    # Where both ends of the error round to one step, the definition does as well.
                    step = int(np.rint((value - error) * GRID))
                    if step != int(np.rint((value + error) * GRID)):
                        number = item + column
                        images = image[first[number] : first[number + 1]]
                        step = exact(own_row, own_norm, gallery, gallery_norm, images)
                    step += int(GRID)
                    cell = int(min(max(step // CELL, 0), CELLS - 1))
                    if starts[cell] >= 0:
                        fine[starts[cell] + step - cell * CELL] += 1
                coarse[cell] += 1
