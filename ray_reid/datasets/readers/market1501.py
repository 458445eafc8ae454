"""Market-1501 (Zheng et al., ICCV 2015) and any set in its layout and names.

bounding_box_train/0002_c1s1_000451_03.jpg   identity 2, camera 1; 12,936 images, 751 identities
query/                                       3,368 images, 750 identities
bounding_box_test/                           19,732 images with junk (-1) and distractors (0000)
images/                                      500,000 more distractors; optional
gt_bbox/, gt_query/                          for searches with several queries; not read
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from ray_reid.datasets import market_form, reading
from ray_reid.datasets.market_form import Names
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class Market1501Source(ReaderSource):
    """The Market-1501 layout: bounding_box_train, query, bounding_box_test."""

    reader: Literal["market1501"] = "market1501"
    root: str
    """The folder that holds the three folders, or a parent of it."""
    name: str = "market1501"
    """Name of the source in identities; a variant in the same layout, such as DG-Market or
    HQ-Market, takes its own."""
    licence: str | None = "research use only (Market-1501)"
    """Terms of the images; a variant has its own."""
    distractors: bool = False
    """Add the 500,000 distractors in the folder `images`, beside the three, to the gallery."""


FOLDERS = market_form.FOLDERS
DISTRACTORS = "images"
NAME = re.compile(r"(?P<identity>-?\d+)_c(?P<camera>\d+)s(?P<sequence>\d+)_(\d+)_(\d+)")
ROLES = {-1: "junk", 0: "distractor"}
NAMES = Names(NAME, "0002_c1s1_000451_03.jpg", ROLES)


def read_market1501(source: Market1501Source) -> Reading:
    """List the three folders; junk and distractors stay in the gallery with that role.

    Raises:
        ValueError: If a folder is missing, a split is empty, train and test share an identity,
            or no query can be answered.
    """
    place = _locate(source.root)
    rows, warnings = market_form.read_folders(source, place, NAMES, place)
    if source.distractors:
        rows += _distractors(source, place)
    return Reading(rows, warnings + market_form.check(rows, repr(str(place))))


def files(source: Market1501Source) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    more = _distractor_files(place) if source.distractors else []
    return [*market_form.files(place), *more]


def recognise(root: Path) -> Market1501Source | None:
    """A folder with the three folders and names like 0002_c1s1_000451_03.jpg."""
    place = reading.found(root, tuple(FOLDERS.values()))
    if place is None or not market_form.has_names(place, NAMES):
        return None
    return Market1501Source(root=str(root))


def _locate(root: str) -> Path:
    return reading.locate(root, tuple(FOLDERS.values()), "Market-1501")


def _distractors(source: Market1501Source, place: Path) -> Iterator[Row]:
    """Nobody's images whatever their names say; junk stays junk."""
    for file in _distractor_files(place):
        name = NAME.match(file.stem)
        junk = name is not None and int(name["identity"]) == -1
        role = "junk" if junk else "distractor"
        yield market_form.row(source, place, "gallery", role, file, name)


def _distractor_files(place: Path) -> list[Path]:
    folder = place / DISTRACTORS
    found = reading.list_images(folder) if folder.is_dir() else []
    if not found:
        raise ValueError(
            f"{str(place)!r} has no images in a folder {DISTRACTORS!r}; unpack the distractors "
            "there, or set distractors to false"
        )
    return found


def _official(source: Market1501Source) -> Mapping[str, tuple[int, int]]:
    counts = {"train": (12936, 751), "query": (3368, 750)}
    return counts if source.distractors else counts | {"gallery": (15913, 751)}


LAYOUT = Layout(
    Market1501Source,
    read_market1501,
    files,
    recognise,
    _official,
    "research use only",
    aside=lambda _: ("gt_bbox", "gt_query", DISTRACTORS),
)
