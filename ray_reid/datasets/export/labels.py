"""Labels in the layout of VehicleX, as `datasets.labels` reads them: XML and lists of names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from ray_reid.datasets import labels

OWN_KEYS = {*labels.KEYS, *labels.NUMBERED, *labels.CONDITIONS}
XML_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
XML_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Item:
    """What the labels say of one image."""

    image: str
    """Name of its file."""
    identity: int
    camera: int
    attributes: Mapping[str, str]
    """In our words; those that are known of it."""


def write(items: Sequence[Item], out: Path) -> None:
    """Write `train_label.xml`, and the lists that name the numbers of colours and types."""
    numbers: dict[str, dict[str, int]] = {}
    for key, (ours, file) in labels.NUMBERED.items():
        found = sorted({item.attributes[ours] for item in items if ours in item.attributes})
        numbers[key] = {name: number for number, name in enumerate(found)}
        if found:
            lines = [f"{number} {' '.join(name.split())}\n" for number, name in enumerate(found)]
            (out / file).write_text("".join(lines), encoding="utf-8")
    with (out / "train_label.xml").open("w", encoding="utf-8") as text:
        text.write('<?xml version="1.0" encoding="utf-8"?>\n<TrainingImages Version="1.0">\n')
        text.write(f'\t<Items number="{len(items)}">\n')
        for item in items:
            entry = {
                "imageName": item.image,
                "vehicleID": f"{item.identity:04d}",
                "cameraID": f"c{item.camera:03d}",
                **_entry(item.attributes, numbers),
            }
            pairs = " ".join(f"{k}={quoteattr(_legal(v))}" for k, v in entry.items())
            text.write(f"\t\t<Item {pairs}/>\n")
        text.write("\t</Items>\n</TrainingImages>\n")


def _entry(
    attributes: Mapping[str, str], numbers: Mapping[str, Mapping[str, int]]
) -> dict[str, str]:
    """An image's attributes in the words of the layout; the reader's inverse."""
    numbered = {ours: key for key, (ours, _) in labels.NUMBERED.items()}
    conditions = {ours: key for key, ours in labels.CONDITIONS.items()}
    entry = {}
    for name, value in attributes.items():
        key = numbered.get(name)
        bare = numbered.get(name.removesuffix("_id"))
        if key is not None:
            entry[key] = str(numbers[key][value])
        elif bare is not None and not numbers[bare]:
            # A number that was read without a list of names, and none is written either.
            entry[bare] = value
        elif name in conditions:
            entry[conditions[name]] = value
        elif XML_KEY.fullmatch(name) and name not in OWN_KEYS:
            entry[name] = value
    return entry


def _legal(value: str) -> str:
    return XML_ILLEGAL.sub(" ", value)
