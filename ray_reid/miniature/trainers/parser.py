"""The miniature human parser: a SegFormer of half a million parameters, in transformers' format."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from ray_reid.miniature import paint
from ray_reid.miniature.trainers.drawings import to_tensor
from ray_reid.miniature.trainers.people import SIZE, People
from ray_reid.miniature.trainers.steps import batches, minimise

BATCH = 32
STEPS, STREET_STEPS = 1500, 1000
MEAN, STD = 0.5, 0.25
# The names of published parsers of clothes (LIP, ATR) where they have them.
LABELS = ("Background", "Hair", "Skin", "Upper-clothes", "Lower-clothes", "Shoes", "Accessory")
OF_PART = {
    paint.BACKGROUND: 0, paint.HAIR: 1, paint.SKIN: 2, paint.UPPER: 3, paint.LOWER: 4,
    paint.FOOTWEAR: 5, paint.ACCESSORY: 6,
}  # fmt: skip


def train(drawn: People, street: People, seed: int, out: Path) -> None:
    """Train on drawings of both domains, then of the street alone, and save in fp16.

    Every drawing is mirrored or not, and relit.
    """
    torch.manual_seed(seed)
    model = SegformerForSemanticSegmentation(_config()).train()
    _minimise("parser", model, drawn, STEPS, 2e-3, seed)
    # Saved once in between, so that the second half can be made anew from there.
    model.half().save_pretrained(out)
    _minimise("parser, street", model.float(), street, STREET_STEPS, 1e-3, seed + 1)
    model.eval().half().save_pretrained(out)
    height, width = SIZE
    SegformerImageProcessor(
        size={"height": height, "width": width}, image_mean=[MEAN] * 3, image_std=[STD] * 3
    ).save_pretrained(out)


def _minimise(
    name: str, model: nn.Module, drawn: People, steps: int, learning_rate: float, seed: int
) -> None:
    label_of = torch.zeros(len(paint.PARTS), dtype=torch.int64)
    for part, label in OF_PART.items():
        label_of[part] = label
    labels = label_of[torch.from_numpy(drawn.parts).long()]
    rng = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for rows in batches(len(drawn), BATCH, steps, seed):
            images, wanted = relit(to_tensor(drawn.images[rows.numpy()]), rng), labels[rows]
            mirrored = torch.rand(len(rows), 1, 1, generator=rng) < 0.5
            images = torch.where(mirrored[:, None], images.flip(3), images)
            wanted = torch.where(mirrored, wanted.flip(2), wanted)
            yield lambda images=images, wanted=wanted: _loss(model, images, wanted)  # type: ignore[misc]

    minimise(name, model.parameters(), losses(), steps, learning_rate, weight_decay=0.01)


def relit(images: Tensor, rng: torch.Generator) -> Tensor:
    """Change light and tint, and add noise: (N, 3, H, W) in 0 to 1."""
    num = len(images)

    def spread(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(num, *shape, generator=rng)

    images = (images * spread(0.8, 1.15, 1, 1, 1) * spread(0.94, 1.06, 3, 1, 1)).clamp(0.0, 1.0)
    noise = torch.randn(images.shape, generator=rng) * spread(0.0, 0.03, 1, 1, 1)
    return (images ** spread(0.9, 1.1, 1, 1, 1) + noise).clamp(0.0, 1.0)


def _loss(model: nn.Module, images: Tensor, wanted: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixel_values=(images - MEAN) / STD).logits
    whole = F.interpolate(logits.float(), wanted.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(whole, wanted)


def _config() -> SegformerConfig:
    return SegformerConfig(
        hidden_sizes=[32, 48, 64, 96], depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 4, 4],
        # Half the published stride: feet are three pixels high.
        strides=[2, 2, 2, 2], patch_sizes=[5, 3, 3, 3], sr_ratios=[8, 4, 2, 1],
        mlp_ratios=[2, 2, 2, 2], decoder_hidden_size=96, classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        id2label=dict(enumerate(LABELS)), label2id={name: n for n, name in enumerate(LABELS)},
    )  # fmt: skip
