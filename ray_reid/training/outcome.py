"""What the train job and the pretrain job say of themselves, and show in the report."""

from ray_reid.recipe.base import Frozen
from ray_reid.runtime import figures
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.sections import ReportPicture, Section


class RowCounts(Frozen):
    """What is trained on."""

    images: int
    identities: int
    by_origin: dict[str, dict[str, int]]
    """Images and identities, real and synthetic."""


class TrainedStage(RowCounts):
    """One of several trainings in a row."""

    name: str
    epochs: int


class KeptEpoch(Frozen):
    """The epoch whose weights the package has, and the search that chose it."""

    identities: int
    """Held out and searched."""
    images: int
    epoch: int
    """From 0."""
    figures: dict[str, float]
    """What it found, by name."""


class StartedFrom(Frozen):
    """Weights that a training, or a stage of it with another head, began with."""

    source: str
    """What `train.start` names, or the stage before."""
    stage: str = ""
    kept: dict[str, int]
    """Weights of each part of the network that were taken over."""
    left_out: dict[str, int]
    """Weights of the source that were not."""
    new: dict[str, int]
    """Weights of the network that began at random."""


class TrainFacts(Facts):
    """What the train job says."""

    validation: KeptEpoch | None = None
    stages: tuple[TrainedStage, ...] = ()
    started: tuple[StartedFrom, ...] = ()
    counts: RowCounts | None = None
    """Of the last stage."""
    begun_on: RowCounts | None = None
    """What the run's own pre-training was trained on, where the training began with it."""
    weights: tuple[str, ...] = ()
    """References of the weights that it, or its pre-training, began with."""
    precision: str = ""


def section(facts: TrainFacts, title: str = "Training") -> Section:
    """Show the curves of the training, and which epoch was taken."""
    if not facts.history:
        return Section()
    caption = "Means over the batches of each epoch."
    if facts.validation is not None:
        taken = facts.validation
        caption += (
            f" The weights are those of epoch {taken.epoch + 1}: validation mAP "
            f"{100 * taken.figures['mAP']:.1f} % among {taken.identities} training identities "
            "held out."
        )
    drawing = figures.png(figures.training_curve(facts.history))
    return Section(drawings=(ReportPicture(title, caption, drawing),))
