"""Market-1501 (Zheng et al., ICCV 2015) and any set in its layout and names.

bounding_box_train/0002_c1s1_000451_03.jpg   identity 2, camera 1; 12,936 images, 751 identities
query/                                       3,368 images, 750 identities
bounding_box_test/                           19,732 images with junk (-1) and distractors (0000)
"""

import re
from pathlib import Path

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Layout, Reading, Row
from ray_reid.sources import Market1501Source

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
NAME = re.compile(r"(?P<identity>-?\d+)_c(?P<camera>\d)s(?P<sequence>\d)_(\d+)_(\d+)")
ROLES = {-1: "junk", 0: "distractor"}


def read_market1501(source: Market1501Source) -> Reading:
    """List the three folders; junk and distractors stay in the gallery with that role.

    Raises:
        ValueError: If a folder is missing, a split is empty, train and test share an identity,
            or no query can be answered.
    """
    place = _locate(source.root)
    where = repr(str(place))
    rows: list[Row] = []
    strange: list[Path] = []
    stray: list[Path] = []
    for split, folder in FOLDERS.items():
        for file in reading.list_images(place / folder):
            name = NAME.match(file.stem)
            if name is None:
                strange.append(file)
            elif split != "gallery" and int(name["identity"]) in ROLES:
                stray.append(file)
            else:
                rows.append(_row(source, place, split, file, name))
    warnings = [
        *reading.left_out(strange, "have no name like 0002_c1s1_000451_03.jpg", where),
        *reading.left_out(stray, "are junk or distractors outside the gallery", where),
    ]
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no image")
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: Market1501Source) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    return [file for name in FOLDERS.values() for file in reading.list_images(place / name)]


def _locate(root: str) -> Path:
    return reading.locate(root, tuple(FOLDERS.values()), "Market-1501")


def recognise(root: Path) -> Market1501Source | None:
    """A folder with the three folders and names like 0002_c1s1_000451_03.jpg."""
    place = reading.found(root, tuple(FOLDERS.values()))
    names = () if place is None else reading.list_images(place / FOLDERS["query"])[:1]
    if place is None or not any(NAME.match(file.stem) for file in names):
        return None
    return Market1501Source(root=str(root))


def _row(
    source: Market1501Source, place: Path, split: str, file: Path, name: "re.Match[str]"
) -> Row:
    role = ROLES.get(int(name["identity"]), "normal")
    identity = schema.qualified_identity(source.name, name["identity"])
    return reading.file_row(
        source.name,
        place,
        file,
        identity=identity if role == "normal" else None,
        camera=name["camera"],
        licence=source.licence,
        split=split,
        role=role,
    )


LAYOUT = Layout(
    read_market1501,
    files,
    recognise,
    lambda _: {"train": (12936, 751), "query": (3368, 750), "gallery": (15913, 751)},
    "research use only",
)
