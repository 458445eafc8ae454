"""Whole street scenes with several objects and their boxes, for a detector."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_reid.miniature.cameras import SHOWROOM, STREET
from ray_reid.miniature.chance import generator, pick
from ray_reid.miniature.pedestrian_shapes import NUM_PHASES, pedestrian_solids
from ray_reid.miniature.pedestrians import MAX_PEDESTRIANS, NUM_OUTFITS, pedestrian_identity
from ray_reid.miniature.staging import (
    Lens,
    Placed,
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
from ray_reid.miniature.vehicles import MAX_VEHICLES, vehicle_identity

CLASSES = ("car", "bus", "truck", "person")

# Objects stand on a lattice of 3 x 3 places that keep a bus from its neighbours, metres.
ROWS = (-6.0, 0.0, 6.0)
COLUMNS = (-9.5, 0.0, 9.5)
CAMERA_DISTANCE = 24.0
MIN_VISIBLE_PIXELS = 12


@dataclass(frozen=True)
class Scene:
    """A picture of several objects.

    Attributes:
        image: (H, W, 3) RGB after the camera's noise, before JPEG.
        encoded: `image` as JPEG at the camera's quality.
        boxes: Left, top, exclusive right and exclusive bottom of what is seen of each object;
            what others hide does not count. Objects of fewer than MIN_VISIBLE_PIXELS pixels
            are left out.
        class_names: One of CLASSES for each box.
        captions: What each box shows.
        identities: Name of the identity in each box.
        camera: `c1` to `c8`, or None in the showroom.
    """

    image: NDArray[np.uint8]
    encoded: bytes
    boxes: list[tuple[int, int, int, int]]
    class_names: list[str]
    captions: list[str]
    identities: list[str]
    camera: str | None


@dataclass(frozen=True)
class _Actor:
    placed: Placed
    class_name: str
    caption: str
    identity: str


def draw_scene(
    seed: int,
    num_vehicles: int,
    size: tuple[int, int] = (192, 288),
    num_pedestrians: int = 0,
    camera: str | None = None,
    domain: str = "street",
) -> Scene:
    """Draw one scene; equal arguments give equal bytes.

    Args:
        seed: Seed of everything in the scene, identities included.
        num_vehicles: Vehicles, at least one object and at most nine with the pedestrians.
        size: Height and width in pixels.
        num_pedestrians: Pedestrians.
        camera: `c1` to `c8`; None lets the seed choose.
        domain: `street` or `showroom`.

    Raises:
        ValueError: If there are too few or too many objects, or the camera or domain is unknown.
    """
    num_objects = num_vehicles + num_pedestrians
    if not 1 <= num_objects <= len(ROWS) * len(COLUMNS):
        raise ValueError(f"a scene has 1 to {len(ROWS) * len(COLUMNS)} objects, not {num_objects}")
    if domain not in ("street", "showroom"):
        raise ValueError(f"unknown domain {domain!r}; choose from ['showroom', 'street']")
    if camera is not None and camera not in STREET:
        raise ValueError(f"unknown camera {camera!r}; choose from {list(STREET)}")
    rng = generator("scene", seed, num_vehicles, num_pedestrians, camera or "", domain)
    name = camera if camera is not None else pick(rng, tuple(STREET))
    seen_by = STREET[name] if domain == "street" else SHOWROOM
    actors = _actors(rng, num_vehicles, num_pedestrians)
    things = [actor.placed for actor in actors]
    lens = _overview(things, seen_by.pitch, rng, size)
    traced = trace(things, lens, seen_by, background_shift(rng), size)
    image = develop(traced.light, seen_by, rng)
    found = []
    for number, actor in enumerate(actors):
        mask = (traced.owners == number).any(axis=2)
        box = extent(mask)
        if box is not None and mask.sum() >= MIN_VISIBLE_PIXELS:
            found.append((box, actor))
    return Scene(
        image=image,
        encoded=to_jpeg(image, seen_by.quality),
        boxes=[box for box, _ in found],
        class_names=[actor.class_name for _, actor in found],
        captions=[actor.caption for _, actor in found],
        identities=[actor.identity for _, actor in found],
        camera=seen_by.name,
    )


def _actors(rng: np.random.Generator, num_vehicles: int, num_pedestrians: int) -> list[_Actor]:
    lattice = [(x, y) for x in ROWS for y in COLUMNS]
    places = rng.permutation(len(lattice))[: num_vehicles + num_pedestrians]
    actors = []
    for number, place in enumerate(places):
        x, y = np.array(lattice[int(place)]) + rng.uniform(-0.3, 0.3, 2)
        make = _vehicle if number < num_vehicles else _pedestrian
        actors.append(make(rng, float(x), float(y)))
    return actors


def _vehicle(rng: np.random.Generator, x: float, y: float) -> _Actor:
    vehicle = vehicle_identity(int(rng.integers(MAX_VEHICLES)), int(rng.integers(2**31)))
    style = vehicle.model.body_style
    yaw = float(rng.uniform(0.0, 2.0 * np.pi))
    if style in ("bus", "truck"):
        # Long vehicles drive across the picture, or they would reach the next row.
        yaw = float(rng.choice([0.5, 1.5])) * np.pi + float(rng.uniform(-0.15, 0.15))
    placed = Placed(vehicle_solids(vehicle), x, y, yaw)
    class_name = style if style in ("bus", "truck") else "car"
    return _Actor(placed, class_name, vehicle.caption, vehicle.name)


def _pedestrian(rng: np.random.Generator, x: float, y: float) -> _Actor:
    person = pedestrian_identity(int(rng.integers(MAX_PEDESTRIANS)), int(rng.integers(2**31)))
    outfit = int(rng.integers(NUM_OUTFITS))
    solids = pedestrian_solids(person, person.outfit(outfit), int(rng.integers(NUM_PHASES)))
    placed = Placed(solids, x, y, float(rng.uniform(0.0, 2.0 * np.pi)))
    return _Actor(placed, "person", person.caption(outfit), person.name)


def _overview(
    things: Sequence[Placed], pitch: float, rng: np.random.Generator, size: tuple[int, int]
) -> Lens:
    """Aim at the middle of the scene and zoom until all objects are in the picture."""
    height, width = size
    origin, axes = look(np.zeros(3), CAMERA_DISTANCE, max(pitch, 15.0))
    flats = [project(corners(thing), origin, axes)[0].reshape(-1, 2) for thing in things]
    points = np.concatenate(flats)
    low, high = points.min(axis=0), points.max(axis=0)
    loose = 1.1 + 0.3 * float(rng.uniform())
    tangent = loose * max((high[0] - low[0]) / width, (high[1] - low[1]) / height)
    shift = rng.uniform(-0.5, 0.5, 2) * 0.4 * (loose - 1.1) * np.array([width, height])
    centre = np.array([width, height]) / 2.0 - (low + high) / 2.0 / tangent + shift
    return Lens(origin, axes, float(tangent), (float(centre[0]), float(centre[1])))
