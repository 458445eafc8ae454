"""CUHK03 in the new protocol (Zhong et al., CVPR 2017) and in the folders of Market-1501.

labeled/bounding_box_train/0003_c1_21.png   identity 3, camera 1 of 2; 7,368 images, 767 identities
labeled/query/, labeled/bounding_box_test/  1,400 and 5,328 images, 700 identities
detected/                                   the same with boxes of a detector
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from ray_reid.datasets import market_form, reading
from ray_reid.datasets.market_form import FOLDERS, Names
from ray_reid.datasets.reading import Layout, ReaderSource, Reading

Boxes = Literal["labeled", "detected"]


class CUHK03NPSource(ReaderSource):
    """CUHK03 in the new protocol and in the folders of Market-1501."""

    reader: Literal["cuhk03_np"] = "cuhk03_np"
    root: str
    """The folder that holds the folders labeled and detected, a parent of it, or one of the two."""
    name: str = "cuhk03_np"
    licence: str | None = "research use only (CUHK03)"
    boxes: Boxes = "labeled"
    """Boxes drawn by hand, or those of a person detector."""


NAMES = Names(re.compile(r"(?P<identity>\d+)_c(?P<camera>\d+)_\d+"), "0003_c1_21.png", roles={})
OFFICIAL: Mapping[Boxes, Mapping[str, tuple[int, int]]] = {
    "labeled": {"train": (7368, 767), "query": (1400, 700), "gallery": (5328, 700)},
    "detected": {"train": (7365, 767), "query": (1400, 700), "gallery": (5332, 700)},
}


def read_cuhk03_np(source: CUHK03NPSource) -> Reading:
    """List the three folders of one kind of boxes.

    Raises:
        ValueError: If a folder is missing, a split is empty, train and test share an identity,
            or no query can be answered.
    """
    place = _locate(source)
    # Both kinds have images of one name; the folder keeps their ids apart.
    rows, warnings = market_form.read_folders(source, place, NAMES, place.parent)
    return Reading(rows, warnings + market_form.check(rows, repr(str(place))))


def files(source: CUHK03NPSource) -> list[Path]:
    """The files that a reading depends on."""
    return market_form.files(_locate(source))


def recognise(root: Path) -> CUHK03NPSource | None:
    """A folder of labeled or detected boxes with names like 0003_c1_21.png."""
    for boxes in get_args(Boxes):
        source = CUHK03NPSource(root=str(root), boxes=boxes)
        try:
            place = _locate(source)
        except ValueError:
            continue
        if market_form.has_names(place, NAMES):
            return source
    return None


def _locate(source: CUHK03NPSource) -> Path:
    top = reading.folder(source.root)
    if top.name == source.boxes and all((top / name).is_dir() for name in FOLDERS.values()):
        return top
    wanted = [f"{source.boxes}/{name}" for name in FOLDERS.values()]
    return reading.locate(source.root, wanted, "CUHK03-NP") / source.boxes


LAYOUT = Layout(
    CUHK03NPSource,
    read_cuhk03_np,
    files,
    recognise,
    lambda source: OFFICIAL[source.boxes],
    "research use only",
    aside=lambda _: get_args(Boxes),
)
