"""The miniature text-to-image model: a Stable Diffusion pipeline of a few million parameters.

The text encoder is trained with the UNet, from scratch; adaptation later freezes it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ray_reid.miniature.trainers.autoencoder import LATENT_CHANNELS, LATENT_SIDE, encode
from ray_reid.miniature.trainers.drawings import Drawings
from ray_reid.miniature.trainers.steps import WORKERS, batches, distributed, in_processes, minimise

BATCH = 64
STEPS = 5000
LEARNING_RATE = 1.2e-3
CONTEXT = 24
WIDTH = 96
VOCABULARY = 800
# Prompts are dropped so that guidance has an unconditional model (Ho and Salimans, 2021).
DROPPED = 0.12
EMA = 0.998
NOISE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
}  # fmt: skip


@dataclass(frozen=True)
class Course:
    """How a text-to-image model is trained, and its sizes.

    Attributes:
        name: For the log.
        batch: Images of a step, of all processes together.
        steps: Steps.
        learning_rate: Highest learning rate.
        channels: Of the UNet's levels; every level but the last halves height and width.
        latent_size: Height and width of the latents.
        context: Most tokens of a prompt, with those of its begin and end.
        autocast: Whether the forward pass computes in bf16.
    """

    name: str
    batch: int
    steps: int
    learning_rate: float
    channels: tuple[int, ...]
    latent_size: tuple[int, int]
    context: int
    autocast: bool = False


VEHICLES = Course(
    "text_to_image", BATCH, STEPS, LEARNING_RATE, (32, 64, 128), (LATENT_SIDE, LATENT_SIDE), CONTEXT
)  # fmt: skip

Prompts = Callable[[Tensor, torch.Generator], Tensor]
"""Tokens (B, L) of the prompts of some rows (B,) of the latents, by chance."""


class Denoiser(nn.Module):
    """Text encoder and UNet as one module, so that both are trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """Predict v for noisy latents (B, C, H, W) at integer times (B,) and tokens (B, L)."""
        hidden = self.text_encoder(tokens)[0]
        predicted: Tensor = self.unet(noisy, times, encoder_hidden_states=hidden).sample
        return predicted


def train(drawn: Drawings, autoencoder: Path, seed: int, out: Path) -> None:
    """Train on latents of showroom drawings in two processes and save an fp16 pipeline."""
    vae = AutoencoderKL.from_pretrained(autoencoder).eval()
    every = range(len(drawn))
    latents = torch.cat([encode(vae, drawn, every), encode(vae, drawn, every, mirrored=True)])
    latents = (latents * vae.config.scaling_factor).share_memory_()
    captions = [str(caption) for caption in drawn.captions]
    tokenizer = learned_tokenizer(captions)
    told = tokens(tokenizer, [*captions, ""]).share_memory_()  # type: ignore[no-untyped-call]
    result = out.with_suffix(".pt")
    out.mkdir(parents=True, exist_ok=True)
    in_processes(_worker, latents, told, len(tokenizer), seed, result)
    model = denoiser(VEHICLES, len(tokenizer), seed)
    model.load_state_dict(torch.load(result, weights_only=True))
    save(vae, model, tokenizer, out)
    result.unlink()


