"""Inpainting models of diffusers: Stable Diffusion 1, 2 and XL paint what a mask uncovers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ray_reid.images import Pixels
from ray_reid.models.pretrained import diffusion

Mask = NDArray[np.bool_]


def load_pipeline(reference: str, precision: str = "auto") -> Any:
    """Load a pipeline onto this process's device.

    Raises:
        ValueError: If there is no such model, or it does not inpaint.
    """
    # Here, because it takes seconds, and most commands never load such a model.
    from diffusers import AutoPipelineForInpainting

    kind = AutoPipelineForInpainting
    return diffusion.load_pipeline(kind, "models.inpainting", reference, precision)


def inpaint(
    pipeline: Any,
    images: Sequence[Pixels],
    masks: Sequence[Mask],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float,
    steps: int,
    image_size: tuple[int, int],
    negative_prompt: str = "",
    strength: float = 1.0,
) -> list[Pixels | None]:
    """Paint what is masked of each image; it depends on its own image, mask, prompt and seed alone.

    What is painted has the model's `image_size`; it is brought to the size of the source and laid
    over it, so that every pixel outside the mask keeps its value to the bit.

    Args:
        pipeline: From `load_pipeline`.
        images: (H, W, 3) uint8 each, of any sizes.
        masks: (H, W) bool each, True where to paint.
        seeds: One an image; the noise is drawn on the CPU, so it is the same everywhere.
        guidance_scale: Scale of classifier-free guidance; 1 is none.
        image_size: Height and width in pixels at which the model works.
        negative_prompt: What guidance leads away from; empty is what the model does without one.
        strength: Share of the denoising that is done, from noise of that share over the image.

    Returns:
        (H, W, 3) uint8 each; null where the safety checker that some pipelines bring refused what
        was painted, in whose place it leaves black.
    """
    height, width = image_size
    size = (width, height)
    found = pipeline(
        list(prompts),
        image=[Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in images],
        # A pixel of the model's size is painted where any part of it is masked.
        mask_image=[_resized(mask, size) for mask in masks],
        negative_prompt=diffusion.repeated(negative_prompt, len(prompts)),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        strength=strength,
        height=height,
        width=width,
        output_type="pil",
    )
    told = zip(images, found.images, masks, diffusion.refused(found), strict=True)
    return [
        None if unsafe else composite(image, np.asarray(painted), mask)
        for image, painted, mask, unsafe in told
    ]


def composite(source: Pixels, painted: Pixels, mask: Mask) -> Pixels:
    """Lay what was painted, of any size, over the masked pixels of a source."""
    height, width = mask.shape
    if painted.shape[:2] != mask.shape:
        resized = Image.fromarray(painted).resize((width, height), Image.Resampling.BICUBIC)
        painted = np.asarray(resized)
    whole: Pixels = np.where(mask[..., None], painted, source)
    return whole


def _resized(mask: Mask, size: tuple[int, int]) -> Image.Image:
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return grey.resize(size, Image.Resampling.BOX).point(lambda value: 255 if value else 0)
