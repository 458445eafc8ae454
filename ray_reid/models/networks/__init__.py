"""Networks: a timm backbone, a neck and a head; semantics and side information beside them."""

from ray_reid.models.networks.network import ReidNetwork
from ray_reid.models.networks.sides import Sides, known_sides, side_codes

__all__ = ["ReidNetwork", "Sides", "known_sides", "side_codes"]
