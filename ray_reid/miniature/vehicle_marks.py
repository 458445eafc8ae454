"""Instance marks as solids: one function per mark that adds solids, of seven values each."""

from ray_reid.miniature.paint import (
    CHROME,
    COLOURS,
    HEADLIGHT,
    RUBBER,
    TRIM,
    VEHICLE,
    Colour,
    Material,
)
from ray_reid.miniature.shapes import Solid, box, cylinder, ellipsoid, prism, upright
from ray_reid.miniature.vehicle_frame import Frame
from ray_reid.miniature.vehicles import Marks

# How far stripes and decals stand out of the body, metres.
DECAL = 0.010

# Tint of the windows by value of `Marks.glass`.
TINTS: tuple[Colour, ...] = (
    (0.030, 0.038, 0.045),
    (0.004, 0.004, 0.005),
    (0.015, 0.055, 0.150),
    (0.015, 0.105, 0.050),
    (0.130, 0.060, 0.015),
    (0.260, 0.285, 0.310),
    (0.110, 0.025, 0.110),
)
# Wheel discs by value of `Marks.wheels`.
DISCS: tuple[Colour, ...] = (
    (0.36, 0.37, 0.39),
    (0.015, 0.015, 0.016),
    (0.86, 0.86, 0.86),
    (0.62, 0.40, 0.05),
    (0.50, 0.02, 0.02),
    (0.11, 0.11, 0.12),
    (0.03, 0.10, 0.50),
)

# Worn instead on paint of nearly the same colour; no two values of one mark become alike.
STAND_INS = {
    "white": "blue",
    "black": "yellow",
    "red": "black",
    "yellow": "black",
    "green": "white",
    "blue": "white",
}


def mark_solids(marks: Marks, frame: Frame) -> list[Solid]:
    """Make the solids of every mark but the wheels and the glass, which tint what is there."""
    return [
        *roof_mark(marks.roof, frame),
        *stripe_mark(marks.stripe, frame),
        *sticker_mark(marks.sticker, frame),
        *damage_mark(marks.damage, frame),
        *rear_mark(marks.rear, frame),
    ]


def _contrast(name: str, frame: Frame, gloss: float) -> Material:
    """Paint of a named colour, or of its stand-in where the vehicle itself looks like it."""
    gaps = [
        abs(one**0.5 - two**0.5) for one, two in zip(COLOURS[name], frame.paint.colour, strict=True)
    ]
    return Material(COLOURS[name if max(gaps) > 0.26 else STAND_INS[name]], gloss)


def roof_mark(value: int, frame: Frame) -> list[Solid]:
    """Nothing, rails, cross bars, cargo box, light bar, black roof or white roof."""
    back, front, half, z = frame.roof
    length = front - back
    if value == 1:
        return [
            box((back, y - 0.04, z), (front, y + 0.04, z + 0.09), CHROME, VEHICLE)
            for y in (-half + 0.06, half - 0.06)
        ]
    if value == 2:
        places = (back + 0.2 * length, back + 0.75 * length)
        return [
            box((x - 0.06, -half, z), (x + 0.06, half, z + 0.12), TRIM, VEHICLE) for x in places
        ]
    if value == 3:
        low = (back + 0.1 * length, -0.55 * half, z)
        return [box(low, (front - 0.1 * length, 0.55 * half, z + 0.26), TRIM, VEHICLE)]
    if value == 4:
        lamp = Material(COLOURS["orange"], 0.2, 0.3)
        x = front - 0.12 * length
        return [box((x - 0.12, -0.75 * half, z), (x + 0.12, 0.75 * half, z + 0.13), lamp, VEHICLE)]
    if value in (5, 6):
        skin = _contrast("black" if value == 5 else "white", frame, 0.3)
        low, high = (back + 0.03, -half + 0.02, z - 0.02), (front - 0.03, half - 0.02, z + 0.015)
        return [box(low, high, skin, VEHICLE)]
    return []


def stripe_mark(value: int, frame: Frame) -> list[Solid]:
    """Nothing, one white, one black, twin white or twin red stripes, black or white bonnet."""
    if value == 0:
        return []
    if value in (5, 6):
        return [_bonnet_panel("black" if value == 5 else "white", frame)]
    name = {1: "white", 2: "black", 3: "white", 4: "red"}[value]
    skin = _contrast(name, frame, 0.2)
    places = ((0.0, 0.22),) if value in (1, 2) else ((-0.27, 0.11), (0.27, 0.11))
    solids = []
    for middle, wide in places:
        solids.append(prism(frame.body, upright(wide), skin, VEHICLE, DECAL, middle=middle))
        if not frame.load_box:
            grow = DECAL + 0.004
            solids.append(prism(frame.cabin, upright(wide), skin, VEHICLE, grow, middle=middle))
    return solids


