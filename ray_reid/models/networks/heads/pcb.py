"""PCB: a feature and a classifier for each horizontal stripe (Sun et al., ECCV 2018).

"Beyond Part Models: Person Retrieval with Refined Part Pooling (and a Strong Convolutional
Baseline)". The stripes have their cross-entropies, which are added, and no metric loss. At test
time the stripes' features stand side by side: `h` after the reduction to 256 values (1,536 in all,
the default), or `g` before it, which the paper finds slightly better and eight times as long. The
paper's refined part pooling is not built.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ray_reid.models.networks.heads.branches import Branches, Pair, Reduction, joined
from ray_reid.models.networks.pooling import stripes
from ray_reid.recipe.train import Train

DIM = 256
"""Width of a reduced part where the recipe names none."""


class PartClassifiers(Branches):
    """PCB on the backbone's last feature map."""

    def __init__(
        self,
        spec: Train,
        backbone: nn.Module,  # noqa: ARG002
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        parts: int = 6,
        descriptor: str = "h",
    ) -> None:
        """Build the head.

        Args:
            spec: The recipe's section.
            backbone: Not used.
            shape: Channels, height and width of the last feature map.
            num_classes: Identities to tell apart.
            parts: Stripes.
            descriptor: What the embedding is made of, `h` or `g`.

        Raises:
            ValueError: If the map has fewer rows than parts, or the descriptor is unknown.
        """
        if descriptor not in ("g", "h"):
            raise ValueError(
                f"train.head_params.descriptor is {descriptor!r}; choose from ['g', 'h']"
            )
        check_rows("pcb", parts, shape[1], spec)
        width, dim = shape[0], spec.embedding_dim or DIM
        super().__init__([dim] * parts, num_classes)
        self.reductions = nn.ModuleList(Reduction(width, dim) for _ in range(parts))
        self.descriptor = descriptor
        self.width = parts * (dim if descriptor == "h" else width)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Pair], Tensor]:
        """The last maps (B, C, h, w) to a pair for each stripe, and embeddings (B, D)."""
        pooled = [one.mean(dim=(2, 3)) for one in stripes(maps[0], len(self.reductions))]
        reduced = [reduce(part) for reduce, part in zip(self.reductions, pooled, strict=True)]
        pairs: list[Pair] = [
            (None, classify(part)) for classify, part in zip(self.classifiers, reduced, strict=True)
        ]
        return pairs, joined(reduced if self.descriptor == "h" else pooled)


def check_rows(head: str, parts: int, height: int, spec: Train) -> None:
    """Refuse to divide a feature map into more stripes than it has rows.

    Raises:
        ValueError: Names what can be changed.
    """
    if not isinstance(parts, int) or not 1 <= parts <= height:
        raise ValueError(
            f"train.head {head!r} divides a feature map into {parts!r} stripes, but that of "
            f"backbone {spec.backbone!r} for image_size {list(spec.image_size)} has {height} "
            "rows; enlarge image_size, set last_stride to 1, or set the number in head_params "
            "from 1 to its rows"
        )
