"""Swin transformers of SOLIDER, after pretraining or fine-tuned for re-identification."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_reid.models.checkpoints.peer import HALF, Converted, Peer, plain_head, plain_neck, rename

SEMANTIC_WEIGHT = 0.2
"""What SOLIDER's authors fine-tune and test re-identification with."""
LAYERS = 4
BLOCK = r"(?:base|backbone)\.stages\.(\d+)\.blocks\.(\d+)\."
OURS = r"backbone.layers.\1.blocks.\2"
RULES: tuple[tuple[str, str | None], ...] = (
    (r".+\.relative_position_index", None),
    # Norms of the earlier stages, which the embedding does not pass.
    (r"(?:base|backbone)\.norm[0-2]\..+", None),
    (r"(?:base|backbone)\.norm3\.(.+)", r"backbone.norm.\1"),
    # After the last stage, whose output is taken before it.
    (r"(?:base|backbone)\.semantic_embed_[wb]\.3\..+", None),
    (r"(?:base|backbone)\.(semantic_embed_[wb]\..+)", r"backbone.\1"),
    (r"(?:base|backbone)\.patch_embed\.projection\.(.+)", r"backbone.patch_embed.proj.\1"),
    (r"(?:base|backbone)\.patch_embed\.norm\.(.+)", r"backbone.patch_embed.norm.\1"),
    (rf"{BLOCK}attn\.w_msa\.(.+)", rf"{OURS}.attn.\3"),
    (rf"{BLOCK}ffn\.layers\.0\.0\.(.+)", rf"{OURS}.mlp.fc1.\3"),
    (rf"{BLOCK}ffn\.layers\.1\.(.+)", rf"{OURS}.mlp.fc2.\3"),
    (rf"{BLOCK}(norm\d\..+)", rf"{OURS}.\3"),
    (r"fcneck\.weight", "project.weight"),
    (r"(?:bottleneck|classifier|head)\..+", None),
)


def convert_solider(weights: Mapping[str, Tensor]) -> Converted:
    """Convert `swin_*_patch4_window7_224`: features before the neck, at semantic weight 0.2.

    The semantic embedding scales and shifts what enters a stage; at a fixed weight it is folded
    into the merging of patches before it. Pretrained files hold a head of self-supervision
    (`head.*`; recalled, not checked), which is left out.
    """
    found = rename(weights, (*_merging_rules(), *RULES))
    ours = found.weights
    if "backbone.norm.weight" not in ours:
        raise ValueError("has no norm 'base.norm3.weight', so it is not a Swin transformer of four "
                         "stages; no other network is read")  # fmt: skip
    for layer in range(1, LAYERS):
        _merge_as_timm(ours, f"backbone.layers.{layer}.downsample")
        _fold_semantics(found, layer)
    width = len(ours["backbone.norm.weight"])
    if "project.weight" in ours:
        width = found.train["embedding_dim"] = len(ours["project.weight"])
    found.weights |= plain_neck(width) | plain_head(found.num_classes, width)
    return found


def _merging_rules() -> tuple[tuple[str, str], ...]:
    """Patches are merged at the end of a stage there, and at the start of the next in timm."""
    return tuple(
        (
            rf"(?:base|backbone)\.stages\.{layer - 1}\.downsample\.(.+)",
            rf"backbone.layers.{layer}.downsample.\1",
        )
        for layer in range(1, LAYERS)
    )


def _merge_as_timm(weights: dict[str, Tensor], place: str) -> None:
    """Order the four patches of a merging by column, then row, before the channels."""
    for name in ("norm.weight", "norm.bias", "reduction.weight"):
        if f"{place}.{name}" in weights:
            merged = weights[f"{place}.{name}"]
            patches = merged.reshape(*merged.shape[:-1], -1, 4)[..., [0, 2, 1, 3]]
            weights[f"{place}.{name}"] = patches.transpose(-1, -2).reshape(merged.shape)


def _fold_semantics(found: Converted, layer: int) -> None:
    """Fold `x * softplus(w) + b` after a merging into its weights; without either, nothing.

    The reduction has no shift of its own, but the norm before it has, and four inputs to two
    outputs can make any.

    Raises:
        ValueError: If the reduction is singular.
    """
    ours = found.weights
    names = [f"backbone.semantic_embed_{part}.{layer - 1}" for part in "wb"]
    if not all(f"{name}.weight" in ours and f"{name}.bias" in ours for name in names):
        return
    semantics = torch.tensor([SEMANTIC_WEIGHT, 1 - SEMANTIC_WEIGHT], dtype=torch.float64)
    factor, shift = (
        F.linear(semantics, *(ours.pop(f"{name}.{part}").double() for part in ("weight", "bias")))
        for name in names
    )
    place = f"backbone.layers.{layer}.downsample"
    reduction = F.softplus(factor)[:, None] * ours[f"{place}.reduction.weight"].double()
    wanted = torch.linalg.lstsq(reduction, shift[:, None], driver="gelsd").solution[:, 0]
    if not torch.allclose(reduction @ wanted, shift, atol=1e-6):
        raise ValueError(
            f"has a semantic embedding {names[1]!r} that cannot be folded into the merging of "
            "patches before it"
        )
    bias = ours[f"{place}.norm.bias"].double() + wanted
    ours[f"{place}.reduction.weight"] = reduction.float()
    ours[f"{place}.norm.bias"] = bias.float()


SOLIDER = Peer(
    "SOLIDER",
    {
        "backbone": "swin_base_patch4_window7_224",
        "backbone_params": {"always_partition": True},
        "image_size": (384, 128),
        "window_pad": "before_shift",
    },
    convert=convert_solider,
    **HALF,
)
