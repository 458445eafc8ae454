"""P x K batches (Hermans et al., 2017), and the same half real, half synthetic (Vehicle-Diff)."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_reid.training.samplers.dealing import Plan, rows_by_label


def identity_balanced(
    labels: NDArray[np.int64],
    *,
    num_identities: int,
    num_instances: int,
    epoch: int,
    seed: int,
    world_size: int = 1,
    repeats: int = 1,
    num_batches: int | None = None,
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
        num_batches: Batches of the epoch, whatever the passes give: they go on, freshly
            shuffled, until there are enough, and the rest is left out.

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
    rows_of = rows_by_label(labels)
    if len(rows_of) < num_identities:
        raise ValueError(
            f"num_identities is {num_identities} but only {len(rows_of)} identities can be "
            f"trained on; choose at most that"
        )
    rng = np.random.default_rng([seed, epoch])
    batches = _batches(labels, num_identities, num_instances, rng, repeats)
    if num_batches is not None:
        batches = _last(batches, num_batches, labels, num_instances, rng)
    return batches.reshape(len(batches), world_size, -1)


def balanced(
    labels: NDArray[np.int64],
    synthetic: NDArray[np.bool_],
    *,
    num_identities: int,
    num_instances: int,
    epoch: int,
    seed: int,
    world_size: int = 1,
    repeats: int = 1,
    num_batches: int | None = None,
) -> Plan:
    """Half of every batch real, half synthetic: "B" of Vehicle-Diff, section III-D.

    Two `identity_balanced` batches of P / 2 identities become one. An epoch passes over the side
    that fills more batches, `repeats` times; the other side is dealt again, freshly shuffled,
    until it fills as many, and its last pass may be cut short.

    Args:
        labels: (N,) contiguous training labels of the rows.
        synthetic: (N,) bool. An identity with images of both origins counts on either side, and
            may then be in both halves of a batch.
        num_identities: P, over both halves and all workers.
        repeats: Passes over the larger side in one epoch.
        num_batches: Batches of the epoch, whatever the passes give; both sides are dealt until
            there are enough, and the rest is left out.

    Returns:
        (batches, world_size, P / world_size * K) row numbers. Each worker has its share of both
        halves, the real one first; within a half, no identity is on two workers of a batch.

    Raises:
        ValueError: If P is odd, P / 2 is not a multiple of `world_size`, or one side has fewer
            than P / 2 identities.
    """
    sides = {"real": np.flatnonzero(~synthetic), "synthetic": np.flatnonzero(synthetic)}
    _check_halves(labels, sides, num_identities, world_size)
    half = num_identities // 2
    # Streams of their own: what one side has leaves the order of the other alone.
    rngs = [np.random.default_rng([seed, epoch, number]) for number in range(len(sides))]
    numbered = list(zip(sides.values(), rngs, strict=True))
    dealt = [_batches(labels[rows], half, num_instances, rng, repeats) for rows, rng in numbered]
    length = max(len(batches) for batches in dealt) if num_batches is None else num_batches
    halves = []
    for batches, (rows, rng) in zip(dealt, numbered, strict=True):
        filled = _last(batches, length, labels[rows], num_instances, rng)
        halves.append(rows[filled].reshape(length, world_size, -1))
    return np.concatenate(halves, axis=2)


def _check_halves(
    labels: NDArray[np.int64],
    sides: Mapping[str, NDArray[np.int64]],
    num_identities: int,
    world_size: int,
) -> None:
    half = num_identities // 2
    if num_identities % 2 or half % world_size:
        share = "be even" if world_size == 1 else f"be a multiple of twice the {world_size} workers"
        raise ValueError(
            f"num_identities {num_identities} must {share}: half of a balanced batch is synthetic"
        )
    for name, rows in sides.items():
        found = len(np.unique(labels[rows]))
        if found < half:
            raise ValueError(
                f"num_identities is {num_identities}, so a balanced batch needs {half} {name} "
                f"identities, but only {found} can be trained on; choose at most {2 * found}"
            )


def _last(
    batches: Plan,
    length: int,
    labels: NDArray[np.int64],
    num_instances: int,
    rng: np.random.Generator,
) -> Plan:
    """Make batches (B, P, K) last for `length`: pass over the images again, then cut."""
    passes, num_identities = [batches], batches.shape[1]
    while sum(map(len, passes)) < length:
        passes.append(_batches(labels, num_identities, num_instances, rng))
    return np.concatenate(passes)[:length]


def _batches(
    labels: NDArray[np.int64],
    num_identities: int,
    num_instances: int,
    rng: np.random.Generator,
    repeats: int = 1,
) -> Plan:
    """Deal the images out `repeats` times and spread them: (B, P, K) row numbers."""
    rows_of = rows_by_label(labels)
    groups = [
        group
        for _ in range(repeats)
        for rows in rows_of
        for group in _deal(rng.permutation(rows), num_instances)
    ]
    return _spread(np.array(groups), labels, num_identities, rng)


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
        # Partitioning leaves them in an order that depends on the processor.
        chosen = rng.permutation(np.sort(chosen))
        batches.append([queues[int(label)].pop() for label in chosen])
        left[chosen] -= 1
    shuffled = rng.permutation(len(batches))
    return np.array(batches, dtype=np.int64)[shuffled]
