"""Progressive pairs: each real image with one of its generated versions (DLCR, section 3.2.1)."""

import numpy as np
from numpy.typing import NDArray

from ray_reid.training.samplers.dealing import Plan
from ray_reid.training.samplers.identity import identity_balanced

# A stream of its own: the real rows are those of `identity_balanced`, whatever their partners.
STREAM = 1


def progressive_pairs(
    labels: NDArray[np.int64],
    synthetic: NDArray[np.bool_],
    parents: NDArray[np.int64],
    *,
    num_identities: int,
    num_instances: int,
    widen_every: int,
    partitions: int = 4,
    epoch: int,
    seed: int,
    world_size: int = 1,
    repeats: int = 1,
    num_batches: int | None = None,
) -> Plan:
    """P x K batches of real images, doubled by a generated version of each.

    The versions of an image, in the order of their rows, are split into equal `partitions`; in
    the first `widen_every` epochs partners are drawn from the first alone, then from two, and from
    all after `partitions` - 1 times as many. Of n versions, s of p partitions hold the first
    n s / p, rounded down, and one at least. An image without versions is its own partner, so that
    every real image is trained on and every batch has its size.

    Args:
        labels: (N,) labels of the rows, real and synthetic.
        synthetic: (N,) bool. A synthetic row that no real row is parent of is never drawn.
        parents: (N,) row that a row was generated from; -1 for none.
        num_identities: P, over all workers.
        widen_every: Epochs from one partition to the next.
        partitions: How many there are; with 1 all versions are open from the start.

    Returns:
        (batches, world_size, 2 P / world_size * K) row numbers: each worker's real rows as
        `identity_balanced` plans them, then their partners in the same order.

    Raises:
        ValueError: If `identity_balanced` refuses the real rows, no row has a version, or a
            version has another label than its parent.
    """
    real = np.flatnonzero(~synthetic)
    plan = real[
        identity_balanced(
            labels[real],
            num_identities=num_identities,
            num_instances=num_instances,
            epoch=epoch,
            seed=seed,
            world_size=world_size,
            repeats=repeats,
            num_batches=num_batches,
        )
    ]
    order, starts, counts = _versions(labels, synthetic, parents)
    opened = np.maximum(counts * min(1 + epoch // widen_every, partitions) // partitions, 1)
    rng = np.random.default_rng([seed, epoch, STREAM])
    # Every place draws one number, so that an image without versions changes no other's partner.
    drawn = starts[plan] + (rng.random(plan.shape) * opened[plan]).astype(np.int64)
    partners = np.where(counts[plan] > 0, order[np.minimum(drawn, len(order) - 1)], plan)
    return np.concatenate([plan, partners], axis=2)


def _versions(
    labels: NDArray[np.int64], synthetic: NDArray[np.bool_], parents: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The versions of all rows, one row's after another's; (N,) where each begins; (N,) counts."""
    made = np.flatnonzero(synthetic & (parents >= 0))
    if not len(made):
        raise ValueError(
            f"none of the {int(synthetic.sum())} synthetic images is a version of one of the "
            f"{int((~synthetic).sum())} real ones, so there are no pairs"
        )
    strange = made[labels[made] != labels[parents[made]]]
    if len(strange):
        raise ValueError(
            f"{len(strange)} of {len(made)} generated versions have another identity than the "
            f"image they were made from, so they cannot be its pair"
        )
    counts = np.bincount(parents[made], minlength=len(labels))
    order = made[np.argsort(parents[made], kind="stable")]
    return order, np.cumsum(counts) - counts, counts
