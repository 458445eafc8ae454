"""Parquet tables whose columns have the names of the record (docs/record.md).

identity, split and either image (encoded bytes) or path (of a file below the root) are required;
beside an image, the path only says where it came from.
What such a table does not say takes its value from the source, and is null otherwise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.loading import CACHE_BYTES, parquet_row
from ray_reid.datasets.reading import LOCATOR, Layout, ReaderSource, Reading, Row
from ray_reid.datasets.tables import check_distinct, inside


class ParquetSource(ReaderSource):
    """Tables whose columns have the names of the record (docs/record.md)."""

    reader: Literal["parquet"] = "parquet"
    root: str
    """The folder that the column `path` is relative to, and that holds the tables."""
    table: str | None = None
    """Parquet file, or folder of them, under `root`; null takes all of `root`."""
    name: str = "parquet"
    """Name of the source where the tables have no column `source`."""
    licence: str | None = None
    """Terms of the images where the tables have no column `licence`, or null in it."""


PATH = schema.PATH
REQUIRED = (schema.IDENTITY, schema.SPLIT)
CHOICES = {schema.SPLIT: schema.SPLITS, schema.ROLE: schema.ROLES, schema.ORIGIN: schema.ORIGINS}
# Row groups that are read again and again should be small.
LARGE_GROUP = 32 * 1024 * 1024


def read_parquet(source: ParquetSource) -> Reading:
    """One row per row in use; those with a `drop_reason` are left out.

    Where the tables have the column `source`, it is kept, and an identity must begin with it as
    in the record; `observation_id` is kept as well. So a table that an export wrote comes back as
    the same observations.

    Raises:
        ValueError: If a column is missing, unknown or of another type, or a value is none of the
            choices; names the file.
    """
    root = reading.folder(source.root)
    where = repr(str(root))
    rows: list[Row] = []
    dropped = 0
    tables = _tables(source, root)
    for file in tables:
        more = _rows(source, root, file)
        kept = [row for row in more if row.get(schema.DROP_REASON) is None]
        dropped += len(more) - len(kept)
        rows += kept
    if not rows:
        raise ValueError(f"the {len(tables)} Parquet files of {where} have no row in use")
    check_distinct(rows, where)
    reading.check_disjoint(rows, where)
    found = {row[schema.SPLIT] for row in rows}
    warnings = _large(tables, where)
    if dropped:
        warnings.append(f"{dropped} rows of {where} have a drop_reason; they are left out")
    if "train" in found:
        reading.check_training(rows, where)
    if found & {"query", "gallery"}:
        warnings += reading.check_queries(rows, where)
    return Reading(rows, warnings)


def files(source: ParquetSource) -> list[Path]:
    """The files that a reading depends on."""
    root = reading.folder(source.root)
    found = []
    for file in _tables(source, root):
        found.append(file)
        if schema.IMAGE not in _columns(file):
            places = pq.read_table(file, columns=[PATH]).column(0).to_pylist()
            found += [root / inside(place) for place in places]
    return found


def recognise(root: Path) -> ParquetSource | None:
    """A folder of Parquet files, the first of which has the columns of the record."""
    source = ParquetSource(root=str(root))
    try:
        _columns(_tables(source, reading.folder(str(root)))[0])
    except ValueError:
        return None
    return source


def _tables(source: ParquetSource, root: Path) -> list[Path]:
    place = root if source.table is None else root / source.table
    if place.is_file():
        return [place]
    found = [
        file
        for file in sorted(place.rglob("*"))
        if file.suffix.lower() == ".parquet"
        and not any(part.startswith((".", "_")) for part in file.relative_to(place).parts)
    ]
    if not found:
        raise ValueError(f"{str(place)!r} is no Parquet file and holds none (.parquet)")
    return found


def _columns(file: Path) -> list[str]:
    """The names of a table's columns.

    Raises:
        ValueError: If one is missing or unknown, or the file is not Parquet.
    """
    try:
        names: list[str] = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{str(file)!r} cannot be read as Parquet: {error}") from error
    known = schema.OBSERVATION.names
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{str(file)!r} has the unknown columns {unknown}; choose from {known}")
    missing = [name for name in REQUIRED if name not in names]
    if not {schema.IMAGE, PATH} & set(names):
        missing.append(f"{schema.IMAGE} or {PATH}")
    if missing:
        raise ValueError(f"{str(file)!r} lacks the columns {missing}; it has {names}")
    return names


def _rows(source: ParquetSource, root: Path, file: Path) -> list[Row]:
    where = repr(str(file))
    columns = _columns(file)
    names = [name for name in columns if name != schema.IMAGE]
    table = _typed(pq.read_table(file, columns=names), where)
    place = file.relative_to(root).as_posix()
    locators: list[str] | None = _locators(file) if schema.IMAGE in columns else None
    rows = []
    for number, cells in enumerate(table.to_pylist()):
        if locators is None:
            named = inside(cells[PATH])
            row = _row(source, {**cells, PATH: named}, where, named)
            row[LOCATOR] = str(root / named)
        else:
            row = _row(source, cells, where, place, number)
            row[LOCATOR] = locators[number]
        rows.append(row)
    return rows


def _row(source: ParquetSource, cells: dict[str, Any], where: str, *parts: str | int) -> Row:
    """The columns of the record, with what the source gives; `parts` make the id."""
    given = {name: value for name, value in cells.items() if value is not None}
    name = given.get(schema.SOURCE, source.name)
    identity = given.get(schema.IDENTITY)
    if identity is not None and schema.SOURCE not in given:
        identity = schema.qualified_identity(name, identity)
    elif identity is not None and ":" not in identity:
        raise ValueError(
            f"{where} has a column {schema.SOURCE!r}, and the identity {identity!r}; with it, "
            "identities are written source:identity"
        )
    for column, choices in CHOICES.items():
        if column in cells and cells[column] not in choices:
            raise ValueError(f"{where}: {column} {cells[column]!r} is not one of {list(choices)}")
    return {
        schema.OBSERVATION_ID: schema.observation_id(name, *parts),
        schema.CAMERA: None,
        **given,
        schema.SOURCE: name,
        schema.IDENTITY: identity,
        schema.LICENCE: given.get(schema.LICENCE, source.licence),
    }


def _typed(table: pa.Table, where: str) -> pa.Table:
    """The table with the types of the record; numbers may stand for names."""
    for index, name in enumerate(table.column_names):
        wanted = schema.OBSERVATION.field(name).type
        column = table.column(index)
        try:
            table = table.set_column(index, name, column.cast(wanted))
        except pa.ArrowException as error:
            raise ValueError(
                f"{where}: column {name!r} is {column.type}, and must be {wanted}"
            ) from error
    return table


def _locators(file: Path) -> list[str]:
    with pq.ParquetFile(file) as opened:
        index = opened.schema_arrow.get_field_index(schema.IMAGE)
        kind = opened.schema_arrow.field(index).type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ValueError(f"{str(file)!r}: column 'image' is {kind}, and must be binary")
        groups = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
    return [parquet_row(file, i, row) for i, size in enumerate(groups) for row in range(size)]


def _large(tables: Sequence[Path], where: str) -> list[str]:
    """Say that images in large row groups are read slowly, where they do not fit into memory."""
    largest = total = 0
    for file in tables:
        metadata = pq.read_metadata(file)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = [group.column(i) for i in range(group.num_columns)]
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == "image")
            largest, total = max(largest, size), total + size
    if largest <= LARGE_GROUP or total <= CACHE_BYTES:
        return []
    return [
        f"row groups of {where} hold up to {largest // 2**20} MiB of images, and each image is "
        "read with its whole group; write them with fewer rows, such as row_group_size=1024"
    ]


LAYOUT = Layout(ParquetSource, read_parquet, files, recognise)
