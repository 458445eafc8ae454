"""A deterministic ray-caster: nearest solid, Lambert light, one shadow ray, ground and backdrop.

Compiled by numba without fast-math, so a ray gives the same bits on every run. Work goes row by
row: every kernel loops over one row of rays, so that arrays cross a call once per row, not per ray.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from ray_reid.miniature.caster_solids import FAR, enter_hull, enter_round, misses_box, normal_at
from ray_reid.miniature.shapes import HULL, Floats

# Rows of the `light` table.
SUN_DIRECTION, SUN_COLOUR, SKY_COLOUR, BOUNCE_COLOUR = range(4)
# The ground texture repeats every so many metres.
GROUND_METRES = 16.0
# The backdrop is a wall around the origin: its radius and the height of its texture, metres.
WALL_RADIUS = 18.0
WALL_HEIGHT = 9.0
# Metres by which a shadow ray leaves its surface; smaller than any glued-on skin.
LIFT = 2e-3


class World(NamedTuple):
    """All P solids of N objects, and what surrounds them.

    Attributes:
        kind: (P,) kind of each solid.
        part: (P,) part number of each solid.
        first: (P + 1,) rows of `planes` that belong to each solid.
        planes: (K, 4) see `shapes.Solid`.
        inverse: (P, 3, 4) see `shapes.Solid`.
        bounds: (P, 6) low and high corner of each solid in its object's frame.
        material: (P, 5) red, green, blue, gloss, glow.
        starts: (N + 1,) solids that belong to each object.
        placements: (N, 4) ground position in metres, cosine and sine of the yaw.
        hulls: (N, 6) low and high corner of each object in its own frame.
        light: (4, 3) unit vector to the sun, sun, sky and bounce colours.
        ground: (A, B, 3) texture, GROUND_METRES wide.
        wall: (A, B, 3) texture, WALL_HEIGHT high, once around.
        offsets: (3,) shift of the ground texture in x and y, metres, and of the wall, turns.
    """

    kind: NDArray[np.int64]
    part: NDArray[np.uint8]
    first: NDArray[np.int64]
    planes: Floats
    inverse: Floats
    bounds: Floats
    material: Floats
    starts: NDArray[np.int64]
    placements: Floats
    hulls: Floats
    light: Floats
    ground: Floats
    wall: Floats
    offsets: Floats


class Row(NamedTuple):
    """Buffers for one row of W rays: what each ray is and what it meets."""

    ray: Floats  # (W, 3) unit direction
    distance: Floats  # (W,) metres to what it meets
    solid: NDArray[np.int64]  # (W,) -1 for the ground, -2 for the backdrop
    face: NDArray[np.int64]  # (W,) plane or face of that solid
    owner: NDArray[np.int64]  # (W,) object of that solid, -1 for none
    point: Floats  # (W, 3) where it meets it
    normal: Floats  # (W, 3) outward unit normal there
    surface: Floats  # (W, 5) material there; the colour itself for the backdrop
    start: Floats  # (W, 3) where its shadow ray starts
    local: Floats  # (W, 2) the same in the frame of one object
    lit: NDArray[np.bool_]  # (W,) whether the sun reaches it


@numba.njit(cache=True)
def _aim(row: int, lens: Floats, ray: Floats) -> None:
    """Write the directions of one row of rays."""
    down = (row + 0.5 - lens[4, 2]) * lens[4, 0]
    for column in range(len(ray)):
        across = (column + 0.5 - lens[4, 1]) * lens[4, 0]
        length = np.sqrt(1.0 + across * across + down * down)
        for k in range(3):
            ray[column, k] = (lens[1, k] + across * lens[2, k] + down * lens[3, k]) / length


@numba.njit(cache=True)
def _hit(number: int, origin: Floats, screen: NDArray[np.int64], world: Any, row: Any) -> None:
    """Find the nearest solid of every ray of row `number` from `origin`."""
    row.distance[:] = FAR
    row.solid[:] = -1
    row.owner[:] = -1
    width = len(row.distance)
    for thing in range(len(world.placements)):
        x0, y0, cos, sin = world.placements[thing]
        ox = cos * (origin[0] - x0) + sin * (origin[1] - y0)
        oy = cos * (origin[1] - y0) - sin * (origin[0] - x0)
        for p in range(world.starts[thing], world.starts[thing + 1]):
            if number < screen[p, 0] or number > screen[p, 1]:
                continue
            kind, begin, end = world.kind[p], world.first[p], world.first[p + 1]
            for column in range(max(0, screen[p, 2]), min(width, screen[p, 3] + 1)):
                x, y, z = row.ray[column, 0], row.ray[column, 1], row.ray[column, 2]
                dx, dy = cos * x + sin * y, cos * y - sin * x
                if kind == HULL:
                    distance, face = enter_hull(
                        world.planes, begin, end, ox, oy, origin[2], dx, dy, z
                    )
                else:
                    distance, face = enter_round(
                        kind, world.inverse, p, ox, oy, origin[2], dx, dy, z
                    )
                if distance < row.distance[column]:
                    row.distance[column], row.face[column] = distance, face
                    row.solid[column], row.owner[column] = p, thing


@numba.njit(cache=True)
def _beyond(x: float, y: float, ray: Floats, column: int) -> bool:
    """Tell whether a ray passes the wall before the ground; a camera may stand outside it."""
    outwards = x * ray[column, 0] + y * ray[column, 1] > 0.0
    return outwards and x * x + y * y > WALL_RADIUS**2


@numba.njit(cache=True)
def _surface(origin: Floats, world: Any, row: Any) -> None:
    """Write point, normal and material of what every ray of a row meets."""
    for column in range(len(row.distance)):
        solid, thing = row.solid[column], row.owner[column]
        z = row.ray[column, 2]
        if solid < 0:
            row.distance[column] = -origin[2] / z if z < -1e-9 else FAR
        for k in range(3):
            row.point[column, k] = origin[k] + row.distance[column] * row.ray[column, k]
        if solid >= 0:
            x0, y0, cos, sin = world.placements[thing]
            px, py = row.point[column, 0] - x0, row.point[column, 1] - y0
            nx, ny, nz = normal_at(
                world.kind[solid],
                world.inverse,
                solid,
                world.planes,
                row.face[column],
                cos * px + sin * py,
                cos * py - sin * px,
                row.point[column, 2],
            )
            row.normal[column, 0] = cos * nx - sin * ny
            row.normal[column, 1] = sin * nx + cos * ny
            row.normal[column, 2] = nz
            for k in range(5):
                row.surface[column, k] = world.material[solid, k]
        elif _beyond(row.point[column, 0], row.point[column, 1], row.ray, column):
            row.solid[column] = -2
        else:
            row.normal[column, 0], row.normal[column, 1], row.normal[column, 2] = 0.0, 0.0, 1.0
            u = (row.point[column, 0] + world.offsets[0]) / GROUND_METRES
            v = (row.point[column, 1] + world.offsets[1]) / GROUND_METRES
            i = int((u - np.floor(u)) * world.ground.shape[0]) % world.ground.shape[0]
            j = int((v - np.floor(v)) * world.ground.shape[1]) % world.ground.shape[1]
            for k in range(3):
                row.surface[column, k] = world.ground[i, j, k]
            row.surface[column, 3] = row.surface[column, 4] = 0.0


@numba.njit(cache=True)
def _backdrop(origin: Floats, world: Any, row: Any) -> None:
    """Write the colour of the surrounding wall for the rays that leave the scene."""
    rows, columns = world.wall.shape[0], world.wall.shape[1]
    rest = origin[0] ** 2 + origin[1] ** 2 - WALL_RADIUS**2
    for column in range(len(row.distance)):
        if row.solid[column] != -2:
            continue
        x, y, z = row.ray[column, 0], row.ray[column, 1], row.ray[column, 2]
        square = max(x * x + y * y, 1e-12)
        mixed = origin[0] * x + origin[1] * y
        root = np.sqrt(max(0.0, mixed * mixed - square * rest))
        distance = (root - mixed) / square
        turn = np.arctan2(origin[1] + distance * y, origin[0] + distance * x) / (2.0 * np.pi)
        turn += world.offsets[2]
        across = int((turn - np.floor(turn)) * columns) % columns
        down = int((1.0 - (origin[2] + distance * z) / WALL_HEIGHT) * rows)
        down = min(max(down, 0), rows - 1)
        for k in range(3):
            row.surface[column, k] = world.wall[down, across, k]


@numba.njit(cache=True)
def _leave(light: Floats, row: Any) -> None:
    """Write where the shadow rays of a row start; surfaces that face away are dark already."""
    for column in range(len(row.distance)):
        facing = 0.0
        for k in range(3):
            facing += row.normal[column, k] * light[SUN_DIRECTION, k]
            row.start[column, k] = row.point[column, k] + LIFT * row.normal[column, k]
        row.lit[column] = facing > 0.0 and row.solid[column] != -2


@numba.njit(cache=True)
def _shadow(world: Any, row: Any) -> None:
    """Decide for every ray of a row whether the sun reaches what it meets."""
    sx, sy, dz = world.light[SUN_DIRECTION]
    waiting = np.empty(len(row.distance), dtype=np.int64)
    for thing in range(len(world.placements)):
        x0, y0, cos, sin = world.placements[thing]
        dx, dy = cos * sx + sin * sy, cos * sy - sin * sx
        # A tiny addend keeps a direction along an axis from dividing by zero.
        ix, iy, iz = 1.0 / (dx + 1e-99), 1.0 / (dy + 1e-99), 1.0 / (dz + 1e-99)
        num_waiting = 0
        for column in range(len(row.distance)):
            if not row.lit[column]:
                continue
            px, py = row.start[column, 0] - x0, row.start[column, 1] - y0
            ox, oy, oz = cos * px + sin * py, cos * py - sin * px, row.start[column, 2]
            row.local[column, 0], row.local[column, 1] = ox, oy
            if not misses_box(world.hulls, thing, ox, oy, oz, ix, iy, iz):
                waiting[num_waiting] = column
                num_waiting += 1
        for p in range(world.starts[thing], world.starts[thing + 1]):
            kind, begin, end = world.kind[p], world.first[p], world.first[p + 1]
            for w in range(num_waiting):
                column = waiting[w]
                ox, oy, oz = row.local[column, 0], row.local[column, 1], row.start[column, 2]
                if not row.lit[column] or misses_box(world.bounds, p, ox, oy, oz, ix, iy, iz):
                    continue
                if kind == HULL:
                    distance, _ = enter_hull(world.planes, begin, end, ox, oy, oz, dx, dy, dz)
                else:
                    distance, _ = enter_round(kind, world.inverse, p, ox, oy, oz, dx, dy, dz)
                row.lit[column] = distance >= FAR


@numba.njit(cache=True)
def _shade(light: Floats, row: Any, grid: int, out: Floats) -> None:
    """Add to one row of pixels the light of its rays: sun, sky, bounce and a glossy part."""
    share = 1.0 / (grid * grid)
    for column in range(len(row.distance)):
        pixel = column // grid
        if row.solid[column] == -2:
            for k in range(3):
                out[pixel, k] += share * row.surface[column, k]
            continue
        back, facing, along = 0.0, 0.0, 0.0
        for k in range(3):
            back += row.normal[column, k] * row.ray[column, k]
            facing += row.normal[column, k] * light[SUN_DIRECTION, k]
            along += row.ray[column, k] * light[SUN_DIRECTION, k]
        direct = facing if row.lit[column] else 0.0
        up = 0.5 + 0.5 * row.normal[column, 2]
        # The mirrored ray's height tells how much sky a glossy surface shows, and how near it
        # points to the sun tells the highlight.
        mirror = max(0.0, row.ray[column, 2] - 2.0 * back * row.normal[column, 2])
        shine = max(0.0, along - 2.0 * back * facing) ** 8 if row.lit[column] else 0.0
        gloss = row.surface[column, 3] * (0.35 + 0.65 * (1.0 + min(0.0, back)))
        for k in range(3):
            falling = up * light[SKY_COLOUR, k] + (1.0 - up) * light[BOUNCE_COLOUR, k]
            falling += direct * light[SUN_COLOUR, k] + row.surface[column, 4]
            glossy = 0.5 * mirror * light[SKY_COLOUR, k] + shine * light[SUN_COLOUR, k]
            out[pixel, k] += share * (row.surface[column, k] * falling + gloss * glossy)


@numba.njit(cache=True)
def cast(
    world: Any,
    screen: NDArray[np.int64],
    lens: Floats,
    shadows: bool,
    grid: int,
    height: int,
    width: int,
) -> tuple[Floats, NDArray[np.int16], NDArray[np.uint8]]:
    """Cast `grid` x `grid` rays per pixel.

    Args:
        world: A World.
        screen: (P, 4) first and last sub-row and sub-column that each solid can touch.
        lens: (5, 3) origin, forward, right, down, and (tangent per sub-pixel, principal
            sub-column, principal sub-row).
        shadows: Whether the sun casts shadows.
        grid: Rays per pixel side.
        height: Pixels.
        width: Pixels.

    Returns:
        (H, W, 3) linear light; (H * grid, W * grid) object of each ray, -1 for none; and
        the part each ray meets.
    """
    rays = width * grid
    image = np.zeros((height, width, 3))
    owners = np.empty((height * grid, rays), dtype=np.int16)
    parts = np.zeros((height * grid, rays), dtype=np.uint8)
    row = Row(
        np.empty((rays, 3)),
        np.empty(rays),
        np.empty(rays, dtype=np.int64),
        np.zeros(rays, dtype=np.int64),
        np.empty(rays, dtype=np.int64),
        np.empty((rays, 3)),
        np.zeros((rays, 3)),
        np.zeros((rays, 5)),
        np.zeros((rays, 3)),
        np.zeros((rays, 2)),
        np.empty(rays, dtype=np.bool_),
    )
    for number in range(height * grid):
        _aim(number, lens, row.ray)
        _hit(number, lens[0], screen, world, row)
        for column in range(rays):
            owners[number, column] = row.owner[column]
            if row.solid[column] >= 0:
                parts[number, column] = world.part[row.solid[column]]
        _surface(lens[0], world, row)
        _backdrop(lens[0], world, row)
        _leave(world.light, row)
        if shadows:
            _shadow(world, row)
        _shade(world.light, row, grid, image[number // grid])
    return image, owners, parts
