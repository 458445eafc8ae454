"""Untrained models of DLCR's components, from their configurations: right in size, no sense.

Speed does not depend on what the weights are, and nothing is fetched.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, Any] = {
    "ddim": lambda: DDIMScheduler(
        **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ),
    "dpm++": lambda: DPMSolverMultistepScheduler(**NOISE, algorithm_type="dpmsolver++"),
    "euler": lambda: EulerDiscreteScheduler(**NOISE),
}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Size:
    """All components at one size."""

    image: tuple[int, int]
    """Height and width of the inpainted images; queries have half of both."""
    steps: tuple[int, int]
    """Denoising steps of training images and of queries."""
    widths: tuple[int, ...]
    """Of the UNet's levels."""
    vae_widths: tuple[int, ...]
    groups: int
    """Of the norms of both."""
    text: dict[str, int]
    parser: dict[str, Any]
    parsed: int
    """Side in pixels of what the parser sees."""
    describer: dict[str, Any]
    described: int
    """Side in pixels of what the describer sees."""
    image_tokens: int
    asked: int
    """Tokens of the prompt besides the image."""
    answered: int
    """Tokens of the answer."""


FULL = Size(
    image=(768, 256),
    steps=(50, 10),
    widths=(320, 640, 1280, 1280),
    vae_widths=(128, 256, 512, 512),
    groups=32,
    # CLIP ViT-L/14's.
    text={
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12,
    },
    # SegFormer-b2 with the 18 labels of ATR.
    parser={
        "depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768,
        "num_labels": 18,
    },
    parsed=512,
    # LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels and LLaMA-7B, transformers' defaults.
    describer={"text_config": {"model_type": "llama", "vocab_size": 32064}},
    described=336,
    image_tokens=576,
    asked=40,
    answered=40,
)  # fmt: skip
MINIATURE = Size(
    image=(256, 128),
    steps=(10, 5),
    widths=(16, 32, 32, 32),
    vae_widths=(8, 16, 16, 16),
    groups=4,
    text={
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
    },
    parser={
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 40, 64], "decoder_hidden_size": 32,
        "num_labels": 18,
    },
    parsed=128,
    describer={
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
            "projection_dim": 32,
        },
        "text_config": {
            "model_type": "llama", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        },
        "image_token_index": 511, "image_seq_length": 16,
    },
    described=56,
    image_tokens=16,
    asked=8,
    answered=8,
)  # fmt: skip
SIZES = {"full": FULL, "miniature": MINIATURE}


def inpainting(size: Size, dtype: torch.dtype, device: torch.device) -> Any:
    """A Stable Diffusion 1.5 inpainting pipeline; prompts are given as embeddings."""
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=9,
            out_channels=4,
            block_out_channels=size.widths,
            cross_attention_dim=size.text["hidden_size"],
            attention_head_dim=8,
            norm_num_groups=size.groups,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=size.vae_widths,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=size.groups,
        )
        text = CLIPTextModel(CLIPTextConfig(**size.text))
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae, text_encoder=text, tokenizer=None, unet=unet, scheduler=SCHEDULERS["ddim"](),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


def parser(size: Size, dtype: torch.dtype, device: torch.device) -> Any:
    """A SegFormer."""
    with torch.device(device):
        model = SegformerForSemanticSegmentation(SegformerConfig(**size.parser))
    return model.to(dtype).eval()


def describer(size: Size, dtype: torch.dtype, device: torch.device) -> Any:
    """A LLaVA."""
    config = LlavaConfig(**size.describer)
    # In its own precision from the start: a float32 LLaVA has 28 GB.
    with torch.device(device):
        return LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()
