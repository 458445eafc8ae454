"""LaST (Shu et al., TCSVT 2022): people of films, in many places and clothes.

train/000001/000001_..._02.jpg    first field identity, last field outfit; 71,248 images, 5,000 ids
val/query/, val/gallery/<id>/     56 other identities
test/query/, test/gallery/<id>/   5,806 other identities
"""

import re
from pathlib import Path, PurePosixPath
from typing import Literal

from ray_reid.datasets import clothes, reading
from ray_reid.datasets.clothes import ClothesShot
from ray_reid.datasets.reading import Layout, ReaderSource, Reading


class LaSTSource(ReaderSource):
    """LaST: people of films; without cameras, and with outfits in the train split only."""

    reader: Literal["last"] = "last"
    root: str
    """The folder that holds train, val and test, or a parent of it."""
    test: Literal["val", "test"] = "test"
    """The folder whose queries and gallery are searched."""
    name: str = "last"
    licence: str | None = "academic research only (LaST)"


NAME = re.compile(r"(?P<identity>\d+)_(.+_)?(?P<outfit>[^_]+)")


def read_last(source: LaSTSource) -> Reading:
    """List train, and the queries and gallery of `source.test`; no image has a camera.

    Raises:
        ValueError: If a folder is missing or nothing can be trained or tested on.
    """
    example = "<identity>_..._<outfit>.jpg"
    return clothes.read_folders(source, _locate(source), _folders(source), parse, example)


def files(source: LaSTSource) -> list[Path]:
    """The files that a reading depends on."""
    return clothes.list_folders(_locate(source), _folders(source))


def parse(place: PurePosixPath) -> ClothesShot | None:
    """Outfits are labelled in train only; identities are counted in each of the three parts."""
    name = NAME.fullmatch(place.stem)
    if name is None:
        return None
    identity, part = name["identity"], place.parts[0]
    if part == "train":
        return ClothesShot(identity, clothes=f"{identity}_{name['outfit']}")
    # The parts have no person in common, so an equal number would mean another person.
    return ClothesShot(f"{part}_{identity}")


def recognise(root: Path) -> LaSTSource | None:
    """Folders train, val and test, the latter two with query and gallery."""
    wanted = ("train", "val/query", "val/gallery", "test/query", "test/gallery")
    place = reading.found(root, wanted)
    known = place is not None and clothes.begins_with(place, "train", parse)
    return LaSTSource(root=str(root)) if known else None


def _folders(source: LaSTSource) -> tuple[tuple[str, str], ...]:
    query, gallery = f"{source.test}/query", f"{source.test}/gallery"
    return ("train", "train"), ("query", query), ("gallery", gallery)


def _locate(source: LaSTSource) -> Path:
    return reading.locate(source.root, [folder for _, folder in _folders(source)], "LaST")


LAYOUT = Layout(
    LaSTSource,
    read_last,
    files,
    recognise,
    lambda _: {"train": (71248, 5000)},
    "academic research only",
    aside=lambda _: ("val", "test"),
)
