"""What a training begins with, as its recipe names it: weights, and their fingerprint."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_reid import places
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.recipe.train import Train
from ray_reid.runtime.results import POINTER, RunState
from ray_reid.training.outcome import StartedFrom

# Ray Train's controller imports what imports this; it has no use for torch and waits for it.
if TYPE_CHECKING:
    from ray_reid.models.networks.starting import Start

log = logging.getLogger(__name__)

JOB = "train"
"""The job whose package a run gives."""


def as_train(recipe: Recipe) -> Recipe:
    """The recipe of the pre-training as that of a training: its own section in place of `train`."""
    assert recipe.pretrain is not None, "asked for where there is a pre-training"
    return recipe.model_copy(update={"train": recipe.pretrain})


def outside(recipe: Recipe) -> str:
    """Fingerprint of the weights that the network begins with and that no job of the run made."""
    from ray_reid.models.pretrained import references

    spec = recipe.train
    found = list(map(references.fingerprint, initial_weights(spec)))
    if spec.start is not None and spec.start != PRETRAIN:
        from ray_reid.models import package

        folder = package_of(spec.start)
        files = [folder / name for name in (package.WEIGHTS, package.LABELS, package.RECIPE)]
        found.append(references.digest(sorted(files), folder))
    return ",".join(found) or "none"


def initial_weights(spec: Train) -> list[str]:
    """References of the weights that parts of the network begin with, beside `start`."""
    backbone: bool | str | None = spec.pretrained
    if backbone is True:
        from ray_reid.models.networks import initial_weights as networks

        backbone = networks.hub_id(spec.backbone)
    named = (backbone, spec.ibn_weights, spec.semantic.encoder)
    return [name for name in named if isinstance(name, str)]


def start_of(spec: Train, pretrained: Place | None = None) -> "Start | None":
    """Read what `train.start` names; null where it names nothing.

    Args:
        spec: The section.
        pretrained: Package of the run's own pre-training.

    Raises:
        ValueError: If there is no such package, or the pre-training was not done.
    """
    if spec.start is None:
        return None
    from safetensors.torch import load_file

    from ray_reid.models import package
    from ray_reid.models.networks.starting import Start

    if spec.start == PRETRAIN:
        if pretrained is None:
            raise ValueError(
                f"train.start is {PRETRAIN!r}, but no job {PRETRAIN!r} has been done; give the "
                "recipe a section pretrain, or name a run or a package"
            )
        folder = places.fetched(pretrained)
    else:
        folder = package_of(spec.start)
    made_by = recipes.validate(recipes.read_yaml(folder / package.RECIPE)).train
    identities: list[str] = json.loads((folder / package.LABELS).read_text())
    return Start(made_by, load_file(folder / package.WEIGHTS), identities)


def package_of(reference: str) -> Path:
    """The package of a run's training, or a package itself, as a folder of this machine.

    Raises:
        ValueError: If there is none.
    """
    from ray_reid.models import package

    try:
        root = places.place(reference)
        if (root / POINTER).exists():
            return package.fetched(RunState.read(root).folder(JOB) / "model")
        return package.fetched(reference)
    except ValueError as error:
        raise ValueError(f"train.start: {error}") from error


def compared(
    spec: Train, identities: Sequence[str], start: "Start", source: str, stage: str = ""
) -> StartedFrom:
    """Find out what a training takes over of what it begins with.

    Raises:
        ValueError: If the backbone does not fit.
    """
    from ray_reid.models.networks import starting

    try:
        _, begun = starting.begin(spec, identities, start)
    except ValueError as error:
        raise ValueError(f"train.start {source!r} {error}") from error
    return StartedFrom(
        source=source,
        stage=stage,
        kept=dict(begun.kept),
        left_out=dict(begun.left_out),
        new=dict(begun.new),
    )


def announce(started: StartedFrom) -> None:
    """Say in the log what a training has taken over."""
    parts = {"kept": started.kept, "left out": started.left_out, "new": started.new}
    told = (
        f"{name} {', '.join(f'{part} ({count})' for part, count in found.items()) or 'nothing'}"
        for name, found in parts.items()
    )
    training = f"train {started.stage}".strip()
    log.info("%s: starts from %s: %s", training, started.source, "; ".join(told))


def changes_head(spec: Train, before: Train) -> bool:
    """Whether a stage has another head than the one before it, or other classifiers beside it."""
    from ray_reid.recipe.train import HEAD

    auxiliary = (spec.loss.auxiliary > 0) != (before.loss.auxiliary > 0)
    return auxiliary or any(getattr(spec, name) != getattr(before, name) for name in HEAD)
