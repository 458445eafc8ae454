"""Which format should hold the table of observations: Parquet, Lance or Arrow IPC?

Writes the same random rows in every format and measures scan, random access, append, size and
write, on disk and on a local S3 double, each beside the physical limit of the same bytes in the
same run. docs/storage.md says what we decided.
"""

import argparse
import json
import logging
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_reid import schema

COLUMNS = [schema.IMAGE, schema.IDENTITY]
BATCH_ROWS = 1024
DRAW_ROWS = 256
APPEND_ROWS = 1000
S3_ROWS = 10_000
# The S3 double reads a whole object for each range, so a draw of many ranges takes seconds.
S3_DRAWS = 1
HIGHER_IS_BETTER = ("MB/s", "rows/s", "rows")
# Limits on measured/reference, set before measuring.
BARS = {
    "scan parquet-1024-none": 0.1,
    "random row-cache": 10.0,
    "build row-cache": 0.1,
    "size parquet-1024-none": 1.05,
    "torn append parquet-1024-none, aside": 1.0,
    "torn append lance": 1.0,
}

Rows = NDArray[np.int64]
Take = Callable[[Rows], Sequence[bytes]]


@dataclass(frozen=True)
class Figure:
    """One measured case and what it is measured against, in the same unit."""

    case: str
    measured: float
    unit: str
    reference: float | None = None

    def line(self) -> dict[str, Any]:
        """Give the JSON object of this case."""
        ratio = self.measured / self.reference if self.reference else None
        bar, holds = BARS.get(self.case), None
        if bar is not None and ratio is not None:
            holds = ratio >= bar if self.unit in HIGHER_IS_BETTER else ratio <= bar
        return {
            "case": self.case,
            "measured": round(self.measured, 4),
            "unit": self.unit,
            "reference": None if self.reference is None else round(self.reference, 4),
            "ratio": None if ratio is None else round(ratio, 4),
            "bar": bar,
            "holds": holds,
        }


@dataclass(frozen=True)
class Place:
    """Where tables lie: a local directory or a bucket of the S3 double."""

    root: str
    filesystem: pafs.FileSystem
    scheme: str = ""
    options: dict[str, str] = field(default_factory=dict)
    log: Path | None = None

    def requests(self) -> int:
        """Count the GET requests the S3 double has answered so far."""
        return 0 if self.log is None else self.log.read_text().count("GET /")


class Format(Protocol):
    """What is asked of a format; `write` adds one part to the table called `self.name`."""

    @property
    def name(self) -> str: ...

    def write(self, table: pa.Table, place: Place, part: int = 0) -> None: ...

    def scan(self, place: Place) -> Iterable[pa.RecordBatch]: ...

    def open(self, place: Place) -> Take: ...

    def count(self, place: Place) -> int: ...


def _bytes_at(column: pa.ChunkedArray, rows: Rows) -> list[bytes]:
    # ChunkedArray.take may join all chunks first; one scalar a row copies only what is asked.
    return [column[row].as_py() for row in rows.tolist()]


@dataclass(frozen=True)
class Parquet:
    """A directory of Parquet parts; `group_rows=None` leaves every writer option at its default."""

    name: str
    group_rows: int | None = None
    compression: str = "snappy"

    def write(self, table: pa.Table, place: Place, part: int = 0) -> None:
        """Write a hidden file, then rename it: an append is seen whole or not at all."""
        directory = f"{place.root}/{self.name}"
        place.filesystem.create_dir(directory)
        final = f"{directory}/part-{part}.parquet"
        # An S3 object appears whole when its upload completes, so only a disk needs the rename.
        hidden = final if place.scheme else f"{directory}/_part-{part}.parquet"
        # A dictionary or minimum of random bytes is only lost work.
        others = [name for name in schema.OBSERVATION.names if name != schema.IMAGE]
        tuned = {"use_dictionary": others, "write_statistics": others} if self.group_rows else {}
        pq.write_table(
            table,
            hidden,
            filesystem=place.filesystem,
            row_group_size=self.group_rows,
            compression=self.compression,
            **tuned,
        )
        if hidden != final:
            place.filesystem.move(hidden, final)

    def _dataset(self, place: Place) -> pads.Dataset:
        return pads.dataset(
            f"{place.root}/{self.name}", filesystem=place.filesystem, format="parquet"
        )

    def scan(self, place: Place) -> Iterable[pa.RecordBatch]:
        """Stream image and identity."""
        return self._dataset(place).to_batches(columns=COLUMNS, batch_size=BATCH_ROWS)

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
        return int(self._dataset(place).count_rows())


