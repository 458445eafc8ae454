"""Label files beside the images of vehicles: XML items, names of numbers, lists and tracks.

Images are known by their base name without its suffix, because lists write it with or without.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from xml.parsers import expat

from ray_reid import images

# XML attributes whose number has a name in a list: our attribute, and the list.
NUMBERED = {"colorID": ("colour", "list_color.txt"), "typeID": ("body_style", "list_type.txt")}
# The conditions of a rendering, under plain names; the values are kept as they are written.
CONDITIONS = {
    "orientation": "orientation",
    "lightInt": "light_intensity",
    "lightDir": "light_direction",
    "camHei": "camera_height",
    "camDis": "camera_distance",
}
KEYS = ("imageName", "vehicleID", "cameraID")

_ITEM = re.compile(r"<Item\b[^<>]*")

Entries = Mapping[str, Mapping[str, str]]
Names = Mapping[str, Mapping[str, str]]


def entries(file: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The XML attributes of every `Item` by its image; an item without an image is no entry.

    Returns:
        The entries, and a warning if the file is malformed: items that cannot be read are left out.

    Raises:
        ValueError: If the file cannot be read, is not XML, or holds no such item.
    """
    written = text(file)
    warnings: list[str] = []
    try:
        items = _items(written)
    except expat.ExpatError as error:
        items, bad = _single_items(written)
        if not items:
            raise ValueError(f"labels {str(file)!r} are not XML in UTF-8: {error}") from error
        lost = f"{len(bad)} of {len(bad) + len(items)} items cannot be read and are left out"
        first = f", the first in line {bad[0]}" if bad else ""
        warnings = [f"labels {str(file)!r} are not well-formed XML ({error}); {lost}{first}"]
    # The engine that writes these files replaces an image of the same name.
    found = {item["imageName"]: item for item in items if "imageName" in item}
    if not found:
        raise ValueError(f"labels {str(file)!r} hold no <Item imageName=...>")
    return found, warnings


def _items(xml: str) -> list[dict[str, str]]:
    """The attributes of all elements `Item`, in order."""
    found: list[dict[str, str]] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "Item":
            found.append(attributes)

    # A given encoding overrules the declaration, which may be one that expat does not know.
    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    parser.Parse(xml.encode(), True)
    return found


def _single_items(xml: str) -> tuple[list[dict[str, str]], list[int]]:
    """The attributes of the items that can be read by themselves, and the lines of the others."""
    found: list[dict[str, str]] = []
    bad: list[int] = []
    for tag in _ITEM.finditer(xml):
        try:
            found += _items(f"{tag[0].rstrip().removesuffix('/')}/>")
        except expat.ExpatError:
            bad.append(xml.count("\n", 0, tag.start()) + 1)
    return [item for item in found if item], bad


def names(file: Path) -> dict[str, str]:
    """Names by number, from lines `number name`.

    Raises:
        ValueError: If a line is another.
    """
    found = {}
    for number, line in enumerate(text(file).splitlines(), start=1):
        parts = line.split(maxsplit=1)
        if parts and not (len(parts) == 2 and parts[0].isdecimal()):
            raise ValueError(f"{str(file)!r}, line {number}: {line!r} is not `number name`")
        if parts:
            found[parts[0]] = parts[1].strip()
    return found


def names_beside(file: Path) -> dict[str, dict[str, str]]:
    """The names of numbered attributes by XML attribute, from the lists beside a label file."""
    lists = {key: file.with_name(name) for key, (_, name) in NUMBERED.items()}
    return {key: names(place) for key, place in lists.items() if place.is_file()}


def described(entry: Mapping[str, str], called: Names) -> dict[str, str]:
    """An entry in our words; what the layout does not know keeps its own name."""
    attributes = {}
    for key, value in entry.items():
        if key in NUMBERED:
            ours, _ = NUMBERED[key]
            word = called.get(key, {}).get(value)
            attributes[ours if word is not None else f"{ours}_id"] = word or value
        elif key not in KEYS:
            attributes[CONDITIONS.get(key, key)] = value
    return attributes


def number(value: str) -> int | None:
    """The number in `c006` or `0001`."""
    digits = value.removeprefix("c")
    return int(digits) if digits.isdecimal() else None


def stem(name: str) -> str:
    """The base name of an image without its suffix, however a list writes it."""
    base = name.strip().replace("\\", "/").rpartition("/")[2]
    front, dot, suffix = base.rpartition(".")
    return front if dot and f".{suffix.lower()}" in images.SUFFIXES else base


def chosen(
    found: Sequence[Path], file: Path, where: str
) -> tuple[list[Path], list[Path], list[str]]:
    """Part images into those that a list names and the others; without the list all are named.

    Returns:
        Named images, other images, and a warning if names have no image.

    Raises:
        ValueError: If the list names none of them.
    """
    if not file.is_file():
        return list(found), [], []
    wanted = dict.fromkeys(stem(line) for line in text(file).splitlines() if line.strip())
    named = [image for image in found if stem(image.name) in wanted]
    if not named:
        raise ValueError(f"{str(file)!r} names none of the {len(found)} images of {where}")
    others = [image for image in found if stem(image.name) not in wanted]
    return named, others, absent(wanted, found, file.name, where)


def absent(wanted: Iterable[str], found: Iterable[Path], name: str, where: str) -> list[str]:
    """Say how many names of a list have no image."""
    known = {stem(image.name) for image in found}
    names = list(wanted)
    return counted(
        [one for one in names if one not in known],
        f"of {len(names)} names in {name} are no image of {where}",
    )


def tracks(file: Path, kind: str) -> dict[str, str]:
    """Tracks by image, from one track per line; none without the file.

    Args:
        file: Base names of images separated by spaces; a first word that is no image, as some
            write for the track itself, does no harm.
        kind: Begins the names of the tracks, which go on with the number of the line.
    """
    if not file.is_file():
        return {}
    lines = enumerate(text(file).splitlines(), start=1)
    return {stem(word): f"{kind}{place}" for place, line in lines for word in line.split()}


def counted(found: Sequence[str], rule: str, end: str = "") -> list[str]:
    """A sentence with the number of names and the first; nothing if there is none."""
    return [f"{len(found)} {rule}, e.g. {found[0]!r}{end}"] if found else []


def text(file: Path) -> str:
    """A text in UTF-8 or, as the first sets of vehicles have it, in GB2312.

    Raises:
        ValueError: If it cannot be read.
    """
    data = content(file)
    # GB 18030 holds GB2312 and all that programs wrote under its name.
    for encoding in ("utf-8-sig", "gb18030"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    raise ValueError(f"{str(file)!r} is text neither in UTF-8 nor in GB2312; save it as UTF-8")


def content(file: Path) -> bytes:
    """The bytes of a file beside the images.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {str(file)!r}: {error.strerror}") from error