def save(vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write an fp16 pipeline in diffusers' format."""
    StableDiffusionPipeline(
        vae=vae, text_encoder=model.text_encoder, tokenizer=tokenizer, unet=model.unet,
        scheduler=DPMSolverMultistepScheduler(**NOISE), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(out)  # fmt: skip


def _worker(
    rank: int, latents: Tensor, told: Tensor, words: int, seed: int, result: Path
) -> None:  # fmt: skip
    num = len(told) - 1

    def prompts(rows: Tensor, rng: torch.Generator) -> Tensor:
        dropped = torch.rand(len(rows), generator=rng) < DROPPED
        return told[torch.where(dropped, num, rows % num)]

    with distributed(rank, result) as wrap:
        plain = denoiser(VEHICLES, words, seed)
        average = fit(VEHICLES, plain, wrap(plain), latents, prompts, seed, rank, WORKERS)
        if rank == 0:
            torch.save(average.state_dict(), result)


def fit(
    course: Course,
    plain: Denoiser,
    model: nn.Module,
    latents: Tensor,
    prompts: Prompts,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Denoiser:
    """Train a model to denoise latents by their prompts; returns the average of its weights.

    Args:
        course: Sizes and pace.
        plain: What is trained.
        model: `plain`, or a wrapper that averages the gradients of several processes.
        latents: (N, C, H, W), scaled.
        prompts: Draws the tokens of a batch; the empty prompt among them trains guidance.
        seed: Seed of the batches and of the noise.
        rank: Number of this process.
        world_size: Number of the processes.
    """
    average = copy.deepcopy(plain).requires_grad_(False)
    noise = DDPMScheduler(**NOISE)
    rng = torch.Generator().manual_seed(seed * 1000 + rank)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for rows in batches(len(latents), course.batch, course.steps, seed, rank, world_size):
            told = prompts(rows, rng)
            yield lambda rows=rows, told=told: _loss(  # type: ignore[misc]
                model, noise, latents[rows], told, rng, course.autocast
            )

    def after_step(done: float) -> None:
        # A short memory at first: the average must not remember the random start.
        keep = min(EMA, done * course.steps / (done * course.steps + 10.0))
        for mean, value in zip(average.parameters(), plain.parameters(), strict=True):
            mean.lerp_(value.detach(), 1.0 - keep)

    minimise(
        course.name, plain.parameters(), losses(), course.steps, course.learning_rate, after_step
    )
    return average


def _loss(
    model: nn.Module,
    noise: DDPMScheduler,
    latents: Tensor,
    told: Tensor,
    rng: torch.Generator,
    autocast: bool,
) -> Tensor:
    """Error of the predicted v (Salimans and Ho, 2022)."""
    drawn = torch.randn(latents.shape, generator=rng)
    times = torch.randint(0, noise.config.num_train_timesteps, (len(latents),), generator=rng)
    noisy = noise.add_noise(latents, drawn, times)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        predicted = model(noisy, times, told)
    return F.mse_loss(predicted.float(), noise.get_velocity(latents, drawn, times))


def tokens(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """(N, L) tokens of prompts, each filled up or cut to the tokenizer's limit."""
    told = tokenizer(
        list(prompts), padding="max_length", truncation=True,
        max_length=tokenizer.model_max_length, return_tensors="pt",
    )  # fmt: skip
    found: Tensor = told["input_ids"]
    return found


def learned_tokenizer(
    captions: Sequence[str], vocabulary: int = VOCABULARY, context: int = CONTEXT
) -> CLIPTokenizer:
    """Byte-pair encoding learned on captions: every word of theirs is one token.

    Args:
        captions: What it learns from; the later a token, the rarer it is there.
        vocabulary: Most tokens.
        context: Most tokens of a prompt, with those of its begin and end.
    """
    letters = _byte_letters()
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    signs = ["<|startoftext|>", "<|endoftext|>"]
    start = CLIPTokenizer(
        vocab={token: i for i, token in enumerate([*alphabet, *signs])}, merges=[]
    )
    trained = start.train_new_from_iterator(sorted(set(captions)), vocab_size=vocabulary)
    trained.model_max_length = context
    return trained


def _byte_letters() -> list[str]:
    """One printable character for every byte, as byte-level BPE defines it (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def denoiser(course: Course, words: int, seed: int) -> Denoiser:
    """An untrained model for a vocabulary of so many words."""
    torch.manual_seed(seed)
    deeper = len(course.channels) - 1
    unet = UNet2DConditionModel(
        sample_size=_sample_size(course.latent_size), in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS, block_out_channels=course.channels, layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deeper),
        up_block_types=(*("CrossAttnUpBlock2D",) * deeper, "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    return Denoiser(unet, text_encoder(words, course.context))


def _sample_size(size: tuple[int, int]) -> int | list[int]:
    """One number for a square, as every release of diffusers writes it."""
    height, width = size
    return height if height == width else [height, width]


def text_encoder(words: int, context: int = CONTEXT) -> CLIPTextModel:
    """An untrained text encoder for a vocabulary of so many words."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=context, projection_dim=WIDTH,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
