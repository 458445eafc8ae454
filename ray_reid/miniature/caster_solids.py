"""Where one ray meets one solid: the innermost kernels of the caster.

Rays are passed as six numbers (ox, oy, oz, dx, dy, dz: origin and direction in the object's frame),
because small arrays would cost numba a reference count for each ray.
"""

import numba
import numpy as np

from ray_reid.miniature.shapes import CYLINDER, ELLIPSOID, HULL, Floats

# A distance that means "never", metres.
FAR = 1e9


@numba.njit(cache=True)
def enter_hull(
    planes: Floats,
    begin: int,
    end: int,
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
) -> tuple[float, int]:
    """Return where a ray enters planes `begin` to `end` and through which; FAR if it does not.

    A ray that starts inside does not enter.
    """
    near, far, face = 0.0, FAR, -1
    for k in range(begin, end):
        along = planes[k, 0] * dx + planes[k, 1] * dy + planes[k, 2] * dz
        room = planes[k, 3] - planes[k, 0] * ox - planes[k, 1] * oy - planes[k, 2] * oz
        if along < 0.0:
            if room < near * along:
                near, face = room / along, k
        elif along > 0.0:
            if room < far * along:
                far = room / along
        elif room < 0.0:
            return FAR, -1
        if near > far:
            return FAR, -1
    if face < 0:
        return FAR, -1
    return near, face


@numba.njit(cache=True)
def enter_round(
    kind: int,
    inverse: Floats,
    p: int,
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
) -> tuple[float, int]:
    """Return where a ray enters ellipsoid or cylinder `p`; face 1 is a cylinder's flat end."""
    m = inverse
    x = m[p, 0, 0] * ox + m[p, 0, 1] * oy + m[p, 0, 2] * oz + m[p, 0, 3]
    y = m[p, 1, 0] * ox + m[p, 1, 1] * oy + m[p, 1, 2] * oz + m[p, 1, 3]
    z = m[p, 2, 0] * ox + m[p, 2, 1] * oy + m[p, 2, 2] * oz + m[p, 2, 3]
    u = m[p, 0, 0] * dx + m[p, 0, 1] * dy + m[p, 0, 2] * dz
    v = m[p, 1, 0] * dx + m[p, 1, 1] * dy + m[p, 1, 2] * dz
    w = m[p, 2, 0] * dx + m[p, 2, 1] * dy + m[p, 2, 2] * dz
    square, mixed, rest = u * u + v * v, x * u + y * v, x * x + y * y - 1.0
    if kind == ELLIPSOID:
        square, mixed, rest = square + w * w, mixed + z * w, rest + z * z
    inside = mixed * mixed - square * rest
    if inside <= 0.0 or square < 1e-14:
        return FAR, 0
    root = np.sqrt(inside)
    near, far, face = (-mixed - root) / square, (-mixed + root) / square, 0
    if kind == CYLINDER:
        if w == 0.0:
            if abs(z) > 1.0:
                return FAR, 0
        else:
            one, two = (-1.0 - z) / w, (1.0 - z) / w
            if min(one, two) > near:
                near, face = min(one, two), 1
            far = min(far, max(one, two))
    if near > far or near <= 0.0:
        return FAR, 0
    return near, face


@numba.njit(cache=True)
def normal_at(
    kind: int,
    inverse: Floats,
    p: int,
    planes: Floats,
    face: int,
    x: float,
    y: float,
    z: float,
) -> tuple[float, float, float]:
    """Return the outward unit normal of solid `p` at a point on its face."""
    if kind == HULL:
        return planes[face, 0], planes[face, 1], planes[face, 2]
    nx, ny, nz = 0.0, 0.0, 0.0
    for row in range(3):
        # A cylinder's wall knows no axial part, its end nothing else.
        if kind == CYLINDER and (row == 2) != (face == 1):
            continue
        value = inverse[p, row, 3]
        value += inverse[p, row, 0] * x + inverse[p, row, 1] * y + inverse[p, row, 2] * z
        nx += inverse[p, row, 0] * value
        ny += inverse[p, row, 1] * value
        nz += inverse[p, row, 2] * value
    length = np.sqrt(nx * nx + ny * ny + nz * nz)
    return nx / length, ny / length, nz / length


@numba.njit(cache=True)
def misses_box(
    bounds: Floats,
    p: int,
    ox: float,
    oy: float,
    oz: float,
    ix: float,
    iy: float,
    iz: float,
) -> bool:
    """Tell whether a ray misses box `p` (low then high corner); `i*` are inverse directions."""
    one, two = (bounds[p, 0] - ox) * ix, (bounds[p, 3] - ox) * ix
    near, far = max(0.0, min(one, two)), max(one, two)
    one, two = (bounds[p, 1] - oy) * iy, (bounds[p, 4] - oy) * iy
    near, far = max(near, min(one, two)), min(far, max(one, two))
    one, two = (bounds[p, 2] - oz) * iz, (bounds[p, 5] - oz) * iz
    near, far = max(near, min(one, two)), min(far, max(one, two))
    missed: bool = near > far
    return missed
