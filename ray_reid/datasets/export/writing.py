"""What the layouts of an export share: which rows go in, their numbers, and writing images."""

import csv
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_reid import images, schema, storage
from ray_reid.datasets.reading import Row
from ray_reid.places import Place
from ray_reid.runtime import arguments

LABELLED = ("train", "query", "gallery")
# Roles of images that nobody is searched for in; they are in the gallery only.
GALLERY_ROLES = ("junk", "distractor")
QUALITY = 95
COLUMNS = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.CAMERA,
    schema.SPLIT,
    schema.ROLE,
    schema.LICENCE,
    schema.ORIGIN,
    schema.ATTRIBUTES,
)
# Terms that forbid passing on what was made of an image: LTCC's, Creative Commons' ND and the like.
NO_DERIVATIVES = re.compile(
    r"redistribution of derivatives|\bno.?deriv|deriv\w*( works?)? (are|is|may|must) not|\bND\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote, and what it left out."""

    images: int
    identities: int
    cameras: int
    skipped: Mapping[str, int]
    """Rows without a place in the layout, by the reason."""
    licences: tuple[str, ...]
    """Terms of the images; `unknown` for a source that gave none."""


@dataclass(frozen=True)
class NumberedRows:
    """The rows of a table without their images, numbered."""

    rows: Sequence[Row]
    identities: Mapping[str, int]
    cameras: Mapping[str | None, int]
    places: Sequence[int]
    """Number of each row among those of its identity (or role) and camera, from 1."""
    skipped: Mapping[str, int]

    def identity(self, row: Row) -> int:
        """Give the number of a row's identity."""
        return self.identities[row[schema.IDENTITY]]

    def camera(self, row: Row) -> int:
        """Give the number of a row's camera; images without a camera share one."""
        return self.cameras[row[schema.CAMERA]]

    def summary(self) -> ExportSummary:
        """Count what was written."""
        licences = {row[schema.LICENCE] or "unknown" for row in self.rows}
        return ExportSummary(
            len(self.rows),
            len(self.identities),
            len(self.cameras),
            dict(self.skipped),
            tuple(sorted(licences)),
        )


def number_rows(table: Place, splits: Sequence[str], roles: Sequence[str] = ()) -> NumberedRows:
    """Number the kept rows of some splits that have an identity, or one of some roles.

    The order is that of the ids: the same however many actors wrote the table.

    Raises:
        ValueError: If there is none, or the terms of an image forbid it.
    """
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    for row in storage.read(table, COLUMNS).to_pylist():
        reason = _left_out(row, splits, roles)
        if reason is None:
            rows.append(row)
        else:
            skipped[reason] += 1
    if not rows:
        raise ValueError(
            f"{str(table)!r} has no labelled image in {list(splits)}, so there is nothing to "
            f"export; left out: {dict(skipped)}"
        )
    _check_terms(rows)
    seen: Counter[tuple[str | None, ...]] = Counter()
    places = []
    for row in rows:
        key = (row[schema.ROLE], _name(row), row[schema.CAMERA])
        seen[key] += 1
        places.append(seen[key])
    names = {name for row in rows if (name := _name(row)) is not None}
    cameras = {row[schema.CAMERA] for row in rows}
    return NumberedRows(
        rows,
        {name: number for number, name in enumerate(sorted(names), start=1)},
        {name: number for number, name in enumerate(sorted(cameras, key=_by_number), start=1)},
        places,
        skipped,
    )


def check_cameras(numbered: NumberedRows, most: int, layout: str) -> None:
    """Check that the names of a layout have room for the cameras.

    Raises:
        ValueError: If there are more than `most`.
    """
    if len(numbered.cameras) > most:
        raise ValueError(
            f"the table has {len(numbered.cameras)} cameras, and the names of {layout} have room "
            f"for {most}; choose another layout, such as 'imagefolder'"
        )


def paths_by_id(
    numbered: NumberedRows, stems: Sequence[str], place: Callable[[Row], str]
) -> dict[str, str]:
    """Where each observation goes, without the ending of its format."""
    return {
        row[schema.OBSERVATION_ID]: f"{place(row)}/{stem}"
        for row, stem in zip(numbered.rows, stems, strict=True)
    }


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes the name of `folder` once it is complete.

    Raises:
        ValueError: If something is at that name already.
    """
    folder = arguments.expanded(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise ValueError(f"{str(folder)!r} {what}; give a new folder to export to")
    hidden = folder.with_name(f".{folder.name}.export")
    # What a killed export left behind.
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    try:
        yield hidden
        hidden.rename(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_images(table: Place, paths: Mapping[str, str], out: Path, as_jpeg: bool) -> None:
    """Stream the table once and write each image that has a path, whatever the order of files."""
    for place in {Path(path).parent for path in paths.values()}:
        (out / place).mkdir(parents=True, exist_ok=True)
    written = 0
    columns = [schema.OBSERVATION_ID, schema.IMAGE]
    # Images are written more slowly than read, so a scan that reads files ahead fills the memory.
    for file in storage.dataset(table).get_fragments():
        for batch in file.to_batches(columns=columns, batch_size=64, batch_readahead=1):
            for name, image in zip(*batch.columns, strict=True):
                path = paths.get(name.as_py())
                if path is not None:
                    _write_image(image.as_py(), out / path, as_jpeg)
                    written += 1
    assert written == len(paths), f"{written} of {len(paths)} images written"


def write_numbers(numbered: NumberedRows, out: Path) -> None:
    """Write `identities.csv` and `cameras.csv`: which number stands for which name."""
    numbers: dict[str, Mapping[Any, int]] = {
        "identity": numbered.identities,
        "camera": numbered.cameras,
    }
    for column, file in (("identity", "identities.csv"), ("camera", "cameras.csv")):
        with (out / file).open("w", encoding="utf-8", newline="") as text:
            lines = csv.writer(text)
            lines.writerow(["number", column])
            lines.writerows([number, name] for name, number in numbers[column].items())


def _check_terms(rows: Sequence[Row]) -> None:
    """Refuse generated images whose sources' terms forbid it; in the run itself they may stay."""
    bound = [
        row[schema.LICENCE]
        for row in rows
        if row[schema.ORIGIN] == "synthetic" and NO_DERIVATIVES.search(row[schema.LICENCE] or "")
    ]
    if bound:
        raise ValueError(
            f"{len(bound)} of {len(rows)} images were generated from images whose terms are "
            f"{bound[0]!r}, so they may not be exported; export the table of another source, or "
            "of the real images with --table ingest"
        )


def _left_out(row: Row, splits: Sequence[str], roles: Sequence[str]) -> str | None:
    """Why a row has no place in a layout; null if it has one."""
    if row[schema.SPLIT] not in splits:
        return f"split {row[schema.SPLIT]}"
    if row[schema.ROLE] == "normal":
        labelled = row[schema.IDENTITY] is not None or row[schema.SPLIT] == "unlabelled"
        return None if labelled else "unlabelled"
    # Junk and distractors mean something to a search only.
    return (
        None if row[schema.ROLE] in roles and row[schema.SPLIT] == "gallery" else row[schema.ROLE]
    )


def _name(row: Row) -> str | None:
    """The identity that a row is an image of; a distractor may have one, but matches nobody."""
    name: str | None = row[schema.IDENTITY] if row[schema.ROLE] == "normal" else None
    return name


def _by_number(camera: str | None) -> tuple[bool, int, str]:
    """Order cameras by number where they have one; images without a camera share the last."""
    digits = re.sub(r"\D", "", camera or "")
    return camera is None, int(digits or 0), camera or ""


def _write_image(encoded: bytes, path: Path, as_jpeg: bool) -> None:
    ending = images.SUFFIX_OF.get(images.format_of(encoded) or "")
    # Bytes are copied where they can be: to encode again would change the image.
    if ending is None or (as_jpeg and ending != ".jpg"):
        encoded, ending = images.encode(images.decode(encoded), QUALITY), ".jpg"
    path.with_name(path.name + ending).write_bytes(encoded)
