"""CLIP-SENet: appearance and semantics, the semantics refined in groups (Lu et al., 2025)."""

import torch
from torch import Tensor, nn

from ray_reid.models.networks.encoders import ImageEncoder
from ray_reid.recipe.train import Semantic


class FineGrainedEnhancement(nn.Module):
    """AFEM, equation 4: phi(f) plus phi(f) in M groups, each times its weight of W.

    phi is linear, BN and ReLU. Both branches are its output: the weighted one and the other, to
    which that is added. W is learned and begins as N(0, 1): one scalar a group, its importance.
    With a weight for each element the groups are a matter of speaking: W multiplies all D
    elements, however they are divided.
    """

    def __init__(self, width: int, groups: int, weights: str = "group") -> None:
        """Build the module for features of `width`.

        Args:
            weights: Whether a row of W has one weight for its `group`, or one for each `element`.

        Raises:
            ValueError: If the groups do not divide the width.
        """
        super().__init__()
        if width % groups:
            choices = [count for count in range(1, width + 1) if width % count == 0]
            raise ValueError(
                f"train.semantic.groups {groups} does not divide the encoder's width {width}; "
                f"choose from {choices}"
            )
        self.phi = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
        self.weights = nn.Parameter(
            torch.randn(groups, width // groups if weights == "element" else 1)
        )

    def forward(self, semantics: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        mapped: Tensor = self.phi(semantics)
        grouped = mapped.reshape(len(mapped), len(self.weights), -1)
        return mapped + (self.weights * grouped).flatten(1)


class SemanticEnhancement(nn.Module):
    """SEM and AFEM (sections III-B and III-C): appearance features to f_fuse + P AFEM(f_sem).

    f_fuse is a fully connected layer on [f_app; f_sem], and P a projection where the encoder's
    width is not that of f_fuse. f_sem is layer-normed first: an image-text model's features are
    ten times as long as a CNN's, and would leave it hardly any gradient. Without groups there is no
    AFEM and f_fuse is all there is, as in the paper's ablation.
    """

    def __init__(self, encoder: ImageEncoder, appearance: int, spec: Semantic) -> None:
        """Build the layers on an encoder and appearance features of a width.

        Raises:
            ValueError: If the groups do not divide the encoder's width.
        """
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.width)
        self.fuse = nn.Linear(appearance + encoder.width, spec.width)
        self.enhance: FineGrainedEnhancement | None = None
        self.project: nn.Module = nn.Identity()
        self.join, self.width = spec.join, spec.width
        if spec.groups is None:
            return
        self.enhance = FineGrainedEnhancement(encoder.width, spec.groups, spec.group_weights)
        if spec.join == "concatenate":
            self.width += encoder.width
        elif encoder.width != spec.width:
            self.project = nn.Linear(encoder.width, spec.width, bias=False)

    def forward(self, images: Tensor, appearance: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and their features (B, A) to (B, `width`)."""
        semantics = self.norm(self.encoder(images))
        fused: Tensor = self.fuse(torch.cat([appearance, semantics], dim=1))
        if self.enhance is None:
            return fused
        enhanced: Tensor = self.project(self.enhance(semantics))
        if self.join == "concatenate":
            return torch.cat([fused, enhanced], dim=1)
        return fused + enhanced
