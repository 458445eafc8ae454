"""VIPeR (Gray et al., PETS 2007): two cameras, one image of each person by each.

cam_a/000_45.bmp   person 000, seen from 45 degrees; 632 images
cam_b/000_90.bmp   the same person by the other camera; 632 images

There is no official split: half of the people, drawn by a seed, are trained on.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from ray_reid.datasets import reading, two_cameras
from ray_reid.datasets.reading import Layout, ReaderSource, Reading
from ray_reid.datasets.two_cameras import Tested


class VIPeRSource(ReaderSource):
    """VIPeR: two cameras with one image of each person; the split is drawn."""

    reader: Literal["viper"] = "viper"
    root: str
    """The folder that holds cam_a and cam_b, or a parent of it."""
    name: str = "viper"
    licence: str | None = None
    """Terms of the images; null because the set states none."""
    split_seed: int = Field(0, ge=0)
    """Draws the half of the people to train on; published figures are means of ten draws."""
    query_camera: Literal["a", "b"] = "a"
    """The other camera is the gallery; published figures are means of both directions."""
    tested: Tested = "half"
    """`all` trains on nobody: for a set that is a target only (protocol `drawn_halves`)."""


NAME = re.compile(r"(?P<identity>\d+)_(?P<angle>\d+)")
EXAMPLE = "000_45.bmp"


def read_viper(source: VIPeRSource) -> Reading:
    """List both cameras; people that only one of them saw are left out.

    Raises:
        ValueError: If a folder is missing, or fewer than four people are on both cameras.
    """
    place = _locate(source.root)
    where = repr(str(place))
    shots, warnings = two_cameras.shots(place, NAME, EXAMPLE)
    people = two_cameras.on_both(shots)
    splits = two_cameras.splits(
        people, source.query_camera, source.split_seed, where, source.tested
    )
    rows = [
        two_cameras.row(
            source, place, shot, splits[shot.person, shot.camera], view=shot.name["angle"]
        )
        for shot in shots
        if shot.person in people
    ]
    alone = [shot.file for shot in shots if shot.person not in people]
    warnings += reading.left_out(alone, "show people that the other camera did not see", where)
    return Reading(rows, warnings)


def files(source: VIPeRSource) -> list[Path]:
    """The files that a reading depends on."""
    return two_cameras.files(_locate(source.root))


def recognise(root: Path) -> VIPeRSource | None:
    """A folder with cam_a and cam_b and names like 000_45.bmp."""
    place = reading.found(root, tuple(two_cameras.FOLDERS.values()))
    if place is None or not two_cameras.has_names(place, NAME):
        return None
    return VIPeRSource(root=str(root))


def _locate(root: str) -> Path:
    return reading.locate(root, tuple(two_cameras.FOLDERS.values()), "VIPeR")


LAYOUT = Layout(
    VIPeRSource,
    read_viper,
    files,
    recognise,
    lambda source: (
        {"query": (632, 632), "gallery": (632, 632)}
        if source.tested == "all"
        else {"train": (632, 316), "query": (316, 316), "gallery": (316, 316)}
    ),
    "no terms stated",
)
