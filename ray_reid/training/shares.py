"""Shares of the training images: the smaller share of a seed is part of every larger one."""

import pyarrow as pa

from ray_reid import schema
from ray_reid.recipe.train import Train


def of_real(rows: pa.Table, spec: Train) -> pa.Table:
    """Take the share `train.real_fraction`: what has the smallest hashes.

    At least two identities are kept, because fewer cannot be trained on.
    """
    if spec.real_fraction == 1:
        return rows
    if spec.real_fraction_of == "images_of_each":
        return _of_each(rows, spec.real_fraction, spec.fraction_seed)
    if spec.real_fraction_of == "identities":
        return _identities(rows, spec.real_fraction, spec.fraction_seed)
    identity = rows[schema.IDENTITY].to_pylist()
    order = _ordered(rows, spec.fraction_seed)
    # Where the second identity comes first.
    second = next((n for n, row in enumerate(order) if identity[row] != identity[order[0]]), 0)
    number = max(second + 1, round(spec.real_fraction * len(rows)))
    return rows.take(sorted(order[:number]))


def of_synthetic(rows: pa.Table, spec: Train) -> pa.Table:
    """Take the share `train.synthetic_fraction` of every identity's images, or of identities."""
    if spec.synthetic_fraction == 1:
        return rows
    if spec.synthetic_fraction_of == "identities":
        return _identities(rows, spec.synthetic_fraction, spec.fraction_seed)
    return _of_each(rows, spec.synthetic_fraction, spec.fraction_seed)


def _identities(rows: pa.Table, fraction: float, seed: int) -> pa.Table:
    identity = rows[schema.IDENTITY].to_pylist()
    names = sorted(set(identity), key=lambda name: _hash(name, seed))
    kept = set(names[: max(2, round(fraction * len(names)))])
    return rows.filter(pa.array([name in kept for name in identity], pa.bool_()))


def _of_each(rows: pa.Table, fraction: float, seed: int) -> pa.Table:
    """A share of every identity's images, at least one."""
    identity = rows[schema.IDENTITY].to_pylist()
    of: dict[str, list[int]] = {}
    for row in _ordered(rows, seed):
        of.setdefault(identity[row], []).append(row)
    kept = [row for group in of.values() for row in group[: max(1, round(fraction * len(group)))]]
    return rows.take(sorted(kept))


def _ordered(rows: pa.Table, seed: int) -> list[int]:
    """Row numbers in the order of the images' hashes."""
    ids = rows[schema.OBSERVATION_ID].to_pylist()
    return sorted(range(len(rows)), key=lambda row: _hash(ids[row], seed))


def _hash(name: str, seed: int) -> str:
    """Put names in an order that has nothing to do with what they are."""
    return schema.observation_id("share", name, *([str(seed)] if seed else []))
