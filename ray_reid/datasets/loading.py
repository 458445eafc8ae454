"""Locators: where the image of a planned row is, and how it is loaded when its batch comes.

A locator is the path of a file, or a marked one: a drawing (`drawings.PREFIX`), an image inside
another file (`cuhk03_mat.PREFIX`) or a part of an image, which become PNGs of their own, or a row
of a Parquet file, whose bytes stay as they are.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_reid import images, schema
from ray_reid.datasets import cuhk03_mat, drawings
from ray_reid.datasets.reading import Row

CORRUPT = "corrupt image"
"""Begins the drop reason of an image that cannot be used."""
CROP, STRIP, ROW = "crop:", "strip:", "row:"
# A batch comes in the order of ids, from all over a file, which is read by the row group.
CACHE_BYTES = 256 * 1024 * 1024


def crop(file: Path, box: tuple[int, int, int, int]) -> str:
    """Locate a box of an image: left, top, right, bottom in pixels, the last two exclusive."""
    return f"{CROP}{','.join(map(str, box))}:{file}"


def strip(file: Path, index: int, count: int) -> str:
    """Locate one of `count` equally wide images that lie side by side in a file, from 0."""
    return f"{STRIP}{index},{count}:{file}"


def parquet_row(file: Path, group: int, row: int) -> str:
    """Locate an image in the column `image` of a Parquet file: its row group and row in that."""
    return f"{ROW}{group},{row}:{file}"


class _Groups:
    """Columns of images by file and row group, those used last, up to `CACHE_BYTES` of them."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, int, int], pa.ChunkedArray] = OrderedDict()

    def image(self, path: str, group: int, row: int) -> bytes | None:
        """The bytes of one row."""
        # A file that was replaced is another one.
        key = path, Path(path).stat().st_mtime_ns, group
        if key not in self._held:
            with pq.ParquetFile(path) as file:
                self._held[key] = file.read_row_group(group, columns=[schema.IMAGE]).column(0)
            while len(self._held) > 1 and sum(c.nbytes for c in self._held.values()) > CACHE_BYTES:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        encoded: bytes | None = self._held[key][row].as_py()
        return encoded


_groups = _Groups()


def load(locator: str) -> Row:
    """The image, and whatever else is learned by loading it; what cannot be used says why."""
    if locator.startswith(drawings.PREFIX):
        return drawings.draw(locator)
    if locator.startswith(cuhk03_mat.PREFIX):
        try:
            return {schema.IMAGE: cuhk03_mat.load(locator)}
        except ValueError as error:
            return _corrupt(b"", str(error))
    mark, numbers, path = _split(locator)
    try:
        encoded = _bytes(mark, numbers, path)
    except (OSError, pa.ArrowException) as error:
        return _corrupt(b"", f"cannot be read: {getattr(error, 'strerror', None) or error}")
    try:
        if mark not in (CROP, STRIP):
            images.check(encoded)
            return {schema.IMAGE: encoded}
        return {schema.IMAGE: images.encode_png(_part(images.decode(encoded), mark, numbers))}
    except ValueError as error:
        return _corrupt(encoded, str(error))


def _split(locator: str) -> tuple[str, tuple[int, ...], str]:
    for mark in (CROP, STRIP, ROW):
        if locator.startswith(mark):
            numbers, _, path = locator.removeprefix(mark).partition(":")
            return mark, tuple(map(int, numbers.split(","))), path
    return "", (), locator


def _bytes(mark: str, numbers: tuple[int, ...], path: str) -> bytes:
    if mark == ROW:
        return _groups.image(path, *numbers) or b""
    return Path(path).read_bytes()


def _part(pixels: images.Pixels, mark: str, numbers: tuple[int, ...]) -> images.Pixels:
    height, width = pixels.shape[:2]
    if mark == STRIP:
        index, count = numbers
        if width % count:
            raise ValueError(f"strip of {width} pixels is not {count} images of equal width")
        each = width // count
        return np.ascontiguousarray(pixels[:, index * each : (index + 1) * each])
    left, top, right, bottom = numbers
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"box {list(numbers)} is not within the image of {width} x {height}")
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def _corrupt(encoded: bytes, problem: str) -> Row:
    return {schema.IMAGE: encoded, schema.DROP_REASON: f"{CORRUPT}: {problem}"}
