"""Backbones: timm's models by name, with IBN-a where it is asked for (Pan et al., ECCV 2018)."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ray_reid.models.networks import initial_weights
from ray_reid.models.networks.timm_options import apply_options
from ray_reid.models.pretrained import weight_files
from ray_reid.recipe.train import Train

IBN_STAGES = ("layer1", "layer2", "layer3")
"""Residual stages with IBN; the last one keeps its batch norms."""


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the rest.

    Instance norm takes away what light and camera did to an image; batch norm keeps what tells
    identities apart. The parts are named as in the weights of IBN-Net's authors.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        """Split a batch norm: either half keeps its scales and shifts."""
        super().__init__()
        self.split = norm.num_features // 2
        self.IN = nn.InstanceNorm2d(self.split, eps=norm.eps, affine=True)
        self.BN = nn.BatchNorm2d(norm.num_features - self.split, norm.eps, norm.momentum)
        kept = norm.state_dict()
        self.IN.load_state_dict({name: kept[name][: self.split] for name in ("weight", "bias")})
        self.BN.load_state_dict(
            {name: part[self.split :] if part.ndim else part for name, part in kept.items()}
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return torch.cat([self.IN(maps[:, : self.split]), self.BN(maps[:, self.split :])], dim=1)


def build(spec: Train) -> nn.Module:
    """Build the recipe's backbone, which gives what `as_maps` reads.

    Raises:
        ValueError: If timm has no such model, it cannot be varied as asked, or weights do not fit.
    """
    check_backbone(spec.backbone)
    params = dict(spec.backbone_params)
    # Windows and position embeddings are built for one size of image.
    expected = timm.models.get_pretrained_cfg(spec.backbone)
    fixed = expected.input_size[1:] if expected and expected.fixed_input_size else spec.image_size
    if tuple(fixed) != spec.image_size:
        params.setdefault("img_size", spec.image_size)
    backbone: nn.Module = timm.create_model(
        spec.backbone, pretrained=spec.pretrained is True, num_classes=0, global_pool="", **params
    )
    if isinstance(spec.pretrained, str):
        initial_weights.load(backbone, spec.backbone, spec.pretrained)
    if spec.ibn == "a":
        add_ibn(backbone, spec.backbone)
    if spec.ibn_weights is not None:
        load_ibn_weights(backbone, spec.backbone, Path(spec.ibn_weights))
    return apply_options(backbone, spec)


def check_backbone(name: str) -> None:
    """Look a backbone up in timm before anything is built.

    Raises:
        ValueError: If timm has none of that name.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"timm has no model {name!r}; near it: {near}")


def as_maps(backbone: nn.Module, found: Tensor) -> Tensor:
    """What a backbone returned as feature maps (B, C, h, w).

    Swin-like models put the channels last; vision transformers give a row of tokens, of which
    those of the image's patches are kept.
    """
    if found.ndim == 3:
        network: Any = backbone
        patches = found[:, network.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(*patches.shape[::2], *network.patch_embed.grid_size)
    last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    return found.permute(0, 3, 1, 2) if last else found


def gives_maps(backbone: nn.Module, found: Tensor) -> bool:
    """Whether `as_maps` can read what a backbone returned."""
    patches = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    rows = patches is not None and hasattr(backbone, "num_prefix_tokens")
    return found.ndim == 4 or (found.ndim == 3 and rows)


def add_ibn(backbone: nn.Module, name: str) -> None:
    """Make a residual network IBN-a: the first norm of each block of the first three stages.

    Raises:
        ValueError: If it has no such stages.
    """
    stages = [getattr(backbone, stage, None) for stage in IBN_STAGES]
    blocks: list[Any] = [block for stage in stages if stage is not None for block in stage]
    norms = [getattr(block, "bn1", None) for block in blocks]
    if None in stages or not all(type(norm) is nn.BatchNorm2d for norm in norms):
        raise ValueError(
            f"train.ibn is 'a', but backbone {name!r} has no residual blocks with a batch norm "
            f"bn1 in {list(IBN_STAGES)}; choose a ResNet, ResNeXt, SE-ResNet or SE-ResNeXt, or set "
            f"it to null"
        )
    for block in blocks:
        block.bn1 = InstanceBatchNorm(block.bn1)


def load_ibn_weights(backbone: nn.Module, name: str, path: Path) -> None:
    """Load weights that IBN-Net's authors publish, key by key; their classifier `fc` is left out.

    Args:
        backbone: An IBN-a network without a classifier.
        name: What timm calls it.
        path: A file of safetensors or torch.save.

    Raises:
        ValueError: If the file cannot be read, or a weight is missing, left over or of another
            shape.
    """
    try:
        given = weight_files.read(path)
        own = {key: part for key, part in given.items() if not key.startswith("fc.")}
        initial_weights.place(backbone, _excited(own, backbone.state_dict()), name)
    except ValueError as error:
        raise ValueError(f"train.ibn_weights {str(path)!r} {error}") from error


def _excited(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Squeeze-and-excitation of IBN-Net (linear, no bias) as timm has it (1x1 kernels, bias)."""
    renamed = {}
    for name, tensor in given.items():
        block, found, layer = name.partition(".se.fc.")
        if not found:
            renamed[name] = tensor
            continue
        place = f"{block}.se.{ {'0.weight': 'fc1', '2.weight': 'fc2'}.get(layer, layer) }"
        renamed[f"{place}.weight"] = tensor[:, :, None, None]
        if f"{place}.bias" in wanted:
            renamed[f"{place}.bias"] = torch.zeros_like(wanted[f"{place}.bias"])
    return renamed
