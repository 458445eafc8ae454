"""The section `ingest`: files to observations."""

from typing import Literal

from pydantic import Field

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec
from ray_reid.recipe.sources import MiniatureSource, Source


class Ingest(Frozen):
    """Files to observations."""

    sources: tuple[Source, ...] = (MiniatureSource(),)
    use: dict[str, Literal["train", "whole"]] = Field(default_factory=dict)
    """What to take of a source, by its name: `train` for its train split alone, `whole` to train
    on all of it. Sources that are not named here bring their query and gallery too."""
    max_corrupt_fraction: float = Field(0.05, ge=0, lt=1)
    """A larger share of undecodable images stops the job; below it they are kept with a reason."""
    stage: StageSpec = StageSpec(actors=2, batch_size=64)
