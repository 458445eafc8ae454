"""PRID2011 (Hirzer et al., SCIA 2011), one image per person and camera.

single_shot/cam_a/person_0001.png   385 people; 1 to 200 are on both cameras
single_shot/cam_b/person_0001.png   749 people; 201 to 749 are distractors in the gallery
multi_shot/                         tracks; not read

There is no official split: 100 of the 200 people, drawn by a seed, are trained on.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from ray_reid.datasets import reading, two_cameras
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row
from ray_reid.datasets.two_cameras import CameraShot, Tested


class PRID2011Source(ReaderSource):
    """PRID2011, one image per person and camera; the split is drawn."""

    reader: Literal["prid2011"] = "prid2011"
    root: str
    """The folder that holds single_shot, a parent of it, or the folder of cam_a and cam_b."""
    name: str = "prid2011"
    licence: str | None = "research use only (PRID2011)"
    split_seed: int = Field(0, ge=0)
    """Draws 100 of the 200 people on both cameras to train on; published figures are means of ten
    draws."""
    tested: Tested = "half"
    """`all` trains on nobody: for a set that is a target only (protocol `drawn_halves`)."""


SINGLE = "single_shot"
NAME = re.compile(r"person_(?P<identity>\d+)")
EXAMPLE = "person_0001.png"
SHARED = 200
"""Above this number equal names on the two cameras are two people."""


def read_prid2011(source: PRID2011Source) -> Reading:
    """List both cameras; camera a is searched in camera b.

    Raises:
        ValueError: If a folder is missing, or fewer than four people are on both cameras.
    """
    place = _locate(source.root)
    where = repr(str(place))
    shots, warnings = two_cameras.shots(place, NAME, EXAMPLE)
    rows = list(_rows(source, place, shots))
    used = {row[reading.LOCATOR] for row in rows}
    alone = [shot.file for shot in shots if str(shot.file) not in used]
    warnings += reading.left_out(alone, "show people that the other camera did not see", where)
    return Reading(rows, warnings)


def files(source: PRID2011Source) -> list[Path]:
    """The files that a reading depends on."""
    return two_cameras.files(_locate(source.root))


def recognise(root: Path) -> PRID2011Source | None:
    """A folder with single_shot and names like person_0001.png."""
    try:
        place = _locate(str(root))
    except ValueError:
        return None
    return PRID2011Source(root=str(root)) if two_cameras.has_names(place, NAME) else None


def _locate(root: str) -> Path:
    folders = tuple(two_cameras.FOLDERS.values())
    top = reading.folder(root)
    if reading.found(top, [f"{SINGLE}/{name}" for name in folders]) is None:
        # single_shot itself, whatever it is called.
        place = reading.found(top, folders)
        if place is not None and two_cameras.has_names(place, NAME):
            return place
    return reading.locate(root, [f"{SINGLE}/{name}" for name in folders], "PRID2011") / SINGLE


def _rows(source: PRID2011Source, place: Path, shots: Sequence[CameraShot]) -> Iterator[Row]:
    shared = {person for person in two_cameras.on_both(shots) if int(person) <= SHARED}
    where = repr(str(place))
    splits = two_cameras.splits(shared, "a", source.split_seed, where, source.tested)
    for shot in shots:
        if shot.person in shared:
            yield two_cameras.row(source, place, shot, splits[shot.person, shot.camera])
        elif shot.camera == "b":
            yield two_cameras.row(source, place, shot, "gallery", identity=None, role="distractor")


LAYOUT = Layout(
    PRID2011Source,
    read_prid2011,
    files,
    recognise,
    lambda source: (
        {"query": (200, 200), "gallery": (749, 201)}
        if source.tested == "all"
        else {"train": (200, 100), "query": (100, 100), "gallery": (649, 101)}
    ),
    "research use only",
    aside=lambda _: ("multi_shot",),
)
