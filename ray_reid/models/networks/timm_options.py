"""Options of backbones that timm has not: last stride, pooling, padding and the class token.

Peers use them: without these the weights of a peer load, and give other features.
"""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ray_reid.recipe.train import Train


def apply_options(backbone: nn.Module, spec: Train) -> nn.Module:
    """Change a backbone of timm in place to the options of the recipe, and return it.

    Raises:
        ValueError: If the backbone has not what is to be changed.
    """
    if spec.last_stride == 1:
        _keep_last_size(backbone, spec)
    if spec.stem_pool == "ceil":
        _pool_inside(backbone, spec.backbone)
    if spec.window_pad == "before_shift":
        _pad_before_shift(backbone, spec.backbone)
    if spec.pooling == "token":
        _give_token(backbone, spec)
    return backbone


def _keep_last_size(backbone: nn.Module, spec: Train) -> None:
    stage = getattr(backbone, "layer4", None)
    if not isinstance(stage, nn.Sequential) or not keep_size(stage):
        raise ValueError(
            f"train.last_stride is 1, but backbone {spec.backbone!r} with backbone_params "
            f"{spec.backbone_params} has no last stage that begins by halving its maps; choose a "
            "ResNet without output_stride, or set it to 2"
        )


def keep_size(stage: nn.Sequential) -> bool:
    """Keep a residual stage from halving its maps; returns false where it does not halve them."""
    layers = [part for part in stage[0].modules() if isinstance(part, (nn.Conv2d, nn.AvgPool2d))]
    halving = [part for part in layers if part.stride in (2, (2, 2))]
    # The main path and the shortcut; timm's output_stride would have taken both, and dilated.
    if len(halving) != 2:
        return False
    for part in halving:
        part.stride = (1, 1)
        if isinstance(part, nn.AvgPool2d):
            part.kernel_size = 1
    return True


def _pool_inside(backbone: nn.Module, name: str) -> None:
    network: Any = backbone
    if not isinstance(getattr(network, "maxpool", None), nn.MaxPool2d):
        raise ValueError(
            f"train.stem_pool is 'ceil', but backbone {name!r} has no max-pooling after its first "
            "convolution; choose a ResNet, or set it to 'padded'"
        )
    network.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _pad_before_shift(backbone: nn.Module, name: str) -> None:
    found: list[Any] = [
        part
        for part in backbone.modules()
        if hasattr(part, "shift_size") and hasattr(part, "_attn")
    ]
    if not found:
        raise ValueError(
            f"train.window_pad is 'before_shift', but backbone {name!r} has no shifted windows; "
            "choose a Swin transformer, or set it to 'after_shift'"
        )
    for block in found:
        block._attn = partial(_padded_attention, block._attn, block.window_size)


def _padded_attention(attend: Any, window: tuple[int, int], maps: Tensor) -> Tensor:
    """Attention in windows of maps (B, h, w, C) that are padded to whole windows at first."""
    height, width = maps.shape[1:3]
    padded = F.pad(maps, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    return attend(padded)[:, :height, :width]


def _give_token(backbone: nn.Module, spec: Train) -> None:
    if getattr(backbone, "cls_token", None) is None:
        raise ValueError(
            f"train.pooling is 'token', but backbone {spec.backbone!r} has no class token; choose "
            "a vision transformer, or another pooling"
        )
    if spec.loss.auxiliary > 0:
        raise ValueError(
            f"train.pooling 'token' leaves no feature map for the auxiliary classifier of "
            f"loss.auxiliary {spec.loss.auxiliary:g}; set it to 0"
        )
    backbone.register_forward_hook(_token)


def _token(_network: nn.Module, _inputs: Any, tokens: Tensor) -> Tensor:
    """The class token of (B, N, C) as a feature map (B, C, 1, 1)."""
    return tokens[:, 0, :, None, None]
