"""Rules that a recipe sets for its data: the doctor and a run apply the same, before any job."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from ray_reid import schema
from ray_reid.datasets import drawings, splits
from ray_reid.datasets.reading import LOCATOR, Row
from ray_reid.ranking import postprocess, protocols
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.sampler import P_X_K
from ray_reid.recipe.train import Train

VALIDATION_SEED = 0
"""Draws the identities that `train.validation` holds out, here as in the training."""
# With more queries than this, one moves a figure by less than the seed of a training does.
FEW_QUERIES = 200


def check(rows: Sequence[Row], recipe: Recipe) -> list[str]:
    """Hold all images that a recipe reads against its training, if it has one, and its evaluation.

    Returns:
        Warnings, one sentence each.

    Raises:
        ValueError: If a job would refuse them once it has begun.
    """
    if recipe.package is not None:
        return check_test(rows, recipe)
    stages = recipe.train.trainings()
    labelled = any(spec.mixing != "synthetic" and spec.labels == "given" for _, spec in stages)
    if labelled and not any(map(_is_real, rows)):
        raise ValueError(
            f"nothing to train on: none of the {len(rows):,} images is a train image with an "
            "identity; `ray-reid evaluate` scores a model package on a set for tests alone"
        )
    for _, spec in stages:
        # Generated images bring a source of their own.
        if spec.mixing == "real":
            clustered = spec.labels == "clusters"
            unlabelled = {row[schema.SOURCE] for row in rows if _is_unlabelled(row)}
            there = {row[schema.SOURCE] for row in rows if _is_real(row)}
            there |= unlabelled if clustered else set()
            check_sources(spec.sources, there, unlabelled=unlabelled)
            if clustered:
                check_sources(spec.clusters.sources, there, "train.clusters.sources")
    return [*check_training(rows, recipe), *check_test(rows, recipe)]


def check_test(rows: Iterable[Row], recipe: Recipe) -> list[str]:
    """Hold the protocol and the post-processing of a recipe against the labels of the test images.

    Returns:
        Warnings, one sentence each.

    Raises:
        ValueError: If one side is empty, no query has an identity, or a column is null that they
            need.
    """
    tested = [row for row in rows if row.get(schema.ROLE) != "junk"]
    query, gallery = (
        [row for row in tested if row[schema.SPLIT] == split] for split in ("query", "gallery")
    )
    protocols.check_sides(len(query), len(gallery))
    if all(row[schema.IDENTITY] is None for row in query):
        raise ValueError(
            f"nothing to evaluate: none of the {len(query)} query images has an identity; test on "
            "images with labels, such as a part of the train identities (hold_out)"
        )
    # Of a drawing some columns are known once it is drawn.
    if not any(map(_is_drawn, tested)):
        _check_columns(query, gallery, recipe)
    if recipe.evaluate.by_source:
        answering = {row[schema.SOURCE] for row in gallery}
        alone = sorted({row[schema.SOURCE] for row in query} - answering)
        if alone:
            raise ValueError(
                f"evaluate.by_source: source {alone[0]!r} has queries and no gallery image"
            )
    return [] if recipe.evaluate.both_directions else _coarse(query)


def _check_columns(query: Sequence[Row], gallery: Sequence[Row], recipe: Recipe) -> None:
    both = [*query, *gallery]
    labels = protocols.TestLabels(
        is_query=np.arange(len(both)) < len(query),
        identity=[
            None if row.get(schema.ROLE) == "distractor" else row[schema.IDENTITY] for row in both
        ],
        camera=[row.get(schema.CAMERA) for row in both],
        clothes=[row.get(schema.CLOTHES) for row in both],
        track=[row.get(schema.TRACK) for row in both],
        time=[row.get(schema.TIME) for row in both],
        source=[row[schema.SOURCE] for row in both],
    )
    for draws in protocols.cases(recipe.evaluate.protocol, labels).values():
        postprocess.check_columns(recipe.evaluate.postprocess, labels, draws[0])


def _coarse(query: Sequence[Row]) -> list[str]:
    """Say how far one query moves the figures, where there is one of each identity."""
    asked = {row[schema.IDENTITY] for row in query}
    if len(asked) < len(query) or not 2 <= len(query) <= FEW_QUERIES:
        return []
    return [
        f"one query of each identity, {len(query):,} in all: a single one moves rank-1 by "
        f"{1 / len(query):.1%}; compare means over several seeds, or search both ways with "
        "evaluate.both_directions"
    ]


def check_sources(
    wanted: Iterable[str],
    there: Collection[str],
    key: str = "train.sources",
    unlabelled: Collection[str] = (),
) -> None:
    """Refuse names of sources that have no train images, or none with a label.

    Raises:
        ValueError: Names the first, and those that there are.
    """
    unknown = sorted(set(wanted) - set(there))
    for name in unknown:
        if name in unlabelled:
            raise ValueError(
                f"{key} names {name!r}, but none of its train images has an identity; set "
                f"train.labels to 'clusters' to learn without labels, or choose from "
                f"{sorted(there)}"
            )
    if unknown:
        raise ValueError(
            f"{key} names {unknown[0]!r}, which has no train images; choose from {sorted(there)}"
        )


def check_cameras(num_known: int, num_images: int) -> None:
    """Refuse to learn cameras from images without any.

    Raises:
        ValueError: If no image has a camera.
    """
    if not num_known:
        raise ValueError(
            f"train.target 'camera' needs cameras, but none of {num_images} training images has a "
            "camera"
        )


def check_clothes(weight: float, num_wearers: int, num_images: int) -> None:
    """Refuse to learn clothes that fewer than two identities are known to wear.

    Raises:
        ValueError: If `train.clothes.weight` is above 0 and they are fewer.
    """
    if weight and num_wearers < 2:
        raise ValueError(
            f"train.clothes.weight is {weight:g}, which needs the clothes of at least 2 "
            f"identities, but the {num_images} training images that it learns from show known "
            f"clothes of {num_wearers}"
        )


def check_training(rows: Sequence[Row], recipe: Recipe) -> list[str]:
    """Hold the batches of every training of a recipe against the images that there are.

    Generated images are yet to be made, so trainings on them alone are not looked at.

    Returns:
        Warnings, one sentence each.

    Raises:
        ValueError: If there are fewer identities, or images, than a batch takes, or the cameras or
            clothes that are to be learned are null.
    """
    found: list[str] = []
    unused = _held_out(rows, recipe)
    for name, spec in recipe.train.trainings():
        if spec.mixing not in ("real", "balanced"):
            continue
        if spec.labels == "clusters":
            _check_clustered(rows, spec)
            continue
        learned = _learned(rows, spec, unused)
        # Without any, another source brings them, or the training says that there are none.
        if learned:
            _check_labels(learned, spec)
        if learned and spec.target == "identity":
            stage = f"stage {name!r} of train: " if name else ""
            found += [stage + text for text in _check(_sizes(learned, spec), spec, stage)]
    return found


def _check_clustered(rows: Iterable[Row], spec: Train) -> None:
    """Refuse images that could not make a cluster, if there are any."""
    wanted = spec.clusters.sources or spec.sources
    number = sum(
        (_is_real(row) or _is_unlabelled(row)) and (not wanted or row[schema.SOURCE] in wanted)
        for row in rows
    )
    # Without any, another source brings them, or the training says that there are none.
    if number:
        check_clustered(number, spec.clusters.min_samples)


def check_clustered(num_images: int, min_samples: int) -> None:
    """Refuse images that are fewer than a cluster needs.

    Raises:
        ValueError: If they are.
    """
    if num_images < min_samples:
        raise ValueError(
            f"train.labels 'clusters' has {num_images} images to cluster, fewer than "
            f"train.clusters.min_samples {min_samples}"
        )


def _check_labels(rows: Sequence[Row], spec: Train) -> None:
    if spec.target == "camera":
        check_cameras(sum(row.get(schema.CAMERA) is not None for row in rows), len(rows))
    elif spec.mixing == "real" and not any(map(_is_drawn, rows)):
        wearers = {row[schema.IDENTITY] for row in rows if row.get(schema.CLOTHES) is not None}
        check_clothes(spec.clothes.weight, len(wearers), len(rows))


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


def _learned(rows: Iterable[Row], spec: Train, unused: Collection[str] = ()) -> list[Row]:
    """The real images that a training may take, without those of unused identities."""
    return [
        row
        for row in rows
        if _is_real(row)
        and row[schema.IDENTITY] not in unused
        and (not spec.sources or row[schema.SOURCE] in spec.sources)
    ]


def _sizes(learned: Iterable[Row], spec: Train) -> Counter[str]:
    """The number of images of each identity that a training takes, at most."""
    sizes = Counter(row[schema.IDENTITY] for row in learned)
    if spec.real_fraction < 1 and spec.real_fraction_of == "identities":
        # Which ones are left out is the training's to say; here the fullest count.
        return Counter(dict(sizes.most_common(max(2, round(spec.real_fraction * len(sizes))))))
    return sizes


def _held_out(rows: Iterable[Row], recipe: Recipe) -> set[str]:
    """The identities that `train.validation` holds out of every stage."""
    share, last = recipe.train.validation, recipe.train.trainings()[-1][1]
    if not share:
        return set()
    names = {row[schema.IDENTITY] for row in _learned(rows, last)}
    try:
        return splits.held_out(names, share, VALIDATION_SEED)
    except ValueError as error:
        raise ValueError(f"train.validation {share:g} cannot be held out: {error}") from error


def _is_drawn(row: Row) -> bool:
    return str(row[LOCATOR]).startswith(drawings.PREFIX)


def _is_unlabelled(row: Row) -> bool:
    real = row.get(schema.ORIGIN, "real") == "real" and row.get(schema.ROLE, "normal") == "normal"
    return real and row[schema.SPLIT] in ("train", "unlabelled") and row[schema.IDENTITY] is None


def _is_real(row: Row) -> bool:
    real = row.get(schema.ORIGIN, "real") == "real"
    learned = row[schema.SPLIT] == "train" and row.get(schema.ROLE, "normal") == "normal"
    return real and learned and row[schema.IDENTITY] is not None
