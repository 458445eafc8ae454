"""Decoding: what the bytes of different formats become, and what is refused."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ray_reid import images

# Height and width differ, and so does every corner: each of the eight orientations shows.
PICTURE = np.zeros((40, 64, 3), dtype=np.uint8)
PICTURE[:20, :32] = (250, 20, 20)
PICTURE[20:, :32] = (20, 250, 20)
PICTURE[:20, 32:] = (20, 20, 250)


def saved(pixels: np.ndarray[Any, Any], form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("form", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_decode_turns_a_picture_upright(
    form: str, options: dict[str, Any], orientation: int
) -> None:
    encoded = saved(PICTURE, form, exif=exif(orientation), **options)
    with Image.open(io.BytesIO(encoded)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert upright.shape == ((64, 40, 3) if orientation > 4 else (40, 64, 3))
    assert np.array_equal(images.decode(encoded), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_draft_of_a_turned_jpeg_is_as_fine_as_of_an_upright_one(orientation: int) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20, 10, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((120, 240), Image.Resampling.BICUBIC))
    size = (60, 30)
    stored = pixels.transpose(1, 0, 2) if orientation > 4 else pixels
    whole = images.decode(saved(stored, "PNG", exif=exif(orientation)), size)
    drafted = images.decode(saved(stored, "JPEG", quality=98, exif=exif(orientation)), size)
    assert drafted.shape == (60, 30, 3)
    assert np.abs(whole.astype(int) - drafted).mean() < 4


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damage", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0", b"Exif\0\0"])
def test_damaged_exif_is_no_damaged_image(form: str, damage: bytes) -> None:
    assert images.decode(saved(PICTURE, form, exif=damage)).shape == PICTURE.shape
    with pytest.raises(ValueError, match="not a readable image"):
        images.decode(saved(PICTURE, form, exif=damage)[:-30])


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped() -> None:
    deep = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    decoded = images.decode(saved(deep, "PNG"))
    assert decoded.shape == (1, 5, 3)
    assert decoded[0].tolist() == [[level] * 3 for level in (0, 0, 1, 128, 255)]


def test_encoding_is_repeatable_and_nearly_exact() -> None:
    smooth = np.asarray(Image.fromarray(PICTURE).resize((40, 64), Image.Resampling.BICUBIC))
    encoded = images.encode(smooth, quality=95)
    assert encoded == images.encode(smooth.copy(), quality=95)
    assert np.abs(images.decode(encoded).astype(int) - smooth).mean() < 4
