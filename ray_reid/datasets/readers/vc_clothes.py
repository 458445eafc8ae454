"""VC-Clothes (Wan et al., CVPRW 2020): people and streets of a game.

train/0001-01-02-03.jpg    identity 1, camera 1 of 4, outfit 2, image 3; 256 identities
query/, gallery/           256 other identities
"""

import re
from pathlib import Path, PurePosixPath
from typing import Literal

from ray_reid.datasets import clothes, reading
from ray_reid.datasets.clothes import ClothesShot
from ray_reid.datasets.reading import Layout, ReaderSource, Reading


class VCClothesSource(ReaderSource):
    """VC-Clothes: people and streets of a game, four cameras."""

    reader: Literal["vc_clothes"] = "vc_clothes"
    root: str
    """The folder that holds train, query and gallery, or a parent of it."""
    name: str = "vc_clothes"
    licence: str | None = "Apache-2.0"


FOLDERS = (("train", "train"), ("query", "query"), ("gallery", "gallery"))
NAME = re.compile(r"(?P<identity>\d+)-(?P<camera>\d+)-(?P<outfit>\d+)-(\d+)")


def read_vc_clothes(source: VCClothesSource) -> Reading:
    """List the three folders; cameras are numbers without the zero before them.

    Raises:
        ValueError: If a folder is missing or nothing can be trained or tested on.
    """
    place = _locate(source.root)
    return clothes.read_folders(source, place, FOLDERS, parse, "0001-01-01-01.jpg")


def files(source: VCClothesSource) -> list[Path]:
    """The files that a reading depends on."""
    return clothes.list_folders(_locate(source.root), FOLDERS)


def parse(place: PurePosixPath) -> ClothesShot | None:
    """Identity, camera, outfit, index."""
    name = NAME.fullmatch(place.stem)
    if name is None:
        return None
    outfit = f"{name['identity']}_{name['outfit']}"
    return ClothesShot(name["identity"], str(int(name["camera"])), outfit)


def recognise(root: Path) -> VCClothesSource | None:
    """Folders train, query and gallery with names like 0001-01-01-01.jpg."""
    place = reading.found(root, [folder for _, folder in FOLDERS])
    known = place is not None and clothes.begins_with(place, "query", parse)
    return VCClothesSource(root=str(root)) if known else None


def _locate(root: str) -> Path:
    return reading.locate(root, [folder for _, folder in FOLDERS], "VC-Clothes")


LAYOUT = Layout(
    VCClothesSource,
    read_vc_clothes,
    files,
    recognise,
    terms="Apache-2.0",
    protocol=lambda _: "vc_clothes",
)
