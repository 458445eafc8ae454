"""The section `filters`: what generated images must pass."""

from typing import Any

from pydantic import Field

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec


class FilterSpec(Frozen):
    """One filter, by its name in `ray_reid.generation.filters.FILTERS`."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    """Arguments of its constructor."""
    stage: StageSpec = StageSpec(batch_size=16)