@dataclass(frozen=True)
class Lance:
    """A Lance dataset with the options of pylance; an append commits a new version."""

    name: str = "lance"

    def write(self, table: pa.Table, place: Place, part: int = 0) -> None:
        """Create the dataset, or append to it."""
        mode = "append" if part else "create"
        _lance().write_dataset(table, self._uri(place), mode=mode, storage_options=place.options)

    def _uri(self, place: Place) -> str:
        return f"{place.scheme}{place.root}/{self.name}"

    def _dataset(self, place: Place) -> Any:
        return _lance().dataset(self._uri(place), storage_options=place.options)

    def scan(self, place: Place) -> Iterable[pa.RecordBatch]:
        """Stream image and identity."""
        return self._dataset(place).to_batches(columns=COLUMNS, batch_size=BATCH_ROWS)

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
    """An uncompressed Arrow IPC file, memory-mapped; on disk only, S3 cannot be mapped."""

    name: str = "arrow-mmap"

    def write(self, table: pa.Table, place: Place, part: int = 0) -> None:
        """Write aside and rename; the footer is final, so an append is another file."""
        self.build(table.to_batches(max_chunksize=BATCH_ROWS), place, part)

    def build(self, batches: Iterable[pa.RecordBatch], place: Place, part: int = 0) -> None:
        """Stream batches into the file without holding the table in memory."""
        path = Path(place.root) / self.name / f"part-{part}.arrow"
        path.parent.mkdir(exist_ok=True)
        aside = path.with_suffix(".aside")
        remaining = iter(batches)
        first = next(remaining)
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            writer.write_batch(first)
            for batch in remaining:
                writer.write_batch(batch)
        aside.rename(path)

    def _table(self, path: Path) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def scan(self, place: Place) -> Iterable[pa.RecordBatch]:
        """Stream image and identity, without a copy."""
        for path in sorted((Path(place.root) / self.name).glob("*.arrow")):
            yield from self._table(path).select(COLUMNS).to_batches()

    def open(self, place: Place) -> Take:
        """Map the file; a draw copies only its own rows."""
        images = self._table(Path(place.root) / self.name / "part-0.arrow")[schema.IMAGE]
        return lambda rows: _bytes_at(images, rows)

    def count(self, place: Place) -> int:
        """Count the rows a new reader sees."""
        paths = (Path(place.root) / self.name).glob("*.arrow")
        return sum(self._table(path).num_rows for path in paths)


RECORD = Parquet("parquet-1024-none", 1024, "none")
CACHE = Arrow("row-cache")
ARROW = Arrow()
FORMATS: tuple[Format, ...] = (
    Parquet("parquet-default"),
    RECORD,
    Parquet("parquet-1024-zstd", 1024, "zstd"),
    Parquet("parquet-64-none", 64, "none"),
    Parquet("parquet-64-zstd", 64, "zstd"),
    Lance(),
    ARROW,
)


def _lance() -> Any:
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lance
    except ModuleNotFoundError as error:
        raise SystemExit("pylance is missing; run: pip install 'ray-reid[benchmarks]'") from error
    return lance


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


