"""QMUL i-LIDS (Zheng et al., BMVC 2009): people of an airport's arrival hall.

i-LIDS_Pedestrian/Persons/0001001.jpg   person 1, image 1; 476 images of 119 people

Names have no camera. There is no official split: half of the people, drawn by a seed, are trained
on, and of each of the others one image is searched with another.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from ray_reid import schema
from ray_reid.datasets import reading, two_cameras
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row
from ray_reid.datasets.two_cameras import Tested


class ILIDSSource(ReaderSource):
    """i-LIDS: two to eight images of each of 119 people; the split is drawn."""

    reader: Literal["ilids"] = "ilids"
    root: str
    """The folder that holds Persons, or a parent of it."""
    name: str = "ilids"
    licence: str | None = "research use only (i-LIDS)"
    split_seed: int = Field(0, ge=0)
    """Draws the half of the people to train on, and the two images of each of the others; published
    figures are means of ten draws."""
    tested: Tested = "half"
    """`all` trains on nobody: for a set that is a target only (protocol `drawn_halves`), which
    draws the two images itself."""


FOLDER = "Persons"
NAME = re.compile(r"(?P<identity>\d{4})(?P<number>\d{3})")
EXAMPLE = "0001001.jpg"


def read_ilids(source: ILIDSSource) -> Reading:
    """List the people; of a tested person one image asks, one answers, and the others are junk.

    Raises:
        ValueError: If the folder is missing, or fewer than four people have two images.
    """
    place = _locate(source.root)
    where = repr(str(place))
    shown: dict[str, list[Path]] = {}
    strange: list[Path] = []
    for file in reading.list_images(place / FOLDER):
        name = NAME.fullmatch(file.stem)
        if name is None:
            strange.append(file)
        else:
            shown.setdefault(name["identity"], []).append(file)
    if not shown:
        raise ValueError(f"{where} holds no image with a name like {EXAMPLE}")
    several = {person for person, images in shown.items() if len(images) > 1}
    train = two_cameras.half(
        several, source.split_seed, source.tested, where, "with two images or more"
    )
    rows = [row for person in sorted(several) for row in _rows(source, place, person, shown, train)]
    warnings = reading.left_out(strange, f"have no name like {EXAMPLE}", where)
    alone = [images[0] for person, images in shown.items() if person not in several]
    warnings += reading.left_out(alone, "are the only ones of their people", where)
    return Reading(rows, warnings)


def files(source: ILIDSSource) -> list[Path]:
    """The files that a reading depends on."""
    return reading.list_images(_locate(source.root) / FOLDER)


def recognise(root: Path) -> ILIDSSource | None:
    """A folder with Persons and names like 0001001.jpg."""
    place = reading.found(root, [FOLDER])
    if place is None:
        return None
    first = reading.list_images(place / FOLDER)[:1]
    named = any(NAME.fullmatch(file.stem) for file in first)
    return ILIDSSource(root=str(root)) if named else None


def _locate(root: str) -> Path:
    return reading.locate(root, [FOLDER], "i-LIDS")


def _rows(
    source: ILIDSSource,
    place: Path,
    person: str,
    shown: Mapping[str, Sequence[Path]],
    train: set[str],
) -> list[Row]:
    """The rows of a person's images; those that a test draws do not depend on any other person."""
    drawn = sorted(shown[person], key=lambda f: (reading.share(source.split_seed, f.stem), f.stem))
    rows = []
    for file in shown[person]:
        rank = drawn.index(file)
        split = "train" if person in train else "query" if rank == 0 else "gallery"
        junk = split == "gallery" and rank > 1 and source.tested == "half"
        identity = None if junk else schema.qualified_identity(source.name, person)
        rows.append(
            reading.file_row(
                source.name,
                place,
                file,
                identity=identity,
                camera=None,
                licence=source.licence,
                split=split,
                role="junk" if junk else "normal",
            )
        )
    return rows


def _official(source: ILIDSSource) -> Mapping[str, tuple[int, int]]:
    # How many images the halves have depends on the draw.
    if source.tested == "all":
        return {"query": (119, 119), "gallery": (357, 119)}
    return {"query": (60, 60), "gallery": (60, 60)}


LAYOUT = Layout(ILIDSSource, read_ilids, files, recognise, _official, "research use only")
