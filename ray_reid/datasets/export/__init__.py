"""Tables to the layouts of peers' toolkits, so that they can train on ours (docs/layouts.md).

In trees of files, identities and cameras get numbers from 1 in the order of their names;
`identities.csv` and `cameras.csv` beside the images say which is which.
"""

import csv
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_reid import images, schema, storage
from ray_reid.datasets.export import labels
from ray_reid.datasets.readers import market1501
from ray_reid.runtime.run import read_manifest

Row = Mapping[str, Any]

TABLES = ("generate", "inpaint", "ingest")
LABELLED = ("train", "query", "gallery")
# A million rows are sixteen files, which can be read side by side.
FILE_ROWS = 64 * storage.ROW_GROUP
QUALITY = 95
# How files of each format begin.
ENDINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp"}
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
# In the Market layout: prefixes of the names of images that have no identity.
NAMELESS = {role: number for number, role in market1501.ROLES.items()}


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what it left out."""

    images: int
    identities: int
    cameras: int
    skipped: Mapping[str, int]
    """Rows without a place in the layout, by the reason."""
    licences: tuple[str, ...]
    """Terms of the images; `unknown` for a source that gave none."""


@dataclass(frozen=True)
class _Plan:
    """The rows of a table without their images, numbered."""

    rows: Sequence[Row]
    identities: Mapping[str, int]
    cameras: Mapping[str | None, int]
    places: Sequence[int]
    """Number of each row among those of its identity (or role) and camera, from 1."""
    skipped: Mapping[str, int]


def find_table(run: Path, job: str | None = None) -> Path:
    """The observations that a run has: those generated, or else those read.

    Raises:
        ValueError: If the run has not published the job that is asked for, or neither of both.
    """
    if job is None:
        job = next((name for name in TABLES if (run / name / "manifest.json").is_file()), "ingest")
    read_manifest(run, job)
    return run / job / "observations"


def write_vehiclex(table: Path, folder: Path) -> Exported:
    """Write the train split in the layout of VehicleX: `sys_image_train` and `train_label.xml`.

    An attribute that is not known of an image is absent from its entry, and those that the layout
    lacks (brand, model, year) are written under their own names.

    Raises:
        ValueError: If the folder is not empty or there is nothing to write.
    """
    plan = _plan(table, splits=("train",))
    _check_cameras(plan, 999, "VehicleX")
    stems = [
        f"{_identity(plan, row):05d}_c{_camera(plan, row):03d}_{place}"
        for row, place in zip(plan.rows, plan.places, strict=True)
    ]
    with _aside(folder) as out:
        _write_numbers(plan, out)
        labels.write(_items(plan, stems), out)
        _write_images(table, _paths(plan, stems, lambda _: "sys_image_train"), out, as_jpeg=True)
    return _exported(plan)


def write_market1501(table: Path, folder: Path) -> Exported:
    """Write all splits in the layout of Market-1501, distractors and junk too.

    Raises:
        ValueError: If the folder is not empty, there is nothing to write, or there are more than
            nine cameras: the layout has one digit for them, and readers would take 15 for 1.
    """
    plan = _plan(table, splits=tuple(market1501.FOLDERS), roles=tuple(NAMELESS))
    _check_cameras(plan, 9, "Market-1501")
    stems = [
        f"{_market_identity(plan, row)}_c{_camera(plan, row)}s1_{place:06d}_00"
        for row, place in zip(plan.rows, plan.places, strict=True)
    ]
    paths = _paths(plan, stems, lambda row: market1501.FOLDERS[row[schema.SPLIT]])
    with _aside(folder) as out:
        for name in market1501.FOLDERS.values():
            (out / name).mkdir()
        _write_numbers(plan, out)
        _write_images(table, paths, out, as_jpeg=True)
    return _exported(plan)


def write_folder(table: Path, folder: Path) -> Exported:
    """Write one folder per identity below one per split, as torchvision's ImageFolder reads them.

    Images keep their format; our reader `folder` reads the names with its default pattern.

    Raises:
        ValueError: If the folder is not empty or there is nothing to write.
    """
    plan = _plan(table, splits=LABELLED)
    stems = [
        f"{_identity(plan, row):05d}_cam{_camera(plan, row)}_{place:06d}"
        for row, place in zip(plan.rows, plan.places, strict=True)
    ]
    paths = _paths(plan, stems, lambda row: f"{row[schema.SPLIT]}/{_identity(plan, row):05d}")
    with _aside(folder) as out:
        _write_numbers(plan, out)
        _write_images(table, paths, out, as_jpeg=False)
    return _exported(plan)


def write_parquet(table: Path, folder: Path, splits: Sequence[str] = LABELLED) -> Exported:
    """Write the chosen splits as Parquet with all columns of the record, distractors and junk too.

    Rows are in the order of their ids, whatever the order of the table. Our reader `parquet`
    reads the same observations back.

    Raises:
        ValueError: If a split is unknown, the folder is not empty or there is nothing to write.
    """
    unknown = [split for split in splits if split not in schema.SPLITS]
    if unknown:
        raise ValueError(f"unknown split {unknown[0]!r}; choose from {list(schema.SPLITS)}")
    plan = _plan(table, splits, roles=tuple(NAMELESS))
    ids = pa.array([row[schema.OBSERVATION_ID] for row in plan.rows], pa.string())
    chosen = pc.field(schema.OBSERVATION_ID).isin(ids)
    names = [name for name in schema.OBSERVATION.names if name != schema.IMAGE]
    with _aside(folder) as out:
        record = storage.read(table, names, chosen)
        # Rows of one id after the other lie all over the table.
        cache = storage.RowCache(table, out / ".images", chosen)
        for number, start in enumerate(range(0, record.num_rows, FILE_ROWS)):
            file = out / f"part-{number:05d}.parquet"
            _write_rows(file, record.slice(start, FILE_ROWS), cache, start)
        shutil.rmtree(out / ".images")
    return _exported(plan)


LAYOUTS: Mapping[str, Callable[[Path, Path], Exported]] = {
    "vehiclex": write_vehiclex,
    "market1501": write_market1501,
    "imagefolder": write_folder,
    "parquet": write_parquet,
}


def _plan(table: Path, splits: Sequence[str], roles: Sequence[str] = ()) -> _Plan:
    """Number the kept rows of some splits that have an identity, or one of some roles.

    The order is that of the ids: the same however many actors wrote the table.
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
    return _Plan(
        rows,
        {name: number for number, name in enumerate(sorted(names), start=1)},
        {name: number for number, name in enumerate(sorted(cameras, key=_by_number), start=1)},
        places,
        skipped,
    )


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