def _bonnet_panel(name: str, frame: Frame) -> Solid:
    """A panel on the top of the bonnet; a bus, which has none, wears it on its face."""
    skin = _contrast(name, frame, 0.25)
    if frame.style == "bus":
        side = upright(0.55 * frame.half)
        return prism(frame.body, side, skin, VEHICLE, DECAL, ahead_of=frame.front - 0.12)
    foot = max(x for x, z in frame.cabin if z < frame.belt)
    tip, under = frame.front - 0.14, frame.nose - 0.3
    points = [(tip, frame.nose + 0.01), (foot, frame.belt), (foot - 0.3, frame.belt)]
    points += [(tip - 0.1, under), (foot - 0.3, under)]
    return prism(points, upright(0.7 * frame.half), skin, VEHICLE, DECAL, ahead_of=foot - 0.2)


def sticker_mark(value: int, frame: Frame) -> list[Solid]:
    """Nothing, disc, square, low band, two squares, high band or green disc; on both flanks."""
    back, front, low, high, half = frame.flank
    reach, middle_z = half + DECAL, (low + high) / 2.0
    tall = high - low
    if value in (1, 6):
        skin = _contrast("white" if value == 1 else "green", frame, 0.1)
        x = 0.3 * front + 0.7 * back if value == 1 else 0.75 * front + 0.25 * back
        return [cylinder((x, -reach, middle_z), (x, reach, middle_z), 0.42 * tall, skin, VEHICLE)]
    if value in (3, 5):
        skin = _contrast("red" if value == 3 else "black", frame, 0.1)
        z = low + (0.12 if value == 3 else 0.72) * tall
        left, right = frame.back + 0.10, frame.front - 0.12
        if value == 5:
            # Above the bonnet a high band would show as a slab.
            right = max(x for x, z in frame.cabin if z < frame.belt) - 0.02
        if frame.load_box:
            left, right = back, front
        return [box((left, -reach, z), (right, reach, z + 0.22 * tall), skin, VEHICLE)]
    if value in (2, 4):
        skin = _contrast("yellow" if value == 2 else "blue", frame, 0.1)
        wide = 0.9 * tall
        places = (0.25 * back + 0.75 * front,) if value == 2 else (back + wide, front - wide)
        z = middle_z - 0.4 * tall
        return [
            box((x - wide / 2, -reach, z), (x + wide / 2, reach, z + 0.8 * tall), skin, VEHICLE)
            for x in places
        ]
    return []


def damage_mark(value: int, frame: Frame) -> list[Solid]:
    """Nothing, or a scrape down to the primer at one of six places: wing, door, rear; per side."""
    if value == 0:
        return []
    place, sign = (value - 1) // 2, 1.0 if value % 2 else -1.0
    x = (frame.axles[1] + 0.05, 0.0, frame.axles[0] - 0.05)[place]
    z = frame.wheel * 2.0 + 0.10 if place != 1 else (frame.base + frame.belt) / 2.0
    bright = sum(frame.paint.colour) > 0.45
    primer = Material((0.045, 0.040, 0.038) if bright else (0.42, 0.38, 0.34))
    centre = (x, sign * frame.half, min(z, frame.belt - 0.16))
    return [ellipsoid(centre, (0.42, 0.03, 0.16), primer, VEHICLE)]


def rear_mark(value: int, frame: Frame) -> list[Solid]:
    """Nothing, spare wheel, wing, white or yellow label, black panel or ladder on the tail."""
    low, high, half = frame.stern
    x, tall = frame.back, high - low
    z = low + 0.55 * tall
    if value == 1:
        radius = min(0.33, 0.5 * tall)
        disc = Material(COLOURS["silver"], 0.3)
        return [
            cylinder((x - 0.20, 0.0, z), (x, 0.0, z), radius, RUBBER, VEHICLE),
            cylinder((x - 0.22, 0.0, z), (x, 0.0, z), 0.5 * radius, disc, VEHICLE),
        ]
    if value == 2:
        top = max(frame.tail, high) + 0.16
        wing = box((x - 0.05, -half, top), (x + 0.30, half, top + 0.06), TRIM, VEHICLE)
        feet = [
            box((x + 0.05, y - 0.04, high - 0.1), (x + 0.15, y + 0.04, top), TRIM, VEHICLE)
            for y in (-0.6 * half, 0.6 * half)
        ]
        return [wing, *feet]
    if value in (3, 4):
        skin = _contrast("white" if value == 3 else "yellow", frame, 0.1)
        sign = 1.0 if value == 3 else -1.0
        ends = sorted((sign * 0.25 * half, sign * 0.75 * half))
        near, far = (x - 0.02, ends[0], low + 0.45 * tall), (x + 0.05, ends[1], low + 0.9 * tall)
        return [box(near, far, skin, VEHICLE)]
    if value == 5:
        near, far = (x - 0.015, -0.8 * half, low + 0.3 * tall), (x + 0.05, 0.8 * half, high - 0.02)
        return [box(near, far, TRIM, VEHICLE)]
    if value == 6:
        lamp = Material(HEADLIGHT.colour, 0.2, 0.05)
        z = low + 0.2 * tall
        return [box((x - 0.10, -0.9 * half, z), (x, 0.9 * half, z + 0.09), lamp, VEHICLE)]
    return []
