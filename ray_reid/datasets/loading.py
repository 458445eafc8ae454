"""Locators: where the image of a planned row is, and how it is loaded when its batch comes.

A locator is the path of a file, or a marked one: a drawing (`miniature.PREFIX`), an image inside
another file (`cuhk03_mat.PREFIX`) or a part of an image; the last two become PNGs of their own.
"""

from pathlib import Path

import numpy as np

from ray_reid import images, schema
from ray_reid.datasets import cuhk03_mat, miniature
from ray_reid.datasets.reading import Row

CORRUPT = "corrupt image"
"""Begins the drop reason of an image that cannot be used."""
CROP, STRIP = "crop:", "strip:"
# Decoding to a small size still reads every byte of the file, and that is what is checked.
PROBE_SIZE = (32, 32)


def crop(file: Path, box: tuple[int, int, int, int]) -> str:
    """Locate a box of an image: left, top, right, bottom in pixels, the last two exclusive."""
    return f"{CROP}{','.join(map(str, box))}:{file}"


def strip(file: Path, index: int, count: int) -> str:
    """Locate one of `count` equally wide images that lie side by side in a file, from 0."""
    return f"{STRIP}{index},{count}:{file}"


def load(locator: str) -> Row:
    """The image, and whatever else is learned by loading it; what cannot be used says why."""
    if locator.startswith(miniature.PREFIX):
        return miniature.draw(locator)
    if locator.startswith(cuhk03_mat.PREFIX):
        try:
            return {schema.IMAGE: cuhk03_mat.load(locator)}
        except ValueError as error:
            return _corrupt(b"", str(error))
    mark, numbers, path = _split(locator)
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        return _corrupt(b"", f"cannot be read: {error.strerror}")
    try:
        if not mark:
            images.decode(encoded, PROBE_SIZE)
            return {schema.IMAGE: encoded}
        return {schema.IMAGE: images.encode_png(_part(images.decode(encoded), mark, numbers))}
    except ValueError as error:
        return _corrupt(encoded, str(error))


def _split(locator: str) -> tuple[str, tuple[int, ...], str]:
    for mark in (CROP, STRIP):
        if locator.startswith(mark):
            numbers, _, path = locator.removeprefix(mark).partition(":")
            return mark, tuple(map(int, numbers.split(","))), path
    return "", (), locator


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
