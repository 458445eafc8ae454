"""The section `generate`: prompts to images."""

from pydantic import Field

from ray_reid.recipe.base import Frozen, ImageSide
from ray_reid.recipe.resources import StageSpec


class Generate(Frozen):
    """Prompts to images."""

    candidate: str | None = None
    """Name of the adapted model; null takes the best score, `none` the model as it was."""
    guidance_scale: float = Field(8.0, ge=1)
    """Scale of classifier-free guidance (Ho and Salimans, 2021); 1 is none."""
    steps: int = Field(50, ge=1)
    """Denoising steps."""
    image_size: tuple[ImageSide, ImageSide] = (1024, 1024)
    """Height and width in pixels."""
    negative_prompt: str = ""
    licence: str | None = None
    """Terms of the images; null joins those of the images that the model was adapted to, if it
    was."""
    quality: int = Field(95, ge=1, le=100)
    """JPEG quality."""
    raw_images: int = Field(0, ge=0)
    """Images to generate as well without the adapter, and with it but without a filter, for
    comparison; they are not trained on."""
    stage: StageSpec = StageSpec(batch_size=8, block_rows=8)
