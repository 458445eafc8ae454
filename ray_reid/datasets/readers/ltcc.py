"""LTCC (Qian et al., ACCV 2020): long-term, with changes of clothes and without.

train/094_1_c9_015923.png    identity 94, outfit 1, camera 9 of 12
query/
test/                        the gallery
info/cloth-change_id_train.txt    people with several outfits, one number a line
"""

import re
from pathlib import Path, PurePosixPath
from typing import Literal

from ray_reid import schema
from ray_reid.datasets import clothes, reading
from ray_reid.datasets.clothes import ClothesShot
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class LTCCSource(ReaderSource):
    """LTCC: names tell identity, outfit and camera."""

    reader: Literal["ltcc"] = "ltcc"
    root: str
    """The folder that holds train, query and test, or a parent of it."""
    train_on: Literal["all", "clothes_changing"] = "all"
    """Whether to leave out people of one outfit, whom `info/cloth-change_id_train.txt` does not
    name, as some papers do; CAL trains on all."""
    name: str = "ltcc"
    licence: str | None = "research use only, no redistribution of derivatives (LTCC)"


FOLDERS = (("train", "train"), ("query", "query"), ("gallery", "test"))
CHANGING = "info/cloth-change_id_train.txt"
NAME = re.compile(r"(?P<identity>\d+)_(?P<outfit>\d+)_c(?P<camera>\d+)_(\d+)")


def read_ltcc(source: LTCCSource) -> Reading:
    """List the three folders.

    Raises:
        ValueError: If a folder is missing or nothing can be trained or tested on.
    """
    place = _locate(source.root)
    found = clothes.read_folders(source, place, FOLDERS, parse, "094_1_c9_015923.png")
    if source.train_on == "all":
        return found
    numbers = _changing(place)
    kept = [row for row in found.rows if row[schema.SPLIT] != "train" or _number(row) in numbers]
    reading.check_training(kept, repr(str(place)))
    return Reading(kept, found.warnings)


def files(source: LTCCSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    listed = [] if source.train_on == "all" else [place / CHANGING]
    return clothes.list_folders(place, FOLDERS) + listed


def parse(place: PurePosixPath) -> ClothesShot | None:
    """The outfit comes before the camera, which has one or two digits."""
    name = NAME.fullmatch(place.stem)
    if name is None:
        return None
    return ClothesShot(name["identity"], name["camera"], f"{name['identity']}_{name['outfit']}")


def recognise(root: Path) -> LTCCSource | None:
    """Folders train, query and test with names like 094_1_c9_015923.png."""
    place = reading.found(root, [folder for _, folder in FOLDERS])
    known = place is not None and clothes.begins_with(place, "query", parse)
    return LTCCSource(root=str(root)) if known else None


def _changing(place: Path) -> set[int]:
    lines = reading.read_text(place / CHANGING).split()
    strange = [line for line in lines if not line.isdecimal()]
    if strange:
        raise ValueError(f"{place / CHANGING} has the line {strange[0]!r}; it lists numbers only")
    return set(map(int, lines))


def _number(row: Row) -> int:
    return int(row[schema.IDENTITY].rpartition(":")[2])


def _locate(root: str) -> Path:
    return reading.locate(root, [folder for _, folder in FOLDERS], "LTCC")


LAYOUT = Layout(
    LTCCSource,
    read_ltcc,
    files,
    recognise,
    terms="research use only, no redistribution of derivatives",
    protocol=lambda _: "clothes",
)
