"""The live gallery of a run: seeded from what the index job publishes, and then changed by people.

A new index seeds it again, as a new generation that keeps what people enrolled, changed and
deleted. docs/gallery.md tells what becomes of which row.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from ray_reid.gallery.embedded.seeding import Embed
from ray_reid.gallery.embedded.store import CURRENT, GalleryManifest, Reader, check
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import arguments
from ray_reid.runtime.results import RunState

log = logging.getLogger(__name__)

FOLDER = "gallery"


@dataclass(frozen=True)
class Seeded:
    """What seeding a gallery did."""

    is_new: bool
    """Whether there is a new generation; false if the gallery was of this index already."""
    images: int
    """Rows that the gallery has now."""
    kept: int
    """Those of them that people enrolled or changed."""
    left_out: tuple[str, ...] = ()
    """Ids of rows that the new model could not embed."""


def place(run: RunState) -> Path:
    """Where the live gallery of a run lies, always on a disk.

    Raises:
        ValueError: If the run is in a bucket and its recipe names no place.
    """
    return of_recipe(run.recipe, run.path)


def of_recipe(recipe: Recipe, run: Place) -> Path:
    """Where the live gallery of a run of a recipe will lie; see `place`."""
    if recipe.gallery.path is not None:
        return arguments.expanded(recipe.gallery.path)
    if isinstance(run, Path):
        return run / FOLDER
    raise ValueError(
        f"run {str(run)!r} is in a bucket, and a live gallery, which people change, lies on a "
        "disk: set gallery.path to a folder for it, such as --set gallery.path=~/galleries/NAME"
    )


def existing(run: RunState) -> Path:
    """The live gallery of a run, of whatever model.

    Raises:
        ValueError: If there is none; says which command makes it.
    """
    path = place(run)
    if not (path / CURRENT).exists():
        raise ValueError(
            f"run {str(run.path)!r} has no gallery in {str(path)!r}; {_command(run)} makes it"
        )
    return path


def current(run: RunState) -> Path:
    """The live gallery of a run, if it is of the model that the run has now.

    Raises:
        ValueError: If there is none, or it is of another model; says which command helps.
    """
    path = existing(run)
    manifest = GalleryManifest.read(path)
    if (problem := _other_model(run, path, manifest)) is not None:
        raise ValueError(problem)
    if (problem := _older_index(run, path, manifest)) is not None:
        log.warning("%s", problem)
    return path


def problems(run: RunState) -> list[str]:
    """Read every byte of the live gallery of a run, and compare it with the run.

    Returns:
        What is wrong, in sentences; none if the gallery is whole and up to date.
    """
    path = existing(run)
    damaged = check(path)
    if damaged:
        return damaged
    manifest = GalleryManifest.read(path)
    found = [_other_model(run, path, manifest), _older_index(run, path, manifest)]
    return [problem for problem in found if problem is not None]


def _other_model(run: RunState, path: Path, manifest: GalleryManifest) -> str | None:
    model = run.folder("train").name
    if manifest.model == model:
        return None
    return (
        f"gallery {str(path)!r} is of model {manifest.model!r} but run {str(run.path)!r} now has "
        f"model {model!r}; {_command(run)} brings it up to date, with --drop-unembeddable if "
        "it holds rows without images"
    )


def _older_index(run: RunState, path: Path, manifest: GalleryManifest) -> str | None:
    key = run.folder("index").name
    if manifest.seed == key:
        return None
    return (
        f"gallery {str(path)!r} was seeded from index {manifest.seed!r} and run "
        f"{str(run.path)!r} now has {key!r}; {_command(run)} brings it up to date"
    )


def _command(run: RunState) -> str:
    return f"'ray-reid gallery {run.path} seed'"


def seed(
    index: Path, key: str, gallery: Path, embed: Embed, drop_unembeddable: bool = False
) -> Seeded:
    """Seed a gallery from an index, unless it was seeded from that one already.

    A kill or a refusal at any moment leaves the gallery as it was.

    Args:
        index: What the index job published; nobody writes it.
        key: Its key.
        gallery: Directory of the live gallery; it is made if needed.
        embed: Makes vectors of rows with their images; called if rows that people enrolled are of
            another model than the index.
        drop_unembeddable: Leave out such rows if their image is missing or cannot be read.

    Raises:
        UnembeddableError: If there are such rows otherwise.
        ValueError: If another process writes the gallery, or `index` is none.
    """
    if not (gallery / CURRENT).exists():
        with Writer.adopt(gallery, index, key) as writer:
            return Seeded(True, len(writer), 0)
    if GalleryManifest.read(gallery).seed == key:
        with Reader(gallery) as reader:
            return Seeded(False, len(reader), len(reader.edits.kept))
    with Writer(gallery) as writer:
        left_out = writer.seed(index, key, embed, drop_unembeddable)
        return Seeded(True, len(writer), len(writer.edits.kept), tuple(left_out))
