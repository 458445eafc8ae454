"""Classes equally likely, however many images they have: VehicleNet's balanced sampling."""

import numpy as np
from numpy.typing import NDArray

from ray_reid.training.samplers.dealing import Plan, check_share, rows_by_label, shuffles


def class_balanced(
    labels: NDArray[np.int64],
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    world_size: int = 1,
    repeats: int = 1,
    num_batches: int | None = None,
) -> Plan:
    """Draw every label equally often (Zheng et al., IEEE TMM 2020, Table VIII).

    The labels are dealt round after round, each in a fresh order, and every label's images in
    shuffle after shuffle. So in an epoch two labels differ by one image at most, and the images
    of a label by one use. Rare labels repeat their images; of frequent ones, some wait. An
    epoch has as many batches as `naive` would make of the rows.

    Args:
        labels: (N,) labels of the rows.
        batch_size: Rows in a batch, over all workers.
        repeats: Lengthens the epoch as many times.
        num_batches: Batches of the epoch, whatever the rows give.

    Returns:
        (batches, world_size, batch_size / world_size) row numbers. A row may be twice in a batch
        where there are fewer labels than rows in a batch, or at the turn of two rounds.

    Raises:
        ValueError: If `batch_size` is not a multiple of `world_size`.
    """
    check_share(batch_size, world_size)
    rng = np.random.default_rng([seed, epoch])
    length = num_batches or repeats * -(-len(labels) // batch_size)
    rows_of = rows_by_label(labels)
    rounds = shuffles(np.arange(len(rows_of)), length * batch_size, rng)
    batches = np.empty(length * batch_size, dtype=np.int64)
    for turns in rows_by_label(rounds):
        batches[turns] = shuffles(rows_of[rounds[turns[0]]], len(turns), rng)
    return batches.reshape(length, world_size, -1)
