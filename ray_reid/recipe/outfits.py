"""The section `outfits`: people in other clothes than they wear."""

import string
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec

PARTS = ("upper", "lower", "footwear")
"""What is described and painted over (DLCR, section 3.1)."""


class Outfits(Frozen):
    """How images of people are made with other clothes than they wear."""

    num_outfits: int = Field(10, ge=1)
    """K: generated images of each training image."""
    clothes: Literal["described", "random"] = "described"
    """`described`: those of other clothes in the training set; `random`: words put together."""
    method: Literal["inpaint", "image_to_image"] = "inpaint"
    """`inpaint` paints the clothes alone; `image_to_image` repaints the whole image, from noise of
    `strength`, which keeps nothing for certain (Table A1, row 2)."""
    strength: float = Field(0.6, gt=0, le=1)
    """Share of the denoising steps that `image_to_image` takes."""
    template: str = "{upper}, {lower}, {footwear}"
    """Prompt of a description."""
    margin: int = Field(0, ge=0, le=64)
    """Pixels around the clothes that are painted over too."""
    min_mask: float = Field(0.02, ge=0, lt=1)
    """Least share of the image that clothes must have: less is nobody."""
    max_mask: float = Field(0.85, gt=0, le=1)
    """Largest: more leaves nothing to recognise."""
    parse_stage: StageSpec = StageSpec(batch_size=16)
    """The human parser; what paints takes `generate.stage`."""

    @field_validator("template")
    @classmethod
    def _fields(cls, template: str) -> str:
        try:
            named = [
                name for _, name, _, _ in string.Formatter().parse(template) if name is not None
            ]
        except ValueError as error:
            raise ValueError(f"template {template!r} is not a template: {error}") from error
        unknown = sorted(set(named) - set(PARTS))
        if unknown or not named:
            what = f"the unknown field {unknown[0]!r}" if unknown else "no field"
            raise ValueError(f"template {template!r} has {what}; choose from {list(PARTS)}")
        return template

    @model_validator(mode="after")
    def _order(self) -> "Outfits":
        if self.min_mask >= self.max_mask:
            raise ValueError(
                f"min_mask {self.min_mask:g} must be less than max_mask {self.max_mask:g}"
            )
        return self
