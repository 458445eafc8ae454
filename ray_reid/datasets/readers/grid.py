"""GRID, underground re-identification (Loy et al., ICIP 2013), eight cameras of one station.

underground_reid/probe/0001_1_25004_107_32_106_221.jpeg     person 1, camera 1; 250 images
underground_reid/gallery/0001_2_25023_116_134_128_330.jpeg  the same person elsewhere; 250 images
underground_reid/gallery/0000_5_...jpeg                     nobody of the probes; 775 distractors
features_and_partitions.mat                                 ten splits of the 250 people
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row
from ray_reid.datasets.two_cameras import Tested


class GRIDSource(ReaderSource):
    """GRID: a probe and a gallery image of each of 250 people, and 775 distractors."""

    reader: Literal["grid"] = "grid"
    root: str
    """The folder that holds underground_reid and features_and_partitions.mat, or a parent of it."""
    name: str = "grid"
    licence: str | None = "research use only (GRID)"
    split: int = Field(0, ge=0, le=9)
    """Which of the ten published partitions; published figures are means over all of them."""
    tested: Tested = "half"
    """`all` trains on nobody: for a set that is a target only (protocol `drawn_halves`)."""


FOLDERS = {"query": "underground_reid/probe", "gallery": "underground_reid/gallery"}
PARTITIONS, KEY = "features_and_partitions.mat", "trainIdxAll"
NAME = re.compile(r"(?P<identity>\d+)_(?P<camera>\d+)_.+")
EXAMPLE = "0001_1_25004_107_32_106_221.jpeg"
# Place of the people to train on in the record of a partition.
TRAINED = 2


def read_grid(source: GRIDSource) -> Reading:
    """List probes and gallery; number 0 is nobody, a distractor of the gallery.

    Raises:
        ValueError: If a folder or the partitions are missing, or no query can be answered.
    """
    place = _locate(source.root)
    where = repr(str(place))
    train = _partition(place / PARTITIONS, source.split) if source.tested == "half" else set()
    rows: list[Row] = []
    strange: list[Path] = []
    for split, file in _listed(place):
        name = NAME.fullmatch(file.stem)
        if name is None or (split == "query" and not int(name["identity"])):
            strange.append(file)
        else:
            rows.append(_row(source, place, split, file, name, train))
    if not rows:
        raise ValueError(f"{where} holds no image with a name like {EXAMPLE}")
    warnings = reading.left_out(strange, f"have no name like {EXAMPLE}", where)
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: GRIDSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source.root)
    return [place / PARTITIONS, *(file for _, file in _listed(place))]


def recognise(root: Path) -> GRIDSource | None:
    """A folder with underground_reid and the partitions."""
    found = reading.found(root, [*FOLDERS.values(), PARTITIONS])
    return None if found is None else GRIDSource(root=str(root))


def _locate(root: str) -> Path:
    return reading.locate(root, [*FOLDERS.values(), PARTITIONS], "GRID")


def _listed(place: Path) -> Iterator[tuple[str, Path]]:
    for split, folder in FOLDERS.items():
        for file in reading.list_images(place / folder):
            yield split, file


def _row(
    source: GRIDSource, place: Path, split: str, file: Path, name: "re.Match[str]", train: set[int]
) -> Row:
    person = int(name["identity"])
    identity = schema.qualified_identity(source.name, name["identity"]) if person else None
    return reading.file_row(
        source.name,
        place,
        file,
        identity=identity,
        camera=name["camera"],
        licence=source.licence,
        split="train" if person in train else split,
        role="normal" if person else "distractor",
    )


def _partition(file: Path, split: int) -> set[int]:
    """The people to train on in one of the published partitions.

    Raises:
        ValueError: If the file cannot be read or has no such partition.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        partitions = np.ravel(loadmat(file, variable_names=[KEY])[KEY])
    # What scipy says of MATLAB 7.3 is a NotImplementedError, of a file cut short the last two.
    except (OSError, ValueError, NotImplementedError, KeyError, TypeError, MatReadError) as error:
        raise ValueError(f"{str(file)!r} is no readable .mat file with {KEY}: {error}") from error
    if split >= len(partitions):
        raise ValueError(
            f"split {split} is not in {str(file)!r}; it has 0 to {len(partitions) - 1}"
        )
    train = _people(partitions[split])
    if len(train) < 2:
        raise ValueError(
            f"{KEY} of {str(file)!r} names {len(train)} people to train on in split {split}; is it "
            "the file of the published partitions?"
        )
    return train


def _people(partition: Any) -> set[int]:
    """The numbers of people in a cell: in a field of its record, or as they are."""
    while isinstance(partition, (np.ndarray, np.void)) and partition.dtype.names:
        fields = partition.dtype.names
        partition = np.ravel(partition)[0][fields[min(TRAINED, len(fields) - 1)]]
    flat = np.ravel(partition)
    if flat.dtype == object:
        return set().union(*(_people(cell) for cell in flat)) if len(flat) else set()
    return {int(number) for number in flat.tolist()}


def _official(source: GRIDSource) -> Mapping[str, tuple[int, int]]:
    if source.tested == "all":
        return {"query": (250, 250), "gallery": (1025, 251)}
    return {"train": (250, 125), "query": (125, 125), "gallery": (900, 126)}


LAYOUT = Layout(GRIDSource, read_grid, files, recognise, _official, "research use only")
