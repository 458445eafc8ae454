"""Ground and wall textures of the drawn cameras, made once per camera from its own numbers."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ray_reid.miniature.chance import generator
from ray_reid.miniature.shapes import Floats

# Ground: texels per side of a tile. Wall: rows from its top to the ground, columns once around.
GROUND_TEXELS = 256
WALL_TEXELS = (72, 720)

STUDIO = (0.62, 0.62, 0.63)


def asphalt(rng: np.random.Generator) -> Floats:
    """Dark road with dashed lane lines along x."""
    texture = _grain(rng, (0.085, 0.087, 0.092), 0.25)
    dashes = np.arange(GROUND_TEXELS) % 128 < 64
    for line in (64, 192):
        texture[dashes, line : line + 3] = 0.62
    return texture


def concrete(rng: np.random.Generator) -> Floats:
    """Pale slabs with dark joints."""
    texture = _grain(rng, (0.30, 0.295, 0.28), 0.15)
    texture[::64] *= 0.4
    texture[:, ::64] *= 0.4
    return texture


def cobbles(rng: np.random.Generator) -> Floats:
    """Reddish paving of small stones, each with its own shade."""
    stones = np.asarray(rng.uniform(0.6, 1.3, (32, 32))).repeat(8, axis=0).repeat(8, axis=1)
    texture: Floats = stones[:, :, None] * np.array([0.20, 0.135, 0.105])
    texture[::8] *= 0.5
    texture[:, ::8] *= 0.5
    return texture


def lawn(rng: np.random.Generator) -> Floats:
    """A grey road between grass verges."""
    texture = _grain(rng, (0.13, 0.13, 0.13), 0.25)
    grass = _grain(rng, (0.06, 0.12, 0.03), 0.6)
    verge = np.abs(np.arange(GROUND_TEXELS) - 128) > 72
    texture[:, verge] = grass[:, verge]
    return texture


def studio_floor(_: np.random.Generator) -> Floats:
    """Seamless pale paper."""
    return np.full((GROUND_TEXELS, GROUND_TEXELS, 3), 0.55)


def houses(rng: np.random.Generator) -> Floats:
    """House fronts of several colours and heights with dark windows, under the sky."""
    wall, (rows, columns) = _sky(), WALL_TEXELS
    left = 0
    while left < columns:
        width, top = int(rng.integers(24, 60)), int(rng.integers(2, 34))
        right = min(left + width, columns)
        shade = rng.uniform(0.08, 0.4) * rng.uniform(0.75, 1.15, 3)
        wall[top:, left:right] = shade
        glass = shade * rng.uniform(0.15, 0.5)
        for row in range(top + 4, rows - 8, 12):
            for column in range(left + 4, right - 6, 9):
                wall[row : row + 7, column : column + 5] = glass
        left = right
    return wall


def trees(rng: np.random.Generator) -> Floats:
    """A row of round tree crowns and trunks before the sky."""
    wall, (rows, columns) = _sky(), WALL_TEXELS
    wall[rows - 12 :] = (0.05, 0.09, 0.03)
    grid_row, grid_column = np.mgrid[:rows, :columns]
    for _ in range(60):
        centre, middle = rng.integers(columns), rng.integers(20, 50)
        radius, shade = rng.uniform(9, 20), rng.uniform(0.5, 1.4)
        apart = np.abs(grid_column - centre)
        apart = np.minimum(apart, columns - apart)
        wall[(apart < 2) & (grid_row > middle)] = (0.05, 0.035, 0.02)
        crown = apart**2 + (grid_row - middle) ** 2 < radius**2
        wall[crown] = np.array([0.045, 0.10, 0.025]) * shade
    speckle: Floats = wall * rng.uniform(0.75, 1.25, (rows, columns, 1))
    return speckle


def brick(rng: np.random.Generator) -> Floats:
    """A brick wall with posters."""
    rows, columns = WALL_TEXELS
    wall: Floats = rng.uniform(0.8, 1.2, (rows, columns, 1)) * np.array([0.23, 0.095, 0.06])
    wall[::4] *= 0.65
    for _ in range(14):
        row, column = int(rng.integers(18, 50)), int(rng.integers(columns - 30))
        wall[row : row + 14, column : column + int(rng.integers(8, 24))] = rng.uniform(0.1, 0.7, 3)
    return wall


def tunnel(rng: np.random.Generator) -> Floats:
    """Tiled tunnel wall with a dark plinth and lamps."""
    rows, columns = WALL_TEXELS
    wall = np.full((rows, columns, 3), 0.22) * rng.uniform(0.85, 1.1, (rows, columns, 1))
    wall[: rows // 4] *= 0.35
    wall[rows - 14 :] *= 0.3
    wall[10:14, ::24] = 1.3
    wall[10:14, 1::24] = 1.3
    return wall


def parking(rng: np.random.Generator) -> Floats:
    """A hedge and a fence before a pale hall."""
    rows, columns = WALL_TEXELS
    wall = np.full((rows, columns, 3), 0.38)
    wall[: rows // 3, :] = (0.30, 0.33, 0.38)
    wall[:, ::20] *= 0.6
    hedge = rng.uniform(0.4, 1.5, (18, columns, 1)) * np.array([0.04, 0.075, 0.025])
    wall[rows - 18 :] = hedge
    return wall


def studio_wall(_: np.random.Generator) -> Floats:
    """Pale paper that brightens upwards."""
    rows, columns = WALL_TEXELS
    ramp = np.linspace(1.15, 0.95, rows)[:, None, None]
    wall: Floats = np.broadcast_to(np.array(STUDIO) * ramp, (rows, columns, 3)).copy()
    return wall


GROUNDS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "asphalt": asphalt,
    "concrete": concrete,
    "cobbles": cobbles,
    "lawn": lawn,
    "studio": studio_floor,
}
WALLS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "houses": houses,
    "trees": trees,
    "brick": brick,
    "tunnel": tunnel,
    "parking": parking,
    "studio": studio_wall,
}


@lru_cache(maxsize=64)
def ground_texture(name: str, camera: str) -> Floats:
    """(GROUND_TEXELS, GROUND_TEXELS, 3) linear albedo, tiling in both directions."""
    return _frozen(GROUNDS[name](generator("ground", name, camera)))


@lru_cache(maxsize=64)
def wall_texture(name: str, camera: str) -> Floats:
    """WALL_TEXELS + (3,) linear colour; row 0 is the top."""
    return _frozen(WALLS[name](generator("wall", name, camera)))


def _frozen(texture: Floats) -> Floats:
    texture = np.ascontiguousarray(texture)
    texture.flags.writeable = False
    return texture


def _sky() -> Floats:
    rows, columns = WALL_TEXELS
    ramp = np.linspace(1.0, 1.25, rows)[:, None, None]
    sky: Floats = np.broadcast_to(np.array([0.50, 0.62, 0.80]) * ramp, (rows, columns, 3)).copy()
    return sky


def _grain(rng: np.random.Generator, colour: tuple[float, float, float], amount: float) -> Floats:
    side = GROUND_TEXELS
    fine: NDArray[np.float64] = rng.uniform(1.0 - amount, 1.0 + amount, (side, side, 1))
    coarse = np.asarray(rng.uniform(0.85, 1.15, (16, 16, 1)))
    coarse = coarse.repeat(side // 16, axis=0).repeat(side // 16, axis=1)
    texture: Floats = fine * coarse * np.array(colour)
    return texture
