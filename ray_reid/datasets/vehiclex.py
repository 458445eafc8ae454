"""VehicleX (Yao et al., ECCV 2020) and any set of synthetic vehicles in its layout.

train_label.xml                       <TrainingImages><Items number="..."><Item imageName=... />
sys_image_train/00001_c006_1.jpg      vehicle 1, camera 6; 1,362 vehicles
list_color.txt, list_type.txt         `number name` in each line; optional
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Layout, Reading, Row
from ray_reid.sources import VehicleXSource

NAME = re.compile(r"(?P<vehicle>\d+)_c(?P<camera>\d+)_(\d+)")
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

Entries = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class _Labels:
    """What lies beside the images."""

    file: Path | None
    entries: Entries
    """XML attributes by image name."""
    names: Mapping[str, Mapping[str, str]]
    """Names by number, by XML attribute."""


def read_vehiclex(source: VehicleXSource) -> Reading:
    """List the images at any depth, all of them for training; the XML adds their attributes.

    Vehicle and camera come from the name. An image without an entry is kept without attributes;
    one whose entry contradicts its name is left out.

    Raises:
        ValueError: If there is nothing to train on, or the labels cannot be read.
    """
    root = reading.folder(source.root)
    labels = _labels(source, root)
    found = reading.list_images(root)
    rows: list[Row] = []
    strange: list[str] = []
    wrong: list[str] = []
    for file in found:
        name = NAME.fullmatch(file.stem)
        entry = labels.entries.get(file.name, {})
        if name is None:
            strange.append(file.name)
        elif not _agree(name, entry):
            wrong.append(file.name)
        else:
            rows.append(_row(source, root, file, name, _attributes(entry, labels.names)))
    where = repr(str(root))
    if not rows:
        raise ValueError(f"{where} holds no image with a name like 00001_c006_1.jpg")
    reading.check_training(rows, where)
    name_rule = f"of {len(found)} images of {where} have no name like 00001_c006_1.jpg"
    entry_rule = f"of {len(found)} images of {where} are of another vehicle or camera in the labels"
    return Reading(
        rows,
        [
            *_counted(strange, name_rule, "; they are left out"),
            *_counted(wrong, entry_rule, "; they are left out"),
            *_compare(labels, [file.name for file in found], where),
        ],
    )


def files(source: VehicleXSource) -> list[Path]:
    """The files that a reading depends on."""
    root = reading.folder(source.root)
    labels = _label_file(source, root)
    beside = [labels.with_name(name) for _, name in NUMBERED.values()] if labels else []
    texts = [file for file in beside if file.is_file()]
    return [*reading.list_images(root), *([labels] if labels else []), *texts]


def recognise(root: Path) -> VehicleXSource | None:
    """A folder of labels whose items have an orientation, as only VehicleX's have."""
    try:
        source = VehicleXSource(root=str(root))
        file = _label_file(source, root)
    except ValueError:
        return None
    if file is None or b"orientation=" not in file.read_bytes()[:20000]:
        return None
    return source


def _row(
    source: VehicleXSource,
    root: Path,
    file: Path,
    name: "re.Match[str]",
    attributes: Mapping[str, str],
) -> Row:
    # The number and not its digits: names have five of them and the labels four.
    return reading.file_row(
        source.name,
        root,
        file,
        identity=schema.qualified_identity(source.name, str(int(name["vehicle"]))),
        camera=str(int(name["camera"])),
        licence=source.licence,
        split="train",
        origin="synthetic",
        attributes=attributes or None,
    )


def _attributes(entry: Mapping[str, str], names: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """An entry in our words; what the layout does not know keeps its own name."""
    attributes = {}
    for key, value in entry.items():
        if key in NUMBERED:
            ours, _ = NUMBERED[key]
            called = names.get(key, {}).get(value)
            attributes[ours if called is not None else f"{ours}_id"] = called or value
        elif key not in KEYS:
            attributes[CONDITIONS.get(key, key)] = value
    return attributes


def _agree(name: "re.Match[str]", entry: Mapping[str, str]) -> bool:
    said = {"vehicle": entry.get("vehicleID"), "camera": entry.get("cameraID")}
    return all(value is None or _digits(value) == int(name[group]) for group, value in said.items())


def _digits(value: str) -> int | None:
    """The number in `c006` or `0001`."""
    digits = value.removeprefix("c")
    return int(digits) if digits.isdecimal() else None


def _compare(labels: _Labels, names: Sequence[str], where: str) -> list[str]:
    """Say which images have no entry and which entries no image."""
    if labels.file is None:
        return [f"{where} has no .xml file of labels; its images have no attributes"]
    known = set(names)
    plain = [name for name in names if name not in labels.entries]
    idle = [name for name in labels.entries if name not in known]
    total = len(labels.entries)
    return [
        *_counted(
            plain, f"of {len(names)} images of {where} have no entry in {labels.file.name}", ""
        ),
        *_counted(idle, f"of {total} entries of {labels.file.name} name no image of {where}", ""),
    ]


def _counted(names: Sequence[str], rule: str, end: str) -> list[str]:
    return [f"{len(names)} {rule}, e.g. {names[0]!r}{end}"] if names else []


def _labels(source: VehicleXSource, root: Path) -> _Labels:
    file = _label_file(source, root)
    if file is None:
        return _Labels(None, {}, {})
    lists = {key: file.with_name(name) for key, (_, name) in NUMBERED.items()}
    names = {key: _names(place) for key, place in lists.items() if place.is_file()}
    return _Labels(file, _entries(file), names)


def _label_file(source: VehicleXSource, root: Path) -> Path | None:
    """The XML file that the source names, or the only one, at the root or two levels below.

    Raises:
        ValueError: If the named one does not exist, or there are several.
    """
    if source.labels is not None:
        if not (root / source.labels).is_file():
            raise ValueError(f"labels {source.labels!r} is no file of {str(root)!r}")
        return root / source.labels
    for pattern in ("*.xml", "*/*.xml", "*/*/*.xml"):
        found = [file for file in sorted(root.glob(pattern)) if not file.name.startswith(".")]
        if len(found) > 1:
            names = [file.relative_to(root).as_posix() for file in found]
            raise ValueError(
                f"{str(root)!r} holds {len(found)} .xml files; set labels to one of {names}"
            )
        if found:
            return found[0]
    return None


def _entries(file: Path) -> dict[str, dict[str, str]]:
    """The XML attributes of every `Item` by its image; an item without an image is no entry."""
    entries: dict[str, dict[str, str]] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "Item" and "imageName" in attributes:
            # The engine that writes these files replaces an image of the same name.
            entries[attributes["imageName"]] = attributes

    # A given encoding overrules the declaration, which may be one that expat does not know.
    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    try:
        with file.open("rb") as text:
            parser.ParseFile(text)
    except expat.ExpatError as error:
        raise ValueError(f"labels {str(file)!r} are not XML in UTF-8: {error}") from error
    if not entries:
        raise ValueError(f"labels {str(file)!r} hold no <Item imageName=...>")
    return entries


def _names(file: Path) -> dict[str, str]:
    """Names by number, from lines `number name`."""
    names = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8; save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        parts = line.split(maxsplit=1)
        if parts and not (len(parts) == 2 and parts[0].isdecimal()):
            raise ValueError(f"{str(file)!r}, line {number}: {line!r} is not `number name`")
        if parts:
            names[parts[0]] = parts[1].strip()
    return names


LAYOUT = Layout(read_vehiclex, files, recognise)
