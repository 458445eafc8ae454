"""Poolings: one vector of an image from its feature map."""

import torch
from torch import Tensor, nn


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


def stripes(maps: Tensor, count: int) -> list[Tensor]:
    """Divide maps (B, C, h, w) into horizontal stripes from top to bottom.

    Bounds are those of adaptive pooling: where `count` does not divide h, neighbours share a row.
    """
    height = maps.shape[2]
    bounds = [(n * height // count, -(-(n + 1) * height // count)) for n in range(count)]
    return [maps[:, :, first:last] for first, last in bounds]
