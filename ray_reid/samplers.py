"""Samplers are pure functions that return a plan: which rows make which batch on which worker.

A plan is an int64 array of shape (batches, workers, rows). It is the same on every machine for
the same arguments, so training resumes at any (epoch, batch) by skipping what was done.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Plan = NDArray[np.int64]


def identity_balanced(
    labels: NDArray[np.int64],
    *,
    num_identities: int,
    num_instances: int,
    epoch: int,
    seed: int,
    world_size: int = 1,
    repeats: int = 1,
) -> Plan:
    """P x K batches: `num_identities` identities, `num_instances` images of each.

    Every epoch deals each identity's shuffled images out in groups of K. An identity with fewer
    than K images fills its one group by repeating them; a remainder smaller than K waits for an
    epoch whose shuffle deals it. Groups are then spread over the batches so that an identity
    occurs at most once in a batch; groups that cannot fill a last batch are left out.

    Args:
        labels: (N,) contiguous training labels of the rows.
        num_identities: P, over all workers; worker w trains on its P / world_size identities.
        repeats: Passes over the images in one epoch.

    Returns:
        (batches, world_size, P / world_size * K) row numbers; images of one identity are
        neighbours, and no identity is on two workers of the same batch.

    Raises:
        ValueError: If P is not a multiple of `world_size`, or there are fewer than P identities.
    """
    if num_identities % world_size:
        raise ValueError(
            f"num_identities {num_identities} must be a multiple of the {world_size} workers"
        )
    rows_of = _rows_by_label(labels)
    if len(rows_of) < num_identities:
        raise ValueError(
            f"num_identities is {num_identities} but only {len(rows_of)} identities can be "
            f"trained on; choose at most that"
        )
    rng = np.random.default_rng([seed, epoch])
    groups = [
        group
        for _ in range(repeats)
        for rows in rows_of
        for group in _deal(rng.permutation(rows), num_instances)
    ]
    batches = _spread(np.array(groups), labels, num_identities, rng)
    return batches.reshape(len(batches), world_size, -1)


def _rows_by_label(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    return np.split(order, starts[1:])


def _deal(rows: NDArray[np.int64], size: int) -> Sequence[NDArray[np.int64]]:
    if len(rows) < size:
        return [np.resize(rows, size)]
    return np.split(rows[: len(rows) // size * size], len(rows) // size)


def _spread(
    groups: NDArray[np.int64],
    labels: NDArray[np.int64],
    num_identities: int,
    rng: np.random.Generator,
) -> Plan:
    """Pack groups (M, K) into batches (B, P, K) of distinct identities.

    Identities with the most groups left go first, ties in random order: the longest queues are
    never starved, so the number of full batches is the largest there is.
    """
    queues: dict[int, list[NDArray[np.int64]]] = {}
    for group in groups[rng.permutation(len(groups))]:
        queues.setdefault(int(labels[group[0]]), []).append(group)
    left = np.zeros(max(queues) + 1, dtype=np.int64)
    for label, queue in queues.items():
        left[label] = len(queue)
    batches = []
    while np.count_nonzero(left) >= num_identities:
        # Random priority among equals, so that company in a batch changes every epoch.
        priority = left + rng.random(len(left))
        chosen = np.argpartition(priority, -num_identities)[-num_identities:]
        chosen = rng.permutation(chosen)
        batches.append([queues[int(label)].pop() for label in chosen])
        left[chosen] -= 1
    shuffled = rng.permutation(len(batches))
    return np.array(batches, dtype=np.int64)[shuffled]
