"""Random changes of a batch of training images, drawn from its place in the plan.

One affine warp does flip, zoom, shift and rotation; everything runs on the device that holds the
batch. What a recipe switches off costs nothing, but its numbers are drawn all the same: switching
one change off leaves the others as they were.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from ray_reid.recipe.augment import Augment
from ray_reid.training.rand_augment import rand_augment

ENLARGED = 1.125


def augment(images: Tensor, spec: Augment, seed: tuple[int, ...]) -> Tensor:
    """Change a batch (B, 3, H, W); the same seed changes it in the same way.

    Args:
        images: Bytes, or floats in [0, 1]. What moves whole pixels is done before bytes become
            floats, which take four times the memory.
        seed: What makes this batch itself: recipe seed, epoch, batch number, worker.

    Returns:
        Floats in [0, 1], in memory of their own.
    """
    # Drawn on the CPU so that a GPU gives the same augmentation.
    generator = torch.Generator().manual_seed(mix(seed))
    if spec.rand_augment:
        magnitude, own = spec.rand_augment_magnitude, mix((*seed, 1))
        images = rand_augment(images, spec.rand_augment, magnitude, own)
    if spec.pad:
        images = _pad_and_crop(images, spec.pad, generator)
    if spec.enlarge:
        images = _enlarge_and_crop(images, spec.enlarge, mix((*seed, 3)))
    images = _warp(images, spec, generator)
    images = _colour(images, spec, generator)
    return _erase(images, spec, generator)


def blend(
    images: Tensor, labels: Tensor, num_classes: int, spec: Augment, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of a batch (B, 3, H, W) and its labels (B,).

    Returns:
        Blended images, and (B, num_classes) shares of each label; both as they were if neither
        is asked for.
    """
    chosen = {v2.MixUp: spec.mixup, v2.CutMix: spec.cutmix}
    kinds = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in chosen.items() if alpha]
    if not kinds:
        return images, labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix((*seed, 2)))
        kind = kinds[int(torch.randint(len(kinds), ()))]
        mixed, shares = kind(images, labels)
    return mixed, shares


def mix(seed: tuple[int, ...]) -> int:
    """Mix the parts of a seed into one of 63 bits."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % (1 << 63)
    return mixed


def _pad_and_crop(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    shifts = (torch.randint(0, 2 * pad + 1, (count, 2), generator=generator) - pad).tolist()
    cropped = torch.zeros_like(images)
    for crop, image, (down, right) in zip(cropped, images, shifts, strict=True):
        (to_y, from_y), (to_x, from_x) = _overlap(down, height), _overlap(right, width)
        crop[:, to_y, to_x] = image[:, from_y, from_x]
    return cropped


def _enlarge_and_crop(images: Tensor, probability: float, seed: int) -> Tensor:
    # Numbers of its own, so that no other change depends on it.
    generator = torch.Generator().manual_seed(seed)
    count, _, height, width = images.shape
    chosen = torch.rand(count, generator=generator) < probability
    places = torch.rand(count, 2, generator=generator)
    images = _floats(images)
    rows = chosen.nonzero().flatten().tolist()
    if not rows:
        return images
    size = [round(side * ENLARGED) for side in (height, width)]
    larger = F.interpolate(images[rows], size, mode="bilinear", align_corners=False)
    room = torch.tensor([size[0] - height, size[1] - width])
    corners = (places[rows] * room).round().int().tolist()
    for row, image, (top, left) in zip(rows, larger, corners, strict=True):
        images[row] = image[:, top : top + height, left : left + width]
    return images


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Where a side lies in its crop, and which part of it, if the crop begins `shift` later."""
    shift = max(-length, min(shift, length))
    kept = slice(max(0, shift), length + min(0, shift))
    return slice(max(0, -shift), length - max(0, shift)), kept


def _floats(images: Tensor) -> Tensor:
    """A batch as floats in [0, 1] that may be written into."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.clone()


def _uniform(size: int, reach: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(size, generator=generator) * 2 - 1) * reach


def _warp(images: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    mirrored = torch.rand(count, generator=generator) < spec.flip
    zoom_x = 1 + _uniform(count, spec.scale, generator)
    zoom_y = 1 + _uniform(count, spec.scale, generator)
    angle = _uniform(count, math.radians(spec.rotate), generator)
    shift = torch.stack([_uniform(count, 2 * spec.translate, generator) for _ in "xy"], dim=1)
    if not (spec.scale or spec.rotate or spec.translate):
        return _floats(_flip(images, mirrored))
    images = _floats(images)
    mirror = torch.where(mirrored, -1.0, 1.0)
    cosine, sine = angle.cos(), angle.sin()
    aspect = width / height
    across = torch.stack([mirror * zoom_x * cosine, -zoom_x * sine / aspect, shift[:, 0]], dim=1)
    down = torch.stack([mirror * zoom_y * sine * aspect, zoom_y * cosine, shift[:, 1]], dim=1)
    theta = torch.stack([across, down], dim=1).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _flip(images: Tensor, mirrored: Tensor) -> Tensor:
    if not mirrored.any():
        return images
    # Rows of pixels, as the decoder leaves them, are copied faster than columns of channels.
    pixels = images.permute(0, 2, 3, 1)
    flipped = [
        image.flip(1) if mirror else image
        for image, mirror in zip(pixels, mirrored.tolist(), strict=True)
    ]
    return torch.stack(flipped).permute(0, 3, 1, 2)


def _colour(images: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    count = len(images)

    def factor(reach: float) -> Tensor:
        return (1 + _uniform(count, reach, generator)).to(images).view(-1, 1, 1, 1)

    brightness, contrast = factor(spec.brightness), factor(spec.contrast)
    saturation = factor(spec.saturation)
    angle = _uniform(count, 2 * math.pi * spec.hue, generator)
    if not (spec.brightness or spec.contrast or spec.saturation or spec.hue):
        return images
    if spec.hue:
        images = torch.einsum("bij,bjhw->bihw", _hue_rotation(angle).to(images), images)
    luma = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (images * luma).sum(dim=1, keepdim=True)
    # In place from here on: a batch is large, and new memory for it costs more than the sums.
    images = (images - grey).mul_(saturation).add_(grey)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    return images.sub_(mean).mul_(contrast).add_(mean).mul_(brightness).clamp_(0, 1)


def _hue_rotation(angle: Tensor) -> Tensor:
    """(B, 3, 3) rotations of RGB about the grey axis (Rodrigues' formula)."""
    cosine, sine = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    third = torch.full((3, 3), 1 / 3)
    skew = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return cosine * torch.eye(3) + sine * skew + (1 - cosine) * third


def _erase(images: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    chosen = torch.rand(count, generator=generator) < spec.erase
    area = torch.empty(count).uniform_(0.02, spec.erase_area, generator=generator) * height * width
    ratio = torch.empty(count).uniform_(math.log(0.3), math.log(3.3), generator=generator).exp()
    tall = (area * ratio).sqrt().clamp(1, height)
    wide = (area / ratio).sqrt().clamp(1, width)
    top = torch.rand(count, generator=generator) * (height - tall)
    left = torch.rand(count, generator=generator) * (width - wide)
    fill = torch.rand(count, 3, generator=generator).to(images)
    if spec.erase_colour is not None:
        fill[:] = fill.new_tensor(spec.erase_colour)
    boxes = torch.stack([top, top + tall, left, left + wide], dim=1).ceil().int().tolist()
    for number in chosen.nonzero().flatten().tolist():
        first, last, left_, right = boxes[number]
        images[number, :, first:last, left_:right] = fill[number].view(3, 1, 1)
    return images
