"""A synthetic table of observations, and the formats that could hold it."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_reid import schema, storage

COLUMNS = (schema.IMAGE, schema.IDENTITY)

Rows = NDArray[np.int64]
Take = Callable[[Rows], Sequence[bytes]]


@dataclass(frozen=True)
class Place:
    """Where tables lie: a local directory, or a bucket behind a URI."""

    root: str
    filesystem: pafs.FileSystem
    scheme: str = ""
    """What stands before the root in a URI."""
    lance_options: dict[str, str] = field(default_factory=dict)

    def uri(self, name: str) -> str:
        """The table `name` as `storage` takes it."""
        return f"{self.scheme}{self.root}/{name}"


def local_place(directory: Path) -> Place:
    """A local directory."""
    return Place(str(directory), pafs.LocalFileSystem(use_mmap=True))


class Format(Protocol):
    """What is asked of a format; `write` adds one part to the table called `self.name`."""

    @property
    def name(self) -> str: ...

    def write(self, table: pa.Table, place: Place, part: int = 0) -> None: ...

    def scan(self, place: Place) -> Iterable[pa.RecordBatch]: ...

    def open(self, place: Place) -> Take: ...

    def count(self, place: Place) -> int: ...


@dataclass(frozen=True)
class Parquet:
    """A directory of Parquet parts, read as `ray_reid.storage` reads it."""

    name: str
    options: Mapping[str, Any]

    def write(self, table: pa.Table, place: Place, part: int = 0) -> None:
        """Write a hidden file, then rename it: an append is seen whole or not at all."""
        directory = f"{place.root}/{self.name}"
        place.filesystem.create_dir(directory)
        final = f"{directory}/part-{part}.parquet"
        # An S3 object appears whole when its upload completes, so only a disk needs the rename.
        hidden = final if place.scheme else f"{directory}/_part-{part}.parquet"
        pq.write_table(table, hidden, filesystem=place.filesystem, **self.options)
        if hidden != final:
            place.filesystem.move(hidden, final)

    def scan(self, place: Place) -> Iterable[pa.RecordBatch]:
        """Stream image and identity."""
        return storage.scan(place.uri(self.name), COLUMNS)

    def open(self, place: Place) -> Take:
        """Read the metadata; a draw reads the row groups that hold its rows."""
        path = f"{place.root}/{self.name}/part-0.parquet"
        file = pq.ParquetFile(path, filesystem=place.filesystem, pre_buffer=bool(place.scheme))
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])

        def take(rows: Rows) -> list[bytes]:
            group = np.searchsorted(starts, rows, side="right") - 1
            wanted, place_in = np.unique(group, return_inverse=True)
            read = file.read_row_groups(wanted.tolist(), columns=[schema.IMAGE])
            offsets = np.cumsum([0, *np.asarray(sizes)[wanted]])
            return _bytes_at(read[schema.IMAGE], offsets[place_in] + rows - starts[group])

        return take

    def count(self, place: Place) -> int:
        """Count the rows a new reader sees."""
        return int(storage.dataset(place.uri(self.name)).count_rows())


@dataclass(frozen=True)
class Lance:
    """A Lance dataset with the options of pylance; an append commits a new version."""

    name: str = "lance"

    def write(self, table: pa.Table, place: Place, part: int = 0) -> None:
        """Create the dataset, or append to it."""
        import lance

        mode, options = "append" if part else "create", place.lance_options
        lance.write_dataset(table, self._uri(place), mode=mode, storage_options=options)

    def _uri(self, place: Place) -> str:
        # Address and keys are in the options; pylance knows nothing of pyarrow's URIs.
        return f"s3://{place.root}/{self.name}" if place.scheme else place.uri(self.name)

    def _dataset(self, place: Place) -> Any:
        import lance

        return lance.dataset(self._uri(place), storage_options=place.lance_options)

    def scan(self, place: Place) -> Iterable[pa.RecordBatch]:
        """Stream image and identity."""
        return self._dataset(place).to_batches(columns=list(COLUMNS))

    def open(self, place: Place) -> Take:
        """Open the newest version; a draw is one `take`."""
        dataset = self._dataset(place)

        def take(rows: Rows) -> Sequence[bytes]:
            table = dataset.take(rows.tolist(), columns=[schema.IMAGE])
            return table[schema.IMAGE].to_pylist()

        return take

    def count(self, place: Place) -> int:
        """Count the rows a new reader sees."""
        return int(self._dataset(place).count_rows())


@dataclass(frozen=True)
class Arrow:
    """Uncompressed Arrow IPC files, memory-mapped; on disk only, S3 cannot be mapped."""

    name: str = "arrow-mmap"

    def write(self, table: pa.Table, place: Place, part: int = 0) -> None:
        """Write aside and rename; the footer is final, so an append is another file."""
        path = Path(place.root) / self.name / f"part-{part}.arrow"
        path.parent.mkdir(exist_ok=True)
        aside = path.with_suffix(".aside")
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=storage.ROW_GROUP)
        aside.rename(path)

    def _tables(self, place: Place) -> Iterator[pa.Table]:
        for path in sorted((Path(place.root) / self.name).glob("*.arrow")):
            yield pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def scan(self, place: Place) -> Iterable[pa.RecordBatch]:
        """Stream image and identity, without a copy."""
        for table in self._tables(place):
            yield from table.select(COLUMNS).to_batches()

    def open(self, place: Place) -> Take:
        """Map the first file; a draw copies only its own rows."""
        images = next(self._tables(place))[schema.IMAGE]
        return lambda rows: _bytes_at(images, rows)

    def count(self, place: Place) -> int:
        """Count the rows a new reader sees."""
        return sum(table.num_rows for table in self._tables(place))


def _bytes_at(column: pa.ChunkedArray, rows: Rows) -> list[bytes]:
    # ChunkedArray.take may join all chunks first; one scalar a row copies only what is asked.
    return [column[row].as_py() for row in rows.tolist()]


RECORD = Parquet("parquet-ours", storage.PARQUET)
LANCE = Lance()
ARROW = Arrow()


def formats() -> list[Format]:
    """All that are compared; Lance only where pylance is installed."""
    known: list[Format] = [
        Parquet("parquet-default", {}),
        RECORD,
        Parquet("parquet-ours-zstd", {**storage.PARQUET, "compression": "zstd"}),
        Parquet("parquet-ours-64-rows", {**storage.PARQUET, "row_group_size": 64}),
    ]
    if importlib.util.find_spec("lance"):
        os.environ.setdefault("LANCE_LOG", "error")
        known.append(LANCE)
    else:
        sys.stderr.write("no Lance figures: pip install 'ray-reid[benchmarks]' brings pylance\n")
    return [*known, ARROW]


def write_afresh(form: Format, table: pa.Table, place: Place) -> None:
    """Write a local table in place of an earlier one."""
    shutil.rmtree(Path(place.root) / form.name, ignore_errors=True)
    form.write(table, place)


def make_table(rows: int, seed: int = 0) -> pa.Table:
    """Make observations whose images are random bytes, 2 to 12 KB, 6 KB on average."""
    rng = np.random.default_rng(seed)
    sizes = rng.triangular(2048, 4096, 12288, rows).astype(np.int64)
    ends = np.cumsum(sizes)
    blob = rng.bytes(int(ends[-1]))
    return schema.observations(
        [
            {
                schema.OBSERVATION_ID: schema.observation_id("benchmark", seed, i),
                schema.IMAGE: blob[end - size : end],
                schema.IDENTITY: schema.qualified_identity("benchmark", str(i // 20)),
                schema.CAMERA: f"c{i % 20}",
                schema.SOURCE: "benchmark",
                schema.LICENCE: "Apache-2.0",
                schema.SPLIT: "train",
                schema.ATTRIBUTES: {"colour": "red", "body": "sedan", "brand": f"b{i % 40}"},
                schema.SCORES: {"sharpness": i / rows},
            }
            for i, (end, size) in enumerate(zip(ends.tolist(), sizes.tolist(), strict=True))
        ]
    )
