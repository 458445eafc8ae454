"""What a row, its id and its vector must be like to enter a gallery."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_reid import schema
from ray_reid.gallery.embedded import segment
from ray_reid.gallery.embedded.segment import COLUMNS, ROWS, Vectors

Row = dict[str, Any]

# What a message repeats of a value that someone sent.
SHOWN = 64
_REQUIRED = (schema.OBSERVATION_ID, schema.SOURCE)


def known(row: Mapping[str, Any]) -> Row:
    """Refuse columns that a gallery does not have."""
    unknown = sorted(row.keys() - set(COLUMNS))
    if unknown:
        raise ValueError(f"unknown column {unknown[0]!r}; choose from {list(COLUMNS)}")
    return dict(row)


def checked(row: Mapping[str, Any]) -> Row:
    """A row with every column; what is left out is null, or `gallery` for the split."""
    full = {schema.SPLIT: "gallery", **known(row)}
    for name in _REQUIRED:
        if not full.get(name):
            raise ValueError(f"column {name!r} is required; row {str(full)[:SHOWN]} lacks it")
    time = full.get(schema.TIME)
    if time is not None and not (isinstance(time, int | float) and math.isfinite(time)):
        raise ValueError(f"time {time!r} must be a finite number of seconds, or left out")
    if full[schema.SPLIT] not in schema.SPLITS:
        raise ValueError(f"split {full[schema.SPLIT]!r} is not one of {list(schema.SPLITS)}")
    return {name: full.get(name) for name in ROWS.names}


def check_ids(ids: Sequence[Any]) -> None:
    """Refuse ids that are no texts, or named twice."""
    wrong = [one for one in ids if not isinstance(one, str) or not one]
    if wrong:
        raise ValueError(f"observation_id {wrong[0]!r} must be a text of at least one character")
    twice, times = Counter(ids).most_common(1)[0] if ids else ("", 0)
    if times > 1:
        raise ValueError(f"observation_id {twice[:SHOWN]!r} is there twice; name each once")


def checked_vectors(vectors: Vectors, num: int, dimension: int) -> Vectors:
    """Vectors of so many rows as float32; refuses other shapes, types and norms."""
    vectors = np.asarray(vectors)
    if vectors.shape != (num, dimension) or vectors.dtype.kind != "f":
        raise ValueError(
            f"vectors are {vectors.dtype} of shape {vectors.shape}; {num} rows need floats of "
            f"shape ({num}, {dimension})"
        )
    wrong = np.flatnonzero(~segment.is_unit(vectors))
    if len(wrong):
        norm = np.linalg.norm(vectors[wrong[0]])
        raise ValueError(
            f"vector {wrong[0]} has norm {norm:.4g}; it must be finite and of unit norm"
        )
    return vectors.astype(np.float32, copy=False)
