"""The last layers of a backbone by themselves, for heads whose branches have copies of them."""

import copy
from typing import Any

from torch import Tensor, nn

from ray_reid.models.networks.timm_options import keep_size

STEMS = (("conv1", "bn1", "act1", "maxpool"), ("layer0", "pool0"))
"""Layers before the first stage of residual networks in timm: ResNet and its kin, and SENet."""


def begin(backbone: Any, pixels: Tensor) -> Tensor:
    """What the layers before the last ones make of normalised images (B, 3, H, W).

    Raises:
        ValueError: If the backbone cannot be divided.
    """
    kind = _kind(backbone)
    if kind == "residual":
        stem = next(names for names in STEMS if hasattr(backbone, names[0]))
        for name in (*stem, "layer1", "layer2"):
            pixels = getattr(backbone, name)(pixels)
        return backbone.layer3[0](pixels)
    found = backbone.patch_embed(pixels)
    if kind == "windows":
        return backbone.layers[:-1](found)
    found = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(found)))
    return backbone.blocks[:-1](found)


def finish(backbone: Any, before: Tensor) -> Tensor:
    """What the backbone's own last layers make of what `begin` gives."""
    for layer in last_layers(backbone):
        before = layer(before)
    return before


def last_layers(backbone: Any) -> list[nn.Module]:
    """The layers after `begin`, in order: of the backbone itself, not copies.

    Of a residual network they are its third stage from the second block on, and its fourth (MGN's
    res_conv4_1 is where they begin); of a Swin transformer the last stage, of a vision
    transformer the last block, both with the norm.

    Raises:
        ValueError: If the backbone cannot be divided.
    """
    kind = _kind(backbone)
    if kind == "residual":
        return [*backbone.layer3[1:], backbone.layer4]
    if kind == "windows":
        return [backbone.layers[-1], backbone.norm]
    return [backbone.blocks[-1], backbone.norm]


def tail(backbone: nn.Module) -> nn.Sequential:
    """Copy the layers after `begin`; a residual stage in the copy does not halve its maps.

    Raises:
        ValueError: If the backbone cannot be divided.
    """
    copied = nn.Sequential(*copy.deepcopy(last_layers(backbone)))
    stage = copied[-1]
    if _kind(backbone) == "residual" and isinstance(stage, nn.Sequential):
        keep_size(stage)
    return copied


def _kind(backbone: Any) -> str:
    stages = [getattr(backbone, name, None) for name in ("layer1", "layer2", "layer3", "layer4")]
    if all(isinstance(stage, nn.Sequential) for stage in stages):
        return "residual"
    if hasattr(backbone, "patch_embed") and isinstance(getattr(backbone, "norm", None), nn.Module):
        if isinstance(getattr(backbone, "layers", None), nn.Sequential):
            return "windows"
        if hasattr(backbone, "_pos_embed") and isinstance(backbone.blocks, nn.Sequential):
            return "tokens"
    raise ValueError(
        "the branches of the head need copies of the backbone's last layers, which are known of "
        "residual networks, Swin and vision transformers only; choose one of these as "
        "train.backbone, or train.head pcb or bdb"
    )
