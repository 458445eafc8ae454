"""CompCars (Yang et al., CVPR 2015) as VehicleNet (Zheng et al., TMM 2020) trains on it.

data/image/<make>/<model>/<year>/<name>.jpg   136,726 photographs of the web
data/label/<make>/<model>/<year>/<name>.txt   viewpoint, number of boxes, and `x1 y1 x2 y2`
sv_data/image/<model>/<name>.jpg              fronts of cars seen by street cameras

A class is a model of one year, because the same model changes its shape. Nothing here is one
vehicle, so that all images are for training, and none has a camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray_reid import schema
from ray_reid.datasets import labels, loading, reading
from ray_reid.datasets.reading import LOCATOR, Layout, ReaderSource, Reading, Row


class CompCarsSource(ReaderSource):
    """CompCars: cars of the web, a model of one year is a class; all of them are for training."""

    reader: Literal["compcars"] = "compcars"
    root: str
    """The folder that holds data/image, or a parent of it."""
    crop: bool = True
    """Cut out the car by its box in data/label; false takes whole photographs."""
    surveillance: bool = False
    """Add sv_data/image: fronts of cars seen by street cameras, a model is a class."""
    name: str = "compcars"
    licence: str | None = "non-commercial research only (CompCars)"


WEB, LABELS, STREET = "data/image", "data/label", "sv_data/image"
# Anything else is an uncertain view.
VIEWS = {"1": "front", "2": "rear", "3": "side", "4": "front-side", "5": "rear-side"}


@dataclass(frozen=True)
class _Label:
    """What the label file of a photograph says."""

    view: str | None
    box: tuple[int, int, int, int] | None
    """Left, top, right, bottom from 0, the last two exclusive; null if it is none."""


def read_compcars(source: CompCarsSource) -> Reading:
    """List the photographs; one without a box is left out where cars are cut out.

    Raises:
        ValueError: If a folder is missing or there is nothing to train on.
    """
    place = _locate(source)
    where = repr(str(place))
    rows: list[Row] = []
    strange: list[Path] = []
    boxless: list[Path] = []
    for file in reading.list_images(place / WEB):
        folders = file.relative_to(place / WEB).parts[:-1]
        label = _label(place, file)
        if len(folders) != 3:
            strange.append(file)
        elif source.crop and label.box is None:
            boxless.append(file)
        else:
            rows.append(_row(source, place, file, folders, label))
    for file in reading.list_images(place / STREET) if source.surveillance else ():
        folders = file.relative_to(place / STREET).parts[:-1]
        if len(folders) != 1:
            strange.append(file)
        else:
            rows.append(_street_row(source, place, file, folders[0]))
    reading.check_training(rows, where)
    return Reading(
        rows,
        [
            *reading.left_out(strange, "are in no folder of a make, model and year", where),
            *reading.left_out(boxless, f"have no valid box in {LABELS}", where),
        ],
    )


def files(source: CompCarsSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source)
    street = reading.list_images(place / STREET) if source.surveillance else []
    texts = sorted((place / LABELS).rglob("*.txt"))
    return [*reading.list_images(place / WEB), *street, *texts]


def recognise(root: Path) -> CompCarsSource | None:
    """A folder with data/image/<make>/<model>/<year>, of which the first two are numbers."""
    place = reading.found(root, (WEB,))
    first = next((place / WEB).glob("*/*/*/*.jpg"), None) if place is not None else None
    if place is None or first is None:
        return None
    make, model, _, _ = first.relative_to(place / WEB).parts
    if not (make.isdecimal() and model.isdecimal()):
        return None
    return CompCarsSource(root=str(root), crop=(place / LABELS).is_dir())


def _locate(source: CompCarsSource) -> Path:
    wanted = [WEB, *([LABELS] if source.crop else []), *([STREET] if source.surveillance else [])]
    return reading.locate(source.root, wanted, "CompCars")


def _label(place: Path, file: Path) -> _Label:
    text = (place / LABELS / file.relative_to(place / WEB)).with_suffix(".txt")
    if not text.is_file():
        return _Label(None, None)
    lines = [line.split() for line in labels.text(text).splitlines() if line.strip()]
    view = VIEWS.get(lines[0][0]) if lines else None
    return _Label(view, _box(lines[2]) if len(lines) > 2 else None)


def _box(fields: Sequence[str]) -> tuple[int, int, int, int] | None:
    if len(fields) != 4 or not all(field.isdecimal() for field in fields):
        return None
    # Labels count pixels from 1 and name the last one.
    left, top, right, bottom = (int(field) for field in fields)
    valid = 1 <= left < right and 1 <= top < bottom
    return (left - 1, top - 1, right, bottom) if valid else None


def _row(
    source: CompCarsSource, place: Path, file: Path, folders: Sequence[str], label: _Label
) -> Row:
    named = dict(zip(("brand_id", "model_id", "year"), folders, strict=True))
    row = reading.file_row(
        source.name,
        place,
        file,
        identity=schema.qualified_identity(source.name, "_".join(folders)),
        camera=None,
        view=label.view,
        licence=source.licence,
        split="train",
        attributes={key: value for key, value in named.items() if value.lower() != "unknown"},
    )
    return {**row, LOCATOR: loading.crop(file, label.box)} if source.crop and label.box else row


def _street_row(source: CompCarsSource, place: Path, file: Path, model: str) -> Row:
    # The models of this part have numbers of their own.
    return reading.file_row(
        source.name,
        place,
        file,
        identity=schema.qualified_identity(source.name, f"sv_{model}"),
        camera=None,
        view="front",
        licence=source.licence,
        split="train",
    )


def _official(source: CompCarsSource) -> dict[str, tuple[int, int]]:
    """The training set that VehicleNet counts after cutting cars out (its table 1)."""
    plain = source.crop and not source.surveillance
    return {"train": (136713, 4701)} if plain else {}


LAYOUT = Layout(
    CompCarsSource,
    read_compcars,
    files,
    recognise,
    _official,
    "non-commercial research only",
    aside=lambda _: ("sv_data",),
)
