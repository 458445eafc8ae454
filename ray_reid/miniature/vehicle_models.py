"""The catalogue of invented vehicles: body styles, brands and models, and production years."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BodyStyle:
    """Side view of a body style.

    Attributes:
        length: Metres, as are all heights and widths here.
        width: Between the flanks.
        height: Of the roof.
        clearance: Of the underside.
        belt: Height of the lower edge of the windows.
        nose: Height of the front edge of the bonnet.
        tail: Height of the rear edge of the lower body.
        cabin: x of the cabin's rear foot, front foot, roof front and roof rear, as shares of
            the length from -0.5 (tail) to 0.5 (nose).
        panes: x ranges of the side windows at the belt, as shares of the length.
        axles: x of rear and front axle, as shares of the length.
        wheel: Wheel radius.
        taper: Metres by which each cabin side leans in at the roof.
    """

    length: float
    width: float
    height: float
    clearance: float
    belt: float
    nose: float
    tail: float
    cabin: tuple[float, float, float, float]
    panes: tuple[tuple[float, float], ...]
    axles: tuple[float, float]
    wheel: float
    taper: float = 0.16


BODY_STYLES: dict[str, BodyStyle] = {
    "sedan": BodyStyle(
        length=4.7,
        width=1.82,
        height=1.45,
        clearance=0.22,
        belt=0.92,
        nose=0.68,
        tail=0.86,
        cabin=(-0.35, 0.20, 0.04, -0.22),
        panes=((-0.26, -0.075), (-0.06, 0.13)),
        axles=(-0.29, 0.31),
        wheel=0.33,
    ),
    "hatchback": BodyStyle(
        length=3.8,
        width=1.74,
        height=1.52,
        clearance=0.22,
        belt=0.92,
        nose=0.72,
        tail=0.84,
        cabin=(-0.49, 0.27, 0.08, -0.41),
        panes=((-0.34, -0.105), (-0.085, 0.18)),
        axles=(-0.33, 0.33),
        wheel=0.32,
    ),
    "coupe": BodyStyle(
        length=4.4,
        width=1.88,
        height=1.28,
        clearance=0.16,
        belt=0.86,
        nose=0.66,
        tail=0.84,
        cabin=(-0.47, 0.12, -0.06, -0.17),
        panes=((-0.27, 0.05),),
        axles=(-0.30, 0.32),
        wheel=0.33,
        taper=0.24,
    ),
    "wagon": BodyStyle(
        length=4.85,
        width=1.82,
        height=1.48,
        clearance=0.22,
        belt=0.92,
        nose=0.68,
        tail=0.80,
        cabin=(-0.49, 0.20, 0.05, -0.45),
        panes=((-0.43, -0.26), (-0.245, -0.075), (-0.06, 0.13)),
        axles=(-0.29, 0.31),
        wheel=0.33,
    ),
    "SUV": BodyStyle(
        length=4.5,
        width=1.94,
        height=1.86,
        clearance=0.40,
        belt=1.12,
        nose=0.98,
        tail=1.00,
        cabin=(-0.49, 0.25, 0.13, -0.45),
        panes=((-0.43, -0.25), (-0.23, -0.03), (-0.01, 0.18)),
        axles=(-0.31, 0.32),
        wheel=0.42,
        taper=0.10,
    ),
    "pickup": BodyStyle(
        length=5.3,
        width=1.92,
        height=1.82,
        clearance=0.42,
        belt=1.10,
        nose=0.98,
        tail=1.04,
        cabin=(-0.05, 0.24, 0.15, -0.02),
        panes=((-0.01, 0.075), (0.09, 0.19)),
        axles=(-0.31, 0.32),
        wheel=0.42,
        taper=0.10,
    ),
    "van": BodyStyle(
        length=5.2,
        width=1.98,
        height=2.25,
        clearance=0.26,
        belt=1.15,
        nose=0.92,
        tail=1.15,
        cabin=(-0.495, 0.40, 0.24, -0.495),
        panes=((0.15, 0.32),),
        axles=(-0.30, 0.33),
        wheel=0.36,
        taper=0.06,
    ),
    "bus": BodyStyle(
        length=8.4,
        width=2.40,
        height=3.00,
        clearance=0.34,
        belt=1.35,
        nose=1.35,
        tail=1.35,
        cabin=(-0.495, 0.498, 0.48, -0.495),
        panes=(
            (-0.47, -0.33),
            (-0.31, -0.17),
            (-0.15, -0.01),
            (0.01, 0.15),
            (0.17, 0.31),
            (0.35, 0.46),
        ),
        axles=(-0.27, 0.31),
        wheel=0.48,
        taper=0.05,
    ),
    "truck": BodyStyle(
        length=6.6,
        width=2.20,
        height=2.30,
        clearance=0.50,
        belt=1.30,
        nose=1.20,
        tail=0.80,
        cabin=(0.22, 0.495, 0.45, 0.22),
        panes=((0.27, 0.44),),
        axles=(-0.30, 0.36),
        wheel=0.46,
        taper=0.06,
    ),
}


@dataclass(frozen=True)
class VehicleModel:
    """One brand x model.

    Attributes:
        brand: Invented brand; decides grille and lamps.
        name: Invented model name.
        body_style: Key of BODY_STYLES.
        stretch: Factors on length, width and height.
    """

    brand: str
    name: str
    body_style: str
    stretch: tuple[float, float, float]


@dataclass(frozen=True)
class BrandFace:
    """What the models of a brand share at the front: grille, its material, lamp shape."""

    grille: str
    chrome: bool
    lamps: str


BRANDS: dict[str, BrandFace] = {
    "Orvella": BrandFace("wide", True, "square"),
    "Taskin": BrandFace("tall", False, "round"),
    "Quintor": BrandFace("split", False, "slim"),
    "Velmar": BrandFace("none", False, "round"),
    "Hadrik": BrandFace("wide", False, "slim"),
    "Nimbrosa": BrandFace("tall", True, "square"),
}

MODELS: tuple[VehicleModel, ...] = (
    VehicleModel("Orvella", "Pim", "hatchback", (1.0, 1.0, 1.0)),
    VehicleModel("Velmar", "Zuno", "hatchback", (0.88, 0.96, 1.07)),
    VehicleModel("Orvella", "Largo", "sedan", (1.0, 1.0, 1.0)),
    VehicleModel("Nimbrosa", "Regal", "sedan", (1.08, 1.03, 1.02)),
    VehicleModel("Quintor", "Arrow", "coupe", (1.0, 1.0, 1.0)),
    VehicleModel("Taskin", "Fen", "coupe", (0.92, 0.97, 1.06)),
    VehicleModel("Quintor", "Tour", "wagon", (1.0, 1.0, 1.0)),
    VehicleModel("Hadrik", "Nord", "wagon", (1.05, 1.02, 1.05)),
    VehicleModel("Taskin", "Boulder", "SUV", (1.0, 1.0, 1.0)),
    VehicleModel("Nimbrosa", "Massif", "SUV", (1.10, 1.04, 1.04)),
    VehicleModel("Hadrik", "Mule", "pickup", (1.0, 1.0, 1.0)),
    VehicleModel("Taskin", "Ranchero", "pickup", (0.94, 0.98, 1.06)),
    VehicleModel("Velmar", "Carry", "van", (1.0, 1.0, 1.0)),
    VehicleModel("Orvella", "Hauler", "van", (1.08, 1.0, 1.12)),
    VehicleModel("Velmar", "Metro", "bus", (1.0, 1.0, 1.0)),
    VehicleModel("Quintor", "Shuttle", "bus", (0.82, 0.95, 0.95)),
    VehicleModel("Hadrik", "Atlas", "truck", (1.0, 1.0, 1.0)),
    VehicleModel("Nimbrosa", "Freight", "truck", (1.12, 1.02, 1.05)),
)

# A later year has painted bumpers (2011), a chrome belt line and larger wheels (2017), and full
# light bars (2023).
YEARS = (2004, 2011, 2017, 2023)

VEHICLE_COLOURS = (
    "white",
    "silver",
    "grey",
    "black",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "brown",
)
