"""Crops of the MOTChallenge layout (Dendorfer et al., 2020): is an object known again after a gap?

train/MOT17-02/img1/000001.jpg   frames
train/MOT17-02/gt/gt.txt         frame,id,left,top,width,height,counts,class,visibility
train/MOT17-02/seqinfo.ini       frameRate, imWidth, imHeight

Sequences lie in the root or at most two levels below; those without gt.txt are not read.
"""

import configparser
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from ray_reid import schema
from ray_reid.datasets import reading, splits
from ray_reid.datasets.loading import crop
from ray_reid.datasets.reading import LOCATOR, Layout, ReaderSource, Reading, Row
from ray_reid.datasets.splits import TEST


class MOTSource(ReaderSource):
    """Sequences of MOTChallenge, DanceTrack or SportsMOT: boxes of tracked objects."""

    reader: Literal["mot"] = "mot"
    root: str
    """The folder of a sequence, or one at most two levels above several."""
    name: str = "mot"
    licence: str | None = None
    every: int = Field(10, ge=1)
    """Frames from one crop of an object to its next; neighbouring frames hardly differ."""
    gap: float = Field(5.0, gt=0)
    """Seconds from what is searched to the query: the query of an object is its last crop, its
    crops of the last `gap` seconds before are junk, and the earlier ones answer."""
    classes: tuple[int, ...] = (1,)
    """Classes of gt.txt that are read, where it has any; 1 is a pedestrian."""
    min_visibility: float = Field(0.3, ge=0, le=1)
    min_side: int = Field(16, ge=1)
    """Least width and height of a box in pixels, within the frame."""
    test_sequences: tuple[str, ...] = ()
    """Sequences that are tested on; empty takes what the folders train and test (or val) say, else
    draws `test_fraction` of all objects."""
    test_fraction: float = Field(0.5, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    """Draws the tested objects."""


@dataclass(frozen=True)
class _Sequence:
    """A sequence with labels."""

    folder: Path
    rate: float
    """Frames per second."""
    width: int
    height: int


@dataclass(frozen=True)
class _Box:
    """A box of an object in a frame: left, top, right, bottom in pixels, the last two exclusive."""

    frame: int
    track: str
    sides: tuple[int, int, int, int]


# MOT17 has each sequence three times, with the boxes of three detectors beside one gt.txt.
DETECTORS = re.compile(r"-(DPM|FRCNN|SDP)$")
LABELS, FRAMES, INFO = "gt/gt.txt", "img1", "seqinfo.ini"
MIN_FIELDS = 6


def read_mot(source: MOTSource) -> Reading:
    """List the boxes of all sequences; an object's identity is `sequence-number`.

    Raises:
        ValueError: If there is no sequence, a file of one is malformed, or no object is seen long
            enough to be searched for.
    """
    root = reading.folder(source.root)
    where = repr(str(root))
    sequences, copies = _sequences(root)
    warnings = _left_out(copies, where)
    rows: list[Row] = []
    for folder in sequences:
        found, notes = _rows(source, root, _described(folder))
        rows += found
        warnings += notes
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no box that is used")
    _divide(rows, source, root, sequences)
    warnings += _ask(rows, source.gap, where)
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: MOTSource) -> list[Path]:
    """The files that a reading depends on."""
    found = []
    for folder in _sequences(reading.folder(source.root))[0]:
        found += [folder / LABELS, folder / INFO, *reading.list_images(folder / FRAMES)]
    return found


def recognise(root: Path) -> MOTSource | None:
    """A folder with a sequence."""
    try:
        _sequences(root)
    except ValueError:
        return None
    return MOTSource(root=str(root))


def _sequences(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders of labelled sequences, each once, and those that repeat one of these.

    Raises:
        ValueError: If there is none.
    """
    found: dict[Path, Path] = {}
    twice: list[Path] = []
    for pattern in (LABELS, f"*/{LABELS}", f"*/*/{LABELS}"):
        for labels in sorted(root.glob(pattern)):
            folder = labels.parent.parent
            if (folder / FRAMES).is_dir():
                plain = folder.with_name(DETECTORS.sub("", folder.name))
                if found.setdefault(plain, folder) != folder:
                    twice.append(folder)
    if not found:
        raise ValueError(
            f"no MOTChallenge layout in {str(root)!r}: no folder with {LABELS} and {FRAMES} there, "
            "or in its sub-folders and theirs"
        )
    return list(found.values()), twice


def _left_out(copies: Sequence[Path], where: str) -> list[str]:
    if not copies:
        return []
    return [
        f"{len(copies)} sequences of {where} repeat another with boxes of another detector, "
        f"e.g. {copies[0].name!r}; they are left out"
    ]


def _described(folder: Path) -> _Sequence:
    """A sequence with what its seqinfo.ini says.

    Raises:
        ValueError: If the file is missing or lacks a number.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(reading.read_text(folder / INFO))
        section = parser["Sequence"]
        return _Sequence(
            folder,
            float(section["frameRate"]),
            int(section["imWidth"]),
            int(section["imHeight"]),
        )
    except (configparser.Error, KeyError, ValueError) as error:
        raise ValueError(
            f"{str(folder / INFO)!r} does not say frameRate, imWidth and imHeight of [Sequence]: "
            f"{error}"
        ) from error


def _rows(source: MOTSource, root: Path, sequence: _Sequence) -> tuple[list[Row], list[str]]:
    """The rows of a sequence, their splits open, and what was left out."""
    frames = {file.stem: file for file in reading.list_images(sequence.folder / FRAMES)}
    numbered = {int(stem): file for stem, file in frames.items() if stem.isdecimal()}
    rows: list[Row] = []
    absent: list[int] = []
    last: dict[str, int] = {}
    for box in sorted(_boxes(source, sequence), key=lambda box: (box.frame, box.track)):
        if box.frame - last.get(box.track, -source.every) < source.every:
            continue
        last[box.track] = box.frame
        if box.frame in numbered:
            rows.append(_row(source, root, sequence, numbered[box.frame], box))
        else:
            absent.append(box.frame)
    if not absent:
        return rows, []
    return rows, [
        f"{len(absent)} boxes of {str(sequence.folder)!r} are in frames without a file, e.g. "
        f"{absent[0]}; they are left out"
    ]


def _boxes(source: MOTSource, sequence: _Sequence) -> Iterator[_Box]:
    """The boxes that are used, cut to the frame.

    Raises:
        ValueError: If a line is not of the format; names it.
    """
    file = sequence.folder / LABELS
    for number, line in enumerate(reading.read_text(file).splitlines(), start=1):
        cells = [cell.strip() for cell in line.split(",")]
        if cells == [""]:
            continue
        try:
            values = [float(cell) for cell in cells]
            frame, track = int(values[0]), int(values[1])
            left, top, width, height = values[2:MIN_FIELDS]
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{str(file)!r}, line {number}: {line!r} is not frame,id,left,top,width,height,..."
            ) from error
        # Pixels count from 1.
        x, y = round(left) - 1, round(top) - 1
        sides = (
            max(x, 0),
            max(y, 0),
            min(x + round(width), sequence.width),
            min(y + round(height), sequence.height),
        )
        large = min(sides[2] - sides[0], sides[3] - sides[1]) >= source.min_side
        if large and _counts(source, values):
            yield _Box(frame, str(track), sides)


