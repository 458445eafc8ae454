"""CUHK-SYSU, person search (Xiao et al., CVPR 2017): crops of its labelled people, to train on.

cropped_images/p11422_s16929_1.jpg   person 11422 in scene 16929; read where the folder is, else
Image/SSM/s16929.jpg                 the frames are, by
annotation/Person.mat                whose record of each person has the frames and boxes

No scene names a camera, and the set's own test searches whole frames, so all crops are trained on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.loading import crop
from ray_reid.datasets.reading import LOCATOR, Layout, ReaderSource, Reading, Row


class CUHKSYSUSource(ReaderSource):
    """CUHK-SYSU: crops of labelled people, extracted already or cut from the frames."""

    reader: Literal["cuhk_sysu"] = "cuhk_sysu"
    root: str
    """The folder that holds cropped_images, or Image/SSM and annotation, or a parent of it."""
    name: str = "cuhk_sysu"
    licence: str | None = "research use only (CUHK-SYSU)"


@dataclass(frozen=True)
class _Appearance:
    """A labelled person in a frame: left, top, right, bottom in pixels, the last two exclusive."""

    person: str
    frame: str
    sides: tuple[int, int, int, int]


CROPS, FRAMES, PEOPLE = "cropped_images", "Image/SSM", "annotation/Person.mat"
NAME = re.compile(r"p(?P<identity>\d+)_s(?P<scene>\d+)_(?P<number>\d+)")
EXAMPLE = "p11422_s16929_1.jpg"
# What scipy says of MATLAB 7.3 is a NotImplementedError, of a file cut short a TypeError.
UNREADABLE = (OSError, ValueError, NotImplementedError, KeyError, AttributeError, TypeError)


def read_cuhk_sysu(source: CUHKSYSUSource) -> Reading:
    """List the crops, or cut the boxes of Person.mat out of the frames.

    Raises:
        ValueError: If neither is there, or Person.mat is another file.
    """
    place = _locate(source.root)
    where = repr(str(place))
    rows, warnings = _cropped(source, place) if _has_crops(place) else _cut(source, place)
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no crop like {EXAMPLE}")
    reading.check_training(rows, where)
    return Reading(rows, warnings)


def files(source: CUHKSYSUSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    if _has_crops(place):
        return reading.list_images(place / CROPS)
    return [place / PEOPLE, *reading.list_images(place / FRAMES)]


def recognise(root: Path) -> CUHKSYSUSource | None:
    """A folder with the frames and Person.mat, or with crops named like p11422_s16929_1.jpg."""
    try:
        place = _locate(str(root))
    except ValueError:
        return None
    if _has_crops(place):
        first = reading.list_images(place / CROPS)[:1]
        if not any(NAME.fullmatch(file.stem) for file in first):
            return None
    return CUHKSYSUSource(root=str(root))


def _locate(root: str) -> Path:
    cropped = reading.found(reading.folder(root), [CROPS])
    return cropped or reading.locate(root, [FRAMES, PEOPLE], "CUHK-SYSU")


def _has_crops(place: Path) -> bool:
    return (place / CROPS).is_dir()


def _cropped(source: CUHKSYSUSource, place: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    strange: list[Path] = []
    for file in reading.list_images(place / CROPS):
        name = NAME.fullmatch(file.stem)
        if name is None:
            strange.append(file)
        else:
            rows.append(_row(source, place, file, name["identity"]))
    return rows, reading.left_out(strange, f"have no name like {EXAMPLE}", repr(str(place)))


def _cut(source: CUHKSYSUSource, place: Path) -> tuple[list[Row], list[str]]:
    there = {file.name: file for file in reading.list_images(place / FRAMES)}
    sizes: dict[Path, tuple[int, int] | None] = {}
    rows: list[Row] = []
    absent: list[Path] = []
    empty: list[Path] = []
    for one in _appearances(place / PEOPLE):
        file = there.get(one.frame)
        if file is None:
            absent.append(Path(one.frame))
            continue
        if file not in sizes:
            sizes[file] = _size(file)
        sides = _within(sizes[file], one.sides)
        if sides is None:
            empty.append(file)
            continue
        row = _row(source, place, file, one.person)
        box = ",".join(map(str, sides))
        row[schema.OBSERVATION_ID] = schema.observation_id(source.name, row[schema.PATH], box)
        row[LOCATOR] = crop(file, sides)
        rows.append(row)
    where = repr(str(place))
    warnings = reading.left_out(absent, "are named in Person.mat but not on the disk", where)
    # A person stands twice in a frame only by mistake; an id names one crop.
    unique = {row[schema.OBSERVATION_ID]: row for row in rows}
    return list(unique.values()), [
        *warnings,
        *reading.left_out(empty, "have a box of Person.mat outside the frame", where),
    ]


def _size(file: Path) -> tuple[int, int] | None:
    """Width and height of a frame by its header; None where it cannot be read."""
    try:
        with Image.open(file) as picture:
            return picture.size
    except OSError:
        return None


def _within(
    size: tuple[int, int] | None, sides: tuple[int, int, int, int]
) -> tuple[int, int, int, int] | None:
    """A box cut to its frame; None where nothing of it is inside."""
    if size is None:
        # Its crops become corrupt images, which ingest counts.
        return sides
    left, top = max(sides[0], 0), max(sides[1], 0)
    right, bottom = min(sides[2], size[0]), min(sides[3], size[1])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _row(source: CUHKSYSUSource, place: Path, file: Path, person: str) -> Row:
    return reading.file_row(
        source.name,
        place,
        file,
        identity=schema.qualified_identity(source.name, person),
        camera=None,
        licence=source.licence,
        split="train",
    )


def _appearances(file: Path) -> Iterator[_Appearance]:
    """Every labelled person in every frame.

    Raises:
        ValueError: If the file cannot be read or holds something else.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        people = np.ravel(loadmat(file, squeeze_me=True, struct_as_record=False)["Person"])
        for person in people:
            for scene in np.ravel(person.scene):
                left, top, width, height = (round(float(v)) for v in np.ravel(scene.idlocate))
                sides = (left, top, left + width, top + height)
                yield _Appearance(str(person.idname).lstrip("p"), str(scene.imname), sides)
    except (*UNREADABLE, MatReadError) as error:
        raise ValueError(
            f"{str(file)!r} is no readable Person.mat with idname, scene, imname and idlocate: "
            f"{error}"
        ) from error


def _official(source: CUHKSYSUSource) -> Mapping[str, tuple[int, int]]:
    place = _locate(source.root)
    # Of the crops that the field passes on; the frames hold as many people.
    return {"train": (34574, 11934)} if _has_crops(place) else {}


LAYOUT = Layout(
    CUHKSYSUSource,
    read_cuhk_sysu,
    files,
    recognise,
    _official,
    "research use only",
    aside=lambda _: (FRAMES.partition("/")[0],),
)
