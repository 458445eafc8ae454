"""RandAugment of a batch (Cubuk et al., 2020): an image has its operations, all of a kind at once.

Operations and strengths are those of torchvision, whose transform takes one image at a time; a
batch of 512 has some fifty groups of images that have the same done to them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

BINS = 30
"""Strengths are counted up to this one."""
Operation = Callable[[Tensor, float], Tensor]


def _moved(images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    return F.affine(images, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])


def _sheared(images: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0.0, 0.0])


# Of bytes and a strength from -1 to 1, and of bytes and one from 0 to 1.
SIGNED: tuple[Operation, ...] = (
    lambda images, by: _sheared(images, x=0.3 * by),
    lambda images, by: _sheared(images, y=0.3 * by),
    lambda images, by: _moved(images, x=150 / 331 * images.shape[3] * by),
    lambda images, by: _moved(images, y=150 / 331 * images.shape[2] * by),
    lambda images, by: F.rotate(images, angle=30 * by),
    lambda images, by: F.adjust_brightness(images, 1 + 0.9 * by),
    lambda images, by: F.adjust_saturation(images, 1 + 0.9 * by),
    lambda images, by: F.adjust_contrast(images, 1 + 0.9 * by),
    lambda images, by: F.adjust_sharpness(images, 1 + 0.9 * by),
)
UNSIGNED: tuple[Operation, ...] = (
    lambda images, _: images,
    lambda images, by: F.posterize(images, round(8 - 4 * by)),
    lambda images, by: F.solarize(images, 255 * (1 - by)),
    lambda images, _: F.autocontrast(images),
    lambda images, _: F.equalize(images),
)


def rand_augment(images: Tensor, operations: int, magnitude: int, seed: int) -> Tensor:
    """Change a batch (B, 3, H, W), bytes or floats in [0, 1]; the same seed does the same.

    Args:
        images: The batch, which stays as it is.
        operations: One after the other, on every image.
        magnitude: Their strength, of `BINS`.
        seed: Draws the operations of each image, and which way they go.

    Returns:
        Bytes.
    """
    # Drawn on the CPU so that a GPU gives the same augmentation.
    generator = torch.Generator().manual_seed(seed)
    images = images.clone() if images.dtype == torch.uint8 else (images * 255).round().byte()
    shape, by = (operations, len(images)), magnitude / BINS
    drawn = torch.randint(len(SIGNED) + len(UNSIGNED), shape, generator=generator)
    back = torch.rand(shape, generator=generator) < 0.5
    groups: list[tuple[int, bool | None, Operation]] = [
        (number, way, change) for number, change in enumerate(SIGNED) for way in (True, False)
    ]
    groups += [(number, None, change) for number, change in enumerate(UNSIGNED, len(SIGNED))]
    for step in range(operations):
        for number, way, change in groups:
            chosen = drawn[step] == number
            if way is not None:
                chosen &= back[step] == way
            rows = chosen.nonzero().flatten().to(images.device)
            if len(rows):
                images[rows] = change(images[rows], -by if way else by)
    return images
