"""How the tables are read: whole scans and random draws, and the same bytes at their fastest."""

import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_reid import schema
from support.reporting import Figure, best, timed
from support.tables import Format, Place, Rows, Take

DRAW_ROWS = 256


@dataclass(frozen=True)
class Raw:
    """The images alone, joined in one file, and what the machine does with them at best."""

    path: Path
    sizes: Rows
    write_seconds: float

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

        return min(best(read, 3), best(mapped, 3))

    def copy_seconds(self) -> float:
        """Copy the file."""
        return best(partial(shutil.copyfile, self.path, self.path.with_suffix(".copy")), 2)

    def draw_ms(self) -> float:
        """Copy as many bytes as a draw holds, in memory."""
        blob = bytes(int(self.sizes.mean() * DRAW_ROWS))
        return statistics.median(timed(lambda: bytearray(blob)) for _ in range(30)) * 1000


def make_raw(table: pa.Table, directory: Path) -> Raw:
    """Write the joined images."""
    images = table[schema.IMAGE].to_pylist()
    path, blob = directory / "raw.bin", b"".join(images)
    seconds = best(partial(path.write_bytes, blob), 3)
    return Raw(path, np.array([len(image) for image in images]), seconds)


def rates(case: str, seconds: float, limit: float, raw: Raw) -> Iterator[Figure]:
    """Give a time and its limit as MB/s of image bytes and as rows/s."""
    megabytes, rows = raw.total / 1e6, len(raw.sizes)
    yield Figure(case, megabytes / seconds, "MB/s", megabytes / limit)
    yield Figure(f"{case}, rows", rows / seconds, "rows/s", rows / limit)


def touch(view: NDArray[np.uint8]) -> int:
    """Read every byte once, as fast as memory allows, so that no scan is free."""
    return int(view[: len(view) // 8 * 8].view(np.uint64).sum())


def scan_seconds(form: Format, place: Place, runs: int) -> float:
    """Give the best time of a scan that reads every image byte."""

    def consume() -> None:
        for batch in form.scan(place):
            column = batch.column(0)
            _, offsets, values = column.buffers()
            ends = np.frombuffer(offsets, np.int32)[column.offset :][: len(column) + 1]
            touch(np.frombuffer(values, np.uint8)[ends[0] : ends[-1]])

    return best(consume, runs)


def draws(rows: int, count: int) -> list[Rows]:
    """Draw row numbers, the same for every format."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, rows, DRAW_ROWS) for _ in range(count)]


def take_ms(take: Take, plan: Sequence[Rows]) -> float:
    """Give the median milliseconds of a draw."""
    return statistics.median(timed(partial(take, rows)) for rows in plan) * 1000
