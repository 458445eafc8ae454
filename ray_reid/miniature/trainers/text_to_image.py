"""The miniature text-to-image model: a Stable Diffusion pipeline of a few million parameters.

The text encoder is trained with the UNet, from scratch; adaptation later freezes it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
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
    tokenizer = learned_tokenizer([str(caption) for caption in drawn.captions])
    told = tokenizer(
        [*map(str, drawn.captions), ""], padding="max_length", truncation=True,
        max_length=CONTEXT, return_tensors="pt",
    )  # fmt: skip
    result = out.with_suffix(".pt")
    out.mkdir(parents=True, exist_ok=True)
    in_processes(_worker, latents, told["input_ids"].share_memory_(), len(tokenizer), seed, result)
    model = _denoiser(len(tokenizer), seed)
    model.load_state_dict(torch.load(result, weights_only=True))
    StableDiffusionPipeline(
        vae=vae, text_encoder=model.text_encoder, tokenizer=tokenizer, unet=model.unet,
        scheduler=DPMSolverMultistepScheduler(**NOISE), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(out)  # fmt: skip
    result.unlink()


def _worker(
    rank: int, latents: Tensor, tokens: Tensor, words: int, seed: int, result: Path
) -> None:
    with distributed(rank, result) as wrap:
        plain = _denoiser(words, seed)
        model = wrap(plain)
        average = copy.deepcopy(plain).requires_grad_(False)
        noise = DDPMScheduler(**NOISE)
        rng = torch.Generator().manual_seed(seed * 1000 + rank)
        num = len(tokens) - 1

        def losses() -> Iterator[Callable[[], Tensor]]:
            for rows in batches(len(latents), BATCH, STEPS, seed, rank, WORKERS):
                dropped = torch.rand(len(rows), generator=rng) < DROPPED
                told = tokens[torch.where(dropped, num, rows % num)]
                yield lambda rows=rows, told=told: _loss(model, noise, latents[rows], told, rng)  # type: ignore[misc]

        def after_step(done: float) -> None:
            # A short memory at first: the average must not remember the random start.
            keep = min(EMA, done * STEPS / (done * STEPS + 10.0))
            for mean, value in zip(average.parameters(), plain.parameters(), strict=True):
                mean.lerp_(value, 1.0 - keep)

        minimise("text_to_image", plain.parameters(), losses(), STEPS, LEARNING_RATE, after_step)
        if rank == 0:
            torch.save(average.state_dict(), result)


def _loss(
    model: nn.Module, noise: DDPMScheduler, latents: Tensor, told: Tensor, rng: torch.Generator
) -> Tensor:
    """Error of the predicted v (Salimans and Ho, 2022)."""
    drawn = torch.randn(latents.shape, generator=rng)
    times = torch.randint(0, noise.config.num_train_timesteps, (len(latents),), generator=rng)
    predicted = model(noise.add_noise(latents, drawn, times), times, told)
    return F.mse_loss(predicted, noise.get_velocity(latents, drawn, times))


def learned_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """Byte-pair encoding learned on captions: every word of theirs is one token."""
    letters = _byte_letters()
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    signs = ["<|startoftext|>", "<|endoftext|>"]
    start = CLIPTokenizer(
        vocab={token: i for i, token in enumerate([*alphabet, *signs])}, merges=[]
    )
    trained = start.train_new_from_iterator(sorted(set(captions)), vocab_size=VOCABULARY)
    trained.model_max_length = CONTEXT
    return trained


def _byte_letters() -> list[str]:
    """One printable character for every byte, as byte-level BPE defines it (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def _denoiser(words: int, seed: int) -> Denoiser:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIDE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    return Denoiser(unet, text_encoder(words))


def text_encoder(words: int) -> CLIPTextModel:
    """An untrained text encoder for a vocabulary of so many words."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=CONTEXT, projection_dim=WIDTH,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
