"""Encoded bytes to arrays and back; the only place that knows image formats."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

# A crop of an object is far smaller; a larger header is a mistake or an attack.
MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def decode(encoded: Any, size: tuple[int, int] | None = None) -> Pixels:
    """Decode one image to (H, W, 3) RGB, resized to `size` = (height, width) if given.

    Args:
        encoded: The bytes of a JPEG, PNG, BMP or WebP file, or any buffer of them.

    Raises:
        ValueError: If the bytes are not a whole image of at most `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"image of {image.width} x {image.height} pixels is larger than the limit "
                    f"of {MAX_PIXELS}"
                )
            if size is not None:
                # JPEG can decode straight to half or a quarter of the size.
                image.draft("RGB", (2 * size[1], 2 * size[0]))
            rgb = image.convert("RGB")
            if size is not None and (rgb.height, rgb.width) != size:
                rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(rgb)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).split(" <")[0] or type(error).__name__
        raise ValueError(f"not a readable image ({len(bytes(encoded))} bytes): {reason}") from error


def read(path: Path, size: tuple[int, int] | None = None) -> Pixels:
    """Read and decode an image file; `decode` says how.

    Raises:
        ValueError: If there is no such file or it is not an image.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read image {str(path)!r}: {error.strerror}") from error
    try:
        return decode(encoded, size)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def to_hsv(pixels: Pixels) -> Pixels:
    """Convert (H, W, 3) RGB to hue, saturation and value, each in 0 to 255."""
    return np.asarray(Image.fromarray(pixels).convert("HSV"))


def decode_batch(encoded: Sequence[Any], size: tuple[int, int]) -> Pixels:
    """Decode images to (N, H, W, 3), all resized to `size` = (height, width)."""
    batch = np.empty((len(encoded), *size, 3), dtype=np.uint8)
    for row, image in enumerate(encoded):
        batch[row] = decode(image, size)
    return batch


def encode(pixels: Pixels, quality: int = 90) -> bytes:
    """Encode (H, W, 3) RGB as JPEG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
