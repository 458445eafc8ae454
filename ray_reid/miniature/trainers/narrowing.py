"""Begin a text-to-image model as a narrower copy of the inpainting model, which paints the same.

An inpainting UNet that is told to paint everything is a text-to-image UNet; three of every four
channels of its deepest level are kept, evenly in every group of its norms and every head.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from ray_reid.miniature.trainers.autoencoder import LATENT_CHANNELS
from ray_reid.miniature.trainers.inpainting import latents_of
from ray_reid.miniature.trainers.text_to_image import Denoiser

# Of eight channels, one group of a norm, six stay.
GROUP, KEPT = 8, 6
# A level's input from below stands before that from the side, which stays whole.
BELOW, BESIDE = 128, 64


def begin(model: Denoiser, tokenizer: CLIPTokenizer, start: Path) -> None:
    """Copy weights of an inpainting pipeline into a model, and the embeddings of its words.

    Args:
        model: Changed in place; its deepest level has three quarters of the channels.
        tokenizer: Of the model.
        start: The pipeline.
    """
    unet = UNet2DConditionModel.from_pretrained(start / "unet", dtype=torch.float32)
    weights = _without_mask(unet.state_dict(), start)
    own = model.unet.state_dict()
    for name, value in weights.items():
        own[name].copy_(narrowed(value, tuple(own[name].shape)))
    encoder = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
    words = CLIPTokenizer.from_pretrained(start / "tokenizer").get_vocab()
    own = model.text_encoder.state_dict()
    for name, value in encoder.state_dict().items():
        if name.endswith("token_embedding.weight"):
            known = [(new, words[word]) for word, new in tokenizer.get_vocab().items()
                     if word in words]  # fmt: skip
            new, old = (torch.tensor(numbers) for numbers in zip(*known, strict=True))
            own[name][new] = value[old]
        elif name.endswith("position_embedding.weight"):
            own[name][: len(value)] = value
        elif name in own and own[name].shape == value.shape:
            own[name].copy_(value)


def narrowed(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Keep as many channels of every axis as a shape has."""
    for axis, (old, new) in enumerate(zip(value.shape, shape, strict=True)):
        if old == new:
            continue
        channels = torch.arange(old)
        kept = channels % GROUP < KEPT
        if old == BELOW + BESIDE:
            kept |= channels >= BELOW
        assert int(kept.sum()) == new, (tuple(value.shape), shape)
        value = value.index_select(axis, channels[kept])
    return value


def _without_mask(weights: dict[str, Tensor], start: Path) -> dict[str, Tensor]:
    """The weights of a UNet that is told that everything is masked, without that input."""
    vae = AutoencoderKL.from_pretrained(start / "vae", dtype=torch.float32).eval()
    # What is masked is grey, the middle of -1 to 1.
    grey = latents_of(vae, torch.zeros(1, 3, 64, 64))
    told = torch.cat([torch.ones(1, 1, *grey.shape[2:]), grey], dim=1)
    first = weights["conv_in.weight"]
    constant = F.conv2d(told, first[:, LATENT_CHANNELS:], padding=1)
    middle = constant[0, :, constant.shape[2] // 2, constant.shape[3] // 2]
    return {
        **weights,
        "conv_in.weight": first[:, :LATENT_CHANNELS],
        "conv_in.bias": weights["conv_in.bias"] + middle,
    }
