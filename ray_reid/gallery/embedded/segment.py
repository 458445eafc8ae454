"""The immutable part of a gallery: a Parquet table and the raw vectors of the same rows.

Rows lie in the order of `observation_id`. The vectors are mapped, not read: replicas on one
machine share them, and no index keeps a second copy.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_reid import schema, storage
from ray_reid.gallery.embedded import disk

Vectors = NDArray[np.float32]
Block = tuple[pa.Table, Vectors]
"""Some rows in the order of their ids, and their (N, D) unit-norm vectors."""

HIT_COLUMNS = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.CAMERA,
    schema.VIEW,
    schema.TIME,
    schema.SOURCE,
    schema.LICENCE,
    schema.SPLIT,
    schema.PATH,
)
COLUMNS = (*HIT_COLUMNS, schema.CLOTHES, schema.IMAGE)
# A gallery may be kept without the images it stands for.
ROWS = pa.schema([
    pa.field(name, schema.OBSERVATION.field(name).type,
             nullable=schema.OBSERVATION.field(name).nullable or name == schema.IMAGE)
    for name in COLUMNS
])  # fmt: skip
TABLE, VECTORS = "gallery", "vectors"
# Few distinct values each: 4 bytes a row in memory instead of the text.
_DISTINCT = (schema.OBSERVATION_ID, schema.TIME, schema.PATH)
_REPEATED = [name for name in HIT_COLUMNS if name not in _DISTINCT]
_UNIT = 1e-3
_BLOCK = 8 * storage.ROW_GROUP


class Segment:
    """An opened segment."""

    def __init__(self, path: Path, generation: int, rows: int, dimension: int) -> None:
        """Map the files of a generation.

        Raises:
            FileNotFoundError: If one is gone: a compaction has replaced it meanwhile.
            ValueError: If one has not the size it should have.
        """
        table, vectors = path / table_name(generation), path / vectors_name(generation)
        # Kept open, so that images can be read after a compaction has removed the name.
        table.stat()
        source = pa.memory_map(str(table))
        try:
            self._parquet = pq.ParquetFile(source, read_dictionary=_REPEATED)
            read = complete(self._parquet.read(list(HIT_COLUMNS)), HIT_COLUMNS)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{str(table)!r} is not a whole Parquet file; restore the gallery from a snapshot"
            ) from error
        if len(read) != rows:
            raise ValueError(
                f"{str(table)!r} has {len(read)} rows, not the {rows} that the gallery should "
                "have; restore it from a snapshot"
            )
        if vectors.stat().st_size != 4 * rows * dimension:
            raise ValueError(
                f"{str(vectors)!r} has {vectors.stat().st_size} bytes, not those of {rows} vectors "
                f"of {dimension} float32; restore it from a snapshot"
            )
        self.table: pa.Table = read.unify_dictionaries().combine_chunks()
        self._ids = self.table[schema.OBSERVATION_ID]
        self.vectors: Vectors = np.empty((0, dimension), np.float32)
        if rows:
            self.vectors = np.memmap(vectors, np.float32, "r", shape=(rows, dimension))
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return len(self.vectors)

    def row(self, observation_id: str) -> int | None:
        """The row of an id, or None."""
        found = bisect.bisect_left(range(len(self)), observation_id, key=self.id)
        return found if found < len(self) and self.id(found) == observation_id else None

    def id(self, row: int) -> str:
        """The `observation_id` of a row."""
        text: str = self._ids[row].as_py()
        return text

    def full(self, row: int) -> dict[str, object]:
        """All columns of a row, image included."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        table = self._parquet.read_row_group(group, columns=list(COLUMNS))
        one = complete(table.slice(row - int(self._starts[group]), 1), COLUMNS)
        values: dict[str, object] = one.to_pylist()[0]
        return values

    def batches(self) -> Iterator[pa.Table]:
        """All columns of all rows, in order, a few thousand rows at a time."""
        for batch in self._parquet.iter_batches(_BLOCK, columns=list(COLUMNS)):
            yield complete(pa.Table.from_batches([batch]), COLUMNS).cast(ROWS)


def complete(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Select columns of a table; paths, which older galleries lack, are null there."""
    if schema.PATH not in table.schema.names:
        kind = ROWS.field(schema.PATH)
        table = table.append_column(kind, pa.nulls(len(table), kind.type))
    return table.select(list(columns))


def is_unit(vectors: Vectors) -> NDArray[np.bool_]:
    """(N,) bool: which vectors are finite and of unit norm."""
    unit: NDArray[np.bool_] = abs(np.linalg.norm(vectors, axis=1) - 1) <= _UNIT
    return unit


def table_name(generation: int) -> str:
    """Where the table of a generation lies in its gallery."""
    return f"{TABLE}/part-{generation}.parquet"


def vectors_name(generation: int) -> str:
    """Where the vectors of a generation lie in its gallery."""
    return f"{VECTORS}/part-{generation}.f32"


def write(path: Path, generation: int, blocks: Iterable[Block]) -> int:
    """Write a segment from blocks of rows and their vectors, in the order of the ids.

    Returns:
        The number of rows; all of them are on the disk, in files whose names may not be.

    Raises:
        ValueError: If the ids are not in order and each once, or a vector is not of unit norm.
    """
    last = ""
    rows, files = 0, (path / table_name(generation), path / vectors_name(generation))
    with (
        pq.ParquetWriter(
            files[0],
            ROWS,
            compression=storage.PARQUET["compression"],
            use_dictionary=storage.PARQUET["use_dictionary"],
            write_statistics=storage.PARQUET["write_statistics"],
        ) as table_sink,
        files[1].open("wb") as vector_sink,
    ):
        for table, vectors in blocks:
            assert len(table) == len(vectors)
            ids = [last, *table[schema.OBSERVATION_ID].to_pylist()]
            for before, after in itertools.pairwise(ids):
                if before >= after:
                    raise ValueError(
                        f"observation_id {after!r} comes after {before!r}; a segment needs the "
                        "order of the ids, each once"
                    )
            if not is_unit(vectors).all():
                raise ValueError(
                    f"a vector of rows {rows} to {rows + len(table)} has another norm than 1"
                )
            last = ids[-1]
            table_sink.write_table(table, row_group_size=storage.ROW_GROUP)
            np.ascontiguousarray(vectors, "<f4").tofile(vector_sink)
            rows += len(table)
    for file in files:
        disk.sync(file)
    return rows


def merged(first: Iterable[Block], second: Iterable[Block]) -> Iterator[Block]:
    """Make one stream of blocks of two; no id is in both."""
    streams = [(block for block in stream if len(block[0])) for stream in (first, second)]
    heads = [next(stream, None) for stream in streams]
    while all(heads):
        tables = [head[0] for head in heads if head is not None]
        last = min(table[schema.OBSERVATION_ID][-1].as_py() for table in tables)
        parts = []
        for place, head in enumerate(heads):
            assert head is not None
            table, vectors = head
            end = bisect.bisect_right(table[schema.OBSERVATION_ID].to_pylist(), last)
            parts.append((table.slice(0, end), vectors[:end]))
            rest = table.slice(end), vectors[end:]
            heads[place] = rest if len(rest[0]) else next(streams[place], None)
        yield _sorted(parts)
    for head, stream in zip(heads, streams, strict=True):
        if head is not None:
            yield head
            yield from stream


def _sorted(parts: Sequence[Block]) -> Block:
    tables, vectors = zip(*parts, strict=True)
    table = pa.concat_tables(tables)
    order = np.argsort(table[schema.OBSERVATION_ID].to_numpy(), kind="stable")
    return table.take(order), np.concatenate(vectors)[order]
