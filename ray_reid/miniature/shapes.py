"""Solids (convex hulls, ellipsoids, cylinders) and their packed arrays for the caster.

Object frame, metres: x forward, y to the object's left, z up, the ground at z = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_reid.miniature.paint import Material

Floats = NDArray[np.float64]
Point = tuple[float, float, float]
Profile = Sequence[tuple[float, float]]

HULL, ELLIPSOID, CYLINDER = range(3)


@dataclass(frozen=True, eq=False)
class Solid:
    """One convex body.

    Attributes:
        kind: HULL, ELLIPSOID or CYLINDER.
        planes: (K, 4) outward unit normals and offsets, inside where n . p <= d; hulls only.
        inverse: (3, 4) affine map from the object frame to the unit sphere, or to the unit
            cylinder around z between -1 and 1.
        low: (3,) lowest corner of an enclosing box.
        high: (3,) highest corner of that box.
        material: Its surface.
        part: One of the part numbers in `paint`.
    """

    kind: int
    planes: Floats
    inverse: Floats
    low: Floats
    high: Floats
    material: Material
    part: int


class Packed(NamedTuple):
    """The P solids of one object as arrays, the form that the numba kernels read."""

    kind: NDArray[np.int64]  # (P,)
    part: NDArray[np.uint8]  # (P,)
    first: NDArray[np.int64]  # (P + 1,) rows of `planes` that belong to each solid
    planes: Floats  # (K, 4)
    inverse: Floats  # (P, 3, 4)
    bounds: Floats  # (P, 6) low then high corner
    material: Floats  # (P, 5) red, green, blue, gloss, glow


class Flank(NamedTuple):
    """Half-width of a prism as a line in z: `low_y` at `low_z`, `high_y` at `high_z`."""

    low_z: float
    low_y: float
    high_z: float
    high_y: float

    def grown(self, by: float) -> "Flank":
        """Move both sides outwards by `by` metres."""
        return self._replace(low_y=self.low_y + by, high_y=self.high_y + by)

    def at(self, z: float) -> float:
        """Half-width in metres at height `z`."""
        slope = (self.high_y - self.low_y) / (self.high_z - self.low_z)
        return self.low_y + slope * (z - self.low_z)


def upright(half_width: float) -> Flank:
    """Vertical sides at y = +-`half_width`."""
    return Flank(0.0, half_width, 1.0, half_width)


def prism(
    profile: Profile,
    side: Flank,
    material: Material,
    part: int,
    grow: float = 0.0,
    ahead_of: float | None = None,
    middle: float = 0.0,
) -> Solid:
    """Extrude a side view across the object.

    Args:
        profile: Points (x, z) whose convex hull is the side view; their order is free.
        side: Half-width of the extrusion.
        material: Its surface.
        part: Its part number.
        grow: Metres by which every face of the profile moves outwards; skins glued on a body
            are the body's own profile, grown.
        ahead_of: Keep only x above this value.
        middle: y of the plane of symmetry.
    """
    corners = np.asarray(_convex(profile), dtype=np.float64)
    edges = np.roll(corners, -1, axis=0) - corners
    lengths = np.hypot(edges[:, 0], edges[:, 1])
    rows = []
    for (x, z), (dx, dz), length in zip(corners, edges, lengths, strict=True):
        normal_x, normal_z = dz / length, -dx / length
        rows.append((normal_x, 0.0, normal_z, normal_x * x + normal_z * z + grow))
    slope = (side.high_y - side.low_y) / (side.high_z - side.low_z)
    norm = float(np.sqrt(1.0 + slope * slope))
    offset = (side.low_y - slope * side.low_z) / norm
    rows.extend(
        (0.0, sign / norm, -slope / norm, offset + sign * middle / norm) for sign in (1.0, -1.0)
    )
    low_x, high_x = corners[:, 0].min() - grow, corners[:, 0].max() + grow
    if ahead_of is not None:
        rows.append((-1.0, 0.0, 0.0, -ahead_of))
        low_x = max(low_x, ahead_of)
    low_z, high_z = corners[:, 1].min() - grow, corners[:, 1].max() + grow
    half = max(side.at(low_z), side.at(high_z))
    return _hull(
        rows, (low_x, middle - half, low_z), (high_x, middle + half, high_z), material, part
    )


def box(low: Point, high: Point, material: Material, part: int) -> Solid:
    """Axis-aligned box between two corners."""
    rows = []
    for axis in range(3):
        normal = [0.0, 0.0, 0.0]
        normal[axis] = 1.0
        rows.append((*normal, high[axis]))
        normal[axis] = -1.0
        rows.append((*normal, -low[axis]))
    return _hull(rows, low, high, material, part)


def frustum(
    centre: tuple[float, float],
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    material: Material,
    part: int,
    sides: int = 10,
) -> Solid:
    """Upright tapered column with an oval cross-section, as a hull of tangent planes.

    Args:
        centre: (x, y) of its axis.
        low: (z, radius along x, radius along y) of the lower end.
        high: The same of the upper end.
        material: Its surface.
        part: Its part number.
        sides: Number of vertical faces.
    """
    x, y = centre
    rows = [(0.0, 0.0, 1.0, high[0]), (0.0, 0.0, -1.0, -low[0])]
    for angle in 2.0 * np.pi * (np.arange(sides) + 0.5) / sides:
        along, across = float(np.cos(angle)), float(np.sin(angle))
        support = [float(np.hypot(end[1] * along, end[2] * across)) for end in (low, high)]
        slope = (support[1] - support[0]) / (high[0] - low[0])
        norm = float(np.sqrt(1.0 + slope * slope))
        offset = support[0] - slope * low[0] + along * x + across * y
        rows.append((along / norm, across / norm, -slope / norm, offset / norm))
    # Tangent planes stand a little outside the oval at the corners between them.
    reach = 1.0 / float(np.cos(np.pi / sides))
    wide_x, wide_y = max(low[1], high[1]) * reach, max(low[2], high[2]) * reach
    corner_low, corner_high = (x - wide_x, y - wide_y, low[0]), (x + wide_x, y + wide_y, high[0])
    return _hull(rows, corner_low, corner_high, material, part)


def ellipsoid(centre: Point, radii: Point, material: Material, part: int) -> Solid:
    """Axis-aligned ellipsoid."""
    middle, size = np.asarray(centre), np.asarray(radii)
    inverse = np.concatenate([np.diag(1.0 / size), (-middle / size)[:, None]], axis=1)
    return Solid(ELLIPSOID, _NO_PLANES, inverse, middle - size, middle + size, material, part)


def cylinder(start: Point, end: Point, radius: float, material: Material, part: int) -> Solid:
    """Round bar with flat ends between two points."""
    low, high = np.asarray(start), np.asarray(end)
    half = (high - low) / 2.0
    length = float(np.sqrt(half @ half))
    axis = half / length
    helper = np.eye(3)[int(np.argmin(np.abs(axis)))]
    side = np.cross(axis, helper)
    side /= np.sqrt(side @ side)
    rotation = np.stack([side / radius, np.cross(axis, side) / radius, axis / length])
    middle = (low + high) / 2.0
    inverse = np.concatenate([rotation, -(rotation @ middle)[:, None]], axis=1)
    # A disc of this radius facing `axis` reaches radius * sqrt(1 - axis_i^2) along axis i.
    margin = radius * np.sqrt(np.maximum(0.0, 1.0 - axis * axis))
    corners = np.minimum(low, high) - margin, np.maximum(low, high) + margin
    return Solid(CYLINDER, _NO_PLANES, inverse, *corners, material, part)


def pack(solids: Sequence[Solid]) -> Packed:
    """Lay solids out in arrays."""
    counts = [len(solid.planes) for solid in solids]
    return Packed(
        kind=np.array([solid.kind for solid in solids], dtype=np.int64),
        part=np.array([solid.part for solid in solids], dtype=np.uint8),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        planes=np.concatenate([_NO_PLANES, *(solid.planes for solid in solids)]),
        inverse=np.array([solid.inverse for solid in solids]),
        bounds=np.array([np.concatenate([solid.low, solid.high]) for solid in solids]),
        material=np.array(
            [(*solid.material.colour, *solid.material[1:]) for solid in solids], dtype=np.float64
        ),
    )


_NO_PLANES: Floats = np.zeros((0, 4))
_NO_INVERSE: Floats = np.zeros((3, 4))


def _convex(points: Profile) -> list[tuple[float, float]]:
    """Return the corners of the convex hull, counter-clockwise with z up (monotone chain)."""
    ordered = sorted(set(points))
    corners: list[tuple[float, float]] = []
    for line in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for x, z in line:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], (x, z)) <= 1e-9:
                chain.pop()
            chain.append((x, z))
        corners += chain[:-1]
    return corners


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _hull(
    rows: Sequence[tuple[float, ...]], low: Point, high: Point, material: Material, part: int
) -> Solid:
    planes = np.array(rows, dtype=np.float64)
    return Solid(HULL, planes, _NO_INVERSE, np.array(low), np.array(high), material, part)
