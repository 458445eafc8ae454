"""What surfaces look like: named colours, materials, and the part of an object they belong to."""

from typing import NamedTuple

Colour = tuple[float, float, float]

BACKGROUND, VEHICLE, SKIN, HAIR, UPPER, LOWER, FOOTWEAR, ACCESSORY = range(8)
PARTS = ("background", "vehicle", "skin", "hair", "upper", "lower", "footwear", "accessory")
CLOTHES_PARTS = (UPPER, LOWER, FOOTWEAR)

# Linear albedo in [0, 1]. The camera's transfer curve is a square root, so 0.25 is shown as 0.5.
COLOURS: dict[str, Colour] = {
    "white": (0.86, 0.86, 0.86),
    "silver": (0.40, 0.42, 0.44),
    "grey": (0.105, 0.108, 0.113),
    "black": (0.010, 0.010, 0.011),
    "red": (0.55, 0.015, 0.015),
    "orange": (0.85, 0.20, 0.010),
    "yellow": (0.88, 0.66, 0.02),
    "green": (0.02, 0.24, 0.05),
    "blue": (0.02, 0.06, 0.50),
    "purple": (0.20, 0.025, 0.32),
    "brown": (0.13, 0.050, 0.016),
    "pink": (0.85, 0.30, 0.42),
    "beige": (0.58, 0.45, 0.28),
}


class Material(NamedTuple):
    """A surface: linear albedo, strength of the mirror-like part, and light it gives off."""

    colour: Colour
    gloss: float = 0.0
    glow: float = 0.0


def shaded(colour: Colour, factor: float) -> Colour:
    """Multiply a colour's brightness by `factor`, staying within [0, 1]."""
    red, green, blue = (min(max(channel * factor, 0.0), 1.0) for channel in colour)
    return red, green, blue


RUBBER = Material((0.012, 0.012, 0.013))
TRIM = Material((0.022, 0.022, 0.024), 0.05)
CHROME = Material((0.50, 0.52, 0.54), 0.6)
HEADLIGHT = Material((0.85, 0.87, 0.80), 0.4, 0.35)
TAILLIGHT = Material((0.55, 0.008, 0.008), 0.2, 0.25)