def _check_cameras(plan: _Plan, most: int, layout: str) -> None:
    if len(plan.cameras) > most:
        raise ValueError(
            f"the table has {len(plan.cameras)} cameras, and the names of {layout} have room for "
            f"{most}; choose another layout, such as 'imagefolder'"
        )


def _identity(plan: _Plan, row: Row) -> int:
    return plan.identities[row[schema.IDENTITY]]


def _market_identity(plan: _Plan, row: Row) -> str:
    if row[schema.ROLE] == "normal":
        return f"{_identity(plan, row):04d}"
    number = NAMELESS[row[schema.ROLE]]
    return f"{number:04d}" if number >= 0 else str(number)


def _camera(plan: _Plan, row: Row) -> int:
    return plan.cameras[row[schema.CAMERA]]


def _paths(plan: _Plan, stems: Sequence[str], place: Callable[[Row], str]) -> dict[str, str]:
    """Where each observation goes, without the ending of its format."""
    return {
        row[schema.OBSERVATION_ID]: f"{place(row)}/{stem}"
        for row, stem in zip(plan.rows, stems, strict=True)
    }


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes the name of `folder` once it is complete.

    Raises:
        ValueError: If something is at that name already.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise ValueError(f"{str(folder)!r} {what}; give a new folder to export to")
    aside = folder.with_name(f".{folder.name}.export")
    # What a killed export left behind.
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_images(table: Path, paths: Mapping[str, str], out: Path, as_jpeg: bool) -> None:
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


def _write_rows(file: Path, record: pa.Table, cache: storage.RowCache, start: int) -> None:
    """Write rows without images as one file, with the images that begin at `start` of the cache."""
    options = {name: value for name, value in storage.PARQUET.items() if name != "row_group_size"}
    with pq.ParquetWriter(file, schema.OBSERVATION, **options) as writer:
        for first in range(0, record.num_rows, storage.ROW_GROUP):
            part = record.slice(first, storage.ROW_GROUP)
            rows = range(start + first, start + first + part.num_rows)
            encoded = pa.array([cache.image(row).to_pybytes() for row in rows], pa.binary())
            part = part.append_column(schema.OBSERVATION.field(schema.IMAGE), encoded)
            writer.write_table(part.select(schema.OBSERVATION.names).cast(schema.OBSERVATION))


def _write_image(encoded: bytes, path: Path, as_jpeg: bool) -> None:
    ending = next((end for start, end in ENDINGS.items() if encoded.startswith(start)), None)
    # Bytes are copied where they can be: to encode again would change the image.
    if ending is None or (as_jpeg and ending != ".jpg"):
        encoded, ending = images.encode(images.decode(encoded), QUALITY), ".jpg"
    path.with_name(path.name + ending).write_bytes(encoded)


def _write_numbers(plan: _Plan, out: Path) -> None:
    numbered: dict[str, Mapping[Any, int]] = {"identity": plan.identities, "camera": plan.cameras}
    for column, file in (("identity", "identities.csv"), ("camera", "cameras.csv")):
        with (out / file).open("w", encoding="utf-8", newline="") as text:
            lines = csv.writer(text)
            lines.writerow(["number", column])
            lines.writerows([number, name] for name, number in numbered[column].items())


def _items(plan: _Plan, stems: Sequence[str]) -> list[labels.Item]:
    return [
        labels.Item(
            image=f"{stem}.jpg",
            identity=_identity(plan, row),
            camera=_camera(plan, row),
            attributes={name: value for name, value in row[schema.ATTRIBUTES] or () if value},
        )
        for row, stem in zip(plan.rows, stems, strict=True)
    ]


def _exported(plan: _Plan) -> Exported:
    licences = {row[schema.LICENCE] or "unknown" for row in plan.rows}
    return Exported(
        len(plan.rows),
        len(plan.identities),
        len(plan.cameras),
        dict(plan.skipped),
        tuple(sorted(licences)),
    )
