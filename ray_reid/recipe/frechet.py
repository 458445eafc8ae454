"""The section `frechet`: the distance between generated and real images."""

from typing import Literal

from pydantic import Field

from ray_reid.recipe.base import Frozen


class Frechet(Frozen):
    """Frechet distance between features of generated and of real images (Heusel et al., 2017)."""

    extractor: str = "image_text"
    """`image_text` takes that model's image features; `inception` the Inception-v3 of the
    published FID (package torchmetrics), with weights of torch.hub's cache or `inception:FILE`."""
    layer: Literal["64", "192", "768", "2048"] = "2048"
    """Width of the features that Inception-v3 gives; published figures take 2048."""
    num_images: int = Field(500, ge=2)
    """Most images of each set; all sets of a table are cut to the smallest."""
