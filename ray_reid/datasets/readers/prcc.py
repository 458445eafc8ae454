"""PRCC (Yang et al., TPAMI 2021): clothes change between cameras A, B and camera C.

rgb/train/001/A_cropped_rgb001.jpg    the letter is the camera; 17,896 images, 150 identities
rgb/val/                              5,002 other images of the identities of train
rgb/test/A/002/cropped_rgb001.jpg     the folder is the camera; A, B and C hold 71 identities
sketch/                               contour drawings in the same tree
"""

import re
from pathlib import Path, PurePosixPath
from typing import Literal

from ray_reid.datasets import clothes, reading
from ray_reid.datasets.clothes import ClothesShot
from ray_reid.datasets.reading import Layout, ReaderSource, Reading


class PRCCSource(ReaderSource):
    """PRCC: the gallery is camera A, the queries are B (same clothes) and C (other clothes)."""

    reader: Literal["prcc"] = "prcc"
    root: str
    """The folder that holds `rgb`, that folder itself (or `sketch`), or a parent of them."""
    val: bool = False
    """Whether the folder `val`, other images of the same people, joins the train split."""
    name: str = "prcc"
    licence: str | None = "academic research only (PRCC)"


WANTED = ("train", "test/A", "test/B", "test/C")
TEST = (("gallery", "test/A"), ("query", "test/B"), ("query", "test/C"))
NAME = re.compile(r"(?P<camera>[ABC])_.+")


def read_prcc(source: PRCCSource) -> Reading:
    """List train, and test with A as the gallery and B and C as queries.

    Raises:
        ValueError: If a folder is missing or nothing can be trained or tested on.
    """
    example = "train/001/A_cropped_rgb001.jpg"
    return clothes.read_folders(source, locate(source.root), _folders(source), parse, example)


def files(source: PRCCSource) -> list[Path]:
    """The files that a reading depends on."""
    return clothes.list_folders(locate(source.root), _folders(source))


def locate(root: str) -> Path:
    """The folder that holds train and test: `rgb` where there is one.

    Raises:
        ValueError: If there is none, or more than one.
    """
    # Without this, drawings would be read where a folder of rgb is missing.
    above = reading.found(reading.folder(root), ["rgb"])
    return reading.locate(root if above is None else str(above / "rgb"), WANTED, "PRCC")


def parse(place: PurePosixPath) -> ClothesShot | None:
    """The letter is that of the name in train and val, and of the folder in test."""
    match place.parts:
        case ("test", "A" | "B" | "C", identity, _):
            camera = place.parts[1]
        case ("train" | "val", identity, name) if (found := NAME.fullmatch(name)) is not None:
            camera = found["camera"]
        case _:
            return None
    # A and B show the same clothes.
    return ClothesShot(identity, camera, f"{identity}C" if camera == "C" else identity)


def recognise(root: Path) -> PRCCSource | None:
    """Folders train, test/A, test/B and test/C, with names like A_cropped_rgb001.jpg in train."""
    try:
        known = clothes.begins_with(locate(str(root)), "train", parse)
    except ValueError:
        return None
    return PRCCSource(root=str(root)) if known else None


def _folders(source: PRCCSource) -> list[tuple[str, str]]:
    return [("train", "train"), *([("train", "val")] if source.val else []), *TEST]


LAYOUT = Layout(
    PRCCSource,
    read_prcc,
    files,
    recognise,
    lambda source: {"train": (17896 + 5002 * source.val, 150)},
    "academic research only",
    aside=lambda _: ("val", "sketch", "contour"),
    protocol=lambda _: "prcc",
)
