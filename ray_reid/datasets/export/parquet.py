"""Parquet files with all columns of the record."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_reid import schema, storage
from ray_reid.datasets.export import writing
from ray_reid.datasets.export.writing import GALLERY_ROLES, LABELLED, ExportSummary
from ray_reid.places import Place

# A million rows are sixteen files, which can be read side by side.
FILE_ROWS = 64 * storage.ROW_GROUP


def write_parquet(table: Place, folder: Path, splits: Sequence[str] = LABELLED) -> ExportSummary:
    """Write the chosen splits as Parquet with all columns of the record, distractors and junk too.

    Rows are in the order of their ids, whatever the order of the table. Our reader `parquet`
    reads the same observations back.

    Raises:
        ValueError: If a split is unknown, the folder is not empty or there is nothing to write.
    """
    unknown = [split for split in splits if split not in schema.SPLITS]
    if unknown:
        raise ValueError(f"unknown split {unknown[0]!r}; choose from {list(schema.SPLITS)}")
    numbered = writing.number_rows(table, splits, roles=GALLERY_ROLES)
    ids = pa.array([row[schema.OBSERVATION_ID] for row in numbered.rows], pa.string())
    chosen = pc.field(schema.OBSERVATION_ID).isin(ids)
    names = [name for name in schema.OBSERVATION.names if name != schema.IMAGE]
    with writing.aside(folder) as out:
        record = storage.read(table, names, chosen)
        # Rows of one id after the other lie all over the table.
        cache = storage.RowCache(table, out / ".images", chosen)
        for number, start in enumerate(range(0, record.num_rows, FILE_ROWS)):
            file = out / f"part-{number:05d}.parquet"
            _write_rows(file, record.slice(start, FILE_ROWS), cache, start)
        shutil.rmtree(out / ".images")
    return numbered.summary()


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
