"""The miniature world: vehicles and pedestrians drawn from their attributes, truth included.

Importing it loads numba; nothing else in the package imports it at the top of a module.
"""

from ray_reid.miniature.cameras import STREET
from ray_reid.miniature.drawing import VIEWS, Drawing, draw
from ray_reid.miniature.paint import PARTS
from ray_reid.miniature.pedestrians import Pedestrian, pedestrian_identities
from ray_reid.miniature.scenes import CLASSES, Scene, draw_scene
from ray_reid.miniature.street import Shot, draw_shot, plan_street, street_observations
from ray_reid.miniature.vehicles import Vehicle, vehicle_identities

CAMERAS = tuple(STREET)

__all__ = [
    "CAMERAS",
    "CLASSES",
    "PARTS",
    "VIEWS",
    "Drawing",
    "Pedestrian",
    "Scene",
    "Shot",
    "Vehicle",
    "draw",
    "draw_scene",
    "draw_shot",
    "pedestrian_identities",
    "plan_street",
    "street_observations",
    "vehicle_identities",
]
