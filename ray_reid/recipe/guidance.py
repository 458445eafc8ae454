"""The section `guidance`: a discriminator that draws generated images to the real ones."""

from typing import Annotated

from pydantic import Field

from ray_reid.recipe.base import Frozen


class Guidance(Frozen):
    """Generated images drawn towards the real ones by a discriminator (DLCR, section 12)."""

    weight: float = Field(0.0, ge=0)
    """w, the share of the discriminator's correction that is added to the predicted noise; 0 is
    no guidance and trains none."""
    num_images: int = Field(2000, ge=1)
    """Most real images, and most generated ones, that it is trained on."""
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((64, 128, 128), min_length=1)
    """Widths of its levels; every level but the first halves height and width of the latents."""
    steps: int = Field(2000, ge=1)
    batch_size: int = Field(32, ge=1)
    """Real latents of a step, and as many generated ones."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest of AdamW; it rises for the first 30 % of the steps and falls to nearly zero."""
