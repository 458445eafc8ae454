"""CLIP-SENet: appearance and semantics, the semantics refined in groups."""

import torch
from torch import Tensor, nn

from ray_reid.models.networks.encoders import ImageEncoder
from ray_reid.recipe.train import Semantic


class FineGrainedEnhancement(nn.Module):
    """AFEM, equation 4: W * phi(f) in M groups, plus f, where phi is linear, BN and ReLU.

    W is learned, begins as N(0, 1) and has a row for each group. The text calls its weights those
    of the elements of a group, and those of groups. By element the groups are a matter of speaking:
    W multiplies all D elements, however they are divided.
    """

    def __init__(self, width: int, groups: int, weights: str = "element") -> None:
        """Build the module for features of `width`.

        Args:
            weights: Whether a row of W has a weight for each `element`, or one for its `group`.

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
        grouped = self.phi(semantics).unflatten(1, (len(self.weights), -1))
        return (self.weights * grouped).flatten(1) + semantics


class SemanticEnhancement(nn.Module):
    """SEM and AFEM (sections III-B and III-C): appearance features to [f_fuse; AFEM(f_sem)].

    f_fuse is a fully connected layer on [f_app; f_sem]. Without groups there is no AFEM and
    f_fuse is all there is, as in the paper's ablation.
    """

    def __init__(self, encoder: ImageEncoder, appearance: int, spec: Semantic) -> None:
        """Build the layers on an encoder and appearance features of a width.

        Raises:
            ValueError: If the groups do not divide the encoder's width.
        """
        super().__init__()
        self.encoder = encoder
        self.fuse = nn.Linear(appearance + encoder.width, spec.width)
        self.enhance: FineGrainedEnhancement | None = None
        self.width = spec.width
        if spec.groups is not None:
            self.enhance = FineGrainedEnhancement(encoder.width, spec.groups, spec.group_weights)
            self.width += encoder.width

    def forward(self, images: Tensor, appearance: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and their features (B, A) to (B, `width`)."""
        semantics = self.encoder(images)
        fused: Tensor = self.fuse(torch.cat([appearance, semantics], dim=1))
        if self.enhance is None:
            return fused
        return torch.cat([fused, self.enhance(semantics)], dim=1)
