"""VERI-Wild (Lou et al., CVPR 2019): 40,671 vehicles under 174 cameras in a month.

images/<vehicle>/<image>.jpg            416,314 images
train_test_split/train_list.txt         lines `vehicle/image`, with or without suffix
train_test_split/test_3000.txt          likewise, queries included; three sizes
train_test_split/test_3000_query.txt    the queries among them
train_test_split/vehicle_info.txt       `vehicle/image;camera;time;model;type;colour`
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ray_reid import schema
from ray_reid.datasets import labels, reading
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class VERIWildSource(ReaderSource):
    """VERI-Wild: the folders images and train_test_split."""

    reader: Literal["veriwild"] = "veriwild"
    root: str
    """The folder that holds the two folders, or a parent of it."""
    test_size: Literal[3000, 5000, 10000] = 3000
    """Vehicles to test on: which of the lists test_N.txt and test_N_query.txt are read."""
    name: str = "veriwild"
    licence: str | None = "non-commercial research and education only (VERI-Wild)"


SIZES = (3000, 5000, 10000)
IMAGES, LISTS = "images", "train_test_split"
INFO = f"{LISTS}/vehicle_info.txt"
# Images in test_N.txt less the queries, one per vehicle.
GALLERY = {3000: 41861 - 3000, 5000: 69389 - 5000, 10000: 138517 - 10000}
WHEN = re.compile(r"(\d{4})\D(\d{1,2})\D(\d{1,2})\D+(\d{1,2}):(\d{1,2}):(\d{1,2})")


@dataclass(frozen=True)
class _Shot:
    """What a line of vehicle_info.txt says of an image."""

    camera: str | None
    time: float | None
    attributes: Mapping[str, str]


def read_veriwild(source: VERIWildSource) -> Reading:
    """Read the three lists; an image that is in both test lists is a query only.

    Raises:
        ValueError: If a folder or list is missing, a split is empty, train and test share an
            identity, or no query can be answered.
    """
    place = _locate(source.root)
    where = repr(str(place))
    found = _images(place)
    shots = _shots(place / INFO)
    listed = {split: _listed(file) for split, file in _lists(source, place).items()}
    warnings: list[str] = []
    for split, names in listed.items():
        lost = [name for name in names if name not in found]
        rule = f"of {len(names)} names in the {split} list are no image of {where}"
        warnings += labels.counted(lost, rule)
    queries = set(listed["query"])
    both = [name for name in listed["gallery"] if name in queries]
    listed["gallery"] = [name for name in listed["gallery"] if name not in queries]
    warnings += labels.counted(
        both, f"images of {where} are in both test lists", "; they are queries"
    )
    rows = [
        _row(source, place, split, found[name], name, shots.get(name))
        for split, names in listed.items()
        for name in names
        if name in found
    ]
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    warnings += _unknown(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: VERIWildSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    lists = _lists(source, place).values()
    return [*reading.list_images(place / IMAGES), *lists, place / INFO]


def recognise(root: Path) -> VERIWildSource | None:
    """A folder with images, train_test_split/vehicle_info.txt and lists of a known size."""
    place = reading.found(root, (IMAGES, INFO))
    if place is None:
        return None
    for size in SIZES:
        if any((place / LISTS / name).is_file() for name in _candidates(size)["query"]):
            return VERIWildSource(root=str(root), test_size=size)
    return None


def _locate(root: str) -> Path:
    return reading.locate(root, (IMAGES, INFO), "VERI-Wild")


def _candidates(size: int) -> dict[str, tuple[str, str]]:
    """The lists of the paper, and as they were handed out later with more fields in each line."""
    return {
        "train": ("train_list.txt", "train_list_start0.txt"),
        "query": (f"test_{size}_query.txt", f"test_{size}_id_query.txt"),
        "gallery": (f"test_{size}.txt", f"test_{size}_id.txt"),
    }


def _lists(source: VERIWildSource, place: Path) -> dict[str, Path]:
    lists = {}
    for split, names in _candidates(source.test_size).items():
        found = [place / LISTS / name for name in names if (place / LISTS / name).is_file()]
        if not found:
            raise ValueError(f"{str(place / LISTS)!r} has neither {names[0]!r} nor {names[1]!r}")
        lists[split] = found[0]
    return lists


def _images(place: Path) -> dict[str, Path]:
    """Images by `vehicle/image` without suffix."""
    found = reading.list_images(place / IMAGES)
    return {f"{file.parent.name}/{file.stem}": file for file in found}


def _key(name: str) -> str:
    """`vehicle/image` without suffix, as a list or vehicle_info.txt writes it."""
    return f"{Path(name.strip()).parent.name}/{labels.stem(name)}"


def _listed(file: Path) -> list[str]:
    """Keys of the images of a list, the first field of its lines, sorted and once each."""
    lines = [line.split() for line in labels.text(file).splitlines()]
    return sorted({_key(line[0]) for line in lines if line})


def _shots(file: Path) -> dict[str, _Shot]:
    """What vehicle_info.txt says, by `vehicle/image`; the first line is a header."""
    # The names of models are not UTF-8 in every copy, and nothing depends on them.
    lines = labels.content(file).decode("utf-8", "replace").splitlines()[1:]
    fields = [[field.strip() for field in line.split(";")] for line in lines]
    return {_key(line[0]): _shot(line[1:]) for line in fields if len(line) >= 3}


def _shot(fields: Sequence[str]) -> _Shot:
    camera = str(int(fields[0])) if fields[0].isdecimal() else fields[0] or None
    named = zip(("model", "body_style", "colour"), fields[2:], strict=False)
    return _Shot(camera, _seconds(fields[1]), {key: value for key, value in named if value})


def _seconds(text: str) -> float | None:
    """Seconds from 1970 to a time of day such as 2018-03-11 07:44:31, read as if in UTC."""
    found = WHEN.search(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = map(int, found.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _row(
    source: VERIWildSource, place: Path, split: str, file: Path, name: str, shot: _Shot | None
) -> Row:
    return reading.file_row(
        source.name,
        place,
        file,
        identity=schema.qualified_identity(source.name, name.partition("/")[0]),
        camera=shot.camera if shot else None,
        time=shot.time if shot else None,
        licence=source.licence,
        split=split,
        attributes=(shot.attributes if shot else None) or None,
    )


def _unknown(rows: Sequence[Row], where: str) -> list[str]:
    """Say how many images have no camera or time."""
    of = f"of {len(rows)} images of {where} have no"
    warnings = []
    for column in (schema.CAMERA, schema.TIME):
        lost = [row[reading.LOCATOR] for row in rows if row[column] is None]
        warnings += labels.counted(lost, f"{of} {column} in {INFO}")
    return warnings


LAYOUT = Layout(
    VERIWildSource,
    read_veriwild,
    files,
    recognise,
    lambda source: {
        "train": (277797, 30671),
        "query": (source.test_size, source.test_size),
        "gallery": (GALLERY[source.test_size], source.test_size),
    },
    "non-commercial research and education only",
)
