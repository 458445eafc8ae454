"""Non-local blocks in a residual backbone (Wang et al., CVPR 2018), placed as AGW has them."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

LAST_BLOCKS = {"layer2": 2, "layer3": 3}
"""Last blocks of each stage that a non-local block follows: AGW's, of ResNet-50."""


class NonLocalBlock(nn.Module):
    """Add to every place of a map a mean over all places, weighted by the likeness of the two.

    The likeness is the dot product of two projections over the number of places. The batch norm
    after the last projection begins at zero, so that a pretrained backbone begins unchanged.
    """

    def __init__(self, width: int) -> None:
        """Build the block for maps of `width` channels; inside it has half as many."""
        super().__init__()
        inner = max(1, width // 2)
        self.theta, self.phi, self.g = (nn.Conv2d(width, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, width, 1)
        self.norm = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        asked, known, values = (layer(maps).flatten(2) for layer in (self.theta, self.phi, self.g))
        likeness = asked.transpose(1, 2) @ known / known.shape[2]
        mixed = values @ likeness.transpose(1, 2)
        return maps + self.norm(self.out(mixed.unflatten(2, tuple(maps.shape[2:]))))


def add_non_local(backbone: nn.Module, size: tuple[int, int]) -> nn.ModuleList:
    """Let non-local blocks follow blocks of the second and third stage of a residual backbone.

    They stay outside the backbone, whose weights keep their names.

    Args:
        backbone: Changed in place.
        size: Height and width of its images.

    Returns:
        The blocks; none where the backbone has no such stages.
    """
    stages: list[tuple[Any, int]] = [
        (getattr(backbone, name, None), count) for name, count in LAST_BLOCKS.items()
    ]
    if not all(isinstance(stage, nn.Sequential) for stage, _ in stages):
        return nn.ModuleList()
    followed = [block for stage, count in stages for block in stage[-count:]]
    widths: list[int] = []
    handles = [
        block.register_forward_hook(lambda _block, _given, maps: widths.append(maps.shape[1]))
        for block in followed
    ]
    training = backbone.training
    with torch.inference_mode():
        backbone.eval()(torch.zeros(1, 3, *size))
    backbone.train(training)
    for handle in handles:
        handle.remove()
    added = nn.ModuleList(NonLocalBlock(width) for width in widths)
    for block, non_local in zip(followed, added, strict=True):
        block.register_forward_hook(partial(_follow, non_local))
    return added


def _follow(non_local: nn.Module, _block: nn.Module, _given: Any, maps: Tensor) -> Tensor:
    return non_local(maps)
