"""The average precision of each query of a trial, as text that a JSON file can hold."""

import base64

import numpy as np
from numpy.typing import NDArray

KIND = np.dtype("<f4")


def pack(ap: NDArray[np.float32]) -> str:
    """Pack (Q,) values, NaN for a skipped query, in single precision: 6 characters each."""
    return base64.b64encode(ap.astype(KIND).tobytes()).decode()


def unpack(text: str) -> NDArray[np.float64]:
    """Read what `pack` wrote.

    Raises:
        ValueError: If it is something else.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), KIND).astype(np.float64)
    except ValueError as error:
        raise ValueError(f"this is no packed average precision: {error}") from error
