"""A network whole: a backbone, a head of `heads`, and the semantics and sides beside them."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_reid.models.networks import backbones, heads, tails
from ray_reid.models.networks.encoders import ImageEncoder, load_encoder
from ray_reid.models.networks.facts import unpacked
from ray_reid.models.networks.heads.bnneck import classifier, neck
from ray_reid.models.networks.heads.branches import Branches
from ray_reid.models.networks.heads.sbs import CosineClassifier
from ray_reid.models.networks.heads.single import SingleHead
from ray_reid.models.networks.nonlocal_blocks import NonLocalBlock, add_non_local
from ray_reid.models.networks.pooling import POOLING, WIDENED
from ray_reid.models.networks.senet import SemanticEnhancement
from ray_reid.models.networks.sides import SideEmbedding, Sides, known_in
from ray_reid.recipe.train import Train

# Means and deviations of ImageNet: for weights from nothing, and for most of timm's.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Auxiliary(nn.Module):
    """A classifier on an earlier feature map, which brings gradients nearer to the input.

    Vehicle-Diff, section III-D, after Szegedy et al. (CVPR 2015). Used in training only.
    """

    def __init__(self, pooling: str, width: int, num_classes: int) -> None:
        """Build pooling, neck and head for maps of `width` channels."""
        super().__init__()
        self.pool = POOLING[pooling]()
        width *= WIDENED.get(pooling, 1)
        self.neck = neck(width)
        self.head = classifier(width, num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w) to features (B, C) before the neck and logits (B, classes)."""
        features: Tensor = self.pool(maps)
        return features, self.head(self.neck(features))


