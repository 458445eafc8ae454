"""VeRi-776 (Liu et al., ECCV 2016): 776 vehicles under 20 cameras.

image_train/0001_c001_00016450_0.jpg   vehicle 1, camera 1, frame; 37,778 images of 576 vehicles
image_query/, image_test/              1,678 and 11,579 images of 200 other vehicles
name_train.txt ...                     one name per line: which images are of the set
train_label.xml, test_label.xml        colours and types, named by list_color.txt, list_type.txt
test_track.txt                         one track per line
keypoint_train.txt, keypoint_test.txt  viewpoints (Wang et al., ICCV 2017)

All but the folders is optional. gt_*.txt and jk_*.txt repeat what cameras say, and are not read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from ray_reid import schema
from ray_reid.datasets import labels, reading
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class VeRi776Source(ReaderSource):
    """VeRi-776: image_train, image_query, image_test and what lies beside them."""

    reader: Literal["veri776"] = "veri776"
    root: str
    """The folder that holds the three folders, or a parent of it."""
    name: str = "veri776"
    licence: str | None = "research use only, no redistribution (VeRi-776)"
    frames_per_second: float = Field(25.0, gt=0)
    """Of the recordings: the time of an image is the frame in its name divided by this. No file of
    the set says it; 25 is an assumption."""


FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
LISTS = {"train": "name_train.txt", "query": "name_query.txt", "gallery": "name_test.txt"}
NAME = re.compile(r"(?P<vehicle>\d+)_c(?P<camera>\d{3})_(?P<frame>\d+)_(\d+)")
LABELS = ("train_label.xml", "test_label.xml")
TRACKS = "test_track.txt"
VIEWS = ("keypoint_train.txt", "keypoint_test.txt")
# A line of viewpoints: the name, 20 points of two numbers, and the view from 0 to 7.
VIEW_FIELDS = 1 + 2 * 20 + 1


@dataclass(frozen=True)
class _Known:
    """What lies beside the images, by the names of images without suffix."""

    entries: labels.Entries
    names: labels.Names
    views: Mapping[str, str]
    tracks: Mapping[str, str]
    warnings: tuple[str, ...]
    """About the files beside the images."""


def read_veri776(source: VeRi776Source) -> Reading:
    """List the three folders; an image without attributes, view or track is kept without them.

    Raises:
        ValueError: If a folder is missing, a split is empty, train and test share an identity,
            or a file beside the images cannot be read.
    """
    place = _locate(source.root)
    where = repr(str(place))
    known = _known(place)
    rows: list[Row] = []
    strange: list[Path] = []
    warnings: list[str] = []
    for split, folder in FOLDERS.items():
        found = reading.list_images(place / folder)
        named, others, notes = labels.chosen(found, place / LISTS[split], f"{folder} of {where}")
        warnings += reading.left_out(others, f"are not in {LISTS[split]}", where) + notes
        for file in named:
            name = NAME.fullmatch(file.stem)
            if name is None:
                strange.append(file)
            else:
                rows.append(_row(source, place, split, file, name, known))
    warnings += reading.left_out(strange, "have no name like 0001_c001_00016450_0.jpg", where)
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no image")
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    return Reading(
        rows,
        [
            *warnings,
            *_unknown(rows, known, where),
            *known.warnings,
            *reading.check_queries(rows, where),
        ],
    )


def files(source: VeRi776Source) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    lists = [name for _, name in labels.NUMBERED.values()]
    texts = [place / name for name in (*LISTS.values(), *LABELS, *lists, TRACKS, *VIEWS)]
    found = [file for name in FOLDERS.values() for file in reading.list_images(place / name)]
    return [*found, *(file for file in texts if file.is_file())]


def recognise(root: Path) -> VeRi776Source | None:
    """A folder with the three folders and names like 0001_c001_00016450_0.jpg."""
    place = reading.found(root, tuple(FOLDERS.values()))
    names = () if place is None else reading.list_images(place / FOLDERS["query"])[:1]
    if not any(NAME.fullmatch(file.stem) for file in names):
        return None
    return VeRi776Source(root=str(root))


def _locate(root: str) -> Path:
    return reading.locate(root, tuple(FOLDERS.values()), "VeRi-776")


def _known(place: Path) -> _Known:
    entries: dict[str, Mapping[str, str]] = {}
    warnings: list[str] = []
    for file in (place / name for name in LABELS):
        if file.is_file():
            found, notes = labels.entries(file)
            entries |= {labels.stem(name): entry for name, entry in found.items()}
            warnings += notes
    views: dict[str, str] = {}
    for file in (place / name for name in VIEWS):
        if file.is_file():
            views |= _views(file)
    if not views:
        warnings.append(
            f"{str(place)!r} has no viewpoints ({' or '.join(VIEWS)}): every view is null, so a "
            "network that learns vectors of cameras and views knows cameras alone"
        )
    tracks = labels.tracks(place / TRACKS, "test")
    names = labels.names_beside(place / LABELS[0])
    return _Known(entries, names, views, tracks, tuple(warnings))


def _views(file: Path) -> dict[str, str]:
    """Views by image; a line that is cut short says nothing of the view."""
    lines = [line.split() for line in labels.text(file).splitlines()]
    return {
        labels.stem(line[0]): line[-1]
        for line in lines
        if len(line) == VIEW_FIELDS and line[-1] in set("01234567")
    }


def _row(
    source: VeRi776Source,
    place: Path,
    split: str,
    file: Path,
    name: "re.Match[str]",
    known: _Known,
) -> Row:
    entry = known.entries.get(file.stem, {})
    return reading.file_row(
        source.name,
        place,
        file,
        identity=schema.qualified_identity(source.name, name["vehicle"]),
        camera=str(int(name["camera"])),
        view=known.views.get(file.stem),
        time=int(name["frame"]) / source.frames_per_second,
        # Images of the test set keep their names as queries, and so their tracks.
        track=None if split == "train" else known.tracks.get(file.stem),
        licence=source.licence,
        split=split,
        attributes=labels.described(entry, known.names) or None,
    )


def _unknown(rows: list[Row], known: _Known, where: str) -> list[str]:
    """Say how many images the files beside them do not know, where there are such files."""
    plain = [Path(row[reading.LOCATOR]).name for row in rows if row[schema.ATTRIBUTES] is None]
    blank = [Path(row[reading.LOCATOR]).name for row in rows if row[schema.VIEW] is None]
    of = f"of {len(rows)} images of {where}"
    return [
        *labels.counted(plain if known.entries else [], f"{of} have no attributes in the labels"),
        *labels.counted(
            blank if known.views else [], f"{of} have no viewpoint; their view is null"
        ),
    ]


LAYOUT = Layout(
    VeRi776Source,
    read_veri776,
    files,
    recognise,
    lambda _: {"train": (37778, 576), "query": (1678, 200), "gallery": (11579, 200)},
    "research use only, no redistribution",
)
