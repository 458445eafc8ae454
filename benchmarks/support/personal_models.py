"""Untrained text-to-image pipelines in the form of Stable Diffusion 1: right in size, no sense.

Speed does not depend on what the weights are, and nothing is fetched.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LETTERS = [chr(code) for code in range(33, 127)]


@dataclass(frozen=True)
class PersonalSize:
    """A pipeline, and what an identity asks of it."""

    image: tuple[int, int]
    """Height and width in pixels of what is tuned to and generated."""
    output: tuple[int, int]
    widths: tuple[int, ...]
    """Of the UNet's levels."""
    vae_widths: tuple[int, ...]
    groups: int
    text: dict[str, int]
    tuning_steps: int
    """Of the profile; fewer may be measured."""
    denoising_steps: int
    instances: int
    references: int
    images: int
    """Generated of an identity."""
    learning_rate: dict[str, float]
    batch_size: int


FULL = PersonalSize(
    image=(512, 512),
    output=(256, 128),
    widths=(320, 640, 1280, 1280),
    vae_widths=(128, 256, 512, 512),
    groups=32,
    # CLIP ViT-L/14's.
    text={
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12,
    },
    tuning_steps=1000,
    denoising_steps=50,
    instances=10,
    references=200,
    images=150,
    learning_rate={"full": 2e-6, "lora": 1e-4},
    batch_size=1,
)  # fmt: skip
MINIATURE = PersonalSize(
    image=(64, 64),
    output=(64, 64),
    widths=(16, 32, 32, 32),
    vae_widths=(8, 16, 16, 16),
    groups=4,
    text={
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    tuning_steps=20,
    denoising_steps=5,
    instances=4,
    references=8,
    images=8,
    learning_rate={"full": 1e-4, "lora": 1e-3},
    batch_size=1,
)  # fmt: skip
SIZES = {"full": FULL, "miniature": MINIATURE}


def text_to_image(size: PersonalSize, device: torch.device) -> Any:
    """A pipeline in fp32 on a device."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        model_max_length=77,
    )
    last = len(tokens) - 1
    with torch.device(device):
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=size.vae_widths,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
                norm_num_groups=size.groups,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    **size.text, bos_token_id=last - 1, eos_token_id=last, pad_token_id=last
                )
            ),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=size.image[0] // 8,
                block_out_channels=size.widths,
                cross_attention_dim=size.text["hidden_size"],
                attention_head_dim=8,
                norm_num_groups=size.groups,
            ),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(device)
    if device.type == "cuda":
        pipeline.vae.enable_slicing()
    return pipeline
