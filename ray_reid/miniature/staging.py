"""Place objects in front of a camera, aim it, cast the rays, and develop the picture."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_reid import images
from ray_reid.miniature.backgrounds import ground_texture, wall_texture
from ray_reid.miniature.cameras import Camera
from ray_reid.miniature.caster import GROUND_METRES, World, cast
from ray_reid.miniature.shapes import Floats, Packed

Number = TypeVar("Number", bound=np.generic)

# Rays per pixel side.
GRID = 2


class Placed(NamedTuple):
    """An object in the world: its solids, ground position in metres, and yaw in radians."""

    solids: Packed
    x: float
    y: float
    yaw: float


class Lens(NamedTuple):
    """A pinhole camera.

    Attributes:
        origin: (3,) position in metres.
        axes: (3, 3) rows: unit vectors forward, right and down.
        tangent: Width of a pixel at unit distance.
        centre: Pixel column and row that the forward axis meets.
    """

    origin: Floats
    axes: Floats
    tangent: float
    centre: tuple[float, float]


class Traced(NamedTuple):
    """What the rays found.

    Attributes:
        light: (H, W, 3) linear light.
        owners: (H, W, GRID * GRID) index of the object that each ray meets, -1 for none.
        parts: (H, W, GRID * GRID) part of the object that each ray meets.
    """

    light: Floats
    owners: NDArray[np.int16]
    parts: NDArray[np.uint8]


def look(target: Floats, distance: float, pitch: float) -> tuple[Floats, Floats]:
    """Aim along +x of the world at a point, from `distance` metres, `pitch` degrees down.

    Returns:
        (3,) origin and (3, 3) forward, right and down axes.
    """
    tilt = np.radians(pitch)
    level, drop = float(np.cos(tilt)), float(np.sin(tilt))
    axes = np.array([[level, 0.0, -drop], [0.0, -1.0, 0.0], [-drop, 0.0, -level]])
    return target - distance * axes[0], axes


def corners(placed: Placed) -> Floats:
    """(P, 8, 3) world corners of the boxes around an object's solids."""
    bounds = placed.solids.bounds
    pick = np.array([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)]) * 3 + np.arange(3)
    points = bounds[:, pick]
    cos, sin = np.cos(placed.yaw), np.sin(placed.yaw)
    x = placed.x + cos * points[..., 0] - sin * points[..., 1]
    y = placed.y + sin * points[..., 0] + cos * points[..., 1]
    return np.stack([x, y, points[..., 2]], axis=-1)


def project(points: Floats, origin: Floats, axes: Floats) -> tuple[Floats, Floats]:
    """Return (..., 2) tangents across and down, and (...) depths in metres, of world points."""
    turned = (points - origin) @ axes.T
    depth = turned[..., 0]
    return turned[..., 1:] / np.maximum(depth, 0.05)[..., None], depth


def trace(
    objects: Sequence[Placed],
    lens: Lens,
    camera: Camera,
    offsets: Floats,
    size: tuple[int, int],
    shadows: bool = True,
) -> Traced:
    """Cast the rays of one picture.

    Args:
        objects: What stands in the world.
        lens: The pinhole.
        camera: Gives light, ground and wall.
        offsets: (3,) shift of the ground in x and y, metres, and of the wall, turns.
        size: Height and width in pixels.
        shadows: Whether the sun casts shadows.
    """
    height, width = size
    table = np.zeros((5, 3))
    table[0], table[1:4] = lens.origin, lens.axes
    table[4] = lens.tangent / GRID, lens.centre[0] * GRID, lens.centre[1] * GRID
    world = _world(objects, camera, offsets)
    screen = screen_bounds(objects, lens, size)
    light, owners, parts = cast(world, screen, table, shadows, GRID, height, width)
    return Traced(light, _by_pixel(owners), _by_pixel(parts))


def extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return left, top, exclusive right and exclusive bottom of the True pixels, or None."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def develop(light: Floats, camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn linear light into (H, W, 3) 8-bit RGB with the camera's noise."""
    # The transfer curve is a square root because IEEE 754 fixes its every bit, unlike a power.
    levels = 255.0 * np.sqrt(np.minimum(light, 1.0))
    if camera.noise:
        levels += camera.noise * rng.standard_normal(levels.shape)
    developed: NDArray[np.uint8] = np.clip(levels + 0.5, 0.0, 255.0).astype(np.uint8)
    return developed


def to_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encode RGB as JPEG."""
    return images.encode(image, quality)


def background_shift(rng: np.random.Generator) -> Floats:
    """Draw the offsets that put an object at another place of the same street."""
    along = float(rng.uniform(0.0, GROUND_METRES))
    return np.array([along, float(rng.uniform(-1.0, 1.0)), float(rng.uniform(-0.12, 0.12))])


def _world(objects: Sequence[Placed], camera: Camera, offsets: Floats) -> World:
    solids = [item.solids for item in objects]
    counts = [len(one.kind) for one in solids]
    planes = np.cumsum([0, *(len(one.planes) for one in solids)])
    firsts = [one.first[1:] + move for one, move in zip(solids, planes[:-1], strict=True)]
    boxes = [(one.bounds[:, :3].min(axis=0), one.bounds[:, 3:].max(axis=0)) for one in solids]
    return World(
        kind=np.concatenate([one.kind for one in solids]),
        part=np.concatenate([one.part for one in solids]),
        first=np.concatenate([_ZERO, *firsts]),
        planes=np.concatenate([one.planes for one in solids]),
        inverse=np.concatenate([one.inverse for one in solids]),
        bounds=np.concatenate([one.bounds for one in solids]),
        material=np.concatenate([one.material for one in solids]),
        starts=np.cumsum([0, *counts]),
        placements=np.array([[o.x, o.y, np.cos(o.yaw), np.sin(o.yaw)] for o in objects]),
        hulls=np.array([np.concatenate(pair) for pair in boxes]),
        light=camera.light(),
        ground=ground_texture(camera.ground, camera.name or ""),
        wall=wall_texture(camera.wall, camera.name or ""),
        offsets=offsets,
    )


_ZERO = np.zeros(1, dtype=np.int64)


def screen_bounds(
    objects: Sequence[Placed], lens: Lens, size: tuple[int, int]
) -> NDArray[np.int64]:
    """(P, 4) first and last sub-row, first and last sub-column that each solid can touch."""
    height, width = size[0] * GRID, size[1] * GRID
    flat, depth = project(np.concatenate([corners(o) for o in objects]), lens.origin, lens.axes)
    flat = np.clip(flat / lens.tangent, -1e6, 1e6) + np.array(lens.centre)
    low = np.floor(flat.min(axis=1) * GRID).astype(np.int64) - 1
    high = np.ceil(flat.max(axis=1) * GRID).astype(np.int64) + 1
    screen = np.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], axis=1)
    # A box that reaches behind the lens has no bounded projection.
    screen[depth.min(axis=1) < 0.06] = (0, height, 0, width)
    return screen


def _by_pixel(rays: NDArray[Number]) -> NDArray[Number]:
    height, width = rays.shape[0] // GRID, rays.shape[1] // GRID
    split = rays.reshape(height, GRID, width, GRID).transpose(0, 2, 1, 3)
    return split.reshape(height, width, GRID * GRID)
