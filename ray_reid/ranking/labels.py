"""Labels as numbers: equal labels are equal numbers, and a null label is -1."""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = Sequence[Hashable] | NDArray[Any]
"""One label per row; None or NaN is null. Arrow columns and pandas series do too."""
Numbers = NDArray[np.int64]
SIDES = ("query", "gallery")
# Integers number themselves if they span at most so many values a label; tables over the numbers
# stay small then.
SPREAD = 4


def number(*columns: Labels) -> list[Numbers]:
    """Number the labels of some columns alike; null is -1.

    Numbers follow the order in which labels appear, save those of integer arrays, which follow
    their values.

    Returns:
        Of each column the (N,) numbers of its labels.
    """
    numbers = _numbers_of_integers(columns)
    if numbers is None:
        values = [_plain(column) for column in columns]
        distinct = dict.fromkeys(itertools.chain(*values))
        number_of = {label: -1 if _is_null(label) else n for n, label in enumerate(distinct)}
        numbers = np.fromiter(map(number_of.__getitem__, itertools.chain(*values)), np.int64)
    return np.split(numbers, np.cumsum([len(column) for column in columns])[:-1])


def number_sides(
    name: str, sizes: tuple[int, int], query: Labels | None, gallery: Labels | None
) -> tuple[Numbers, Numbers]:
    """Number the labels of queries and gallery alike; where there are none all are null.

    Args:
        name: What they label, for errors.
        sizes: Rows of the query and the gallery.
        query: Labels of the queries, or none.
        gallery: Labels of the gallery, or none.

    Raises:
        ValueError: If only one side has labels, or not one for each of its rows.
    """
    if (query is None) != (gallery is None):
        given, missing = SIDES if gallery is None else SIDES[::-1]
        raise ValueError(f"{given}_{name} is given but {missing}_{name} is not; give both or none")
    if query is None or gallery is None:
        return np.full(sizes[0], -1), np.full(sizes[1], -1)
    for side, size, labels in zip(SIDES, sizes, (query, gallery), strict=True):
        if len(labels) != size:
            raise ValueError(
                f"{side} has {size} embeddings but {len(labels)} values of {side}_{name}"
            )
    query_numbers, gallery_numbers = number(query, gallery)
    return query_numbers, gallery_numbers


def number_sorted(*columns: Sequence[str | None]) -> tuple[list[str], list[Numbers]]:
    """Number the names of some columns alike, in the order of the names; null is -1.

    Returns:
        The names that occur, and of each column the (N,) numbers of its names.
    """
    names = sorted({name for column in columns for name in column if name is not None})
    number_of: dict[str | None, int] = {name: n for n, name in enumerate(names)}
    return names, [
        np.array([number_of.get(name, -1) for name in column], dtype=np.int64) for column in columns
    ]


def split_nulls(numbers: Numbers, *others: Numbers) -> Numbers:
    """Give every null label a number of its own, which is in no other column either."""
    highest = max(int(column.max(initial=-1)) for column in (numbers, *others))
    null = numbers < 0
    return np.where(null, highest + np.cumsum(null), numbers)


def _numbers_of_integers(columns: Sequence[Labels]) -> Numbers | None:
    """Integers less the least of them; None if a label is no integer or they lie far apart."""
    arrays = [labels for labels in columns if isinstance(labels, np.ndarray)]
    if len(arrays) < len(columns) or not all(np.can_cast(a.dtype, np.int64) for a in arrays):
        return None
    integers: Numbers = np.concatenate(arrays).astype(np.int64)
    if not integers.size:
        return integers
    lowest, highest = int(integers.min()), int(integers.max())
    return integers - lowest if highest - lowest <= SPREAD * integers.size else None


def _plain(labels: Labels) -> list[Hashable]:
    # Arrays and Arrow columns become plain values, which hash far faster than their scalars.
    return list(labels.tolist() if hasattr(labels, "tolist") else labels)


def _is_null(label: Hashable) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label))
