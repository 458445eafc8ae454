"""From a person, an outfit and a moment of the stride to solids."""

from functools import lru_cache

import numpy as np

from ray_reid.miniature.paint import (
    ACCESSORY,
    COLOURS,
    FOOTWEAR,
    HAIR,
    LOWER,
    SKIN,
    UPPER,
    Colour,
    Material,
    shaded,
)
from ray_reid.miniature.pedestrians import Outfit, Pedestrian
from ray_reid.miniature.shapes import Packed, Point, Solid, box, cylinder, ellipsoid, frustum, pack

SKINS: tuple[Colour, ...] = (
    (0.72, 0.46, 0.34),
    (0.55, 0.33, 0.21),
    (0.36, 0.19, 0.10),
    (0.19, 0.090, 0.045),
    (0.075, 0.034, 0.018),
)
HAIRS: dict[str, Colour] = {
    "black": (0.010, 0.009, 0.009),
    "brown": (0.085, 0.036, 0.014),
    "blond": (0.62, 0.42, 0.12),
    "grey": (0.38, 0.38, 0.39),
    "red": (0.42, 0.085, 0.015),
}
# Moments of a stride that are told apart.
NUM_PHASES = 8


class _Body:
    """Heights and widths of one person, in metres; a plain table of measures."""

    def __init__(self, person: Pedestrian, phase: int) -> None:
        woman = person.gender == "woman"
        self.tall = (1.56, 1.63, 1.70, 1.77, 1.84)[person.height] + (0.0 if woman else 0.06)
        self.girth = (0.82, 0.94, 1.08, 1.26, 1.48)[person.girth]
        self.hip = 0.47 * self.tall * person.legs
        self.shoulder = 0.825 * self.tall
        self.head = 0.122 * 1.72
        self.shoulders = 0.185 * (0.86 if woman else 1.08) * (0.75 + 0.25 * self.girth)
        self.waist = 0.125 * self.girth * (0.88 if woman else 1.02)
        self.hips = 0.145 * (1.12 if woman else 0.95) * (0.55 + 0.45 * self.girth)
        self.depth = 0.105 * self.girth
        self.leg = 0.078 * (0.6 + 0.4 * self.girth)
        self.arm = 0.047 * (0.6 + 0.4 * self.girth)
        self.swing = float(np.sin(2.0 * np.pi * phase / NUM_PHASES))


@lru_cache(maxsize=4096)
def pedestrian_solids(person: Pedestrian, outfit: Outfit, phase: int) -> Packed:
    """Pack the solids of a person facing +x.

    Args:
        person: Who.
        outfit: What is worn.
        phase: Moment of the stride, 0 to NUM_PHASES - 1.
    """
    body = _Body(person, phase)
    skin = Material(SKINS[person.skin])
    solids = [*_head(person, body, skin), *_trunk(outfit, body, skin)]
    for side in (-1.0, 1.0):
        solids += [*_leg(outfit, body, skin, side), *_arm(outfit, body, skin, side)]
    return pack(solids)


def _cloth(name: str, factor: float = 1.0) -> Material:
    return Material(shaded(COLOURS[name], factor))


def _trunk(outfit: Outfit, body: _Body, skin: Material) -> list[Solid]:
    upper, lower = _cloth(outfit.upper_colour), _cloth(outfit.lower_colour)
    thick = 1.0 + {"jacket": 0.10, "hoodie": 0.12, "coat": 0.12}.get(outfit.upper, 0.0)
    waist = body.hip + 0.10 * body.tall
    chest = (body.shoulder, 0.85 * body.depth * thick, 0.92 * body.shoulders * thick)
    middle = (waist, body.depth * thick, body.waist * thick)
    hem = (body.hip + 0.01, body.depth * thick, body.hips * thick)
    solids = [
        frustum((0.0, 0.0), middle, chest, upper, UPPER),
        frustum((0.0, 0.0), hem, (waist + 0.01, *middle[1:]), upper, UPPER),
        frustum(
            (0.0, 0.0),
            (body.hip - 0.09, 0.9 * body.depth, 0.94 * body.hips),
            (body.hip + 0.04, 0.92 * body.depth, 0.97 * body.hips),
            lower,
            LOWER,
        ),
    ]
    if outfit.upper == "tank top":
        # Bare shoulders: the shirt ends at two straps.
        centre = (0.0, 0.0, body.shoulder - 0.03)
        solids.append(ellipsoid(centre, (0.08, body.shoulders, 0.06), skin, SKIN))
    else:
        centre = (0.0, 0.0, body.shoulder - 0.02)
        radii = (0.09 * thick, body.shoulders * thick, 0.065)
        solids.append(ellipsoid(centre, radii, upper, UPPER))
    return solids + _upper_details(outfit, body, upper, thick)


