"""Street furniture that stands between a camera and its object."""

from collections.abc import Callable

import numpy as np

from ray_reid.miniature.paint import BACKGROUND, RUBBER, Material
from ray_reid.miniature.shapes import Solid, box, cylinder, ellipsoid

STEEL = Material((0.22, 0.23, 0.24), 0.2)
WARNING = Material((0.65, 0.10, 0.02))
LEAVES = (0.045, 0.11, 0.025)


def pole(rng: np.random.Generator, size: float) -> list[Solid]:
    """A lamp post as thick as a fortieth of the object, anywhere across it."""
    y = float(rng.uniform(-0.45, 0.45)) * size
    return [cylinder((0.0, y, 0.0), (0.0, y, 4.0 * size), 0.025 * size, STEEL, BACKGROUND)]


def bollards(_: np.random.Generator, size: float) -> list[Solid]:
    """Three low posts with red heads."""
    solids = []
    for y in (-0.4 * size, 0.02 * size, 0.42 * size):
        radius = 0.028 * size
        solids.append(cylinder((0.0, y, 0.0), (0.0, y, 0.15 * size), radius, RUBBER, BACKGROUND))
        top = (0.0, y, 0.15 * size), (0.0, y, 0.19 * size)
        solids.append(cylinder(*top, radius, WARNING, BACKGROUND))
    return solids


def bush(rng: np.random.Generator, size: float) -> list[Solid]:
    """A shrub that hides one lower corner of the object."""
    side = float(rng.choice([-1.0, 1.0])) * size
    solids = []
    for _ in range(5):
        y = side * float(rng.uniform(0.33, 0.62))
        radius = size * float(rng.uniform(0.06, 0.10))
        green = float(rng.uniform(0.7, 1.4))
        leaves = Material((LEAVES[0] * green, LEAVES[1] * green, LEAVES[2] * green))
        centre = (size * float(rng.uniform(-0.05, 0.05)), y, radius * 0.8)
        solids.append(ellipsoid(centre, (radius, radius, radius), leaves, BACKGROUND))
    return solids


def fence(_: np.random.Generator, size: float) -> list[Solid]:
    """A thin railing along the lower part of the object."""
    half, thick = 1.2 * size, 0.008 * size
    rails = [
        box((0.0, -half, z * size - thick), (thick, half, z * size + thick), STEEL, BACKGROUND)
        for z in (0.08, 0.17)
    ]
    posts = [
        box((0.0, y * size - thick, 0.0), (thick, y * size + thick, 0.18 * size), STEEL, BACKGROUND)
        for y in (-0.45, 0.0, 0.45)
    ]
    return rails + posts


# Each makes solids around the origin, in the way of a camera that looks along +x at an object
# `size` metres wide.
OCCLUDERS: dict[str, Callable[[np.random.Generator, float], list[Solid]]] = {
    "pole": pole,
    "bollards": bollards,
    "bush": bush,
    "fence": fence,
}
