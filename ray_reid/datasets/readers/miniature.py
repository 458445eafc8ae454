"""The drawn street world as a source: planned here, drawn when a batch is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ray_reid import schema
from ray_reid.datasets import drawings
from ray_reid.datasets.reading import LOCATOR, Layout, ReaderSource, Reading, Row
from ray_reid.recipe.base import ImageSide

if TYPE_CHECKING:
    from ray_reid.miniature import Shot


class MiniatureSource(ReaderSource):
    """Drawn street images (ray_reid.miniature); no files needed."""

    reader: Literal["miniature"] = "miniature"
    kind: Literal["vehicle", "pedestrian"] = "vehicle"
    num_train: int = Field(120, ge=2)
    """Identities to train on."""
    num_test: int = Field(60, ge=2)
    """Identities in query and gallery; none of them is trained on."""
    cameras_per_identity: int = Field(4, ge=2)
    images_per_camera: int = Field(2, ge=2)
    long_tail: float = Field(0.0, ge=0)
    """Train identity n, from 1, keeps n ** -long_tail of its images, at least two; 0 keeps all."""
    outfits: int | None = Field(None, ge=1)
    """Outfits that a pedestrian wears at most; 1 changes no clothes, null all that are drawn."""
    image_size: tuple[ImageSide, ImageSide] = (64, 64)
    """Height and width of the drawn images in pixels."""
    seed: int = Field(0, ge=0)
    """Another seed is another world: other vehicles or people, under other cameras."""
    name: str | None = None
    """Name of the source in identities; null takes `miniature-street-` and the kind."""


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
    if source.outfits is not None:
        shots = [replace(shot, outfit=shot.outfit % source.outfits) for shot in shots]
    return Reading([_row(shot, source.name or shot.source) for shot in shots], [])


def files(source: MiniatureSource) -> list[Path]:
    """Give no files: drawings have none."""
    del source
    return []


def recognise(root: Path) -> MiniatureSource | None:
    """Give None: no folder holds drawings."""
    del root
    return None


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


def _row(shot: "Shot", source: str) -> Row:
    return {
        schema.OBSERVATION_ID: shot.observation_id,
        schema.IDENTITY: schema.qualified_identity(source, shot.subject.name),
        schema.CAMERA: shot.camera,
        schema.SOURCE: source,
        schema.SPLIT: shot.split,
        LOCATOR: drawings.locator(shot),
    }


def _code(source: MiniatureSource) -> list[str]:
    """Give what drawings depend on in place of files: the code that draws."""
    del source
    return [drawings.version()]


LAYOUT = Layout(MiniatureSource, read_miniature, files, recognise, beside=_code)
