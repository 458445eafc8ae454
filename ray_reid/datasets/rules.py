"""Rules that a recipe sets for its data: the doctor and a run apply the same, before any job."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ray_reid import schema
from ray_reid.datasets import splits
from ray_reid.datasets.reading import Row
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.sampler import P_X_K
from ray_reid.recipe.train import Train

VALIDATION_SEED = 0
"""Draws the identities that `train.validation` holds out, here as in the training."""


def check_training(rows: Sequence[Row], recipe: Recipe) -> list[str]:
    """Hold the batches of every training of a recipe against the images that there are.

    Generated images are yet to be made, so trainings on them alone are not looked at.

    Returns:
        Warnings, one sentence each.

    Raises:
        ValueError: If there are fewer identities, or images, than a batch takes.
    """
    found: list[str] = []
    unused = _held_out(rows, recipe)
    for name, spec in recipe.train.trainings():
        if spec.target != "identity" or spec.mixing not in ("real", "balanced"):
            continue
        images = _images(rows, spec, unused)
        if not images:
            # Another source brings them, or the training says that there are none.
            continue
        stage = f"stage {name!r} of train: " if name else ""
        found += [stage + text for text in _check(images, spec, stage)]
    return found


def _check(images: Counter[str], spec: Train, stage: str) -> list[str]:
    sampler = spec.sampler
    if sampler.kind not in P_X_K:
        total = images.total()
        if sampler.batch_size is not None and spec.mixing == "real" and total < sampler.batch_size:
            raise ValueError(
                f"{stage}train.sampler.batch_size is {sampler.batch_size} but only {total} images "
                "can be trained on; choose at most that"
            )
        return []
    wanted = sampler.num_identities // (2 if spec.mixing == "balanced" else 1)
    if len(images) < wanted:
        most = len(images) * (2 if spec.mixing == "balanced" else 1)
        raise ValueError(
            f"{stage}train.sampler.num_identities is {sampler.num_identities} but only "
            f"{len(images)} identities can be trained on; choose at most {most}"
        )
    few = [number for number in images.values() if number < sampler.num_instances]
    if not few:
        return []
    times = len(few) * sampler.num_instances / sum(few)
    return [
        f"train.sampler.num_instances is {sampler.num_instances}, and {len(few):,} of "
        f"{len(images):,} train identities have fewer images: a batch shows each of these images "
        f"{times:.1f} times on average"
    ]


def _images(rows: Iterable[Row], spec: Train, unused: set[str]) -> Counter[str]:
    """The number of real images of each identity that a training takes, at most."""
    images = Counter(
        row[schema.IDENTITY]
        for row in rows
        if _is_real(row) and (not spec.sources or row[schema.SOURCE] in spec.sources)
    )
    for name in unused:
        images.pop(name, None)
    if spec.real_fraction < 1 and spec.real_fraction_of == "identities":
        # Which ones are left out is the training's to say; here the fullest count.
        return Counter(dict(images.most_common(max(2, round(spec.real_fraction * len(images))))))
    return images


def _held_out(rows: Iterable[Row], recipe: Recipe) -> set[str]:
    """The identities that `train.validation` holds out of every stage."""
    share, last = recipe.train.validation, recipe.train.trainings()[-1][1]
    if not share:
        return set()
    names = set(_images(rows, last.model_copy(update={"real_fraction": 1.0}), set()))
    try:
        return splits.held_out(names, share, VALIDATION_SEED)
    except ValueError as error:
        raise ValueError(f"train.validation {share:g} cannot be held out: {error}") from error


def _is_real(row: Row) -> bool:
    real = row.get(schema.ORIGIN, "real") == "real"
    learned = row[schema.SPLIT] == "train" and row.get(schema.ROLE, "normal") == "normal"
    return real and learned and row[schema.IDENTITY] is not None
