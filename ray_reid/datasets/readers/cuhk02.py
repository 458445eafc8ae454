"""CUHK02 (Li and Wang, CVPR 2013): five pairs of cameras on a campus.

Dataset/P1/cam1/001_1.png   a person of pair 1 by its first camera; two images by each camera
Dataset/P1/cam2/001_1.png   the same person by its second camera

Numbers of people count anew in every pair. Pairs 1 to 4 are trained on, pair 5 is searched.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class CUHK02Source(ReaderSource):
    """CUHK02: five pairs of cameras, each with people of its own."""

    reader: Literal["cuhk02"] = "cuhk02"
    root: str
    """The folder that holds P1 to P5, or a parent of it."""
    name: str = "cuhk02"
    licence: str | None = "research use only (CUHK02)"
    test_pair: int = Field(5, ge=1, le=5)
    """The pair of cameras that is searched: its first camera in its second."""


PAIRS = range(1, 6)
VIEWS = (1, 2)
EXAMPLE = "001_1.png"
FOLDERS = [f"P{pair}/cam{view}" for pair in PAIRS for view in VIEWS]


def read_cuhk02(source: CUHK02Source) -> Reading:
    """List all pairs; an identity is `pair_number`, because numbers count anew in every pair.

    Raises:
        ValueError: If a folder is missing, or no query can be answered.
    """
    place = _locate(source.root)
    where = repr(str(place))
    rows: list[Row] = []
    strange: list[Path] = []
    for pair, view, file in _listed(place):
        person = file.stem.partition("_")[0]
        if person.isdecimal():
            rows.append(_row(source, place, file, pair, view, person))
        else:
            strange.append(file)
    if not rows:
        raise ValueError(f"{where} holds no image with a name like {EXAMPLE}")
    warnings = reading.left_out(strange, f"have no name like {EXAMPLE}", where)
    reading.check_training(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: CUHK02Source) -> list[Path]:
    """The files that a reading depends on."""
    return [file for _, _, file in _listed(_locate(source.root))]


def recognise(root: Path) -> CUHK02Source | None:
    """A folder with P1 to P5, each with cam1 and cam2."""
    return None if reading.found(root, FOLDERS) is None else CUHK02Source(root=str(root))


def _locate(root: str) -> Path:
    return reading.locate(root, FOLDERS, "CUHK02")


def _listed(place: Path) -> Iterator[tuple[int, int, Path]]:
    for pair in PAIRS:
        for view in VIEWS:
            for file in reading.list_images(place / f"P{pair}" / f"cam{view}"):
                yield pair, view, file


def _row(source: CUHK02Source, place: Path, file: Path, pair: int, view: int, person: str) -> Row:
    searched = "query" if view == 1 else "gallery"
    return reading.file_row(
        source.name,
        place,
        file,
        identity=schema.qualified_identity(source.name, f"{pair}_{person}"),
        # Ten cameras in all: those of two pairs are not the same.
        camera=f"{pair}_{view}",
        licence=source.licence,
        split=searched if pair == source.test_pair else "train",
    )


LAYOUT = Layout(
    CUHK02Source,
    read_cuhk02,
    files,
    recognise,
    lambda source: (
        {"train": (6308, 1577), "query": (478, 239), "gallery": (478, 239)}
        if source.test_pair == PAIRS[-1]
        else {}
    ),
    "research use only",
)
