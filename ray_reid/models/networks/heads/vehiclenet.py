"""VehicleNet's head: a fully connected layer and a batch norm, whose output is the embedding.

Zheng et al., "VehicleNet", TMM 2020, section IV-A.
"""

from torch import nn

from ray_reid.recipe.train import Train

VEHICLENET_DIM = 512
"""Width of the embedding where the recipe names none."""


def vehiclenet(spec: Train, width: int) -> tuple[nn.Module, nn.BatchNorm1d]:
    """The layer and the norm."""
    dim = spec.embedding_dim or VEHICLENET_DIM
    return nn.Linear(width, dim), nn.BatchNorm1d(dim)
