"""VehicleX (Yao et al., ECCV 2020) and any set of synthetic vehicles in its layout.

train_label.xml                       <TrainingImages><Items number="..."><Item imageName=... />
sys_image_train/00001_c006_1.jpg      vehicle 1, camera 6; 1,362 vehicles
list_color.txt, list_type.txt         `number name` in each line; optional
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.labels import (
    NUMBERED,
    Entries,
    Names,
    counted,
    described,
    entries,
    names_beside,
    number,
)
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class VehicleXSource(ReaderSource):
    """Synthetic vehicles in the layout of VehicleX; all of them are for training."""

    reader: Literal["vehiclex"] = "vehiclex"
    root: str
    """The folder; images such as 00001_c006_1.jpg are found at any depth."""
    labels: str | None = None
    """XML file under `root`; null takes the only one, at most two levels below."""
    name: str = "vehiclex"
    licence: str | None = None
    """Terms of the images; null where they are not known."""


NAME = re.compile(r"(?P<vehicle>\d+)_c(?P<camera>\d+)_(\d+)")


@dataclass(frozen=True)
class _Labels:
    """What lies beside the images."""

    file: Path | None
    entries: Entries
    """XML attributes by image name."""
    names: Names
    """Names by number, by XML attribute."""
    warnings: Sequence[str] = ()
    """About the file itself."""


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
            rows.append(_row(source, root, file, name, described(entry, labels.names)))
    where = repr(str(root))
    if not rows:
        raise ValueError(f"{where} holds no image with a name like 00001_c006_1.jpg")
    reading.check_training(rows, where)
    name_rule = f"of {len(found)} images of {where} have no name like 00001_c006_1.jpg"
    entry_rule = f"of {len(found)} images of {where} are of another vehicle or camera in the labels"
    return Reading(
        rows,
        [
            *counted(strange, name_rule, "; they are left out"),
            *counted(wrong, entry_rule, "; they are left out"),
            *labels.warnings,
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


def _agree(name: "re.Match[str]", entry: Mapping[str, str]) -> bool:
    said = {"vehicle": entry.get("vehicleID"), "camera": entry.get("cameraID")}
    return all(value is None or number(value) == int(name[group]) for group, value in said.items())


def _compare(labels: _Labels, names: Sequence[str], where: str) -> list[str]:
    """Say which images have no entry and which entries no image."""
    if labels.file is None:
        return [f"{where} has no .xml file of labels; its images have no attributes"]
    known = set(names)
    plain = [name for name in names if name not in labels.entries]
    idle = [name for name in labels.entries if name not in known]
    total = len(labels.entries)
    return [
        *counted(
            plain, f"of {len(names)} images of {where} have no entry in {labels.file.name}", ""
        ),
        *counted(idle, f"of {total} entries of {labels.file.name} name no image of {where}"),
    ]


def _labels(source: VehicleXSource, root: Path) -> _Labels:
    file = _label_file(source, root)
    if file is None:
        return _Labels(None, {}, {})
    found, warnings = entries(file)
    return _Labels(file, found, names_beside(file), warnings)


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


LAYOUT = Layout(VehicleXSource, read_vehiclex, files, recognise)
