"""MSMT17 (Wei et al., CVPR 2018), V1 or V2 with blurred faces.

list_train.txt, list_val.txt               `0000/0000_000_01_0303morning_0008_0.jpg 0` in each line
list_query.txt, list_gallery.txt           the same, below the test folder; 11,659 and 82,161 images
train/0000/0000_000_01_0303morning_0008_0.jpg   identity 0, camera 1 of 15; V2: mask_train_v2
test/                                      identities that count from 0 again; V2: mask_test_v2
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class MSMT17Source(ReaderSource):
    """MSMT17 V1, or V2 with blurred faces."""

    reader: Literal["msmt17"] = "msmt17"
    root: str
    """The folder that holds the lists and train and test (V2: mask_train_v2 and mask_test_v2), or
    a parent of it."""
    name: str = "msmt17"
    licence: str | None = "research use only (MSMT17)"
    combine_val: bool = False
    """Train on the images of list_val.txt too, as some published figures do; they show train
    identities. Without it they are not used."""


TRAIN, VAL = "list_train.txt", "list_val.txt"
TEST = {"query": "list_query.txt", "gallery": "list_gallery.txt"}
VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
NAME = re.compile(r"(?P<identity>\d+)_\d+_(?P<camera>\d+)_(?P<date>\d*)(?P<day_part>[a-z]*)")
EXAMPLE = "0000_000_01_0303morning_0008_0.jpg"


@dataclass
class _Side:
    """The folder of train or test, and what the lists say about it."""

    folder: Path
    word: str
    """Keeps identities apart: both folders count people from 0."""
    images: dict[str, Path]
    """By path below the folder, without suffix."""
    known: set[str] = field(default_factory=set)
    """Keys of `images` that a list names."""
    absent: list[Path] = field(default_factory=list)
    strange: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)


def read_msmt17(source: MSMT17Source) -> Reading:
    """Read the lists; val joins train or is not used.

    Raises:
        ValueError: If a list or folder is missing or unreadable, there are too few identities to
            train on, or no query can be answered.
    """
    place = _locate(source.root)
    where = repr(str(place))
    train, test = (
        _Side(place / name, word, _images(place / name))
        for name, word in zip(_folders(place), ("train", "test"), strict=True)
    )
    rows = list(_rows(source, place / TRAIN, "train", train))
    val: list[Row] = []
    # Some copies have no list of val; only who asks for it misses it.
    if source.combine_val or (place / VAL).exists():
        val = list(_rows(source, place / VAL, "train", train))
    for split, name in TEST.items():
        rows += _rows(source, place / name, split, test)
    warnings = [*_left_out(train), *_left_out(test)]
    if source.combine_val:
        rows += val
    elif val:
        warnings.append(
            f"{len(val)} images of {VAL} in {where} are not used, as in the official split; "
            "set combine_val to train on them"
        )
    reading.check_training(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: MSMT17Source) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    lists = [place / name for name in (TRAIN, VAL, *TEST.values())]
    found = [file for name in _folders(place) for file in reading.list_images(place / name)]
    return [*(file for file in lists if file.is_file()), *found]


def recognise(root: Path) -> MSMT17Source | None:
    """A folder with the lists and the folders of a version."""
    try:
        place = _locate(str(root))
        _folders(place)
        first = next(_entries(place / TEST["query"]), None)
    except ValueError:
        return None
    if first is None or not NAME.match(first[0].name):
        return None
    return MSMT17Source(root=str(root))


def _locate(root: str) -> Path:
    return reading.locate(root, (TRAIN, *TEST.values()), "MSMT17")


def _folders(place: Path) -> tuple[str, str]:
    """Names of the train and the test folder."""
    found = [names for names in VERSIONS if all((place / name).is_dir() for name in names)]
    if len(found) != 1:
        pairs = " or ".join(f"{train} and {test}" for train, test in VERSIONS)
        problem = "both versions" if found else "neither version"
        raise ValueError(
            f"{str(place)!r} holds the images of {problem} of MSMT17; it takes the folders {pairs}"
        )
    return found[0]


def _images(folder: Path) -> dict[str, Path]:
    images = {}
    for file in reading.list_images(folder):
        images[file.relative_to(folder).with_suffix("").as_posix()] = file
    return images


def _entries(file: Path) -> Iterator[tuple[PurePosixPath, int]]:
    """Path and label of each line of a list."""
    for number, line in enumerate(reading.read_text(file).splitlines(), start=1):
        parts = line.rsplit(maxsplit=1)
        if len(parts) == 2 and parts[1].isdecimal():
            yield PurePosixPath(parts[0].strip()), int(parts[1])
        elif parts:
            raise ValueError(f"{str(file)!r}, line {number}: {line!r} is not `path label`")


def _rows(source: MSMT17Source, names: Path, split: str, side: _Side) -> Iterator[Row]:
    """The rows of the images that a list names; `side` keeps what cannot be used."""
    for path, label in _entries(names):
        key = path.with_suffix("").as_posix()
        file = side.images.get(key)
        name = NAME.match(path.name)
        if file is None:
            side.absent.append(side.folder / path)
        elif key in side.known:
            side.repeated.append(file)
        elif name is None or int(name["identity"]) != label:
            side.known.add(key)
            side.strange.append(file)
        else:
            side.known.add(key)
            yield _row(source, side, file, split, name)


def _row(source: MSMT17Source, side: _Side, file: Path, split: str, name: "re.Match[str]") -> Row:
    when = {key: name[key] for key in ("date", "day_part")}
    identity = f"{side.word}_{name['identity']}"
    return reading.file_row(
        source.name,
        side.folder.parent,
        file,
        identity=schema.qualified_identity(source.name, identity),
        camera=name["camera"],
        licence=source.licence,
        split=split,
        attributes=when if all(when.values()) else None,
    )


def _left_out(side: _Side) -> list[str]:
    where = repr(str(side.folder))
    idle = [file for key, file in side.images.items() if key not in side.known]
    unlike = f"have no name like {EXAMPLE} of the identity that their list says"
    return [
        *reading.left_out(side.absent, "are in a list but not on the disk", where),
        *reading.left_out(side.repeated, "are listed again", where),
        *reading.left_out(side.strange, unlike, where),
        *reading.left_out(idle, "are in no list", where),
    ]


def _official(source: MSMT17Source) -> Mapping[str, tuple[int, int]]:
    counts = {"query": (11659, 3060), "gallery": (82161, 3060)}
    return counts | ({"train": (32621, 1041)} if source.combine_val else {})


LAYOUT = Layout(MSMT17Source, read_msmt17, files, recognise, _official, "research use only")
