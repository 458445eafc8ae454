"""Backbone, pooling, neck, classifier: the strong baseline (Luo et al., TMM 2019) and its kin."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_reid.models.networks import backbones
from ray_reid.models.networks.encoders import ImageEncoder, load_encoder
from ray_reid.models.networks.facts import unpacked
from ray_reid.models.networks.senet import SemanticEnhancement
from ray_reid.models.networks.sides import SideEmbedding, Sides, known_in
from ray_reid.recipe.train import Train

# Means and deviations of ImageNet: for weights from nothing, and for most of timm's.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

VEHICLENET_DIM = 512
"""Width of VehicleNet's embedding where the recipe names none."""


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
    """Images (B, 3, H, W) in [0, 1] to features, logits and embeddings.

    The head is the strong baseline's (BNNeck) or VehicleNet's: a fully connected layer and a
    batch norm, whose output is the embedding, before the classifier (Zheng et al., TMM 2020).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: Train,
        num_classes: int,
        sides: Sides | None = None,
        encoder: ImageEncoder | None = None,
    ) -> None:
        """Build the network.

        Args:
            spec: The recipe's section.
            num_classes: Identities to tell apart.
            sides: Cameras and views of the training images; none are known without.
            encoder: In place of the one that the recipe refers to.

        Raises:
            ValueError: If timm has no such backbone, it has no feature map, or a part of the
                recipe does not fit it.
        """
        super().__init__()
        self.backbone = backbones.build(spec)
        self.pool = POOLING[spec.pooling]()
        with torch.inference_mode():
            probe = self.backbone.eval()(torch.zeros(1, 3, *spec.image_size))
        if not backbones.gives_maps(self.backbone, probe):
            raise ValueError(f"backbone {spec.backbone!r} gives no feature map (B, C, h, w)")
        width = backbones.as_maps(self.backbone, probe).shape[1]
        width *= WIDENED.get(spec.pooling, 1)
        self.semantic: SemanticEnhancement | None = None
        if spec.semantic.encoder is not None:
            encoder = encoder or load_encoder(spec.semantic.encoder)
            self.semantic = SemanticEnhancement(encoder, width, spec.semantic)
            width = self.semantic.width
        self.project, self.neck = _embedder(spec, width)
        dim = self.neck.num_features
        self.head = _head(dim, num_classes)
        # Built last: without it, everything else begins with the same random numbers.
        self.auxiliary: Auxiliary | None = None
        if spec.loss.auxiliary > 0:
            maps = _earlier_map(self.backbone, spec)
            self.auxiliary = Auxiliary(spec.pooling, maps.shape[1], num_classes)
        self.side: SideEmbedding | None = None
        if spec.side_weight > 0:
            self.side = SideEmbedding(sides or Sides(), dim, spec.side_weight)
        # Pretrained weights expect the input that they were trained on; saved with the weights,
        # because a package is built again without asking for pretrained ones.
        expected: dict[str, Any] = {"mean": MEAN, "std": STD}
        if spec.pretrained:
            expected = cast("dict[str, Any]", self.backbone.pretrained_cfg)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(expected[name]).view(1, 3, 1, 1))

    @classmethod
    def restored(
        cls, spec: Train, num_classes: int, weights: Mapping[str, Tensor]
    ) -> "ReidNetwork":
        """Build a trained network from its recipe and its weights alone: nothing is fetched.

        Raises:
            ValueError: If they are of CLIP-SENet's network as it was built formerly.
        """
        spec = spec.model_copy(update={"pretrained": False, "ibn_weights": None})
        sides = known_in(weights["side.known"]) if "side.known" in weights else None
        described = weights.get("semantic.encoder.description")
        if described is not None and "semantic.norm.weight" not in weights:
            raise ValueError(
                "the weights have an image encoder but no 'semantic.norm.weight': they are of the "
                "former reading of CLIP-SENet, which is no longer built; train it again"
            )
        encoder = ImageEncoder(unpacked(described)) if described is not None else None
        network = cls(spec, num_classes, sides, encoder)
        network.load_state_dict(weights)
        return network

    def replace_classifier(self, num_classes: int) -> None:
        """Begin a second stage on other identities: new classifiers, everything else kept."""
        for part in (self, self.auxiliary):
            if part is not None:
                old = part.head.weight
                part.head = _head(old.shape[1], num_classes).to(old.device, old.dtype)

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, C, h, w) of the backbone."""
        found = self.backbone((images - self.mean) / self.std)
        return backbones.as_maps(self.backbone, found)

    def features(self, images: Tensor, side: Tensor | None = None) -> Tensor:
        """(B, D) before the neck: what the metric loss sees.

        Args:
            images: (B, 3, H, W) in [0, 1].
            side: (B,) int64 of `side_codes`, where the network has side information; without
                it every camera is unknown.
        """
        return self._features(images, self.feature_map(images), side)

    def forward(
        self, images: Tensor, side: Tensor | None = None, embeddings: bool = False
    ) -> tuple[Tensor, ...]:
        """Features (B, D) and logits (B, classes), for training; then those of the auxiliary.

        Where they are asked for, the embeddings (B, D) are the last, of any norm.
        """
        earlier: list[Tensor] = []
        if self.auxiliary is None:
            features = self.features(images, side)
        else:
            last, earlier = _maps(self.backbone, (images - self.mean) / self.std)
            features = self._features(images, backbones.as_maps(self.backbone, last), side)
        embedded = self.neck(features)
        found = [features, self.head(embedded)]
        if self.auxiliary is not None:
            found += self.auxiliary(*earlier)
        return (*found, embedded) if embeddings else tuple(found)

    def embed(self, images: Tensor, side: Tensor | None = None) -> Tensor:
        """(B, D) unit-norm embeddings: features after the neck, for retrieval."""
        return F.normalize(self.neck(self.features(images, side)).float(), dim=1)

    def _features(self, images: Tensor, maps: Tensor, side: Tensor | None) -> Tensor:
        features: Tensor = self.pool(maps)
        if self.semantic is not None:
            features = self.semantic(images, features)
        features = self.project(features)
        return features if self.side is None else self.side(features, side)


def _embedder(spec: Train, width: int) -> tuple[nn.Module, nn.BatchNorm1d]:
    """What makes features of what was pooled, and the neck after them."""
    if spec.head == "vehiclenet":
        dim = spec.embedding_dim or VEHICLENET_DIM
        return nn.Linear(width, dim), nn.BatchNorm1d(dim)
    dim = spec.embedding_dim or width
    project = nn.Linear(width, dim, bias=False) if dim != width else nn.Identity()
    return project, _neck(dim, spec.neck_bias)


def _neck(width: int, bias: bool = False) -> nn.BatchNorm1d:
    neck = nn.BatchNorm1d(width)
    # BNNeck's shift is frozen at zero, so that cosine suits the normalised features.
    neck.bias.requires_grad_(bias)
    return neck


def _head(width: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(width, num_classes, bias=False)
    nn.init.normal_(head.weight, std=0.001)
    return head


def _maps(backbone: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the backbone returns by itself, and its last but one feature map (B, C, h, w)."""
    maps, earlier = backbone.forward_intermediates(images, indices=[-2])
    return backbone.forward_head(maps), earlier


def _earlier_map(backbone: Any, spec: Train) -> Tensor:
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(
            f"loss.auxiliary is {spec.loss.auxiliary:g}, but backbone {spec.backbone!r} gives no "
            f"feature map before its last; set it to 0"
        )
    with torch.inference_mode():
        return _maps(backbone, torch.zeros(1, 3, *spec.image_size))[1][0]
