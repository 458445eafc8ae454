"""Drawings of the miniature world: planned by their reader, drawn when a batch is loaded."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ray_reid import schema
from ray_reid.datasets.reading import Row

if TYPE_CHECKING:
    from ray_reid.miniature import Shot

# Marks a locator that is a shot to draw and not the path of a file.
PREFIX = "miniature:"


def locator(shot: "Shot") -> str:
    """Locate a shot that is planned but not drawn."""
    return PREFIX + json.dumps(asdict(shot))


def draw(locator: str) -> Row:
    """Draw what a locator of the plan describes.

    Returns:
        The image and the columns that only the drawing knows, such as `view`.
    """
    from ray_reid.miniature import Shot, draw_shot

    values = json.loads(locator.removeprefix(PREFIX))
    row = draw_shot(Shot(**{**values, "size": tuple(values["size"])}))
    # The plan knows better: a recipe may name its sources, and take them as `ingest.use` says.
    for planned in (schema.OBSERVATION_ID, schema.SOURCE, schema.IDENTITY, schema.SPLIT):
        del row[planned]
    return row


def version() -> str:
    """Hash of the code that draws: a change of it makes other pictures."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted((Path(__file__).parent.parent / "miniature").glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
