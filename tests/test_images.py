"""Decoding: what the bytes of different formats become, and what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
def test_a_picture_is_the_same_by_every_way_in(orientation: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20, 10, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((120, 240), Image.Resampling.BICUBIC))
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        encoded = saved(pixels, form, exif=exif(orientation))
        file = tmp_path / "picture"
        file.write_bytes(encoded)
        whole = images.decode(encoded)
        for size in (None, (60, 30), (17, 90)):
            wanted = images.decode(encoded, size)
            lazy = Image.open(io.BytesIO(encoded))
            ways = {
                "path": images.read(file, size),
                "buffer": images.decode(memoryview(encoded), size),
                "PIL image": images.decode(lazy, size),
                "PIL image once more": images.decode(lazy, size),
                "converted": images.decode(Image.open(file).convert("RGB"), size),
                "turned": images.decode(ImageOps.exif_transpose(Image.open(file)), size),
                "array": images.decode(whole, size),
                "tensor": images.decode(torch.from_numpy(whole.copy()), size),
            }
            for way, given in ways.items():
                assert np.array_equal(given, wanted), f"{form} {size} by {way}"


def test_depths_palettes_and_transparency_are_the_same_by_every_way_in() -> None:
    grey = np.linspace(0, 65535, 27 * 60).astype(np.uint16).reshape(27, 60)
    cut = np.dstack([PICTURE, np.linspace(0, 255, 40 * 64).reshape(40, 64).astype(np.uint8)])
    palette = Image.fromarray(PICTURE).quantize(8)
    palette.info["transparency"] = palette.getpixel((0, 0))
    pictures = {
        "16 bits": Image.fromarray(grey),
        "16 bits as integers": Image.fromarray(grey).convert("I"),
        "transparent": Image.fromarray(cut),
        "grey and transparent": Image.fromarray(cut).convert("LA"),
        "palette": Image.fromarray(PICTURE).quantize(8),
        "palette with a transparent colour": palette,
        "bits": Image.fromarray(PICTURE).convert("1"),
    }
    for name, picture in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, "TIFF" if picture.mode == "I" else "PNG")
        decoded = images.decode(buffer.getvalue())
        assert np.array_equal(images.decode(picture), decoded), name
        images.check(buffer.getvalue())
    shown = images.decode(pictures["transparent"])
    assert shown[0, 0].tolist() == list(images.BACKGROUND)
    assert shown[-1, -1].tolist() == PICTURE[-1, -1].tolist()
    assert images.decode(palette)[0, 0].tolist() == list(images.BACKGROUND)


def test_what_is_no_picture_says_what_would_be_one() -> None:
    wrong = [
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\) and type uint8.*height x width x 3"),
        (np.zeros((8, 8, 3), np.float32), "type float32 is no picture"),
        (torch.zeros(8, 8), r"shape \(8, 8\)"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "floating-point"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "70000 are not of 16 bits"),
        (saved(PICTURE, "GIF"), "it is GIF; formats that are read: JPEG, PNG, BMP, WEBP, TIFF"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "it is HEIC"),
        (b"nothing", "it is of no known format"),
    ]
    for picture, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            images.decode(picture)
    for encoded in (saved(PICTURE, "GIF"), saved(PICTURE, "JPEG")[:-200], b""):
        with pytest.raises(ValueError, match="not a readable image"):
            images.check(encoded)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damage", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0", b"Exif\0\0"])
def test_damaged_exif_is_no_damaged_image(form: str, damage: bytes) -> None:
    assert images.decode(saved(PICTURE, form, exif=damage)).shape == PICTURE.shape
    with pytest.raises(ValueError, match="not a readable image"):
        images.decode(saved(PICTURE, form, exif=damage)[:-30])


def test_a_tiff_whose_pixels_begin_at_no_whole_number_is_a_damaged_image() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "TIFF")
    # The tag 273, where the pixels begin, with the type 11, float.
    damaged = stream.getvalue().replace(b"\x11\x01\x04\x00", b"\x11\x01\x0b\x00", 1)
    assert damaged != stream.getvalue()
    for read in (images.check, images.decode):
        with pytest.raises(ValueError, match="not a readable image"):
            read(damaged)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP"])
def test_a_file_of_several_pictures_is_refused_and_not_read_in_part(form: str) -> None:
    pages = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    file = io.BytesIO()
    pages[0].save(file, format=form, save_all=True, append_images=pages[1:])
    for read in (images.decode, images.check):
        with pytest.raises(ValueError, match=f"{form} of 3 pictures; save each as a file"):
            read(file.getvalue())


def test_a_small_copy_inside_a_tiff_is_no_second_picture() -> None:
    copy = Image.new("RGB", (4, 4), "red")
    copy.encoderinfo = {"tiffinfo": {images.NEW_SUBFILE_TYPE: 1}}
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, format="TIFF", save_all=True, append_images=[copy])
    images.check(file.getvalue())
    assert images.decode(file.getvalue()).shape == (16, 16, 3)


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
