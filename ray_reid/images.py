"""Pictures to arrays and back; the only place that knows image formats.

Every way in, file, bytes, PIL image or array, ends in `decode`: the same picture gives the same
pixels.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

# A crop of an object is far smaller; a larger header is a mistake or an attack.
MAX_PIXELS = 50_000_000
SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}
"""The usual suffix of each format that is read."""
FORMATS = tuple(SUFFIX_OF)
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff"}
)
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""
READ = f"formats that are read: {', '.join(FORMATS)}"
# How files begin: those that are read, and those that are named when somebody gives one.
_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
}
# Brands of the ISO container, from byte 8 on.
_BRANDS = {b"avif": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC"}

# What undoes each EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for damaged files; TypeError for the tags of a TIFF.
_DAMAGE = (OSError, SyntaxError, TypeError, Image.DecompressionBombError)
PAGED = ("TIFF", "PNG", "WEBP")
"""Formats whose files may hold several pictures. The second frame of a JPEG is a preview."""
NEW_SUBFILE_TYPE = 254
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def decode(picture: Any, size: tuple[int, int] | None = None) -> Pixels:
    """Decode one picture to (H, W, 3) RGB, resized to `size` = (height, width) if given.

    The picture is turned upright as its EXIF orientation says, transparent pixels show
    `BACKGROUND`, and of 16 bits the upper 8 are kept.

    Args:
        picture: The bytes of a JPEG, PNG, BMP, WebP or TIFF file, or any buffer of them; a PIL
            image; or an array (H, W, 3) uint8 of RGB, of NumPy or PyTorch.

    Raises:
        ValueError: If it is not a whole picture of at most `MAX_PIXELS`.
    """
    if isinstance(picture, Image.Image):
        try:
            return _pixels(picture, size)
        except _DAMAGE as error:
            raise ValueError(f"not a readable image: {_reason(error)}") from error
    if getattr(picture, "ndim", 1) > 1:
        return _pixels(Image.fromarray(_rgb_array(picture)), size)
    file = io.BytesIO(picture)
    try:
        with Image.open(file, formats=FORMATS) as image:
            return _pixels(image, size)
    except _DAMAGE as error:
        encoded = bytes(picture)
        reason = _reason(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is {format_of(encoded) or 'of no known format'}; {READ}"
        raise ValueError(f"not a readable image ({len(encoded)} bytes): {reason}") from error


def check(encoded: Any) -> None:
    """Read every byte of an encoded picture, with less work than `decode`.

    Raises:
        ValueError: If it is not a whole picture, as `decode` says.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_size(image)
            _check_single(image)
            if image.mode not in GREY_16 and image.mode != "F":
                # JPEG can decode straight to an eighth of the size.
                image.draft("RGB", (32, 32))
                image.load()
                return
    except _DAMAGE:
        pass
    # The one place that explains what is wrong.
    decode(encoded)


def format_of(encoded: bytes) -> str | None:
    """Name the format of a file by how it begins; None for one that is not of pictures."""
    for beginning, name in _BEGINNINGS.items():
        if encoded.startswith(beginning):
            return name
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WEBP"
    return _BRANDS.get(encoded[8:12]) if encoded[4:8] == b"ftyp" else None


def grey_range(encoded: Any) -> tuple[int, int] | None:
    """Lowest and highest value of a picture of 16-bit greys; None for any other."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.mode not in GREY_16:
            return None
        values = np.asarray(image)
        return int(values.min()), int(values.max())


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


def _pixels(image: Image.Image, size: tuple[int, int] | None) -> Pixels:
    _check_size(image)
    _check_single(image)
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    # Turned before it is resized, so that an array that came upright gives the same pixels.
    if orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[orientation])
    if size is not None and (rgb.height, rgb.width) != tuple(size):
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"image of {image.width} x {image.height} pixels is larger than the limit "
            f"of {MAX_PIXELS}"
        )


def _check_single(image: Image.Image) -> None:
    """Refuse pages and frames, of which all but one would be left out in silence."""
    number = getattr(image, "n_frames", 1) if image.format in PAGED else 1
    if number > 1 and image.format == "TIFF":
        number = sum(not _is_reduced(image, page) for page in range(number))
        image.seek(0)
    if number > 1:
        raise ValueError(f"{image.format} of {number} pictures; save each as a file of its own")


def _is_reduced(image: Any, page: int) -> bool:
    """Whether a page of a TIFF is a small copy of another."""
    image.seek(page)
    return bool(image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1)


def _rgb_array(picture: Any) -> Pixels:
    """The array of a picture; a tensor may lie on a GPU."""
    array = np.asarray(picture.detach().cpu() if hasattr(picture, "detach") else picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"array of shape {array.shape} and type {array.dtype} is no picture; give height x "
            "width x 3 of uint8, in the order RGB"
        )
    return np.ascontiguousarray(array)


def _reason(error: Exception) -> str:
    return str(error).split(" <")[0] or type(error).__name__


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation: 1 for an upright image, one without EXIF, or with damaged EXIF.

    ImageOps.exif_transpose is not used: it writes the other tags back and fails if one is odd.
    """
    # PNG may hold EXIF after the pixels, and TIFF is turned while it is loaded.
    image.load()
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error):
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in GREY_16:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"greys from {values.min()} to {values.max()} are not of 16 bits")
        # Pillow would clip at 255; it keeps the high byte of 16-bit colour, and so does this.
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("the greys are floating-point numbers; save them with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        below = Image.new("RGBA", rgba.size, BACKGROUND)
        return Image.alpha_composite(below, rgba).convert("RGB")
    return image.convert("RGB")
