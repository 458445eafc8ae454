"""The strong baseline's head: a batch norm between the feature and the classifier.

Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", CVPRW 2019.
"""

from torch import nn

from ray_reid.recipe.train import Train


def bnneck(spec: Train, width: int) -> tuple[nn.Module, nn.BatchNorm1d]:
    """What makes a feature of what was pooled (nothing, or a projection), and the neck after it."""
    dim = spec.embedding_dim or width
    project = nn.Linear(width, dim, bias=False) if dim != width else nn.Identity()
    return project, neck(dim, spec.neck_bias)


def neck(width: int, bias: bool = False) -> nn.BatchNorm1d:
    """A batch norm whose shift stays at zero, so that cosine suits the normalised features."""
    made = nn.BatchNorm1d(width)
    made.bias.requires_grad_(bias)
    return made


def classifier(width: int, num_classes: int) -> nn.Linear:
    """A linear classifier without a shift, near zero at first."""
    made = nn.Linear(width, num_classes, bias=False)
    nn.init.normal_(made.weight, std=0.001)
    return made
