"""The strong baseline: backbone, pooling, BNNeck, classifier (Luo et al., TMM 2019)."""

import difflib
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_reid import config

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


POOLING: dict[str, type[nn.Module]] = {"avg": AveragePool, "gem": GeneralizedMean}


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
        dim = spec.embedding_dim or width
        self.project = nn.Linear(width, dim, bias=False) if dim != width else nn.Identity()
        self.neck = nn.BatchNorm1d(dim)
        # BNNeck's shift is frozen at zero, so that cosine suits the normalised features.
        self.neck.bias.requires_grad_(False)
        self.head = nn.Linear(dim, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=0.001)
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

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, classes), for training."""
        features = self.features(images)
        logits: Tensor = self.head(self.neck(features))
        return features, logits

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
    return timm.create_model(
        spec.backbone,
        pretrained=spec.pretrained,
        num_classes=0,
        global_pool="",
        **spec.backbone_params,
    )