def _upper_details(outfit: Outfit, body: _Body, upper: Material, thick: float) -> list[Solid]:
    """What tells a jacket, a hoodie, a coat and a shirt apart."""
    front = body.depth * thick
    darker = Material(shaded(upper.colour, 0.35))
    pale = _cloth("white") if sum(upper.colour) < 1.5 else _cloth("grey")
    if outfit.upper == "coat":
        low, top = (0.27 * body.tall, 1.25 * front, 1.25 * body.hips * thick), body.hip + 0.06
        skirt = (top, front, body.hips * thick)
        return [frustum((0.0, 0.0), low, skirt, upper, UPPER)]
    if outfit.upper == "jacket":
        # An open jacket shows a strip of what is under it; it is clothes all the same.
        low, high = (0.0, -0.045, body.hip + 0.03), (front + 0.012, 0.045, body.shoulder - 0.02)
        return [box(low, high, pale, UPPER)]
    if outfit.upper == "hoodie":
        hood = ellipsoid((-0.10, 0.0, body.shoulder + 0.05), (0.08, 0.13, 0.10), upper, UPPER)
        pocket = (0.0, -0.11, body.hip + 0.04), (front + 0.02, 0.11, body.hip + 0.15)
        return [hood, box(*pocket, darker, UPPER)]
    if outfit.upper == "shirt":
        low, high = (0.0, -0.012, body.hip + 0.03), (front + 0.01, 0.012, body.shoulder - 0.02)
        collar = (-0.07, -0.075, body.shoulder + 0.02), (0.075, 0.075, body.shoulder + 0.06)
        return [box(low, high, darker, UPPER), box(*collar, pale, UPPER)]
    return []


def _head(person: Pedestrian, body: _Body, skin: Material) -> list[Solid]:
    size = body.head
    centre = body.tall - 0.55 * size
    solids = [
        ellipsoid((0.01, 0.0, centre), (0.44 * size, 0.37 * size, 0.56 * size), skin, SKIN),
        cylinder((0.0, 0.0, body.shoulder), (0.0, 0.0, centre), 0.058, skin, SKIN),
    ]
    return solids + _hair(person, body, centre) + _face(person, body, centre)


def _hair(person: Pedestrian, body: _Body, centre: float) -> list[Solid]:
    size = body.head
    hair = Material(HAIRS[person.hair_colour], 0.05)
    if person.hair == "bald":
        return []
    if person.hair == "curly":
        radii = (0.58 * size, 0.60 * size, 0.52 * size)
        return [ellipsoid((-0.18 * size, 0.0, centre + 0.26 * size), radii, hair, HAIR)]
    radii = (0.47 * size, 0.42 * size, 0.44 * size)
    solids = [ellipsoid((-0.08 * size, 0.0, centre + 0.22 * size), radii, hair, HAIR)]
    if person.hair == "long":
        low = (body.shoulder - 0.16, 0.05, 0.15)
        high = (centre + 0.25 * size, 0.06, 0.40 * size)
        solids.append(frustum((-0.10, 0.0), low, high, hair, HAIR))
    if person.hair == "tied":
        bun = (-0.50 * size, 0.0, centre + 0.45 * size)
        solids.append(ellipsoid(bun, (0.26 * size, 0.22 * size, 0.24 * size), hair, HAIR))
        tail = (-0.60 * size, 0.0, centre + 0.40 * size), (-0.66 * size, 0.0, centre - 0.55 * size)
        solids.append(cylinder(*tail, 0.13 * size, hair, HAIR))
    return solids


def _face(person: Pedestrian, body: _Body, centre: float) -> list[Solid]:
    size = body.head
    hair = Material(HAIRS[person.hair_colour])
    if person.face in ("glasses", "sunglasses"):
        frame = Material(COLOURS["black"] if person.face == "sunglasses" else COLOURS["red"], 0.3)
        tall = (0.11 if person.face == "sunglasses" else 0.075) * size
        low = (0.12 * size, -0.38 * size, centre + 0.05 * size - tall)
        high = (0.47 * size, 0.38 * size, centre + 0.05 * size + tall)
        return [box(low, high, frame, ACCESSORY)]
    if person.face == "beard":
        radii = (0.32 * size, 0.34 * size, 0.36 * size)
        return [ellipsoid((0.20 * size, 0.0, centre - 0.36 * size), radii, hair, HAIR)]
    if person.face == "moustache":
        low = (0.30 * size, -0.20 * size, centre - 0.28 * size)
        return [box(low, (0.47 * size, 0.20 * size, centre - 0.15 * size), hair, HAIR)]
    if person.face == "mask":
        radii = (0.30 * size, 0.33 * size, 0.26 * size)
        cloth = Material((0.25, 0.55, 0.75))
        return [ellipsoid((0.23 * size, 0.0, centre - 0.25 * size), radii, cloth, ACCESSORY)]
    return []


