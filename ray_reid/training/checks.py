"""Refusals of a training in one sentence, before every worker would fail in it again and again."""

from typing import TYPE_CHECKING

from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Train
from ray_reid.runtime import stage

# Ray Train's controller imports this module too; it has no use for torch and waits for it.
if TYPE_CHECKING:
    from ray_reid.training.loader import TrainingLabels


def check(recipe: Recipe) -> None:
    """Refuse weights that do not exist or do not fit, before any job runs.

    Raises:
        ValueError: If the network cannot be built with them.
    """
    spec = recipe.train
    if spec.semantic.encoder is not None:
        from ray_reid.models.pretrained import references

        try:
            references.check_local(spec.semantic.encoder)
        except ValueError as error:
            raise ValueError(f"train.semantic.encoder: {error}") from error
    _check_hub(spec)
    _check_kept_norms(spec.trainings()[0][1])
    for _, own in spec.trainings():
        named = isinstance(own.pretrained, str) or own.ibn_weights is not None
        if named or own.finetune.layer_decay < 1 or own.finetune.norms != "train":
            check_network(own)


def check_network(spec: Train) -> None:
    """Build the network once here: a mistake in it would fail in every worker, again and again.

    Raises:
        ValueError: If timm or PyTorch refuses it, or its weights are not there.
    """
    from ray_reid.models.networks import ReidNetwork
    from ray_reid.training import optimizers

    _check_hub(spec)
    # The workers fetch what the hub has.
    here = {"pretrained": False} if spec.pretrained is True else {}
    try:
        optimizers.build(spec, ReidNetwork(spec.model_copy(update=here), num_classes=2))
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"train.backbone {spec.backbone!r} cannot be built with backbone_params "
            f"{spec.backbone_params} for image_size {list(spec.image_size)}: "
            f"{stage.reason(error)}"
        ) from error


def _check_hub(spec: Train) -> None:
    """Refuse `train.pretrained: true` where timm, the hub and its cache give no weights."""
    if spec.pretrained is True:
        from ray_reid.models.networks import backbones, initial_weights

        backbones.check_backbone(spec.backbone)
        initial_weights.check_hub(spec.backbone)


def _check_kept_norms(spec: Train) -> None:
    """Refuse to keep statistics that no weights have brought: means of 0 and variances of 1."""
    begun = spec.pretrained or spec.ibn_weights or spec.semantic.encoder
    if spec.finetune.norms != "train" and not begun:
        raise ValueError(
            f"train.finetune.norms is {spec.finetune.norms!r}, but the network begins with nothing "
            "that is worth keeping; set train.pretrained, or norms to 'train'"
        )


def check_plan(recipe: Recipe, chosen: "TrainingLabels", world_size: int = 1) -> int:
    """Plan an epoch here, where a refusal is one sentence; returns its number of batches.

    Raises:
        ValueError: If the rows cannot fill a batch, or the workers cannot share it.
    """
    from ray_reid.training import fit

    try:
        return len(fit.plan(recipe, chosen, 0, world_size))
    except ValueError as error:
        raise ValueError(f"train.sampler: {error}") from error
