"""The autoencoder of the miniature text-to-image model: 64 x 64 pixels to 16 x 16 x 4 latents."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from ray_reid.miniature.trainers.drawings import Drawings, outside, to_tensor
from ray_reid.miniature.trainers.steps import WORKERS, batches, distributed, in_processes, minimise

CHANNELS = (16, 32, 64)
LATENT_CHANNELS = 4
LATENT_SIDE = 16
STEPS = 2600
# Most of the training sees crops of a quarter of the area: every step is of four times as many
# drawings at the same cost. The end sees whole pictures, whose normalisation it has to fit.
CROP = 32
BATCH, WHOLE_BATCH = 64, 16
WHOLE_SHARE = 0.25


def train(drawn: Drawings, seed: int, out: Path) -> None:
    """Train on showroom drawings and save in diffusers' format.

    The loss is the absolute error of pixels, of their differences to the right and below, which
    keeps edges, and of their means over 4 x 4, which keeps colours; and a small Kullback-Leibler
    term. `scaling_factor` makes the latents of the drawings unit variance (Rombach et al., 2022,
    section 3.3).
    """
    out.mkdir(parents=True, exist_ok=True)
    result = out / "state.pt"
    in_processes(_worker, drawn, seed, result)
    model = _model(seed)
    model.load_state_dict(torch.load(result, weights_only=True))
    result.unlink()
    model.eval().requires_grad_(False)
    spread = encode(model, drawn, range(0, len(drawn), max(1, len(drawn) // 512))).std()
    model.register_to_config(scaling_factor=round(1.0 / float(spread), 4))
    model.save_pretrained(out)


def encode(model: AutoencoderKL, drawn: Drawings, rows: range, mirrored: bool = False) -> Tensor:
    """Means of the latents of some drawings, unscaled: (N, LATENT_CHANNELS, 16, 16)."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), 64):
            images = to_tensor(drawn.images[list(rows[start : start + 64])]) * 2.0 - 1.0
            if mirrored:
                images = images.flip(3)
            parts.append(model.encode(images).latent_dist.mean)
    return torch.cat(parts).clone()


def scatter(images: Tensor, boxes: Tensor, rng: torch.Generator) -> Tensor:
    """Put drawings before scenery of all scales, and change their colours and light.

    An autoencoder that knows only the studio renders nothing else, whatever an adapter says;
    those of real models have seen all kinds of pictures.

    Args:
        images: (N, 3, H, W) in 0 to 1.
        boxes: (N, 4) in pixels.
        rng: Chance.
    """
    num, _, height, width = images.shape

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    scenery = chance(num, 3, 1, 1).expand(images.shape).clone()
    for side in (2, 4, 8, 16, 32, 64):
        channels = 3 if side < 8 else 1
        strength = chance(num, 1, 1, 1).square() * 0.6
        patches = (chance(num, channels, side, side) - 0.5) * strength
        blocky = F.interpolate(patches, (height, width))
        soft = F.interpolate(patches, (height, width), mode="bilinear")
        scenery += torch.where(chance(num, 1, 1, 1) < 0.5, blocky, soft)
    around = outside(boxes, height, width)
    # A third is scenery alone, which no box keeps off the middle.
    shown = (around & (chance(num, 1, 1, 1) < 0.5)) | (chance(num, 1, 1, 1) < 0.3)
    images = torch.where(shown, scenery.clamp(0.0, 1.0), images)
    order = torch.argsort(chance(num, 3), dim=1)
    turned = torch.take_along_dim(images, order[:, :, None, None], 1)
    images = torch.where(chance(num, 1, 1, 1) < 0.3, turned, images)
    images = torch.where(chance(num, 1, 1, 1) < 0.5, images.flip(3), images)
    light = 0.5 + 0.7 * chance(num, 1, 1, 1)
    plain = chance(num, 1, 1, 1) < 0.4
    images = torch.where(plain, images, images * light + 0.3 * chance(num, 1, 1, 1) * (1 - light))
    return images.clamp(0.0, 1.0).contiguous(memory_format=torch.channels_last)


def crops(images: Tensor, boxes: Tensor, rng: torch.Generator) -> Tensor:
    """Cut a square of CROP pixels out of each image, its middle within the box."""
    share = torch.rand(len(images), 2, generator=rng)
    middle = boxes[:, :2] + share * (boxes[:, 2:] - boxes[:, :2])
    corner = (middle - CROP / 2).round().long().clamp(0, images.shape[3] - CROP)
    cut = [
        image[:, top : top + CROP, left : left + CROP]
        for image, (left, top) in zip(images, corner.tolist(), strict=True)
    ]
    return torch.stack(cut).contiguous(memory_format=torch.channels_last)


def _worker(rank: int, drawn: Drawings, seed: int, result: Path) -> None:
    with distributed(rank, result) as wrap:
        plain = _model(seed).train()
        model = wrap(_Whole(plain))
        rng = torch.Generator().manual_seed(seed * 1000 + rank)
        boxes = torch.from_numpy(drawn.boxes)

        def losses() -> Iterator[Callable[[], Tensor]]:
            whole = round(WHOLE_SHARE * STEPS)
            for rows in chain(
                batches(len(drawn), BATCH, STEPS - whole, seed, rank, WORKERS),
                batches(len(drawn), WHOLE_BATCH, whole, seed + 1, rank, WORKERS),
            ):
                images = scatter(to_tensor(drawn.images[rows.numpy()]), boxes[rows], rng)
                if len(rows) == BATCH // WORKERS:
                    images = crops(images, boxes[rows], rng)
                side = images.shape[2] * LATENT_SIDE // 64
                noise = torch.randn(len(rows), LATENT_CHANNELS, side, side, generator=rng)
                yield lambda images=images, noise=noise: model(images * 2.0 - 1.0, noise)  # type: ignore[misc]

        minimise("autoencoder", plain.parameters(), losses(), STEPS, 1.5e-3, weight_decay=1e-4)
        if rank == 0:
            torch.save(plain.state_dict(), result)


class _Whole(torch.nn.Module):
    """Encoder, decoder and loss as one module: what is distributed must be called as one."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        latent = self.model.encode(images).latent_dist
        made = self.model.decode(latent.mean + latent.std * noise).sample
        error = made - images
        right = (error[..., 1:] - error[..., :-1]).abs().mean()
        below = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        colours = F.avg_pool2d(error, 4).abs().mean()
        loss: Tensor = error.abs().mean() + colours + right + below + 1e-6 * latent.kl().mean()
        return loss


def _model(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    levels = len(CHANNELS)
    return AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)
