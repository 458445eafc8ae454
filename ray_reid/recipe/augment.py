"""The section `train.augment`: random changes of training images."""

from typing import Annotated

from pydantic import Field

from ray_reid.recipe.base import Frozen

Share = Annotated[float, Field(ge=0, le=1)]


class Augment(Frozen):
    """Random changes of a training image; all zero trains on the images as they are."""

    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    scale: float = Field(0.1, ge=0, lt=1)
    """Zoom drawn from [1 - scale, 1 + scale], independently for height and width."""
    translate: float = Field(0.08, ge=0, lt=1)
    """Largest shift as a share of the image side."""
    rotate: float = Field(0.0, ge=0, le=45)
    """Largest rotation in degrees."""
    brightness: float = Field(0.2, ge=0, lt=1)
    contrast: float = Field(0.2, ge=0, lt=1)
    saturation: float = Field(0.2, ge=0, lt=1)
    """Factors drawn from [1 - value, 1 + value]."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Largest rotation of the colour circle; 0.5 is half of it."""
    erase: float = Field(0.3, ge=0, le=1)
    """Probability of Random Erasing (Zhong et al., 2017) of a part of the area, 2 % at least."""
    erase_area: float = Field(0.25, ge=0.02, le=1)
    """Largest part that is erased; 0.4 in CAL (Gu et al., CVPR 2022)."""
    erase_colour: tuple[Share, Share, Share] | None = None
    """Red, green and blue of what is erased; null draws a colour for each image."""
    pad: int = Field(0, ge=0)
    """Black pixels put around the image before a random crop of its own size."""
    enlarge: float = Field(0.0, ge=0, le=1)
    """Probability that an image is enlarged by an eighth and cropped to its own size (CAL)."""
    rand_augment: int = Field(0, ge=0)
    """Operations of RandAugment (Cubuk et al., 2020) on every image, before all else."""
    rand_augment_magnitude: int = Field(9, ge=0, le=30)
    """Their strength, of 30."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of Mixup (Zhang et al., 2018): pairs of images and of their labels are blended."""
    cutmix: float = Field(0.0, ge=0)
    """Alpha of CutMix (Yun et al., 2019); with `mixup`, a batch has either, as a coin falls."""
