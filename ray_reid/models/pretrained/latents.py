"""Images to the latents of a diffusers pipeline."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ray_reid.images import Pixels

BATCH = 8


def encode(
    pipeline: Any, images: Sequence[Pixels], image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Encode images with the pipeline's autoencoder, scaled as its UNet expects.

    Args:
        images: (H, W, 3) uint8 each, of any sizes.
        image_size: Height and width in pixels to which they are resized.

    Returns:
        Mean and deviation of every image's latents, (N, C, h, w) fp32 each, on the CPU.
    """
    vae = pipeline.vae
    means, deviations = [], []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = torch.stack([_to_tensor(one, image_size) for one in images[start:][:BATCH]])
            found = vae.encode(batch.to(vae.device, vae.dtype)).latent_dist
            means.append(found.mean.float().cpu())
            deviations.append(found.std.float().cpu())
    scale = vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    # Clones: what inference mode makes cannot be trained on.
    mean, deviation = torch.cat(means).clone(), torch.cat(deviations).clone()
    return (mean - shift) * scale, deviation * scale


def _to_tensor(pixels: Pixels, size: tuple[int, int]) -> Tensor:
    """(3, H, W) in -1 to 1, resized to the generator's size."""
    height, width = size
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1.0
