"""Batches of single images: all rows shuffled together, or every source with its share.

The naive sampling of VehicleNet (Zheng et al., IEEE TMM 2020, Table VIII), and an equal voice
for the sources that it unites.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ray_reid.training.samplers.dealing import Plan, check_share, passes


def naive(
    num_rows: int,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    world_size: int = 1,
    repeats: int = 1,
    num_batches: int | None = None,
) -> Plan:
    """Every row once per pass, in an order that has nothing to do with identity or origin.

    Where the rows do not fill the last batch of a pass, the first rows of its shuffle complete
    it: each row is seen in every pass, fewer than `batch_size` of them twice, and none twice in
    a batch.

    Args:
        batch_size: Rows in a batch, over all workers.
        repeats: Passes over the rows in one epoch.
        num_batches: Batches of the epoch, whatever the passes give.

    Returns:
        (batches, world_size, batch_size / world_size) row numbers; no row is on two workers of
        the same batch.

    Raises:
        ValueError: If `batch_size` is not a multiple of `world_size`, or larger than `num_rows`.
    """
    check_share(batch_size, world_size)
    if num_rows < batch_size:
        raise ValueError(
            f"batch_size is {batch_size} but only {num_rows} images can be trained on; choose at "
            f"most that"
        )
    rng = np.random.default_rng([seed, epoch])
    batches = passes(partial(_shuffled, num_rows, batch_size, rng), repeats, num_batches)
    return batches.reshape(len(batches), world_size, -1)


def source_balanced(
    sources: NDArray[np.int64],
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    world_size: int = 1,
    repeats: int = 1,
    num_batches: int | None = None,
) -> Plan:
    """Every source contributes equally to every batch, however many rows it has.

    Each source is dealt as `naive` deals. An epoch passes over the source that fills most
    batches, `repeats` times; the others are dealt again, freshly shuffled, until they fill as
    many, and their last pass may be cut short.

    Args:
        sources: (N,) number of the source of each row.
        batch_size: Rows in a batch, over all sources and workers.
        repeats: Passes over the largest source in one epoch.
        num_batches: Batches of the epoch, whatever the passes give.

    Returns:
        (batches, world_size, batch_size / world_size) row numbers. Each worker has its share of
        every source, in the order of their numbers.

    Raises:
        ValueError: If `batch_size` is not a multiple of the sources times `world_size`, or a
            source has too few rows for its share of one batch.
    """
    numbers, counts = np.unique(sources, return_counts=True)
    share = _share(counts, batch_size, world_size)
    length = num_batches or repeats * -(-int(counts.max()) // share)
    parts = []
    for place, number in enumerate(numbers):
        rows = np.flatnonzero(sources == number)
        # Streams of their own: what one source has leaves the order of the others alone.
        rng = np.random.default_rng([seed, epoch, place])
        dealt = passes(partial(_shuffled, len(rows), share, rng), 1, length)
        parts.append(rows[dealt].reshape(length, world_size, -1))
    return np.concatenate(parts, axis=2)


def _share(counts: NDArray[np.int64], batch_size: int, world_size: int) -> int:
    if batch_size % (len(counts) * world_size):
        workers = "" if world_size == 1 else f" times the {world_size} workers"
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of the {len(counts)} sources{workers}: "
            f"each has an equal part of a batch"
        )
    share = batch_size // len(counts)
    if counts.min() < share:
        raise ValueError(
            f"batch_size is {batch_size}, so each of the {len(counts)} sources gives {share} "
            f"images, but one has only {counts.min()}; choose at most {counts.min() * len(counts)}"
        )
    return share


def _shuffled(num_rows: int, batch_size: int, rng: np.random.Generator) -> Plan:
    """One pass (B, batch_size); the shuffle begins again where it does not fill the last batch."""
    return np.resize(rng.permutation(num_rows), (-(-num_rows // batch_size), batch_size))