def touch(view: NDArray[np.uint8]) -> int:
    """Read every byte once, as fast as memory allows, so that no scan is free."""
    return int(view[: len(view) // 8 * 8].view(np.uint64).sum())


def timed(work: Callable[[], object]) -> float:
    """Run once and return the seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def scan_seconds(form: Format, place: Place, runs: int) -> float:
    """Give the best time of a scan that reads every image byte."""

    def consume() -> None:
        for batch in form.scan(place):
            column = batch.column(0)
            _, offsets, values = column.buffers()
            ends = np.frombuffer(offsets, np.int32)[column.offset :][: len(column) + 1]
            touch(np.frombuffer(values, np.uint8)[ends[0] : ends[-1]])

    return min(timed(consume) for _ in range(runs))


def draws(rows: int, count: int) -> list[Rows]:
    """Draw row numbers, the same for every format."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, rows, DRAW_ROWS) for _ in range(count)]


def take_ms(take: Take, plan: Sequence[Rows]) -> float:
    """Give the median milliseconds of a draw."""
    return statistics.median(timed(partial(take, rows)) for rows in plan) * 1000


@dataclass(frozen=True)
class Raw:
    """The images alone, joined in one file, and what the machine does with them at best."""

    path: Path
    sizes: Rows

    @property
    def total(self) -> int:
        """Sum the image bytes."""
        return int(self.sizes.sum())

    def read_seconds(self) -> float:
        """Read the file from the page cache and touch each byte: the faster of read and mmap."""

        def read() -> None:
            buffer = bytearray(1 << 20)
            with self.path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    touch(np.frombuffer(buffer, np.uint8)[:count])

        def mapped() -> None:
            touch(np.memmap(self.path, np.uint8, mode="r"))

        return min(timed(work) for work in (read, mapped) * 3)

    def copy_ms(self) -> float:
        """Copy as many bytes as a draw holds, in memory."""
        blob = bytes(int(self.sizes.mean() * DRAW_ROWS))
        return statistics.median(timed(lambda: bytearray(blob)) for _ in range(30)) * 1000

    def cold_ms(self, plan: Sequence[Rows]) -> float:
        """Read one draw, row after row, from a file that the page cache has forgotten."""
        starts = np.cumsum(self.sizes) - self.sizes

        def read(rows: Rows) -> None:
            with self.path.open("rb", buffering=0) as file:
                for row in rows.tolist():
                    os.pread(file.fileno(), int(self.sizes[row]), int(starts[row]))

        return cold_ms(self.path, read, plan)


def make_raw(table: pa.Table, directory: Path) -> tuple[Raw, float]:
    """Write the joined images; return them and the seconds the write took."""
    images = table[schema.IMAGE].to_pylist()
    blob = b"".join(images)
    path = directory / "raw.bin"
    seconds = min(timed(partial(path.write_bytes, blob)) for _ in range(3))
    return Raw(path, np.array([len(image) for image in images])), seconds


def cold_ms(path: Path, read: Callable[[Rows], object], plan: Sequence[Rows]) -> float:
    """Give the median milliseconds of a first draw, opening included, after forgetting `path`."""
    times = []
    for rows in plan:
        for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        times.append(timed(partial(read, rows)))
    return statistics.median(times) * 1000


def first_draw(form: Format, place: Place, rows: Rows) -> Sequence[bytes]:
    """Open a table and draw once."""
    return form.open(place)(rows)


def rates(case: str, seconds: float, limit: float, raw: Raw) -> Iterator[Figure]:
    """Give a time and its limit as MB/s of image bytes and as rows/s."""
    megabytes, rows = raw.total / 1e6, len(raw.sizes)
    yield Figure(case, megabytes / seconds, "MB/s", megabytes / limit)
    yield Figure(f"{case}, rows", rows / seconds, "rows/s", rows / limit)


def write_afresh(form: Format, table: pa.Table, place: Place) -> None:
    """Write the table in place of an earlier one."""
    shutil.rmtree(Path(place.root) / form.name, ignore_errors=True)
    form.write(table, place)


def write_cases(table: pa.Table, place: Place, raw: Raw, limit: float) -> Iterator[Figure]:
    """Write every format and weigh it."""
    # The first import must not count as writing.
    _lance()
    for form in FORMATS:
        seconds = min(timed(partial(write_afresh, form, table, place)) for _ in range(2))
        yield from rates(f"write {form.name}", seconds, limit, raw)
    for form in FORMATS:
        files = filter(Path.is_file, (Path(place.root) / form.name).rglob("*"))
        size = sum(path.stat().st_size for path in files)
        yield Figure(f"size {form.name}", size / 1e6, "MB", raw.total / 1e6)


def read_cases(place: Place, raw: Raw) -> Iterator[Figure]:
    """Scan every format, and draw rows from it with a warm and a cold page cache."""
    rows, limit = len(raw.sizes), raw.read_seconds()
    for form in FORMATS:
        yield from rates(f"scan {form.name}", scan_seconds(form, place, 3), limit, raw)
    copy, cold_limit = raw.copy_ms(), raw.cold_ms(draws(rows, 5))
    for form in FORMATS:
        yield Figure(f"random {form.name}", take_ms(form.open(place), draws(rows, 30)), "ms", copy)
    for form in FORMATS:
        path = Path(place.root) / form.name
        cold = cold_ms(path, partial(first_draw, form, place), draws(rows, 5))
        yield Figure(f"random, cold first draw, {form.name}", cold, "ms", cold_limit)


def append_cases(table: pa.Table, place: Place, raw: Raw) -> Iterator[Figure]:
    """Append while a reader is in the middle of a scan, and leave a half-written file behind."""
    more = make_table(APPEND_ROWS, seed=1)
    blob = b"".join(more[schema.IMAGE].to_pylist())
    limit = timed(lambda: raw.path.with_name("appended.bin").write_bytes(blob))
    for form in (RECORD, Lance(), ARROW):
        reader = iter(form.scan(place))
        seen = next(reader).num_rows
        seconds = timed(partial(form.write, more, place, part=1))
        seen += sum(batch.num_rows for batch in reader)
        assert form.count(place) == len(table) + APPEND_ROWS
        yield Figure(f"append {form.name}", seconds * 1000, "ms", limit * 1000)
        yield Figure(f"append, rows seen by an open reader, {form.name}", seen, "rows", len(table))
    for case, form, name in (
        (f"{RECORD.name}, aside", RECORD, "_part-2.parquet"),
        (f"{RECORD.name}, in place", RECORD, "part-2.parquet"),
        ("lance", Lance(), "data/torn.lance"),
    ):
        before = len(table) + APPEND_ROWS
        yield Figure(f"torn append {case}", torn_rows(form, place, name), "rows", before)


def torn_rows(form: Format, place: Place, name: str) -> int:
    """Count the rows readable beside half a data file, as a killed writer leaves it; 0 if none."""
    directory = Path(place.root) / form.name
    whole = max(filter(Path.is_file, directory.rglob("*")), key=lambda path: path.stat().st_size)
    torn = directory / name
    torn.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    try:
        return form.count(place)
    except pa.ArrowInvalid:
        return 0
    finally:
        torn.unlink()


def build_cache(source: Place, target: Place) -> None:
    """Copy the image column of the record into a local row cache, one streaming pass."""
    CACHE.build((batch.select([schema.IMAGE]) for batch in RECORD.scan(source)), target)


def cache_cases(place: Place, raw: Raw) -> Iterator[Figure]:
    """Build the row cache, draw from it, and count the draws that pay for it."""
    rows = len(raw.sizes)
    copied = raw.path.with_name("copied.bin")
    limit = min(timed(partial(shutil.copyfile, raw.path, copied)) for _ in range(2))
    seconds = min(timed(partial(build_cache, place, place)) for _ in range(2))
    yield from rates(f"build {CACHE.name}", seconds, limit, raw)
    plan = draws(rows, 30)
    cached = take_ms(CACHE.open(place), plan)
    yield Figure(f"random {CACHE.name}", cached, "ms", raw.copy_ms())
    few = draws(rows, 5)
    cold = cold_ms(Path(place.root) / CACHE.name, partial(first_draw, CACHE, place), few)
    yield Figure(f"random, cold first draw, {CACHE.name}", cold, "ms", raw.cold_ms(few))
    for form in (RECORD, Lance()):
        saved = take_ms(form.open(place), plan) - cached
        if saved > 0:
            paid = seconds * 1000 / saved
            yield Figure(
                f"draws that pay for {CACHE.name}, against {form.name}; reference one epoch",
                paid,
                "draws",
                rows / DRAW_ROWS,
            )


@contextmanager
def s3_double(directory: Path) -> Iterator[Place]:
    """Start moto's S3 on a free loopback port and stop it at the end."""
    try:
        import moto.server  # noqa: F401
    except ModuleNotFoundError as error:
        raise SystemExit(
            "moto[server] is missing; run: pip install 'ray-reid[benchmarks]', or pass --no-s3"
        ) from error
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = directory / "s3.log"
    with log.open("wb") as sink:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        yield s3_place(port, log)
    finally:
        server.terminate()
        server.wait()


def s3_place(port: int, log: Path) -> Place:
    """Wait until the S3 double answers and make the bucket."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    key = "testing"
    options = {
        "aws_access_key_id": key,
        "aws_secret_access_key": key,
        "aws_region": "us-east-1",
        "aws_endpoint": f"http://127.0.0.1:{port}",
        "allow_http": "true",
    }
    filesystem = pafs.S3FileSystem(
        access_key=key,
        secret_key=key,
        region="us-east-1",
        scheme="http",
        endpoint_override=f"127.0.0.1:{port}",
        allow_bucket_creation=True,
    )
    filesystem.create_dir("bench")
    return Place("bench", filesystem, "s3://", options, log)


def s3_cases(table: pa.Table, local: Place, raw: Raw) -> Iterator[Figure]:
    """Scan and draw over S3. The times are moto's; the requests are the formats' own."""
    with s3_double(raw.path.parent) as place:
        with place.filesystem.open_output_stream("bench/raw.bin") as sink:
            sink.write(raw.path.read_bytes())

        def get(size: int) -> None:
            with place.filesystem.open_input_file("bench/raw.bin") as source:
                source.read(size)

        limit = min(timed(partial(get, raw.total)) for _ in range(3))
        draw_limit = min(timed(lambda: get(raw.total * DRAW_ROWS // len(raw.sizes))) for _ in "123")
        for form in FORMATS:
            if isinstance(form, Arrow):
                continue
            form.write(table, place)
            yield from rates(f"s3 scan {form.name}", scan_seconds(form, place, 2), limit, raw)
            take, plan = form.open(place), draws(len(raw.sizes), 1 + S3_DRAWS)
            take(plan[0])
            before = place.requests()
            yield Figure(f"s3 random {form.name}", take_ms(take, plan[1:]), "ms", draw_limit * 1000)
            requests = (place.requests() - before) / S3_DRAWS
            yield Figure(f"s3 requests a draw {form.name}", requests, "GETs", DRAW_ROWS)
        seconds = timed(partial(build_cache, place, local))
        yield from rates(f"s3 build {CACHE.name}", seconds, limit, raw)


def ray_cases(place: Place, raw: Raw) -> Iterator[Figure]:
    """Scan through Ray Data on two CPUs, beside the same scan through pyarrow."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().print_on_execution_start = False
    readers: tuple[tuple[Format, Callable[[str], Any]], ...] = (
        (RECORD, ray.data.read_parquet),
        (Lance(), ray.data.read_lance),
    )

    def consume(read: Callable[[str], Any], path: str) -> int:
        batches = read(path).select_columns(COLUMNS).iter_batches(batch_format="pyarrow")
        return sum(touch(np.frombuffer(b[COLUMNS[0]].chunk(0).buffers()[2], "u1")) for b in batches)

    for form, read in readers:
        path = f"{place.root}/{form.name}"
        consume(read, path)
        seconds = timed(partial(consume, read, path))
        yield from rates(f"ray scan {form.name}", seconds, scan_seconds(form, place, 2), raw)
    ray.shutdown()


def measure(rows: int, directory: Path, s3: bool, with_ray: bool) -> Iterator[Figure]:
    """Measure every case; appends come last because they change the tables."""
    place = Place(str(directory), pafs.LocalFileSystem(use_mmap=True))
    table = make_table(rows)
    raw, write_limit = make_raw(table, directory)
    yield from write_cases(table, place, raw, write_limit)
    yield from read_cases(place, raw)
    yield from cache_cases(place, raw)
    if with_ray:
        yield from ray_cases(place, raw)
    if s3:
        part = table.slice(0, min(rows, S3_ROWS))
        (directory / "s3").mkdir()
        part_raw, _ = make_raw(part, directory / "s3")
        yield from s3_cases(part, place, part_raw)
    yield from append_cases(table, place, raw)


def header() -> str:
    """Name the machine, the versions and the commit."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    commit = git.stdout.strip() or "none"
    versions = f"python {platform.python_version()}, pyarrow {pa.__version__}"
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB; {versions}; commit {commit}"


def row(figure: Figure) -> str:
    """Format one case as a line of the table."""
    line = figure.line()
    cells = [line["case"], f"{line['measured']:.4g}", line["unit"]]
    cells += ["-" if line[k] is None else f"{line[k]:.4g}" for k in ("reference", "ratio", "bar")]
    cells.append({True: "yes", False: "NO", None: "-"}[line["holds"]])
    return "{:<72} {:>10} {:<7} {:>10} {:>8} {:>5} {:>5}".format(*cells)


def main() -> None:
    """Measure and report; a bar that does not hold is a figure, not an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--json", action="store_true", help="one JSON object per case")
    parser.add_argument("--ray", action="store_true", help="also scan through Ray Data")
    parser.add_argument("--no-s3", action="store_true", help="skip the S3 double")
    options = parser.parse_args()
    if options.rows < DRAW_ROWS:
        parser.error(f"--rows {options.rows} is too few; choose at least {DRAW_ROWS}")
    if not options.json:
        titles = ("case", "measured", "unit", "reference", "ratio", "bar", "holds")
        sys.stdout.write(f"{header()}\n")
        sys.stdout.write("{:<72} {:>10} {:<7} {:>10} {:>8} {:>5} {:>5}\n".format(*titles))
    with tempfile.TemporaryDirectory(prefix="storage-") as directory:
        for figure in measure(options.rows, Path(directory), not options.no_s3, options.ray):
            text = json.dumps(figure.line()) if options.json else row(figure)
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