def _leg(outfit: Outfit, body: _Body, skin: Material, side: float) -> list[Solid]:
    y = side * 0.55 * body.hips
    step = side * body.swing
    hip: Point = (0.0, y, body.hip)
    knee: Point = (0.16 * step + 0.03, y, 0.52 * body.hip)
    lift = 0.07 * max(0.0, -step)
    ankle: Point = (0.36 * step, y, 0.07 + lift)
    cloth, bare = _cloth(outfit.lower_colour), (skin, SKIN)
    thigh, calf = (cloth, LOWER), (cloth, LOWER)
    if outfit.lower != "trousers":
        calf = bare
    solids = [
        cylinder(hip, knee, 1.08 * body.leg, *thigh),
        ellipsoid(knee, (0.8 * body.leg,) * 3, *calf),
        cylinder(knee, ankle, 0.74 * body.leg, *calf),
    ]
    if outfit.lower == "skirt" and side > 0.0:
        low = (0.46 * body.hip, body.depth + 0.10, body.hips + 0.06)
        high = (body.hip + 0.03, body.depth, body.hips)
        solids.append(frustum((0.0, 0.0), low, high, cloth, LOWER))
    return solids + _foot(outfit, ankle, body, skin)


def _foot(outfit: Outfit, ankle: Point, body: _Body, skin: Material) -> list[Solid]:
    x, y, z = ankle
    shoe = _cloth(outfit.footwear_colour)
    lift = z - 0.07
    if outfit.footwear == "sandals":
        bare = ellipsoid((x + 0.06, y, lift + 0.06), (0.14, 0.05, 0.05), skin, SKIN)
        sole = (x - 0.08, y - 0.06, lift), (x + 0.20, y + 0.06, lift + 0.035)
        strap = (x + 0.06, y - 0.06, lift), (x + 0.12, y + 0.06, lift + 0.11)
        return [bare, box(*sole, shoe, FOOTWEAR), box(*strap, shoe, FOOTWEAR)]
    toe = ellipsoid((x + 0.06, y, lift + 0.055), (0.16, 0.065, 0.065), shoe, FOOTWEAR)
    if outfit.footwear == "boots":
        shaft = cylinder((x, y, lift + 0.02), (x, y, lift + 0.26), 0.95 * body.leg, shoe, FOOTWEAR)
        return [toe, shaft]
    pale = _cloth("white") if outfit.footwear_colour != "white" else _cloth("grey")
    sole = (x - 0.10, y - 0.066, lift), (x + 0.21, y + 0.066, lift + 0.03)
    return [toe, box(*sole, pale, FOOTWEAR)]


def _arm(outfit: Outfit, body: _Body, skin: Material, side: float) -> list[Solid]:
    swing = -side * body.swing
    y = side * (body.shoulders + 0.01)
    shoulder: Point = (0.0, y, body.shoulder - 0.03)
    elbow: Point = (0.12 * swing, y + 0.03 * side, body.shoulder - 0.30)
    hand: Point = (0.30 * swing + 0.05, y + 0.02 * side, body.shoulder - 0.54)
    cloth, bare = (_cloth(outfit.upper_colour), UPPER), (skin, SKIN)
    above = bare if outfit.upper == "tank top" else cloth
    below = bare if outfit.upper in ("tank top", "t-shirt") else cloth
    wide = body.arm * (1.25 if below is cloth else 1.0)
    solids = [
        cylinder(shoulder, elbow, 1.15 * wide, *above),
        cylinder(elbow, hand, 0.92 * wide, *below),
        ellipsoid(hand, (0.05, 0.04, 0.055), skin, SKIN),
    ]
    if above is cloth:
        solids.append(ellipsoid(shoulder, (1.25 * wide,) * 3, *cloth))
    if below is cloth:
        solids.append(ellipsoid(elbow, (1.0 * wide,) * 3, *cloth))
    return solids
