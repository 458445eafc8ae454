"""Networks: a timm backbone, a neck and a head."""

from ray_reid.networks.bnneck import ReidNetwork

__all__ = ["ReidNetwork"]
