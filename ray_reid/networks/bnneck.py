"""The strong baseline: backbone, pooling, BNNeck, classifier (Luo et al., TMM 2019)."""

import difflib
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_reid import config
from ray_reid.networks.variants import vary

# Means and deviations of ImageNet: for weights from nothing, and for most of timm's.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class GeneralizedMean(nn.Module):
    """GeM pooling (Radenovic et al., 2018): from average (p = 1) towards maximum, p learned."""

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C)."""
        powered = maps.float().clamp(min=1e-6).pow(self.p)
        return powered.mean(dim=(2, 3)).pow(1 / self.p).to(maps.dtype)


class AveragePool(nn.Module):
    """The mean over the feature map."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C)."""
        return maps.mean(dim=(2, 3))


class MaxAveragePool(nn.Module):
    """The maximum and the mean over the feature map, side by side (CAL; Gu et al., CVPR 2022)."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 2 C)."""
        return torch.cat([maps.amax(dim=(2, 3)), maps.mean(dim=(2, 3))], dim=1)


POOLING: dict[str, type[nn.Module]] = {
    "avg": AveragePool,
    "gem": GeneralizedMean,
    "max_avg": MaxAveragePool,
    # The backbone gives the token alone.
    "token": AveragePool,
}
WIDENED = {"max_avg": 2}
"""Poolings that give more than a value per channel."""


class Auxiliary(nn.Module):
    """A classifier on an earlier feature map, which brings gradients nearer to the input.

    Vehicle-Diff, section III-D, after Szegedy et al. (CVPR 2015). Used in training only.
    """

    def __init__(self, pooling: str, width: int, num_classes: int) -> None:
        """Build pooling, neck and head for maps of `width` channels."""
        super().__init__()
        self.pool = POOLING[pooling]()
        width *= WIDENED.get(pooling, 1)
        self.neck = _neck(width)
        self.head = _head(width, num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w) to features (B, C) before the neck and logits (B, classes)."""
        features: Tensor = self.pool(maps)
        return features, self.head(self.neck(features))


class ReidNetwork(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to features, logits and embeddings."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: config.Train, num_classes: int) -> None:
        """Build the network.

        Raises:
            ValueError: If timm has no such backbone or it has no feature map.
        """
        super().__init__()
        self.backbone = _backbone(spec)
        self.pool = POOLING[spec.pooling]()
        with torch.inference_mode():
            probe = self.backbone.eval()(torch.zeros(1, 3, *spec.image_size))
        if probe.ndim != 4:
            raise ValueError(f"backbone {spec.backbone!r} gives no feature map (B, C, h, w)")
        # Swin-like models put the channels last.
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        width = probe.shape[3] if self.channels_last else probe.shape[1]
        width *= WIDENED.get(spec.pooling, 1)
        dim = spec.embedding_dim or width
        self.project = nn.Linear(width, dim, bias=False) if dim != width else nn.Identity()
        self.neck = _neck(dim)
        self.head = _head(dim, num_classes)
        # Built last: without it, everything else begins with the same random numbers.
        self.auxiliary: Auxiliary | None = None
        if spec.loss.auxiliary > 0:
            maps = _earlier_map(self.backbone, spec)
            self.auxiliary = Auxiliary(spec.pooling, maps.shape[1], num_classes)
        # Pretrained weights expect the input that they were trained on; saved with the weights,
        # because a package is built again without asking for pretrained ones.
        expected: dict[str, Any] = {"mean": MEAN, "std": STD}
        if spec.pretrained:
            expected = cast("dict[str, Any]", self.backbone.pretrained_cfg)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(expected[name]).view(1, 3, 1, 1))

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, C, h, w) of the backbone."""
        maps: Tensor = self.backbone((images - self.mean) / self.std)
        return maps.permute(0, 3, 1, 2) if self.channels_last else maps

    def features(self, images: Tensor) -> Tensor:
        """(B, D) before the neck: what the metric loss sees."""
        features: Tensor = self.project(self.pool(self.feature_map(images)))
        return features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features (B, D) and logits (B, classes), for training; then those of the auxiliary."""
        if self.auxiliary is None:
            features = self.features(images)
            return features, self.head(self.neck(features))
        last, (earlier,) = _maps(self.backbone, (images - self.mean) / self.std)
        maps = last.permute(0, 3, 1, 2) if self.channels_last else last
        features = self.project(self.pool(maps))
        return features, self.head(self.neck(features)), *self.auxiliary(earlier)

    def embed(self, images: Tensor) -> Tensor:
        """(B, D) unit-norm embeddings: features after the neck, for retrieval."""
        return F.normalize(self.neck(self.features(images)).float(), dim=1)


def check_backbone(name: str) -> None:
    """Look a backbone up in timm before anything is built.

    Raises:
        ValueError: If timm has none of that name.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"timm has no model {name!r}; near it: {near}")


def _backbone(spec: config.Train) -> nn.Module:
    check_backbone(spec.backbone)
    params = dict(spec.backbone_params)
    # Windows and position embeddings are built for one size of image.
    expected = timm.models.get_pretrained_cfg(spec.backbone)
    fixed = expected.input_size[1:] if expected and expected.fixed_input_size else spec.image_size
    if tuple(fixed) != spec.image_size:
        params.setdefault("img_size", spec.image_size)
    backbone = timm.create_model(
        spec.backbone, pretrained=spec.pretrained, num_classes=0, global_pool="", **params
    )
    return vary(backbone, spec)


def _neck(width: int) -> nn.BatchNorm1d:
    neck = nn.BatchNorm1d(width)
    # BNNeck's shift is frozen at zero, so that cosine suits the normalised features.
    neck.bias.requires_grad_(False)
    return neck


def _head(width: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(width, num_classes, bias=False)
    nn.init.normal_(head.weight, std=0.001)
    return head


def _maps(backbone: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the backbone returns by itself, and its last but one feature map (B, C, h, w)."""
    maps, earlier = backbone.forward_intermediates(images, indices=[-2])
    return backbone.forward_head(maps), earlier


def _earlier_map(backbone: Any, spec: config.Train) -> Tensor:
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(
            f"loss.auxiliary is {spec.loss.auxiliary:g}, but backbone {spec.backbone!r} gives no "
            f"feature map before its last; set it to 0"
        )
    with torch.inference_mode():
        return _maps(backbone, torch.zeros(1, 3, *spec.image_size))[1][0]
