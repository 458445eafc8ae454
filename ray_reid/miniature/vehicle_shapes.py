"""From a vehicle's attributes to its solids: body, cabin, glass, wheels, face and tail."""

from functools import lru_cache

from ray_reid.miniature.paint import (
    CHROME,
    COLOURS,
    HEADLIGHT,
    RUBBER,
    TAILLIGHT,
    TRIM,
    VEHICLE,
    Material,
)
from ray_reid.miniature.shapes import Packed, Solid, box, cylinder, ellipsoid, pack, prism, upright
from ray_reid.miniature.vehicle_frame import Frame, vehicle_frame
from ray_reid.miniature.vehicle_marks import DISCS, TINTS, mark_solids
from ray_reid.miniature.vehicle_models import BRANDS
from ray_reid.miniature.vehicles import Vehicle

# How far a window stands out of the cabin, metres.
PANE = 0.012


@lru_cache(maxsize=4096)
def vehicle_solids(vehicle: Vehicle) -> Packed:
    """Pack the solids of a vehicle: x forward, its middle above the origin."""
    frame = vehicle_frame(vehicle)
    solids = [*_body(frame), *_glass(vehicle, frame), *_wheels(vehicle, frame)]
    solids += [*_face(vehicle, frame), *_tail(vehicle, frame), *_trim(frame)]
    return pack([*solids, *mark_solids(vehicle.marks, frame)])


def _body(frame: Frame) -> list[Solid]:
    solids = [
        prism(frame.body, upright(frame.half), frame.paint, VEHICLE),
        prism(frame.cabin, frame.side, frame.paint, VEHICLE),
    ]
    cab_end = min(x for x, _ in frame.cabin)
    half, back = frame.half, frame.back
    if frame.load_box:
        low, high = frame.stern[0], frame.stern[1]
        solids.append(box((back, -half, low), (cab_end - 0.15, half, high), frame.paint, VEHICLE))
        chassis = (back + 0.1, -0.7 * half, frame.base), (cab_end + 0.1, 0.7 * half, low)
        solids.append(box(*chassis, TRIM, VEHICLE))
    if frame.open_bed:
        floor = frame.base + 0.30
        solids.append(box((back, -half, frame.base), (cab_end, half, floor), frame.paint, VEHICLE))
        lining = (back + 0.05, 0.05 - half, floor), (cab_end, half - 0.05, floor + 0.01)
        solids.append(box(*lining, TRIM, VEHICLE))
        for low_y, high_y in ((-half, 0.07 - half), (half - 0.07, half)):
            wall = (back, low_y, floor), (cab_end, high_y, frame.tail)
            solids.append(box(*wall, frame.paint, VEHICLE))
        gate = (back, -half, floor), (back + 0.07, half, frame.tail)
        solids.append(box(*gate, frame.paint, VEHICLE))
    return solids


def _glass(vehicle: Vehicle, frame: Frame) -> list[Solid]:
    tint = Material(TINTS[vehicle.marks.glass], 0.5)
    low, high = frame.belt + 0.05, frame.height - (0.10 if frame.style != "bus" else 0.75)
    rear_foot, front_foot, roof_front, roof_rear = (x for x, _ in frame.cabin)
    rise = frame.height - frame.belt
    solids = []
    for first, last in frame.panes:
        # A pane follows the pillars: its upper corners stay behind the windscreen and before
        # the rear window.
        share = (high - frame.belt) / rise
        ahead = front_foot + share * (roof_front - front_foot) - 0.08
        behind = rear_foot + share * (roof_rear - rear_foot) + 0.08
        upper = max(first, behind), min(last, ahead)
        outline = ((first, low), (last, low), (upper[1], high), (upper[0], high))
        solids.append(prism(outline, frame.side.grown(PANE), tint, VEHICLE))
    inset = frame.side.grown(-0.10)
    foot, top = frame.belt + 0.06, frame.height - 0.09
    middle = (roof_front + roof_rear) / 2.0
    back_window = frame.style not in ("van", "truck")
    for keep, start, end in ((True, front_foot, roof_front), (back_window, rear_foot, roof_rear)):
        if not keep:
            continue
        lean = (end - start) / rise
        x_low, x_high = start + lean * (foot - frame.belt), start + lean * (top - frame.belt)
        outline = ((middle, foot), (middle, top), (x_low, foot), (x_high, top))
        solids.append(prism(outline, inset, tint, VEHICLE, PANE))
    return solids


def _wheels(vehicle: Vehicle, frame: Frame) -> list[Solid]:
    disc = Material(DISCS[vehicle.marks.wheels], 0.3)
    radius, half = frame.wheel, frame.half
    share = {2004: 0.55, 2011: 0.62, 2017: 0.70, 2023: 0.74}[frame.year]
    solids = []
    for x in frame.axles:
        for sign in (-1.0, 1.0):
            inner, outer = sign * (half - 0.22), sign * (half + 0.02)
            tyre = (x, inner, radius), (x, outer, radius)
            solids.append(cylinder(*tyre, radius, RUBBER, VEHICLE))
            rim = (x, inner, radius), (x, outer + sign * 0.015, radius)
            solids.append(cylinder(*rim, share * radius, disc, VEHICLE))
    return solids


