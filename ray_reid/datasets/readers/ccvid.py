"""CCVID (Gu et al., CVPR 2022): videos of people who change their clothes between sessions.

session1/001_01/00001.jpg                 identity 1, video 1; 347,833 frames in 2,856 tracklets
train.txt, query.txt, gallery.txt         tracklet folder, identity, clothes label in each line
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from ray_reid.datasets import clothes, reading
from ray_reid.datasets.clothes import ClothesShot
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class CCVIDSource(ReaderSource):
    """CCVID: tracklets of three sessions, one row per frame."""

    reader: Literal["ccvid"] = "ccvid"
    root: str
    """The folder that holds train.txt, query.txt and gallery.txt, or a parent of it."""
    every: int = Field(1, ge=1)
    """Take each n-th frame of a tracklet, the first one always."""
    name: str = "ccvid"
    licence: str | None = "CC BY-NC-SA 4.0"


SESSIONS = ("session1", "session2", "session3")
LISTS = {"train": "train.txt", "query": "query.txt", "gallery": "gallery.txt"}
FOLDER = re.compile(r"session(?P<session>\d+)/(?P<identity>[^/]+)_(?P<video>\d+)")
# Session 3 is filmed by cameras of its own.
OFFSET = {3: 12}


@dataclass(frozen=True)
class Tracklet:
    """A line of a list."""

    folder: str
    split: str
    shot: ClothesShot


def read_ccvid(source: CCVIDSource) -> Reading:
    """One row per frame, or per each `every`-th; `track` is the folder of the tracklet.

    Raises:
        ValueError: If a list is missing or not of this form, a tracklet is in two lists, or
            nothing can be trained or tested on.
    """
    place = _locate(source.root)
    where = repr(str(place))
    rows: list[Row] = []
    empty: list[str] = []
    tracklets = _tracklets(place)
    for tracklet in tracklets:
        frames = _frames(place, tracklet)[:: source.every]
        if not frames:
            empty.append(tracklet.folder)
        rows += [clothes.row(source, place, f, tracklet.split, tracklet.shot) for f in frames]
    warnings = []
    if empty:
        warnings.append(
            f"{len(empty)} of {len(tracklets)} tracklets in the lists of {where} have no image, "
            f"e.g. {empty[0]!r}; they are left out"
        )
    listed = {tracklet.folder for tracklet in tracklets}
    there = (path.relative_to(place).as_posix() for path in place.glob("session*/*_*"))
    idle = sorted(set(there) - listed)
    if idle:
        warnings.append(
            f"{len(idle)} tracklets of {where} are in none of the lists, e.g. {idle[0]!r}; they "
            "are left out"
        )
    return clothes.checked(rows, warnings, where)


def files(source: CCVIDSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    frames = [file for tracklet in _tracklets(place) for file in _frames(place, tracklet)]
    return [*(place / name for name in LISTS.values()), *frames]


def parse(place: PurePosixPath) -> ClothesShot | None:
    """What the folder of a frame says; only the lists know the clothes."""
    folder = place.parent.as_posix()
    found = FOLDER.fullmatch(folder)
    if found is None:
        return None
    camera = int(found["video"]) + OFFSET.get(int(found["session"]), 0)
    return ClothesShot(found["identity"], str(camera), track=folder)


def read_list(file: Path, split: str) -> list[Tracklet]:
    """The tracklets of a list.

    Raises:
        ValueError: If it cannot be read, or a line is not a tracklet's.
    """
    tracklets = []
    for number, line in enumerate(reading.read_text(file).splitlines(), start=1):
        # Tabs or spaces, some of them at the end of a line.
        fields = line.split()
        if not fields:
            continue
        shot = parse(PurePosixPath(fields[0], "frame")) if len(fields) == 3 else None
        if shot is None:
            raise ValueError(
                f"{str(file)!r}, line {number}: {line!r} is not `session1/001_01 001 label`"
            )
        folder, identity, label = fields
        known = ClothesShot(identity, shot.camera, f"{identity}_{label}", folder)
        tracklets.append(Tracklet(folder, split, known))
    return tracklets


def recognise(root: Path) -> CCVIDSource | None:
    """Folders of sessions beside the three lists."""
    place = reading.found(root, list(LISTS.values()))
    known = place is not None and any(place.glob("session*/*_*"))
    return CCVIDSource(root=str(root)) if known else None


def _tracklets(place: Path) -> list[Tracklet]:
    found: dict[str, Tracklet] = {}
    for split, name in LISTS.items():
        for tracklet in read_list(place / name, split):
            other = found.setdefault(tracklet.folder, tracklet)
            if other is not tracklet:
                lists = f"{LISTS[other.split]} and {name}"
                raise ValueError(f"{tracklet.folder!r} is listed twice in {str(place)!r}: {lists}")
    return list(found.values())


def _frames(place: Path, tracklet: Tracklet) -> list[Path]:
    folder = place / tracklet.folder
    return reading.list_images(folder) if folder.is_dir() else []


def _locate(root: str) -> Path:
    return reading.locate(root, list(LISTS.values()), "CCVID")


LAYOUT = Layout(
    CCVIDSource,
    read_ccvid,
    files,
    recognise,
    terms="CC BY-NC-SA 4.0; mosaic faces in print",
    aside=lambda _: SESSIONS,
    protocol=lambda _: "ccvid",
)
