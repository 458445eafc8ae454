"""The section `ingest`: files to observations."""

from typing import Literal

from pydantic import ConfigDict, Field, JsonValue

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec


class SourceSpec(Frozen):
    """One data set: its reader, and the reader's options as further keys.

    Every reader has a model of its options in `ray_reid/datasets/readers`, which is checked before
    any job runs.
    """

    model_config = ConfigDict(extra="allow")
    # The reader's own model knows their types; here they only have to survive YAML and JSON.
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    reader: str
    """Name of the reader, such as `folder` or `market1501`."""


class Ingest(Frozen):
    """Files to observations."""

    sources: tuple[SourceSpec, ...] = ()
    """The data sets of the run; a run needs one at least."""
    use: dict[str, Literal["train", "whole", "unlabelled"]] = Field(default_factory=dict)
    """What to take of a source, by its name: `train` for its train split alone, `whole` to train
    on all of it, `unlabelled` for its train split without the labels and its query and gallery.
    Sources that are not named here are taken as they are."""
    max_corrupt_fraction: float = Field(0.05, ge=0, lt=1)
    """A larger share of undecodable images stops the job; below it they are kept with a reason."""
    stage: StageSpec = StageSpec(actors=2, batch_size=64)
