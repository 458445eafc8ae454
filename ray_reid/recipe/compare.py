"""The section `compare`: trainings side by side."""

from typing import Any

from pydantic import Field, field_validator

from ray_reid.recipe.base import Frozen


class Compare(Frozen):
    """Trainings that differ in the recipe only, each measured like the run's own."""

    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Dotted overrides of the recipe by the name of the arm; empty compares nothing."""
    seeds: tuple[int, ...] = (0, 1)
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    """Resources of one training; as many run at once as fit."""

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds {list(seeds)} must be one or more different numbers from 0")
        return seeds
