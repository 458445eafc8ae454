"""The drawn street world as a source: planned here, drawn when a batch is loaded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ray_reid import schema
from ray_reid.datasets.reading import LOCATOR, Reading, Row
from ray_reid.recipe.sources import MiniatureSource

if TYPE_CHECKING:
    from ray_reid.miniature import Shot

# Marks a locator that is a shot to draw and not the path of a file.
PREFIX = "miniature:"


def read_miniature(source: MiniatureSource) -> Reading:
    """Plan the shots of a street; nothing is drawn.

    Raises:
        ValueError: If the world cannot hold what is asked for.
    """
    from ray_reid.miniature import plan_street

    shots = plan_street(
        source.kind,
        num_train=source.num_train,
        num_test=source.num_test,
        images_per_camera=source.images_per_camera,
        cameras_per_identity=source.cameras_per_identity,
        seed=source.seed,
        size=source.image_size,
    )
    shots = _tailed(shots, source.long_tail) if source.long_tail else shots
    return Reading([_row(shot, source.name or shot.source) for shot in shots], [])


def _tailed(shots: "Sequence[Shot]", exponent: float) -> "list[Shot]":
    """Leave out train images as the source's `long_tail` says, the first of every camera last."""
    order = sorted(range(len(shots)), key=lambda place: shots[place].index)
    of: dict[int, list[int]] = {}
    for place in order:
        of.setdefault(shots[place].number, []).append(place)
    kept = set()
    for number, places in of.items():
        whole = shots[places[0]].split != "train"
        share = 1.0 if whole else (number + 1) ** -exponent
        kept.update(places[: max(2, round(share * len(places)))])
    return [shot for place, shot in enumerate(shots) if place in kept]


def version() -> str:
    """Hash of the code that draws: a change of it makes other pictures."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted((Path(__file__).parent.parent.parent / "miniature").glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def draw(locator: str) -> Row:
    """Draw what a locator of the plan describes.

    Returns:
        The image and the columns that only the drawing knows, such as `view`.
    """
    from ray_reid.miniature import Shot, draw_shot

    values = json.loads(locator.removeprefix(PREFIX))
    row = draw_shot(Shot(**{**values, "size": tuple(values["size"])}))
    # The plan knows better: a recipe may name its sources.
    for planned in (schema.OBSERVATION_ID, schema.SOURCE, schema.IDENTITY):
        del row[planned]
    return row


def _row(shot: "Shot", source: str) -> Row:
    return {
        schema.OBSERVATION_ID: shot.observation_id,
        schema.IDENTITY: schema.qualified_identity(source, shot.subject.name),
        schema.CAMERA: shot.camera,
        schema.SOURCE: source,
        schema.SPLIT: shot.split,
        LOCATOR: PREFIX + json.dumps(asdict(shot)),
    }
