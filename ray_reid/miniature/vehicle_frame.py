"""The measures of one vehicle, from which its solids and marks are placed."""

from typing import NamedTuple

from ray_reid.miniature.paint import COLOURS, Material, shaded
from ray_reid.miniature.shapes import Flank
from ray_reid.miniature.vehicle_models import BODY_STYLES
from ray_reid.miniature.vehicles import Vehicle

Points = tuple[tuple[float, float], ...]


class Frame(NamedTuple):
    """Measures in metres, in the vehicle's frame; profiles are (x, z) points of a convex outline.

    Attributes:
        style: Body style.
        body: Outline of the lower body; of the cab alone when a load follows.
        cabin: Outline of the cabin above the belt.
        half: Half the width of the lower body.
        side: Half-width of the cabin at each height.
        base: Height of the underside.
        belt: Height of the lower edge of the windows.
        height: Height of the cabin roof.
        nose: Height of the front edge of the bonnet.
        tail: Height of the rear edge of the body or load bed.
        front: x of the front end.
        back: x of the rear end.
        panes: x ranges of the side windows.
        axles: x of the rear and front axle.
        wheel: Wheel radius.
        year: Production year.
        paint: Its paint.
        roof: x range, half-width and height of the highest flat roof.
        flank: x range, z range and half-width of the flat part of its side.
        stern: z range and half-width of the flat part of its rear face, at x = `back`.
    """

    style: str
    body: Points
    cabin: Points
    half: float
    side: Flank
    base: float
    belt: float
    height: float
    nose: float
    tail: float
    front: float
    back: float
    panes: Points
    axles: tuple[float, float]
    wheel: float
    year: int
    paint: Material
    roof: tuple[float, float, float, float]
    flank: tuple[float, float, float, float, float]
    stern: tuple[float, float, float]

    @property
    def open_bed(self) -> bool:
        """Whether a load bed follows the cab."""
        return self.style == "pickup"

    @property
    def load_box(self) -> bool:
        """Whether a load box follows the cab."""
        return self.style == "truck"


# Height of the load box of a truck above its frame, metres.
LOAD_TOP = 2.95


def vehicle_frame(vehicle: Vehicle) -> Frame:
    """Work out the measures of a vehicle from its body style, model, year and paint."""
    style = BODY_STYLES[vehicle.model.body_style]
    name = vehicle.model.body_style
    long, wide, tall = vehicle.model.stretch
    length, half, height = style.length * long, style.width * wide / 2.0, style.height * tall
    base, belt, nose, tail = (
        z * tall for z in (style.clearance, style.belt, style.nose, style.tail)
    )
    rear_foot, front_foot, roof_front, roof_rear = (x * length for x in style.cabin)
    front, back = length / 2.0, -length / 2.0
    hind = rear_foot if name in ("pickup", "truck") else back
    body = [(hind + 0.06, base), (hind, base + 0.10), (hind, tail if hind == back else belt)]
    body += [(front - 0.08, base), (front, base + 0.12), (front, base + 0.6 * (nose - base))]
    body += [(front - 0.10, nose), (front_foot, belt), (rear_foot, belt)]
    cabin = [(rear_foot, belt - 0.02), (front_foot, belt - 0.02)]
    cabin += [(roof_front, height), (roof_rear, height)]
    roof = (roof_rear, roof_front, half - 0.05 - style.taper, height)
    flank = (-0.22 * length, 0.22 * length, base + 0.12, belt - 0.06, half)
    stern = (base + 0.15, tail, half)
    if name == "truck":
        top = LOAD_TOP * tall
        roof = (back, rear_foot - 0.15, half, top)
        flank = (back + 0.4, rear_foot - 0.55, tail + 0.3, top - 0.3, half)
        stern = (tail, top, half)
    elif name in ("van", "bus"):
        flank = (-0.42 * length, 0.10 * length, base + 0.25, belt, half)
        stern = (base + 0.15, height, half - 0.10)
    return Frame(
        style=name,
        body=tuple(body),
        cabin=tuple(cabin),
        half=half,
        side=Flank(belt, half - 0.04, height, half - 0.04 - style.taper),
        base=base,
        belt=belt,
        height=height,
        nose=nose,
        tail=tail,
        front=front,
        back=back,
        panes=tuple((low * length, high * length) for low, high in style.panes),
        axles=(style.axles[0] * length, style.axles[1] * length),
        wheel=style.wheel * (1.08 if vehicle.year >= 2017 else 1.0),
        year=vehicle.year,
        paint=Material(shaded(COLOURS[vehicle.colour], vehicle.shade), 0.35),
        roof=roof,
        flank=flank,
        stern=stern,
    )