def _face(vehicle: Vehicle, frame: Frame) -> list[Solid]:
    """Lamps, grille, front plate and front bumper: brand and year make them."""
    brand = BRANDS[vehicle.model.brand]
    front, half = frame.front, frame.half
    low, high = frame.base + 0.12, frame.base + 0.6 * (frame.nose - frame.base)
    lamp_z = high - 0.04
    solids = []
    for sign in (-1.0, 1.0):
        y = sign * (half - 0.24)
        if brand.lamps == "round":
            centre = (front - 0.03, y, lamp_z)
            solids.append(ellipsoid(centre, (0.06, 0.15, 0.13), HEADLIGHT, VEHICLE))
            continue
        wide, tall = (0.19, 0.10) if brand.lamps == "square" else (0.24, 0.055)
        near, far = (front - 0.3, y - wide, lamp_z - tall), (front + 0.015, y + wide, lamp_z + tall)
        solids.append(box(near, far, HEADLIGHT, VEHICLE))
    if frame.year == 2023:
        near, far = (
            (front - 0.1, 0.1 - half, lamp_z - 0.03),
            (front + 0.02, half - 0.1, lamp_z + 0.03),
        )
        solids.append(box(near, far, HEADLIGHT, VEHICLE))
    grille = CHROME if brand.chrome else TRIM
    wide, bottom, top = {
        "wide": (0.55, low + 0.12, high),
        "tall": (0.28, low + 0.02, high + 0.06),
        "split": (0.50, low + 0.05, low + 0.12),
        "none": (0.0, 0.0, 0.0),
    }[brand.grille]
    if wide:
        near, far = (front - 0.2, -wide * half, bottom), (front + 0.012, wide * half, top)
        solids.append(box(near, far, grille, VEHICLE))
    plate = Material(COLOURS[vehicle.plate], 0.0, 0.05)
    solids.append(box((front - 0.1, -0.27, low), (front + 0.03, 0.27, low + 0.13), plate, VEHICLE))
    return [*solids, *_bumper(frame, front - 0.25, front + 0.008)]


def _tail(vehicle: Vehicle, frame: Frame) -> list[Solid]:
    """Rear lamps, rear plate and rear bumper."""
    back, half = frame.back, frame.half
    high = frame.tail if frame.style not in ("van", "bus") else frame.belt
    lamp_z = high - 0.16
    solids = []
    for sign in (-1.0, 1.0):
        tall = 0.11 if frame.year < 2017 else 0.07
        wide = (half - 0.30, half + 0.006) if frame.year != 2004 else (half - 0.18, half + 0.006)
        ends = sorted((sign * wide[0], sign * wide[1]))
        near, far = (back - 0.012, ends[0], lamp_z - tall), (back + 0.12, ends[1], lamp_z + tall)
        solids.append(box(near, far, TAILLIGHT, VEHICLE))
    if frame.year == 2023:
        near, far = (back - 0.018, -half, lamp_z - 0.03), (back + 0.1, half, lamp_z + 0.03)
        solids.append(box(near, far, TAILLIGHT, VEHICLE))
    plate = Material(COLOURS[vehicle.plate], 0.0, 0.05)
    z = frame.base + 0.22
    solids.append(box((back - 0.03, -0.27, z), (back + 0.1, 0.27, z + 0.14), plate, VEHICLE))
    return [*solids, *_bumper(frame, back - 0.008, back + 0.25)]


def _bumper(frame: Frame, near_x: float, far_x: float) -> list[Solid]:
    """Bumpers are bare plastic on the oldest vehicles and have a dark lip on the others."""
    tall = 0.24 if frame.year == 2004 else 0.09
    half = frame.half + 0.008
    low, high = (near_x, -half, frame.base), (far_x, half, frame.base + 0.05 + tall)
    return [box(low, high, TRIM, VEHICLE)]


def _trim(frame: Frame) -> list[Solid]:
    """Sills, mirrors, and from 2017 a bright line under the windows."""
    rear, front = frame.axles
    reach = frame.half + 0.006
    solids = []
    sill = 0.16 if frame.style in ("SUV", "pickup") else 0.06
    if not frame.load_box:
        low, high = (rear, -reach, frame.base), (front, reach, frame.base + sill)
        solids.append(box(low, high, TRIM, VEHICLE))
    foot = max(x for x, z in frame.cabin if z < frame.belt)
    for sign in (-1.0, 1.0):
        ends = sorted((sign * (frame.half - 0.06), sign * (frame.half + 0.16)))
        low = (foot - 0.38, ends[0], frame.belt + 0.02)
        high = (foot - 0.22, ends[1], frame.belt + 0.18)
        solids.append(box(low, high, frame.paint, VEHICLE))
    if frame.year >= 2017:
        first, last = frame.panes[0][0], frame.panes[-1][1]
        near, far = (first, -reach, frame.belt - 0.05), (last, reach, frame.belt - 0.005)
        solids.append(box(near, far, CHROME, VEHICLE))
    return solids
