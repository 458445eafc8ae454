"""Encoded bytes to arrays and back; the only place that knows image formats."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

Pixels = NDArray[np.uint8]

# A crop of an object is far smaller; a larger header is a mistake or an attack.
MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

# What undoes each EXIF orientation; 5 to 8 exchange height and width.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


def decode(encoded: Any, size: tuple[int, int] | None = None) -> Pixels:
    """Decode one image to (H, W, 3) RGB, resized to `size` = (height, width) if given.

    The picture is turned upright as its EXIF orientation says; 16 bits become 8.

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
            orientation = _orientation(image)
            # Height and width as the file stores them, before it is turned.
            stored = size[::-1] if size and orientation in SIDEWAYS else size
            if stored is not None:
                # JPEG can decode straight to half or a quarter of the size.
                image.draft("RGB", (2 * stored[1], 2 * stored[0]))
            rgb = _to_rgb(image)
            if stored is not None and (rgb.height, rgb.width) != stored:
                rgb = rgb.resize((stored[1], stored[0]), Image.Resampling.BILINEAR)
            if orientation in UPRIGHT:
                rgb = rgb.transpose(UPRIGHT[orientation])
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


def encode_png(pixels: Pixels) -> bytes:
    """Encode (H, W, 3) RGB without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pack(pixels: Pixels) -> bytes:
    """Bytes of an (H, W, 3) image that is still worked on: between stages nothing is encoded."""
    return struct.pack("<II", *pixels.shape[:2]) + pixels.tobytes()


def unpack(packed: bytes) -> Pixels:
    """The (H, W, 3) image of `pack`; read-only."""
    height, width = struct.unpack_from("<II", packed)
    return np.frombuffer(packed, np.uint8, offset=8).reshape(height, width, 3)


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation: 1 for an upright image, one without EXIF, or with damaged EXIF.

    ImageOps.exif_transpose is not used: it writes the other tags back and fails if one is odd.
    """
    if image.format != "JPEG":
        # PNG may hold EXIF after the pixels; only JPEG has a draft, which must come before them.
        image.load()
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error):
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255; it keeps the high byte of 16-bit colour, and so does this.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
