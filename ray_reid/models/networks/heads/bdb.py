"""BDB: a global branch, and one of which a part is dropped (Dai et al., ICCV 2019).

"Batch DropBlock Network for Person Re-identification and Beyond". The global branch averages the
map and reduces it to 512 values. The other has a bottleneck block, of whose maps one and the same
rectangle is set to zero in all images of a batch; it pools by the maximum and has 1,024 values.
Both have a classifier and a triplet loss. At test time nothing is dropped, and the two features
stand side by side.
"""

from collections.abc import Sequence

import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from ray_reid.models.networks.heads.branches import Branches, Pair, Reduction, joined
from ray_reid.recipe.train import Train

DIM = 512
"""Width of the global feature where the recipe names none; the other's is twice as large."""


class BatchDropBlock(Branches):
    """BDB on the backbone's last feature map."""

    def __init__(
        self,
        spec: Train,
        backbone: nn.Module,  # noqa: ARG002
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        height: float = 0.33,
        width: float = 1.0,
    ) -> None:
        """Build the head.

        Args:
            spec: The recipe's section.
            backbone: Not used.
            shape: Channels, height and width of the last feature map.
            num_classes: Identities to tell apart.
            height: Of the dropped rectangle, as a share of the map's.
            width: The same of its width.

        Raises:
            ValueError: If a share is not between 0 and 1, or the block cannot be that wide.
        """
        for name, share in (("height", height), ("width", width)):
            if not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise ValueError(
                    f"train.head_params.{name} is {share!r}, but must be a share from 0 to 1"
                )
        channels, dim = shape[0], spec.embedding_dim or DIM
        super().__init__([dim, 2 * dim], num_classes)
        self.whole = Reduction(channels, dim)
        if channels % Bottleneck.expansion:
            raise ValueError(
                f"train.head 'bdb' has a bottleneck block, whose width is a multiple of "
                f"{Bottleneck.expansion}, but backbone {spec.backbone!r} gives {channels} channels"
            )
        self.block = Bottleneck(channels, channels // Bottleneck.expansion)
        self.dropped = Reduction(channels, 2 * dim)
        self.height, self.across = height, width
        self.width = 3 * dim

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Pair], Tensor]:
        """The last maps (B, C, h, w) to a pair for each branch, and embeddings (B, D)."""
        whole = self.whole(maps[0].mean(dim=(2, 3)))
        left = self.block(maps[0])
        if self.training:
            left = left * self.mask(left.shape[2], left.shape[3]).to(left)
        dropped = self.dropped(left.amax(dim=(2, 3)))
        pairs: list[Pair] = [
            (feature, classify(feature))
            for feature, classify in zip((whole, dropped), self.classifiers, strict=True)
        ]
        return pairs, joined([whole, dropped])

    def mask(self, height: int, width: int) -> Tensor:
        """Draw the rectangle of a batch: (h, w), 0 where it drops and 1 elsewhere."""
        rows, columns = round(self.height * height), round(self.across * width)
        # Drawn on the CPU, so that a GPU drops the same.
        top = int(torch.randint(height - rows + 1, ()))
        left = int(torch.randint(width - columns + 1, ()))
        kept = torch.ones(height, width)
        kept[top : top + rows, left : left + columns] = 0
        return kept