class ReidNetwork(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to features, logits and embeddings.

    A head makes one feature, which a neck turns into the embedding before the classifier, or has
    branches with a feature and a classifier each (`heads`).
    """

    mean: Tensor
    std: Tensor
    pool: nn.Module
    project: nn.Module
    neck: nn.BatchNorm1d
    head: nn.Linear
    """Parts of a head with one feature; one with branches has none of them."""

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
        single = heads.single(spec)
        if single is not None:
            self.pool = POOLING[single.pooling or spec.pooling]()
        with torch.inference_mode():
            probe = self.backbone.eval()(torch.zeros(1, 3, *spec.image_size))
        if not backbones.gives_maps(self.backbone, probe):
            raise ValueError(f"backbone {spec.backbone!r} gives no feature map (B, C, h, w)")
        channels, height, width = backbones.as_maps(self.backbone, probe).shape[1:]
        self.semantic: SemanticEnhancement | None = None
        self.branches: Branches | None = None
        self.non_local: nn.ModuleList | None = None
        self.non_local_last: NonLocalBlock | None = None
        if single is None:
            shape = channels, height, width
            self.branches = heads.branches(spec, self.backbone, shape, num_classes)
            self.width = self.branches.width
        else:
            self._add_single(single, spec, channels, num_classes, encoder)
        # Built last: without it, everything else begins with the same random numbers.
        self.auxiliary: Auxiliary | None = None
        if spec.loss.auxiliary > 0:
            maps = _earlier_map(self.backbone, spec)
            self.auxiliary = Auxiliary(spec.pooling, maps.shape[1], num_classes)
        self.side: SideEmbedding | None = None
        if spec.side_weight > 0:
            self.side = SideEmbedding(sides or Sides(), self.width, spec.side_weight)
        # Pretrained weights expect the input that they were trained on; saved with the weights,
        # because a package is built again without asking for pretrained ones.
        expected: dict[str, Any] = {"mean": MEAN, "std": STD}
        if spec.pretrained:
            expected = cast("dict[str, Any]", self.backbone.pretrained_cfg)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(expected[name]).view(1, 3, 1, 1))

    def _add_single(
        self,
        head: SingleHead,
        spec: Train,
        channels: int,
        num_classes: int,
        encoder: ImageEncoder | None,
    ) -> None:
        """Build the parts of a head with one feature, on maps of so many channels."""
        width = channels * WIDENED.get(spec.pooling, 1)
        if spec.semantic.encoder is not None:
            encoder = encoder or load_encoder(spec.semantic.encoder)
            self.semantic = SemanticEnhancement(encoder, width, spec.semantic)
            width = self.semantic.width
        self.project, self.neck = head.embedder(spec, width)
        self.width = self.neck.num_features
        self.head = head.classifier(self.width, num_classes)
        if head.non_local:
            self.non_local = add_non_local(self.backbone, spec.image_size)
            if not self.non_local:
                # No residual stages: one block has the last map.
                self.non_local_last = NonLocalBlock(channels)

    @classmethod
    def restored(
        cls, spec: Train, num_classes: int, weights: Mapping[str, Tensor]
    ) -> "ReidNetwork":
        """Build a trained network from its recipe and its weights alone: nothing is fetched.

        Raises:
            ValueError: If they are of CLIP-SENet's network as it was built formerly.
        """
        network = cls.shaped(spec, num_classes, weights)
        network.load_state_dict(weights)
        return network

    @classmethod
    def shaped(
        cls,
        spec: Train,
        num_classes: int,
        weights: Mapping[str, Tensor],
        sides: Sides | None = None,
    ) -> "ReidNetwork":
        """Build a network with the sides and the image encoder of some weights, but random ones.

        Args:
            spec: The recipe's section.
            num_classes: Identities to tell apart.
            weights: Of another network.
            sides: Where the weights have none.

        Raises:
            ValueError: If they are of CLIP-SENet's network as it was built formerly.
        """
        spec = spec.model_copy(update={"pretrained": False, "ibn_weights": None})
        if "side.known" in weights:
            sides = known_in(weights["side.known"])
        described = weights.get("semantic.encoder.description")
        if described is not None and "semantic.norm.weight" not in weights:
            raise ValueError(
                "the weights have an image encoder but no 'semantic.norm.weight': they are of the "
                "former reading of CLIP-SENet, which is no longer built; train it again"
            )
        encoder = ImageEncoder(unpacked(described)) if described is not None else None
        return cls(spec, num_classes, sides, encoder)

    @property
    def cosines(self) -> bool:
        """Whether the logits are cosines, which the cross-entropy gives a scale and margins."""
        return self.branches is None and isinstance(self.head, CosineClassifier)

    @property
    def classifiers(self) -> nn.Module:
        """What tells the identities apart, without the auxiliary classifier."""
        return self.head if self.branches is None else self.branches.classifiers

    @property
    def tails(self) -> list[nn.Module]:
        """Copies of the backbone's last layers, which learn as the backbone does."""
        return [] if self.branches is None else list(self.branches.tails)

    def replace_classifier(self, num_classes: int) -> None:
        """Begin a second stage on other identities: new classifiers, everything else kept."""
        if self.branches is not None:
            self.branches.replace_classifiers(num_classes)
        else:
            self.head = _renewed(self.head, num_classes)
        if self.auxiliary is not None:
            self.auxiliary.head = _renewed(self.auxiliary.head, num_classes)

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, C, h, w) of the backbone."""
        return self._refined(self.backbone((images - self.mean) / self.std))

    def features(self, images: Tensor, side: Tensor | None = None) -> Tensor:
        """(B, D) before the neck: what the metric loss sees; of branches, those side by side.

        Args:
            images: (B, 3, H, W) in [0, 1].
            side: (B,) int64 of `side_codes`, where the network has side information; without
                it every camera is unknown.
        """
        if self.branches is not None:
            return self.branches(self._branch_maps(images)[0])[1]
        return self._features(images, self.feature_map(images), side)

    def forward(
        self, images: Tensor, side: Tensor | None = None, embeddings: bool = False
    ) -> tuple[Tensor | None, ...]:
        """Features (B, D) and logits (B, classes), for training; then those of the auxiliary.

        Those of several branches follow each other; None stands for a feature that no metric
        loss sees. Where they are asked for, the embeddings (B, D) are the last, of any norm.
        """
        found: list[Tensor | None]
        if self.branches is not None:
            maps, earlier = self._branch_maps(images)
            pairs, embedded = self.branches(maps)
            found = [one for pair in pairs for one in pair]
        else:
            last, earlier = self._last_and_earlier(images)
            features = self._features(images, last, side)
            embedded = self.neck(features)
            found = [features, self.head(embedded)]
        if self.auxiliary is not None:
            found += self.auxiliary(*earlier)
        return (*found, embedded) if embeddings else tuple(found)

    def embed(self, images: Tensor, side: Tensor | None = None) -> Tensor:
        """(B, D) unit-norm embeddings for retrieval: after the neck, or of all branches."""
        features = self.features(images, side)
        embedded = features if self.branches is not None else self.neck(features)
        return F.normalize(embedded.float(), dim=1)

    def _features(self, images: Tensor, maps: Tensor, side: Tensor | None) -> Tensor:
        features: Tensor = self.pool(maps)
        if self.semantic is not None:
            features = self.semantic(images, features)
        features = self.project(features)
        return features if self.side is None else self.side(features, side)

    def _refined(self, found: Tensor) -> Tensor:
        """What the backbone returned, as maps, with what follows them."""
        maps = backbones.as_maps(self.backbone, found)
        return maps if self.non_local_last is None else self.non_local_last(maps)

    def _last_and_earlier(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last map, and the one before it where the auxiliary classifier sees it."""
        if self.auxiliary is None:
            return self.feature_map(images), []
        last, earlier = _maps(self.backbone, (images - self.mean) / self.std)
        return self._refined(last), earlier

    def _branch_maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The last map and that of every tail; and the one before where it is asked for."""
        if not self.tails:
            last, earlier = self._last_and_earlier(images)
            return [last], earlier
        before = tails.begin(self.backbone, (images - self.mean) / self.std)
        ends = [tails.finish(self.backbone, before), *(tail(before) for tail in self.tails)]
        return [backbones.as_maps(self.backbone, end) for end in ends], []


def _renewed(old: nn.Linear, num_classes: int) -> nn.Linear:
    """A new classifier of the same kind, on other identities."""
    kind = CosineClassifier if isinstance(old, CosineClassifier) else classifier
    return kind(old.in_features, num_classes).to(old.weight.device, old.weight.dtype)


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
