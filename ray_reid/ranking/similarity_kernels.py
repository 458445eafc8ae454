"""Kernels of similarity: by definition, and the rows of which blocks of it are products.

numba keeps compiled code beside each file and compiles it anew when that file changes. It does not
see that a kernel of another file has changed: after an edit here, delete `__pycache__`.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.grid import GRID

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

# Below every similarity on the grid.
LOWEST = -(1 << 62)

compiled = numba.njit(cache=True, nogil=True)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def dot(left: Floats, right: Floats) -> float:
    """Inner product in double precision; the compiler sums in one order, the same for all pairs."""
    total = 0.0
    for i in range(len(left)):
        total += np.float64(left[i]) * np.float64(right[i])
    return total


@compiled
def norms(rows: Floats) -> NDArray[np.float64]:
    """(N,) lengths of the rows."""
    out = np.empty(len(rows))
    for n in range(len(rows)):
        # As `exact` sums, lest a row be unlike itself.
        out[n] = np.sqrt(dot(rows[n], rows[n]))
    return out


@compiled
def exact(row: Floats, norm: float, gallery: Floats, gallery_norm: Floats, images: Integers) -> int:
    """Similarity of a query to an item by definition, on the grid: that of its nearest image."""
    best = LOWEST
    for image in images:
        cosine = dot(row, gallery[image]) / (norm * gallery_norm[image])
        best = max(best, int(np.rint(cosine * GRID)))
    return best


@compiled
def unit(rows: Floats, norm: Floats, take: Integers, centre: Floats, out: Floats) -> float:
    """Write the unit rows `take` minus a centre; return the length of the longest."""
    longest = 0.0
    for n in range(len(take)):
        row, scale = rows[take[n]], 1.0 / norm[take[n]]
        for i in range(len(row)):
            # Rounded to the precision of `out` once, after the difference.
            out[n, i] = np.float64(row[i]) * scale - centre[i]
        longest = max(longest, dot(out[n], out[n]))
    return np.sqrt(longest)


@compiled
def project(rows: Floats, norm: Floats, centre: Floats, out: Floats) -> None:
    """Write the inner product of each unit row with a centre."""
    for n in range(len(rows)):
        out[n] = dot(rows[n], centre) / norm[n]


@compiled
def nearest(block: Floats, first: Integers, out: Floats) -> None:
    """Reduce the columns of images to items, each as similar as its nearest image."""
    for row in range(len(block)):
        for item in range(len(first) - 1):
            # Image numbers count from the first of the gallery, columns from that of the block.
            best = block[row, first[item] - first[0]]
            for at in range(first[item] + 1, first[item + 1]):
                best = max(best, block[row, at - first[0]])
            out[row, item] = best
