"""The miniature inpainting model: a Stable Diffusion inpainting pipeline of a few million weights.

Its autoencoder and the start of its UNet are the miniature text-to-image model's; the UNet's first
layer gets five channels more, the mask and the latents of what is around it (Rombach et al., 2022).
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ray_reid.miniature.trainers.drawings import to_tensor
from ray_reid.miniature.trainers.people import People
from ray_reid.miniature.trainers.steps import batches, minimise
from ray_reid.miniature.trainers.text_to_image import (
    DROPPED,
    EMA,
    NOISE,
    Denoiser,
    learned_tokenizer,
    text_encoder,
    tokens,
)

BATCH = 32
STEPS = 3000
LEARNING_RATE = 1e-3
# Share of the drawings that are masked whole, so that the model also works from image to image.
WHOLE = 0.12
# Widest margin around the clothes of the training masks, in pixels: parsers are not exact.
MARGIN = 2
# Every so many batches are of half the size, at which queries are dressed (DLCR, section 3.3).
HALF_EVERY = 4
# What is not masked is copied from the source in the end.
AROUND = 0.1


def train(drawn: People, start: Path, seed: int, out: Path) -> None:
    """Train to dress drawings of both domains as their prompts say, and save in fp16.

    Args:
        drawn: What is dressed.
        start: A text-to-image pipeline.
    """
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(start / "vae", dtype=torch.float32).eval()
    prompts = [prompt(*map(str, worn)) for worn in drawn.clothes]
    tokenizer = learned_tokenizer(prompts)
    known_prompts = tokens(tokenizer, [*prompts, ""])
    masks = margins(torch.from_numpy(drawn.masks())[:, None].float(), seed)
    whole, half = (_inputs(vae, to_tensor(drawn.images), masks, scale) for scale in (1, 2))
    model = Denoiser(_unet(start), text_encoder(len(tokenizer)))
    model = model.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).requires_grad_(False)
    noise = DDPMScheduler(**NOISE)
    rng = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for step, rows in enumerate(batches(len(drawn), BATCH, STEPS, seed)):
            dropped = torch.rand(len(rows), generator=rng) < DROPPED
            told = known_prompts[torch.where(dropped, len(prompts), rows)]
            latents, known = half if step % HALF_EVERY == 0 else whole
            yield lambda latents=latents[rows], known=known[rows], told=told: _loss(  # type: ignore[misc]
                model, noise, latents, known, told, rng
            )

    def after_step(done: float) -> None:
        keep = min(EMA, done * STEPS / (done * STEPS + 10.0))
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1.0 - keep)

    minimise("inpainting", model.parameters(), losses(), STEPS, LEARNING_RATE, after_step)
    StableDiffusionInpaintPipeline(
        vae=vae, text_encoder=average.text_encoder, tokenizer=tokenizer, unet=average.unet,
        scheduler=DPMSolverMultistepScheduler(**NOISE), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(out)  # fmt: skip


def prompt(upper: str, lower: str, footwear: str) -> str:
    """What asks for an outfit; the template that recipes have by default."""
    return f"{upper}, {lower}, {footwear}"


def margins(masks: Tensor, seed: int) -> Tensor:
    """Widen each of the (N, 1, H, W) masks by 0 to MARGIN pixels, and a few to the whole."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, MARGIN + 1, (len(masks),), generator=rng)
    wide = masks.clone()
    for margin in range(1, MARGIN + 1):
        rows = drawn == margin
        wide[rows] = F.max_pool2d(masks[rows], 2 * margin + 1, 1, margin)
    wide[torch.rand(len(masks), generator=rng) < WHOLE] = 1.0
    return wide


def _loss(
    model: nn.Module, noise: DDPMScheduler, latents: Tensor, known: Tensor, told: Tensor,
    rng: torch.Generator,
) -> Tensor:  # fmt: skip
    """Error of the predicted v (Salimans and Ho, 2022), most of it where the mask is."""
    drawn = torch.randn(latents.shape, generator=rng)
    times = torch.randint(0, noise.config.num_train_timesteps, (len(latents),), generator=rng)
    noisy = torch.cat([noise.add_noise(latents, drawn, times), known], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(noisy.contiguous(memory_format=torch.channels_last), times, told)
    error = (predicted.float() - noise.get_velocity(latents, drawn, times)).square()
    weight = AROUND + (1.0 - AROUND) * known[:, :1]
    return (error * weight).sum() / (weight.sum() * error.shape[1])


def _inputs(vae: AutoencoderKL, images: Tensor, masks: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Latents of images, and what the UNet is told of them: the mask and what is around it.

    Args:
        images: (N, 3, H, W) in 0 to 1.
        masks: (N, 1, H, W) of 0 and 1.
        scale: Divides height and width.
    """
    size = (images.shape[2] // scale, images.shape[3] // scale)
    images = F.interpolate(images, size, mode="area") * 2.0 - 1.0
    masks = F.interpolate(masks, size, mode="area").ceil()
    latents = latents_of(vae, images)
    # The pipeline paints what is masked grey, the middle of -1 to 1.
    around = latents_of(vae, images * (1.0 - masks))
    return latents, torch.cat([F.interpolate(masks, latents.shape[2:]), around], dim=1)


def latents_of(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Means of the scaled latents of (N, 3, H, W) images in -1 to 1."""
    with torch.inference_mode():
        parts = [vae.encode(part).latent_dist.mean for part in torch.split(images, 64)]
    # Outside of inference mode, or nothing could be trained on them.
    return torch.cat(parts).clone() * vae.config.scaling_factor


def _unet(start: Path) -> UNet2DConditionModel:
    """The text-to-image UNet with a wider first layer, which at first ignores what is new."""
    plain = UNet2DConditionModel.from_pretrained(start / "unet", dtype=torch.float32)
    latent = plain.config.in_channels
    unet = UNet2DConditionModel.from_config(plain.config, in_channels=2 * latent + 1)
    weights = plain.state_dict()
    first = torch.zeros_like(unet.conv_in.weight)
    first[:, :latent] = weights["conv_in.weight"]
    unet.load_state_dict({**weights, "conv_in.weight": first})
    return unet
