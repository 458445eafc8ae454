"""MGN: features of a whole image, of its halves and of its thirds (Wang et al., ACM MM 2018).

"Learning Discriminative Features with Multiple Granularities for Person Re-Identification". From
res_conv4_1 on, each of three branches has layers of its own. The global branch halves its maps once
more, the others do not. All pool by the maximum. Of each branch the whole map has a feature before
the reduction, which the classifier sees, and one after it, which the triplet loss sees; each
stripe has a reduced feature and a classifier. At test time all eight reduced features stand side
by side (2,048 values).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ray_reid.models.networks import backbones, tails
from ray_reid.models.networks.heads.branches import Branches, Pair, Reduction, joined
from ray_reid.models.networks.heads.pcb import DIM, check_rows
from ray_reid.models.networks.pooling import stripes
from ray_reid.recipe.train import Train


class MultipleGranularities(Branches):
    """MGN on the backbone's map and those of two copies of its last layers."""

    def __init__(
        self,
        spec: Train,
        backbone: nn.Module,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        parts: Sequence[int] = (2, 3),
    ) -> None:
        """Build the head.

        Args:
            spec: The recipe's section.
            backbone: Its last layers are copied, with their weights.
            shape: Channels, height and width of the last feature map.
            num_classes: Identities to tell apart.
            parts: Stripes of each branch after the global one.

        Raises:
            ValueError: If the backbone cannot be divided, or the map has too few rows.
        """
        if not isinstance(parts, Sequence) or not parts:
            raise ValueError(
                f"train.head_params.parts is {parts!r}, but must be a list of the stripes of each "
                "branch, such as [2, 3]"
            )
        width, dim, branches = shape[0], spec.embedding_dim or DIM, 1 + len(parts)
        copies = [tails.tail(backbone) for _ in parts]
        rows = _rows(backbone, copies[0], spec.image_size)
        for count in parts:
            check_rows("mgn", count, rows, spec)
        super().__init__([width] * branches + [dim] * sum(parts), num_classes)
        self.tails = nn.ModuleList(copies)
        self.reductions = nn.ModuleList(Reduction(width, dim) for _ in range(branches + sum(parts)))
        self.parts = tuple(parts)
        self.width = (branches + sum(parts)) * dim

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Pair], Tensor]:
        """Maps (B, C, h, w) of every branch to pairs, the whole maps' first, and embeddings."""
        pooled = [one.amax(dim=(2, 3)) for one in maps]
        for one, count in zip(maps[1:], self.parts, strict=True):
            pooled += [stripe.amax(dim=(2, 3)) for stripe in stripes(one, count)]
        reduced = [reduce(part) for reduce, part in zip(self.reductions, pooled, strict=True)]
        whole = len(maps)
        pairs: list[Pair] = [
            (after, classify(before)) if number < whole else (None, classify(after))
            for number, (classify, before, after) in enumerate(
                zip(self.classifiers, pooled, reduced, strict=True)
            )
        ]
        return pairs, joined(reduced)

    def begin_like(self, backbone: nn.Module) -> None:
        """Give the copies the weights that the backbone's last layers have now."""
        weights = nn.Sequential(*tails.last_layers(backbone)).state_dict()
        for one in self.tails:
            one.load_state_dict(weights)


def _rows(backbone: nn.Module, tail: nn.Module, size: tuple[int, int]) -> int:
    """Rows of the maps of a copy of the last layers."""
    with torch.inference_mode():
        before = tails.begin(backbone.eval(), torch.zeros(1, 3, *size))
        return backbones.as_maps(backbone, tail.eval()(before)).shape[2]
