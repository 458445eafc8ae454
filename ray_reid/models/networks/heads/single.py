"""What describes a head that makes one feature of an image."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ray_reid.recipe.train import Train


@dataclass(frozen=True)
class SingleHead:
    """A pooling, what makes a feature of what was pooled, a neck, and a classifier."""

    embedder: Callable[[Train, int], tuple[nn.Module, nn.BatchNorm1d]]
    """Section of the recipe and pooled width to the layers before the feature, and the neck."""
    classifier: Callable[[int, int], nn.Linear]
    """Width of the embedding and number of identities to the classifier."""
    pooling: str | None = None
    """Where the head has a pooling of its own; null takes the recipe's."""
    non_local: bool = False
    """Whether non-local blocks follow blocks of the backbone."""
