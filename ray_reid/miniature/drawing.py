"""Draw one object through one camera, with the whole truth about the picture."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ray_reid.miniature.cameras import SHOWROOM, STREET, Camera
from ray_reid.miniature.chance import generator, pick
from ray_reid.miniature.occluders import OCCLUDERS
from ray_reid.miniature.paint import CLOTHES_PARTS, PARTS
from ray_reid.miniature.pedestrian_shapes import NUM_PHASES, pedestrian_solids
from ray_reid.miniature.pedestrians import Pedestrian
from ray_reid.miniature.shapes import Floats, Packed, pack
from ray_reid.miniature.staging import (
    Lens,
    Placed,
    Traced,
    background_shift,
    corners,
    develop,
    extent,
    look,
    project,
    to_jpeg,
    trace,
)
from ray_reid.miniature.vehicle_shapes import vehicle_solids
from ray_reid.miniature.vehicles import Vehicle

Domain = Literal["street", "showroom"]

# Sides of an object that face the camera, by heading in steps of 45 degrees to its left.
VIEWS = (
    "front", "front-left", "left", "rear-left", "rear", "rear-right", "right", "front-right",
)  # fmt: skip

# A day and the walk from one camera to the next, seconds.
DAY = 86_400.0
WALK = 300.0


@dataclass(frozen=True)
class Drawing:
    """A picture and the truth about it.

    Attributes:
        image: (H, W, 3) RGB after the camera's noise, before JPEG.
        encoded: `image` as JPEG at the camera's quality.
        box: Left, top, exclusive right and exclusive bottom in pixels of everything seen of
            the object. Parts behind an occluder or outside the picture do not count, nor does
            the shadow; a pixel counts when any of its rays meets the object.
        clothes_mask: (H, W) True where any ray meets clothes or shoes; None for vehicles.
        parts: (H, W) index into `paint.PARTS` of what most rays of the pixel meet; None for
            vehicles.
        identity: Name of the identity, such as `0-12`.
        attributes: What a caption can say.
        caption: The prompt that describes the object.
        view: The side that faces the camera, one of VIEWS.
        camera: `c1` to `c8`; None in the showroom.
        time: Seconds; days apart between outfits, minutes apart between cameras.
        clothes: Name of the outfit; None for vehicles.
    """

    image: NDArray[np.uint8]
    encoded: bytes
    box: tuple[int, int, int, int]
    clothes_mask: NDArray[np.bool_] | None
    parts: NDArray[np.uint8] | None
    identity: str
    attributes: dict[str, str]
    caption: str
    view: str
    camera: str | None
    time: float
    clothes: str | None


@dataclass(frozen=True)
class Arrangement:
    """Where everything stands in one picture: enough to trace it, or to trace it changed.

    Attributes:
        camera: The camera.
        objects: The object first, then what stands before it.
        lens: The pinhole.
        offsets: Shift of the background; see `staging.trace`.
        heading: Degrees from the object's front to the camera, to the object's left.
    """

    camera: Camera
    objects: tuple[Placed, ...]
    lens: Lens
    offsets: Floats
    heading: float


def draw(
    identity: Vehicle | Pedestrian,
    *,
    domain: Domain,
    camera: str | None = None,
    index: int = 0,
    seed: int = 0,
    size: tuple[int, int] = (64, 64),
    outfit: int = 0,
    view: str | None = None,
) -> Drawing:
    """Draw an identity; equal arguments give equal bytes.

    Args:
        identity: Whom or what to draw.
        domain: `showroom` for clean studio pictures, `street` for a camera of the network.
        camera: `c1` to `c8`; if None in the street, the row's own chance picks one.
        index: Number of the picture among those of this identity and camera.
        seed: Seed of pose, place, occluders and noise.
        size: Height and width in pixels.
        outfit: Which outfit a pedestrian wears; vehicles ignore it.
        view: Side that faces the camera, one of VIEWS; None follows the camera's habit.

    Raises:
        ValueError: If domain, camera, outfit, view or size is not one of the choices.
    """
    rng = _own_chance(identity, domain, camera, index, seed)
    seen_by = _camera(domain, camera, rng)
    setting = arrange(identity, seen_by, rng, size, outfit, view)
    traced = trace(setting.objects, setting.lens, seen_by, setting.offsets, size)
    image = develop(traced.light, seen_by, rng)
    return Drawing(
        image=image,
        encoded=to_jpeg(image, seen_by.quality),
        view=view_name(setting.heading),
        camera=seen_by.name,
        **_truth(identity, traced, outfit, index, seen_by),
    )


def arrange(
    identity: Vehicle | Pedestrian,
    camera: Camera,
    rng: np.random.Generator,
    size: tuple[int, int],
    outfit: int = 0,
    view: str | None = None,
) -> Arrangement:
    """Place an identity before a camera and frame it.

    Args:
        identity: Whom or what.
        camera: Which camera.
        rng: The row's own chance.
        size: Height and width in pixels.
        outfit: Which outfit a pedestrian wears.
        view: Side that faces the camera; None follows the camera's habit.
    """
    if min(size) < 8:
        raise ValueError(f"size {size} is too small; height and width are at least 8 pixels")
    heading = _heading(camera, view, rng)
    solids = _solids(identity, outfit, int(rng.integers(NUM_PHASES)))
    thing = Placed(solids, 0.0, 0.0, float(np.radians(180.0 - heading)))
    points = corners(thing)
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    largest = float((high - low).max())
    pitch = camera.pitch + float(rng.uniform(-2.0, 2.0))
    origin, axes = look((low + high) / 2.0, camera.focal * largest, pitch)
    lens = _frame(points, origin, axes, camera.looseness, rng, size)
    offsets = background_shift(rng)
    objects = (thing, *_occluder(camera, rng, low, high))
    return Arrangement(camera, objects, lens, offsets, heading)


def view_name(heading: float) -> str:
    """Name the side seen from `heading` degrees, counted from the front to the object's left."""
    return VIEWS[int((heading + 22.5) // 45.0) % 8]


def _own_chance(
    identity: Vehicle | Pedestrian, domain: str, camera: str | None, index: int, seed: int
) -> np.random.Generator:
    kind = type(identity).__name__
    return generator("draw", kind, identity.name, domain, camera or "", index, seed)


def _camera(domain: str, camera: str | None, rng: np.random.Generator) -> Camera:
    if domain == "showroom":
        if camera is not None:
            raise ValueError(f"the showroom has no camera {camera!r}; leave it None")
        return SHOWROOM
    if domain != "street":
        raise ValueError(f"unknown domain {domain!r}; choose from ['showroom', 'street']")
    name = camera if camera is not None else pick(rng, tuple(STREET))
    if name not in STREET:
        raise ValueError(f"unknown camera {name!r}; choose from {list(STREET)}")
    return STREET[name]


def _heading(camera: Camera, view: str | None, rng: np.random.Generator) -> float:
    chance = float(rng.uniform(-1.0, 1.0))
    if view is None:
        return (camera.heading + camera.spread * chance) % 360.0
    if view not in VIEWS:
        raise ValueError(f"unknown view {view!r}; choose from {list(VIEWS)}")
    # Stay clear of the borders between two views.
    return (45.0 * VIEWS.index(view) + 12.0 * chance) % 360.0


def _solids(identity: Vehicle | Pedestrian, outfit: int, phase: int) -> Packed:
    if isinstance(identity, Vehicle):
        return vehicle_solids(identity)
    return pedestrian_solids(identity, identity.outfit(outfit), phase)


def _frame(
    points: Floats,
    origin: Floats,
    axes: Floats,
    looseness: float,
    rng: np.random.Generator,
    size: tuple[int, int],
) -> Lens:
    """Zoom and centre like a detector's crop: a little loose and a little off."""
    flat, _ = project(points, origin, axes)
    low, high = flat.min(axis=(0, 1)), flat.max(axis=(0, 1))
    height, width = size
    loose = 1.06 + looseness * float(rng.uniform())
    tangent = loose * max((high[0] - low[0]) / width, (high[1] - low[1]) / height)
    middle = (low + high) / 2.0
    slack = 0.4 * (loose - 1.06) * np.array([width, height])
    shift = rng.uniform(-0.5, 0.5, 2) * slack
    centre = np.array([width, height]) / 2.0 - middle / tangent + shift
    return Lens(origin, axes, float(tangent), (float(centre[0]), float(centre[1])))


def _occluder(
    camera: Camera, rng: np.random.Generator, low: Floats, high: Floats
) -> tuple[Placed, ...]:
    if not camera.occluders or rng.uniform() >= camera.occlusion:
        return ()
    kind = pick(rng, camera.occluders)
    wide = max(float(high[1] - low[1]), 0.6 * float(high[2]))
    solids = pack(OCCLUDERS[kind](rng, wide))
    return (Placed(solids, float(low[0]) - 0.25 * wide, 0.0, 0.0),)


def _truth(
    identity: Vehicle | Pedestrian, traced: Traced, outfit: int, index: int, camera: Camera
) -> dict[str, Any]:
    box = extent((traced.owners == 0).any(axis=2))
    assert box is not None, f"{identity.name} is hidden or outside the picture"
    place = list(STREET).index(camera.name) if camera.name is not None else 0
    truth: dict[str, Any] = {
        "box": box,
        "identity": identity.name,
        "time": outfit * DAY + identity.number * 60.0 + place * WALK + index * 2.0,
        "clothes_mask": None,
        "parts": None,
        "clothes": None,
    }
    if isinstance(identity, Vehicle):
        return truth | {"attributes": identity.attributes, "caption": identity.caption}
    mine = np.where(traced.owners == 0, traced.parts, 0)
    votes = (mine[..., None] == np.arange(len(PARTS), dtype=np.uint8)).sum(axis=2)
    return truth | {
        "attributes": identity.attributes(outfit),
        "caption": identity.caption(outfit),
        "clothes": identity.clothes(outfit),
        "clothes_mask": np.isin(mine, CLOTHES_PARTS).any(axis=2),
        "parts": votes.argmax(axis=2).astype(np.uint8),
    }
