"""What a sweep compares to say what a generated image is worth."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ray_reid.recipe.base import Frozen

Arm = Literal["kept", "all", "random", "real"]
Budget = Literal["steps", "epochs"]


class Returns(Frozen):
    """The arms beside real images only: which images are added, how many, and for how long."""

    arms: tuple[Arm, ...] = Field(("kept", "all", "random", "real"), min_length=1)
    """What is added to the real images: generated images that the filters `kept`, or `all`
    unfiltered, or as many as were kept at `random` from the unfiltered; or as many further `real`
    images, from those that `train.real_fraction` holds back."""
    amounts: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.125, 0.25, 0.5, 1.0)
    """Shares of the generated images, dropped ones among them; each is part of the next."""
    budgets: tuple[Budget, ...] = Field(("steps", "epochs"), min_length=1)
    """How long all train: equally many `steps`, or equally many passes over their images
    (`epochs`), which are more steps the more images there are."""

    @field_validator("arms", "amounts", "budgets")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"{list(values)} must be different ones")
        return values

    @field_validator("amounts")
    @classmethod
    def _grow(cls, amounts: tuple[float, ...]) -> tuple[float, ...]:
        if not amounts or list(amounts) != sorted(amounts):
            raise ValueError(f"amounts {list(amounts)} must be one or more that grow")
        return amounts
