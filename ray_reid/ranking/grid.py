"""The grid on which similarities are compared: two of them tie if they are equal on it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# It is coarse enough that vectors tie which are equal but for rounding, and finer than float32
# embeddings can tell.
GRID = 2.0**30


def on_grid(similarity: NDArray[np.float64]) -> NDArray[Any]:
    """Round similarities to the grid."""
    return np.rint(similarity * GRID) / GRID
