"""Refusals of a sweep's settings in one sentence, before anything of them is made."""

from collections.abc import Sequence

from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.recipe.sweeps import Sweep
from ray_reid.runtime.job import Job
from ray_reid.training.train import stages_of


def has_workers(recipe: Recipe) -> bool:
    """Return whether a training, or a stage of it, has several workers."""
    return any(own.train.num_workers > 1 for _, own in stages_of(recipe))


def keys(keys: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse changes of what no trial of a pipeline depends on.

    Raises:
        ValueError: Names the key and the sections there are.
    """
    for key in keys:
        if key == "seed":
            raise ValueError("'seed' is not a parameter; list the sweep's seeds under 'seeds'")
        if key.split(".")[0] not in allowed and key.split(".")[0] in Recipe.model_fields:
            raise ValueError(f"{key!r} changes no trial; choose from the sections {list(allowed)}")


def epochs(sweep: Sweep, recipe: Recipe) -> None:
    """Refuse a scheduler that could stop no trial.

    Raises:
        ValueError: Names the grace and the epochs.
    """
    grace, epochs = sweep.scheduler.grace, recipe.train.epochs
    if sweep.scheduler.kind == "asha" and grace >= epochs:
        raise ValueError(
            f"scheduler.grace {grace} must be less than train.epochs {epochs}: no trial could be "
            "stopped"
        )


def workers(sweep: Sweep, recipe: Recipe) -> None:
    """Refuse to follow the epochs of trainings of several workers.

    Raises:
        ValueError: Says what to set in place of it.
    """
    if sweep.validation and has_workers(recipe):
        raise ValueError(
            f"the sweep's validation {sweep.validation:g} follows trainings in one process, but "
            f"train.num_workers is {recipe.train.num_workers}; set it to 1, or train.validation in "
            "place of the sweep's"
        )


def validation(sweep: Sweep, recipe: Recipe) -> None:
    """Refuse identities that are held out twice, or from a training that knows none.

    Raises:
        ValueError: Names what to set.
    """
    if sweep.validation and recipe.train.validation:
        raise ValueError(
            f"the sweep's validation {sweep.validation:g} and train.validation "
            f"{recipe.train.validation:g} would each hold identities out; set one of them to 0"
        )
    if sweep.validation and any(own.train.labels == "clusters" for _, own in stages_of(recipe)):
        raise ValueError(
            f"the sweep's validation {sweep.validation:g} holds identities out, which a training "
            "with train.labels 'clusters' does not know; set it to 0"
        )


def pretraining(sweep: Sweep, recipe: Recipe, jobs: Sequence[Job]) -> None:
    """Refuse a training that could not start from what its recipe names.

    Raises:
        ValueError: If no job of the pipeline pre-trains, or it has seen what validates.
    """
    if recipe.train.start != PRETRAIN:
        return
    if not any(job.name == PRETRAIN for job in jobs):
        raise ValueError(
            f"train.start is {PRETRAIN!r}, but the sweep's recipe has no section pretrain; give "
            "the sweep a recipe, profile or override that has one"
        )
    if sweep.validation:
        raise ValueError(
            f"the sweep's validation {sweep.validation:g} holds out identities that the "
            "pre-training has seen; set train.validation and pretrain.validation in its place"
        )
