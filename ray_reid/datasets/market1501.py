"""Market-1501 (Zheng et al., ICCV 2015) and any set in its layout and names.

bounding_box_train/0002_c1s1_000451_03.jpg   identity 2, camera 1; 12,936 images, 751 identities
query/                                       3,368 images, 750 identities
bounding_box_test/                           19,732 images with junk (-1) and distractors (0000)
"""

import re
from pathlib import Path

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Reading, Row
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
    place = locate(source.root)
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
        *_left_out(strange, "have no name like 0002_c1s1_000451_03.jpg", where),
        *_left_out(stray, "are junk or distractors outside the gallery", where),
    ]
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no image")
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: Market1501Source) -> list[Path]:
    """The files that a reading depends on."""
    place = locate(source.root)
    return [file for name in FOLDERS.values() for file in reading.list_images(place / name)]


def locate(root: str) -> Path:
    """Find the folder that holds the three, at `root` or at most two levels below it.

    Raises:
        ValueError: If there is none, or more than one; says what is missing.
    """
    top = reading.folder(root)
    nearest, missing = top, _missing(top)
    for level in ([top], top.glob("*"), top.glob("*/*")):
        layer = sorted(path for path in level if path.is_dir())
        found = [path for path in layer if not _missing(path)]
        if len(found) > 1:
            names = [str(path.relative_to(top)) for path in found]
            raise ValueError(f"{str(top)!r} holds {len(found)} sets, {names}; give one as root")
        if found:
            return found[0]
        for path in layer:
            if len(_missing(path)) < len(missing):
                nearest, missing = path, _missing(path)
    raise ValueError(
        f"no Market-1501 layout in {str(top)!r}: {str(nearest)!r} lacks {missing}; tried the "
        "folder itself, its sub-folders (Market-1501-v15.09.15/) and theirs "
        "(market1501/Market-1501-v15.09.15/)"
    )


def _missing(place: Path) -> list[str]:
    return [name for name in FOLDERS.values() if not (place / name).is_dir()]


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


def _left_out(files: list[Path], why: str, where: str) -> list[str]:
    if not files:
        return []
    return [f"{len(files)} images of {where} {why}, e.g. {files[0].name!r}; they are left out"]
