"""The images of CUHK03 inside cuhk-03.mat, by the names that they have where they are extracted.

The file is MATLAB 7.3, hence HDF5, and its arrays are transposed: `labeled` and `detected` hold,
for each of five camera pairs, references to ten images of each person, the first five by view 1.
Reading it takes h5py, which nothing else here needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ray_reid import images

PREFIX = "cuhk03:"
"""Begins the locator of an image in the file."""
VIEW_1 = 5
"""Columns of the first view."""

Person = tuple[int, int]
"""Camera pair and number, both from 1."""


def locator(file: Path, boxes: str, name: str) -> str:
    """Locate the image of `boxes` that is called, for example, 1_001_1_01."""
    return f"{PREFIX}{boxes}/{name}:{file}"


def load(where: str) -> bytes:
    """The image that a locator names, as PNG.

    Raises:
        ValueError: If the file cannot be read or has no such image.
    """
    key, _, file = where.removeprefix(PREFIX).partition(":")
    boxes, _, name = key.partition("/")
    pair, person, _, column = map(int, name.split("_"))
    with _opened(Path(file)) as mat:
        people = mat[mat[boxes][0, pair - 1]]
        pixels = np.asarray(mat[people[column - 1, person - 1]][()]).T
    return images.encode_png(np.ascontiguousarray(pixels))


def names(file: Path, boxes: str) -> list[str]:
    """The names of all images of `boxes`; cells without an image have none.

    Raises:
        ValueError: If the file cannot be read.
    """
    with _opened(file) as mat:
        return list(_names(mat, boxes))


def people_to_test(file: Path, split: int) -> set[Person]:
    """The people to test on in one of the classic splits, from 0.

    Raises:
        ValueError: If the file cannot be read or has no such split.
    """
    with _opened(file) as mat:
        splits = mat["testsets"][0]
        if split >= len(splits):
            raise ValueError(
                f"split {split} is not in {str(file)!r}; it has 0 to {len(splits) - 1}"
            )
        return {(int(pair), int(person)) for pair, person in np.asarray(mat[splits[split]][()]).T}


def _names(mat: Any, boxes: str) -> Iterator[str]:
    for pair, cell in enumerate(mat[boxes][0], start=1):
        for person, row in enumerate(np.asarray(mat[cell][()]).T, start=1):
            for column, reference in enumerate(row, start=1):
                # MATLAB writes an empty cell as the two numbers of its size.
                if len(mat[reference].shape) == 3:
                    view = 1 if column <= VIEW_1 else 2
                    yield f"{pair}_{person:03d}_{view}_{column:02d}"


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The open file.

    Raises:
        ValueError: If h5py is missing, or the file is damaged or another one.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"reading {str(file)!r} takes h5py; pip install h5py") from error
    try:
        with h5py.File(file, "r") as mat:
            yield mat
    except (OSError, KeyError, IndexError) as error:
        raise ValueError(f"{str(file)!r} is not a readable cuhk-03.mat: {error}") from error
