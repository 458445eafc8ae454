"""A labelled street data set: planned cheaply as shots, drawn shot by shot.

Splits follow Market-1501 (Zheng et al., ICCV 2015): train and test share no identity, each test
identity has one query per camera where it appears, and its other pictures are the gallery.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_reid import schema
from ray_reid.miniature.cameras import STREET
from ray_reid.miniature.chance import generator
from ray_reid.miniature.drawing import draw
from ray_reid.miniature.pedestrians import NUM_OUTFITS, Pedestrian, pedestrian_identity
from ray_reid.miniature.vehicles import Vehicle, vehicle_identity

LICENCE = "Apache-2.0"
KINDS = ("vehicle", "pedestrian")


@dataclass(frozen=True)
class Shot:
    """One picture that is planned but not drawn; small, and drawn alike anywhere.

    Attributes:
        kind: vehicle or pedestrian.
        number: Identity number of `seed`.
        seed: Seed of the world.
        split: train, query or gallery.
        camera: `c1` to `c8`.
        index: Number among the pictures of this identity and camera.
        outfit: Outfit of a pedestrian; 0 for vehicles.
        size: Height and width in pixels.
    """

    kind: str
    number: int
    seed: int
    split: str
    camera: str
    index: int
    outfit: int
    size: tuple[int, int]

    @property
    def source(self) -> str:
        """Source column, such as `miniature-street-vehicle`."""
        return f"miniature-street-{self.kind}"

    @property
    def subject(self) -> Vehicle | Pedestrian:
        """Who or what is in the picture."""
        if self.kind == "vehicle":
            return vehicle_identity(self.number, self.seed)
        return pedestrian_identity(self.number, self.seed)

    @property
    def observation_id(self) -> str:
        """Id of the picture; known before it is drawn."""
        place = (self.subject.name, self.camera, self.index, self.seed, self.outfit, *self.size)
        return schema.observation_id(self.source, *place)


def plan_street(
    kind: str,
    num_train: int,
    num_test: int,
    images_per_camera: int,
    cameras_per_identity: int,
    seed: int,
    size: tuple[int, int],
) -> list[Shot]:
    """Plan a street data set without drawing it.

    Neighbouring identities start at neighbouring cameras, so eight of them use all cameras.
    Pedestrians change clothes from picture to picture and from camera to camera: a query has
    true matches in the same outfit on other cameras and, from three cameras or pictures on,
    also in others.

    Args:
        kind: vehicle or pedestrian.
        num_train: Identities in the train split, numbered from 0.
        num_test: Identities in query and gallery, numbered from `num_train`.
        images_per_camera: Pictures of an identity on each of its cameras, at least 2.
        cameras_per_identity: 2 to 8.
        seed: Seed of identities and pictures.
        size: Height and width in pixels.

    Raises:
        ValueError: If an argument is outside these bounds.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose from {list(KINDS)}")
    if not 2 <= cameras_per_identity <= len(STREET):
        raise ValueError(
            f"cameras_per_identity is {cameras_per_identity}; it must be 2 to {len(STREET)}, "
            "so that a query has a match on another camera"
        )
    if images_per_camera < 2:
        raise ValueError(
            f"images_per_camera is {images_per_camera}; it must be at least 2, one for the "
            "query and one for the gallery"
        )
    shots = []
    for number in range(num_train + num_test):
        cameras = identity_cameras(kind, number, seed)[:cameras_per_identity]
        for place, camera in enumerate(cameras):
            for index in range(images_per_camera):
                split = "train" if number < num_train else "gallery" if index else "query"
                outfit = (place + index) % NUM_OUTFITS if kind == "pedestrian" else 0
                shots.append(Shot(kind, number, seed, split, camera, index, outfit, size))
    return shots


def identity_cameras(kind: str, number: int, seed: int) -> list[str]:
    """Order all cameras by when an identity passes them."""
    rng = generator("cameras", kind, seed, number)
    names = list(STREET)
    others = rng.permutation(np.delete(np.arange(len(names)), number % len(names)))
    return [names[number % len(names)], *(names[int(place)] for place in others)]


def draw_shot(shot: Shot) -> dict[str, Any]:
    """Draw one planned picture as a row for `schema.observations`."""
    subject = shot.subject
    drawing = draw(
        subject,
        domain="street",
        camera=shot.camera,
        index=shot.index,
        seed=shot.seed,
        size=shot.size,
        outfit=shot.outfit,
    )
    return {
        schema.OBSERVATION_ID: shot.observation_id,
        schema.IMAGE: drawing.encoded,
        schema.IDENTITY: schema.qualified_identity(shot.source, subject.name),
        schema.CAMERA: drawing.camera,
        schema.VIEW: drawing.view,
        schema.CLOTHES: drawing.clothes,
        schema.TIME: drawing.time,
        schema.SOURCE: shot.source,
        schema.LICENCE: LICENCE,
        schema.SPLIT: shot.split,
        schema.ATTRIBUTES: drawing.attributes,
    }


def street_observations(
    kind: str,
    num_train: int,
    num_test: int,
    images_per_camera: int,
    cameras_per_identity: int,
    seed: int,
    size: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    """Draw a street data set row by row; the arguments are those of `plan_street`."""
    shots = plan_street(
        kind, num_train, num_test, images_per_camera, cameras_per_identity, seed, size
    )
    return map(draw_shot, shots)
