"""Vehicle identities: what a caption can say of one, and the marks that only this one bears."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ray_reid.miniature.chance import generator, pick
from ray_reid.miniature.vehicle_models import MODELS, VEHICLE_COLOURS, YEARS, VehicleModel

# Seven marks of seven values each, in this order; see `Marks`.
NUM_MARKS = 7
NUM_VALUES = 7
# Marks are a Reed-Solomon code with five free digits, so there are 7 ** 5 vehicles.
MESSAGE = 5
MAX_VEHICLES = NUM_VALUES**MESSAGE


@dataclass(frozen=True)
class Marks:
    """What tells apart two vehicles that share every prompt attribute; each value is 0 to 6.

    Two vehicles of one seed differ in at least three of the seven.

    Attributes:
        roof: Rails, cross bars, a cargo box, lights, a sun roof or a painted roof.
        stripe: Stripes along the body or a painted bonnet.
        sticker: Decal on both flanks.
        damage: Which panel is scraped.
        wheels: Colour of the wheel discs.
        rear: What is on the tail.
        glass: Tint of the windows.
    """

    roof: int
    stripe: int
    sticker: int
    damage: int
    wheels: int
    rear: int
    glass: int


@dataclass(frozen=True)
class Vehicle:
    """One vehicle.

    Attributes:
        number: Its number among the identities of `seed`.
        seed: Seed of the world it belongs to.
        model: Brand, model and body style.
        year: Production year.
        colour: Name in `paint.COLOURS`.
        marks: Its own marks.
        plate: Name of the plate's colour.
        shade: Factor on the brightness of its paint.
    """

    number: int
    seed: int
    model: VehicleModel
    year: int
    colour: str
    marks: Marks
    plate: str
    shade: float

    @property
    def name(self) -> str:
        """Identity within the miniature sources, such as `0-12` for number 12 of seed 0."""
        return f"{self.seed}-{self.number}"

    @property
    def attributes(self) -> dict[str, str]:
        """What a caption can say: colour, year, brand, model and body style."""
        return {
            "colour": self.colour,
            "year": str(self.year),
            "brand": self.model.brand,
            "model": self.model.name,
            "body_style": self.model.body_style,
        }

    @property
    def caption(self) -> str:
        """The prompt template of Vehicle-Diff, filled in."""
        return (
            f"a {self.colour} {self.year} {self.model.brand} {self.model.name} "
            f"{self.model.body_style} driving down the road"
        )


def vehicle_identities(num: int, seed: int) -> list[Vehicle]:
    """Make the first `num` vehicles of a seed; vehicle i is the same whatever `num` is."""
    return [vehicle_identity(number, seed) for number in range(num)]


@lru_cache(maxsize=4096)
def vehicle_identity(number: int, seed: int) -> Vehicle:
    """Make one vehicle.

    Vehicles come in fours: the first two share every prompt attribute, the third differs from
    them in colour alone, and the fourth is unrelated. So every world has hard negatives.

    Raises:
        ValueError: If `number` is negative or not below MAX_VEHICLES.
    """
    if not 0 <= number < MAX_VEHICLES:
        raise ValueError(f"vehicle number {number} is not in 0 to {MAX_VEHICLES - 1}")
    member = number % 4
    family = generator("vehicle family", seed, number // 4, member == 3)
    model = MODELS[int(family.integers(len(MODELS)))]
    year = YEARS[int(family.integers(len(YEARS)))]
    first = int(family.integers(len(VEHICLE_COLOURS)))
    step = int(family.integers(1, len(VEHICLE_COLOURS))) if member == 2 else 0
    colour = VEHICLE_COLOURS[(first + step) % len(VEHICLE_COLOURS)]
    own = generator("vehicle", seed, number)
    return Vehicle(
        number=number,
        seed=seed,
        model=model,
        year=year,
        colour=colour,
        marks=Marks(*mark_values(number, seed)),
        plate=pick(own, ("white", "yellow", "blue", "green")),
        shade=float(own.uniform(0.92, 1.08)),
    )


def mark_values(number: int, seed: int) -> list[int]:
    """Spread an identity number over the marks so that any two numbers differ in three of them.

    A polynomial of degree 4 over the integers modulo 7 is fixed by five of its values, so two
    different ones agree in at most four of the seven places.

    Returns:
        NUM_MARKS values from 0 to NUM_VALUES - 1.
    """
    shift = int(generator("vehicle marks", seed).integers(MAX_VEHICLES))
    # 5281 is prime to 7, so neighbouring numbers get unlike codes and no two share one.
    code = (number * 5281 + shift) % MAX_VEHICLES
    digits = [(code // NUM_VALUES**place) % NUM_VALUES for place in range(MESSAGE)]
    points = np.arange(NUM_MARKS)
    values = sum(digit * points**place for place, digit in enumerate(digits))
    return [int(value) for value in np.asarray(values) % NUM_VALUES]
