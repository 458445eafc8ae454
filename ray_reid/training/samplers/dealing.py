"""What samplers have in common: rows by label, passes that last, batches that workers share."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Plan = NDArray[np.int64]


def rows_by_label(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The row numbers of each label that occurs, in the order of the labels."""
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    return np.split(order, starts[1:])


def shuffles(values: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Fresh shuffles of `values`, one after another, cut to `length`."""
    rounds = np.tile(values, (-(-length // len(values)), 1))
    return rng.permuted(rounds, axis=1).reshape(-1)[:length]


def passes(deal: Callable[[], Plan], number: int, length: int | None) -> Plan:
    """Deal `number` times, or until there are `length` batches, which is then cut."""
    dealt = [deal() for _ in range(number)]
    if length is None:
        return np.concatenate(dealt)
    while sum(map(len, dealt)) < length:
        dealt.append(deal())
    return np.concatenate(dealt)[:length]


def check_share(batch_size: int, world_size: int) -> None:
    """Refuse a batch of which the workers cannot have equal parts.

    Raises:
        ValueError: If `batch_size` is not a multiple of `world_size`.
    """
    if batch_size % world_size:
        raise ValueError(f"batch_size {batch_size} must be a multiple of the {world_size} workers")
