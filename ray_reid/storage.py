"""Tables on disk: Parquet for the record, a memory-mapped Arrow file for random access.

Parquet streams through Ray Data, from cloud storage too, and every other tool reads it; the
row cache gives training samplers any rows at memory speed. docs/storage.md has the figures.

A table of ours is the files that its list names: what a killed attempt or a worker that outlived
it has written beside them is not part of it.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_reid import places, schema
from ray_reid.places import Place

# 1,024 rows of a few KB are a few MB: large enough to stream, small enough to hold many.
ROW_GROUP = 1024
# Images are compressed already and embeddings are noise: no dictionary, no statistics on them.
_PLAIN = [name for name in schema.OBSERVATION.names if name != schema.IMAGE]
PARQUET: dict[str, Any] = {
    "row_group_size": ROW_GROUP,
    "compression": "none",
    "use_dictionary": _PLAIN,
    "write_statistics": _PLAIN,
}
"""How our Parquet files are written: the fastest to read of those measured."""


FILES = "_files.json"
"""List of the files of a table, written last; other tools skip the name."""


def write(path: Place, table: pa.Table) -> None:
    """Write a table as one Parquet file; a table that a killed attempt left half is replaced.

    Raises:
        FileExistsError: If the table is there: tables are never overwritten.
    """
    if is_complete(path):
        raise FileExistsError(f"table {str(path)!r} exists")
    path.mkdir(parents=True, exist_ok=True)
    filesystem, file = places.opened(path / "part-0.parquet")
    pq.write_table(table, file, filesystem=filesystem, **PARQUET)
    complete(path, ["part-0.parquet"])


def is_complete(path: Place) -> bool:
    """Return whether a table has been written to the end."""
    return (path / FILES).is_file()


def complete(path: Place, names: Sequence[str]) -> None:
    """Make some files in a directory a table: from now on nothing changes it."""
    places.write_text(path / FILES, json.dumps(sorted(names), indent=1) + "\n")


def dataset(path: str | Place) -> pads.Dataset:
    """Open a table, on a disk or in a bucket.

    Raises:
        FileNotFoundError: If there is no such directory or it holds no Parquet file.
    """
    table = places.place(path)
    filesystem, where = places.opened(table)
    listed = files(table)
    source = where if listed is None else [places.opened(file)[1] for file in listed]
    if not source:
        raise FileNotFoundError(f"no Parquet files in {table}")
    # Of a local file system pyarrow knows the separators that people type.
    own = None if isinstance(table, Path) else filesystem
    found = pads.dataset(source, format="parquet", filesystem=own, exclude_invalid_files=False)
    if not found.files:
        raise FileNotFoundError(f"no Parquet files in {table}")
    return found


def files(path: Place) -> list[Place] | None:
    """Return the files of a table of ours; none of a directory that somebody else has filled."""
    if not is_complete(path):
        return None
    return [path / name for name in json.loads((path / FILES).read_text())]


def scan(
    path: str | Place,
    columns: Sequence[str],
    where: pc.Expression | None = None,
    kept_only: bool = True,
) -> Iterator[pa.RecordBatch]:
    """Stream the columns of a table; rows with a `drop_reason` only if asked for."""
    table = dataset(path)
    if kept_only and schema.DROP_REASON in table.schema.names:
        kept = pc.field(schema.DROP_REASON).is_null()
        where = kept if where is None else where & kept
    yield from table.to_batches(columns=list(columns), filter=where)


def read(
    path: str | Place,
    columns: Sequence[str],
    where: pc.Expression | None = None,
    kept_only: bool = True,
) -> pa.Table:
    """Read the columns of a table into memory, rows in the order of their `observation_id`.

    This order, not that of the files, numbers the rows of a training plan: it is the same
    however many actors wrote the table.
    """
    wanted = list(dict.fromkeys([schema.OBSERVATION_ID, *columns]))
    fields = [dataset(path).schema.field(name) for name in wanted]
    batches = scan(path, wanted, where, kept_only)
    table = pa.Table.from_batches(batches, schema=pa.schema(fields))
    return table.sort_by(schema.OBSERVATION_ID).select(list(columns))


def images_by_id(
    table: str | Place, ids: Sequence[str], kept_only: bool = True
) -> dict[str, bytes]:
    """Read the encoded images of some rows; see `column_by_id`."""
    return column_by_id(table, schema.IMAGE, ids, kept_only)


def column_by_id(
    table: str | Place, column: str, ids: Sequence[str], kept_only: bool = True
) -> dict[str, Any]:
    """Read one column of some rows, by their `observation_id` and in its order.

    An id that the table does not have is left out.
    """
    # With the type, so that no id at all is a list of strings too.
    wanted = pc.field(schema.OBSERVATION_ID).isin(pa.array(ids, pa.string()))
    columns = (schema.OBSERVATION_ID, column)
    rows = read(table, columns, wanted, kept_only)
    return dict(zip(*(rows[name].to_pylist() for name in columns), strict=True))


def evenly_spaced(size: int, count: int) -> NDArray[np.int64]:
    """Choose at most `count` of `size` row numbers, evenly spaced from the first to the last."""
    return np.linspace(0, size - 1, min(count, size)).round().astype(np.int64)


CACHE_SECONDS = 7 * 24 * 3600
TRAINABLE = (
    (pc.field(schema.SPLIT) == "train")
    & (pc.field(schema.ROLE) == "normal")
    & pc.field(schema.IDENTITY).is_valid()
)
"""Rows with a label to learn."""
REAL = TRAINABLE & (pc.field(schema.ORIGIN) == "real")
"""Real images with a label to learn."""
CLUSTERABLE = pc.field(schema.SPLIT).isin(["train", "unlabelled"]) & (
    pc.field(schema.ROLE) == "normal"
)
"""Rows that can be learned without a label."""


class RowCache:
    """The images of a table in a local memory-mapped Arrow file: random access by row number.

    Built once per node by one streaming pass, found again by the names, sizes and times of the
    table's files.
    """

    def __init__(
        self, table: str | Place, directory: Path, where: pc.Expression, kept_only: bool = True
    ) -> None:
        """Open the cache of the rows `where`, building it first if `directory` has none.

        Rows are numbered as `read(table, columns, where, kept_only)` numbers them.
        """
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{_content_key(table, where, kept_only)}.arrow"
        with (directory / "lock").open("w") as lock:
            # Workers of one node start together: one builds, the others wait and map it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                _prune(directory)
                _copy_images(table, file, where, kept_only)
            file.touch()
        cached = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        position = pc.sort_indices(cached[schema.OBSERVATION_ID]).to_numpy()
        self._chunks = cached[schema.IMAGE].chunks
        starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        self._chunk = np.searchsorted(starts, position, side="right") - 1
        self._offset = position - starts[self._chunk]

    def __len__(self) -> int:
        return len(self._offset)

    def image(self, row: int) -> pa.Buffer:
        """The encoded bytes of one row, without a copy."""
        chunk = self._chunks[self._chunk[row]]
        buffer: pa.Buffer = chunk[int(self._offset[row])].as_buffer()
        return buffer


def _content_key(table: str | Place, where: pc.Expression, kept_only: bool) -> str:
    found = dataset(table)
    files = sorted(found.files)
    infos = found.filesystem.get_file_info(files) if found.filesystem else []
    stats = [f"{info.path}:{info.size}:{info.mtime_ns}" for info in infos]
    return schema.observation_id(str(where), *(() if kept_only else ("dropped too",)), *stats)


def _prune(directory: Path) -> None:
    """Remove what a killed build left, and caches that nothing has opened for a week."""
    for file in [*directory.glob("*.partial"), *directory.glob("*.arrow")]:
        if file.suffix == ".partial" or time.time() - file.stat().st_mtime > CACHE_SECONDS:
            file.unlink()


def _copy_images(table: str | Place, file: Path, where: pc.Expression, kept_only: bool) -> None:
    aside = file.with_suffix(".partial")
    names = (schema.OBSERVATION_ID, schema.IMAGE)
    # 64-bit offsets: a batch of images may pass 2 GiB.
    kind = pa.schema([pa.field(name, pa.large_binary()) for name in names])
    with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, kind) as writer:
        for batch in scan(table, names, where, kept_only):
            if batch.num_rows:
                writer.write_batch(batch.cast(kind))
    aside.replace(file)


@dataclass(frozen=True)
class Fingerprint:
    """What a table holds, whatever the order of its rows and files."""

    table: str
    rows: int
    ids: str
    images: str | None
    """Hash over (id, image bytes) pairs; null when the table has no images."""


def fingerprint(path: Place, name: str) -> Fingerprint:
    """Hash ids and images of all rows, dropped ones too, independently of their order."""
    has_images = schema.IMAGE in dataset(path).schema.names
    columns = [schema.OBSERVATION_ID, *([schema.IMAGE] if has_images else [])]
    rows = ids = images = 0
    for batch in scan(path, columns, kept_only=False):
        rows += batch.num_rows
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            ids += _number(row[0].encode())
            images += _number(row[0].encode(), row[1]) if has_images else 0
    return Fingerprint(name, rows, _digits(ids), _digits(images) if has_images else None)


def tables(folder: Place) -> dict[str, Place]:
    """Every table under a directory, by its name relative to it."""
    listed = {file.parent for file in folder.rglob(FILES)}
    # What another tool or an index has filled has no list.
    other = {file.parent for file in folder.rglob("*.parquet")}
    found = listed | {path for path in other if not listed & {path, *path.parents}}
    names = {str(path).removeprefix(f"{folder}/"): path for path in found}
    return {name: names[name] for name in sorted(names) if not _hidden(name)}


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in Path(name).parts)


def _number(*parts: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(b"\0".join(parts), digest_size=16).digest(), "big")


def _digits(total: int) -> str:
    return f"{total % (1 << 128):032x}"


def embeddings(table: pa.Table, column: str) -> NDArray[Any]:
    """A column of embeddings as (N, D) float32."""
    return schema.to_batch(table.select([column]))[column].astype(np.float32, copy=False)
