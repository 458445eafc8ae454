"""Refusals of a training in one sentence, before every worker would fail in it again and again."""

from typing import TYPE_CHECKING

from ray_reid.datasets import rules
from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.recipe.train import Train
from ray_reid.runtime import stage
from ray_reid.training import beginnings

# Ray Train's controller imports this module too; it has no use for torch and waits for it.
if TYPE_CHECKING:
    from ray_reid.training.loader import TrainingLabels

PLAIN = ("bnneck", "vehiclenet")
"""Heads that fit every backbone."""
SHARED = ("backbone", "backbone_params", "ibn", "validation")
"""Entries in which a training and the pre-training that it starts from must agree."""
WHY = {"validation": ", or what validates would have been trained on"}


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
        kept = own.finetune.layer_decay < 1 or own.finetune.norms != "train"
        if named or kept or own.head not in PLAIN:
            check_network(own)
    check_start(recipe)
    known = [one.name for one in recipe.filters]
    unknown = sorted(set(spec.synthetic_filters or ()) - set(known))
    if unknown:
        raise ValueError(
            f"train.synthetic_filters names {unknown[0]!r}, which is no filter of this recipe; "
            f"choose from {known}"
        )


def check_pretraining(recipe: Recipe) -> None:
    """Refuse a pre-training as `check` refuses a training, before any job runs.

    Raises:
        ValueError: Says that it is of the section `pretrain`.
    """
    try:
        check(beginnings.as_train(recipe))
    except ValueError as error:
        raise ValueError(f"pretrain, as a training: {error}") from error
    if recipe.pretrain is not None and recipe.pretrain.start == PRETRAIN:
        raise ValueError(
            f"pretrain.start is {PRETRAIN!r}, which is its own result; name a run or a package, or "
            "leave it out"
        )


def check_start(recipe: Recipe) -> None:
    """Refuse weights to start from that are not there or do not fit, before any job runs.

    Raises:
        ValueError: If the backbone does not fit, or the pre-training is of another.
    """
    spec = recipe.train
    if spec.start is None:
        return
    if spec.start != PRETRAIN:
        start = beginnings.start_of(spec)
        assert start is not None, "it is named"
        beginnings.compared(spec.trainings()[0][1], start.identities, start, spec.start)
        return
    if recipe.pretrain is None:
        raise ValueError(
            f"train.start is {PRETRAIN!r}, but the recipe has no section pretrain; add one, or "
            "name a run or a package"
        )
    # What is held out is chosen among the identities of the last stage's sources.
    last = spec.trainings()[-1][1].sources
    seen = [own.sources for _, own in recipe.pretrain.trainings()]
    apart = bool(last) and all(found and not set(last) & set(found) for found in seen)
    for name in SHARED:
        if name == "validation" and apart:
            continue
        asked, made = getattr(spec, name), getattr(recipe.pretrain, name)
        if asked != made:
            raise ValueError(
                f"train.start is {PRETRAIN!r}, but train.{name} is {asked!r} and pretrain.{name} "
                f"is {made!r}; make them equal{WHY.get(name, '')}"
            )
    first = seen[-1]
    if spec.validation and last != first and not apart:
        raise ValueError(
            f"train.start is {PRETRAIN!r} with validation {spec.validation:g}, but the training is "
            f"on the sources {list(last)} and the pre-training on {list(first)}; make them equal"
            f"{WHY['validation']}"
        )


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
    begun = spec.pretrained or spec.ibn_weights or spec.semantic.encoder or spec.start
    if spec.finetune.norms != "train" and not begun:
        raise ValueError(
            f"train.finetune.norms is {spec.finetune.norms!r}, but the network begins with nothing "
            "that is worth keeping; set train.pretrained or train.start, or norms to 'train'"
        )


def check_plan(recipe: Recipe, chosen: "TrainingLabels", world_size: int = 1) -> int:
    """Plan an epoch here, where a refusal is one sentence; returns its number of batches.

    Raises:
        ValueError: If the rows cannot fill a batch, or the workers cannot share it.
    """
    from ray_reid.training import fit

    if recipe.train.batches_per_epoch is not None and recipe.train.labels == "clusters":
        # What fills a batch is known once the images are clustered.
        number = int((chosen.labels < 0).sum())
        rules.check_clustered(number, recipe.train.clusters.min_samples)
        return recipe.train.batches_per_epoch
    try:
        return len(fit.plan(recipe, chosen, 0, world_size))
    except ValueError as error:
        raise ValueError(f"train.sampler: {error}") from error
