"""Candidates of an adaptation: the states of each training from which generation chooses one."""

from collections.abc import Sequence

from ray_reid.recipe.adapt import Lora
from ray_reid.recipe.base import Frozen
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.facts import Facts

BASE = "none"
"""Name of the candidate that is the model as it was."""


class CandidateFacts(Frozen):
    """What was measured of a fine-tuning, or of the model as it was."""

    name: str
    fid: float
    """Frechet distance to the images adapted to; lower is nearer."""
    agreement: float
    """Share of the images in the colour that was asked for."""
    score: float
    model: str | None = None
    """Text-to-image model that was fine-tuned; null is `models.text_to_image`."""
    loss: float | None = None
    """Of the last epoch; null for the model as it was."""


class AdaptFacts(Facts):
    """What the adapt job says."""

    captioned: int = 0
    """Images adapted to."""
    candidates: tuple[CandidateFacts, ...] = ()
    best: str = ""
    licence: str | None = None
    """Terms of the images adapted to, joined."""


def candidate_names(recipe: Recipe) -> list[str]:
    """The model as it was, then every state of every training that is kept."""
    trainings = named_trainings(recipe.adapt.trainings)
    return [BASE, *(state for name, lora in trainings.items() for state in state_names(name, lora))]


def named_trainings(trainings: Sequence[Lora]) -> dict[str, Lora]:
    """Trainings by name: the rank where that tells them apart, else the rank and their number."""
    names = [f"rank{lora.rank}" for lora in trainings]
    if len(set(names)) < len(names):
        names = [f"{name}-{number}" for number, name in enumerate(names, start=1)]
    return dict(zip(names, trainings, strict=True))


def own_models(recipe: Recipe) -> dict[str, str]:
    """Model of every candidate that is not one of `models.text_to_image`."""
    return {
        state: lora.model
        for name, lora in named_trainings(recipe.adapt.trainings).items()
        if lora.model is not None
        for state in state_names(name, lora)
    }


def model_of(recipe: Recipe, lora: Lora | None) -> tuple[str, str]:
    """The model that a training fine-tunes: key of the recipe and reference.

    Args:
        lora: The training; None is the model as it was.
    """
    if lora is None or lora.model is None:
        return "models.text_to_image", recipe.models.text_to_image
    return f"adapt.trainings.{recipe.adapt.trainings.index(lora)}.model", lora.model


def state_names(training: str, lora: Lora) -> list[str]:
    """Names of the states of one training that are kept, first to last."""
    return [state_name(training, epoch) for epoch in kept_epochs(lora)]


def state_name(training: str, epoch: int) -> str:
    """Name of the state of a training after an epoch."""
    return f"{training}-epoch{epoch}"


def kept_epochs(lora: Lora) -> list[int]:
    """Epochs after which the adapter is kept; the last is always one of them."""
    return sorted({epoch for epoch in lora.keep_epochs if epoch < lora.epochs} | {lora.epochs})
