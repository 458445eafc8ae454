"""What heads have in common that make several features of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ray_reid.models.networks.heads.bnneck import classifier

Pair = tuple[Tensor | None, Tensor | None]
"""Feature (B, D) for the metric loss and logits (B, classes); none takes no part in that loss."""


class Branches(nn.Module):
    """Several features of an image, each with losses of its own, and one embedding of all."""

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        """Build the classifiers.

        Args:
            widths: Of what each classifier sees.
            num_classes: Identities to tell apart.
        """
        super().__init__()
        self.classifiers = nn.ModuleList(classifier(width, num_classes) for width in widths)
        self.tails = nn.ModuleList()
        """Copies of the backbone's last layers, whose maps follow the backbone's own."""
        self.width = 0
        """Of the embedding."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Pair], Tensor]:
        """Maps (B, C, h, w) of the backbone and of every tail to pairs and embeddings (B, D)."""
        raise NotImplementedError

    def begin_like(self, backbone: nn.Module) -> None:
        """Give the tails the weights that the backbone's last layers have now; without any, none.

        Args:
            backbone: The network's own, when other weights were loaded into it.
        """

    def replace_classifiers(self, num_classes: int) -> None:
        """Begin with other identities: new classifiers, everything else kept."""
        for place, old in enumerate(self.classifiers):
            assert isinstance(old, nn.Linear), "as they were built"
            made = classifier(old.in_features, num_classes)
            self.classifiers[place] = made.to(old.weight.device, old.weight.dtype)


class Reduction(nn.Sequential):
    """A 1 x 1 convolution of a pooled feature, with batch norm and ReLU."""

    def __init__(self, width: int, dim: int) -> None:
        reduce = nn.Linear(width, dim, bias=False)
        nn.init.kaiming_normal_(reduce.weight, nonlinearity="relu")
        super().__init__(reduce, nn.BatchNorm1d(dim), nn.ReLU())


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Features (B, D) of several parts side by side: an embedding before it is normalised."""
    return torch.cat(list(parts), dim=1)