def _counts(source: MOTSource, values: Sequence[float]) -> bool:
    """Whether a line is of an object that is evaluated, of a class that is read and seen enough."""
    if len(values) > MIN_FIELDS and not values[MIN_FIELDS]:
        return False
    # Of the lines with ten fields, as of 2015, the last three are a place in the world.
    if len(values) != MIN_FIELDS + 3:
        return True
    return int(values[7]) in source.classes and values[8] >= source.min_visibility


def _row(source: MOTSource, root: Path, sequence: _Sequence, file: Path, box: _Box) -> Row:
    track = f"{DETECTORS.sub('', sequence.folder.name)}-{box.track}"
    row = reading.file_row(
        source.name,
        root,
        file,
        identity=schema.qualified_identity(source.name, track),
        camera=None,
        track=track,
        time=box.frame / sequence.rate,
        licence=source.licence,
        role="normal",
    )
    box_name = ",".join(map(str, box.sides))
    row[schema.OBSERVATION_ID] = schema.observation_id(source.name, row[schema.PATH], box_name)
    row[LOCATOR] = crop(file, box.sides)
    return row


def _divide(rows: Sequence[Row], source: MOTSource, root: Path, sequences: Sequence[Path]) -> None:
    """Give every row the split `train` or `test`, in place."""
    told = _told(source, root, sequences)
    drawn: set[str] = set()
    if not told:
        identities = {row[schema.IDENTITY] for row in rows}
        drawn = splits.held_out(identities, source.test_fraction, source.seed)
    for row in rows:
        folder = (root / row[schema.PATH]).parent.parent
        tested = folder in told if told else row[schema.IDENTITY] in drawn
        row[schema.SPLIT] = TEST if tested else "train"


def _told(source: MOTSource, root: Path, sequences: Sequence[Path]) -> set[Path]:
    """The folders of the tested sequences, as the source or their parents say; else none."""
    names: Mapping[str, Path] = {folder.name: folder for folder in sequences}
    unknown = [name for name in source.test_sequences if name not in names]
    if unknown:
        raise ValueError(
            f"test_sequences names {unknown[0]!r}, which is no sequence of {str(root)!r}; choose "
            f"from {sorted(names)}"
        )
    if source.test_sequences:
        return {names[name] for name in source.test_sequences}
    words = {folder: splits.word(folder.parent.name) for folder in sequences}
    if "train" not in words.values():
        return set()
    return {folder for folder, word in words.items() if word in (TEST, splits.VAL)}


def _ask(rows: Sequence[Row], gap: float, where: str) -> list[str]:
    """Turn `test` into queries, gallery and junk, in place; says whose tracks are too short."""
    objects: dict[str, list[Row]] = {}
    for row in rows:
        if row[schema.SPLIT] == TEST:
            row[schema.SPLIT] = "gallery"
            objects.setdefault(row[schema.IDENTITY], []).append(row)
    short = []
    for identity, own in objects.items():
        query = max(own, key=lambda row: row[schema.TIME])
        since = query[schema.TIME] - gap
        if all(row[schema.TIME] > since for row in own):
            short.append(identity)
            continue
        query[schema.SPLIT] = "query"
        for row in own:
            if row is not query and row[schema.TIME] > since:
                row[schema.ROLE], row[schema.IDENTITY] = "junk", None
    if not short:
        return []
    return [
        f"{len(short)} of {len(objects)} tested objects of {where} are seen for less than gap "
        f"{gap:g} seconds, e.g. {short[0].partition(':')[2]!r}; they give no query"
    ]


LAYOUT = Layout(
    MOTSource,
    read_mot,
    files,
    recognise,
    terms="those of the challenge",
    aside=lambda source: [folder.name for folder in _sequences(reading.folder(source.root))[1]],
)
