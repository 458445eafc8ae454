"""PKU VehicleID (Liu et al., CVPR 2016): 26,328 vehicles seen from the front or the rear.

image/<name>.jpg                      221,567 images; nothing says which camera took one
train_test_split/train_list.txt       lines `name vehicle`, names without suffix
train_test_split/test_list_800.txt    likewise; a list per test size
attribute/model_attr.txt, color_attr.txt   lines `vehicle number`; optional

Protocol: one random image of every vehicle is the gallery, its others are queries, ten times over.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ray_reid import schema
from ray_reid.datasets import labels, reading
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class VehicleIDSource(ReaderSource):
    """PKU VehicleID: the folders image and train_test_split; no cameras."""

    reader: Literal["vehicleid"] = "vehicleid"
    root: str
    """The folder that holds the two folders, or a parent of it."""
    test_size: Literal[800, 1600, 2400, 3200, 6000, 13164] = 800
    """Vehicles to test on: which of the lists test_list_N.txt is read. The train list and that of
    13164 are the whole set, which VehicleNet trains on: take it with `use: {vehicleid: whole}`."""
    name: str = "vehicleid"
    licence: str | None = "non-commercial research only, on request (PKU VehicleID)"


SIZES = (800, 1600, 2400, 3200, 6000, 13164)
IMAGES, LISTS = "image", "train_test_split"
TRAIN = f"{LISTS}/train_list.txt"
# Our attribute: the numbers of vehicles, and the names of numbers.
ATTRIBUTES = {
    "model": ("attribute/model_attr.txt", "attribute/model_names.txt"),
    "colour": ("attribute/color_attr.txt", "attribute/color_names.txt"),
}
# Images in the lists less one of every vehicle.
QUERIES = {800: 5693, 1600: 11777, 2400: 17377, 13164: 95057}


def drawn_gallery(identities: Sequence[str], observation_ids: Sequence[str], seed: int) -> set[str]:
    """Draw one test image of every identity: the gallery of the draw `seed`.

    The draw depends on the ids alone, neither on their order nor on other identities.

    Returns:
        The chosen observation ids, one per identity.
    """
    chosen: dict[str, tuple[float, str]] = {}
    for identity, one in zip(identities, observation_ids, strict=True):
        ticket = (reading.share(seed, one), one)
        chosen[identity] = min(ticket, chosen.get(identity, ticket))
    return {one for _, one in chosen.values()}


def read_vehicleid(source: VehicleIDSource) -> Reading:
    """Read the two lists; query and gallery are those of the draw with seed 0.

    Raises:
        ValueError: If a folder or list is missing, a line is not `name vehicle`, or train and
            test share an image or an identity.
    """
    place = _locate(source)
    where = repr(str(place))
    found = {file.stem: file for file in reading.list_images(place / IMAGES)}
    attributes = _attributes(place)
    rows: list[Row] = []
    warnings: list[str] = []
    for split, name in (("train", TRAIN), ("gallery", _test_list(source))):
        listed = _pairs(place / name)
        warnings += labels.absent(listed, found.values(), name, where)
        rows += [
            reading.file_row(
                source.name,
                place,
                found[image],
                identity=schema.qualified_identity(source.name, vehicle),
                camera=None,
                licence=source.licence,
                split=split,
                attributes=attributes.get(vehicle),
            )
            for image, vehicle in sorted(listed.items())
            if image in found
        ]
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    _check_once(rows, where)
    _draw(rows)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: VehicleIDSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source)
    texts = [place / name for pair in ATTRIBUTES.values() for name in pair]
    return [
        *reading.list_images(place / IMAGES),
        place / TRAIN,
        place / _test_list(source),
        *(file for file in texts if file.is_file()),
    ]


def recognise(root: Path) -> VehicleIDSource | None:
    """A folder with image, train_test_split/train_list.txt and a test list of a known size."""
    for size in SIZES:
        source = VehicleIDSource(root=str(root), test_size=size)
        if reading.found(root, (IMAGES, TRAIN, _test_list(source))):
            return source
    return None


def _locate(source: VehicleIDSource) -> Path:
    return reading.locate(source.root, (IMAGES, TRAIN, _test_list(source)), "VehicleID")


def _test_list(source: VehicleIDSource) -> str:
    return f"{LISTS}/test_list_{source.test_size}.txt"


def _pairs(file: Path) -> dict[str, str]:
    """Vehicles by image, as they are written: neither is a number.

    Raises:
        ValueError: If a line is not `name vehicle`.
    """
    pairs = {}
    for number, line in enumerate(labels.text(file).splitlines(), start=1):
        parts = line.split()
        if parts and len(parts) != 2:
            raise ValueError(f"{str(file)!r}, line {number}: {line!r} is not `name vehicle`")
        if parts:
            pairs[labels.stem(parts[0])] = parts[1]
    return pairs


def _attributes(place: Path) -> dict[str, dict[str, str]]:
    """Attributes by vehicle; a number without a name stays a number."""
    found: dict[str, dict[str, str]] = {}
    for ours, (numbers, named) in ATTRIBUTES.items():
        if not (place / numbers).is_file():
            continue
        names = _names(place / named) if (place / named).is_file() else {}
        for vehicle, number in _pairs(place / numbers).items():
            key = ours if number in names else f"{ours}_id"
            found.setdefault(vehicle, {})[key] = names.get(number, number)
    return found


def _names(file: Path) -> dict[str, str]:
    """Names by number, from lines `name number`; a name may have spaces."""
    parts = [line.rsplit(maxsplit=1) for line in labels.text(file).splitlines()]
    return {part[1]: part[0].strip() for part in parts if len(part) == 2 and part[1].isdecimal()}


def _draw(rows: Sequence[Row]) -> None:
    """Turn the test images that draw 0 does not choose into queries, in place."""
    test = [row for row in rows if row[schema.SPLIT] != "train"]
    ids = [row[schema.OBSERVATION_ID] for row in test]
    gallery = drawn_gallery([row[schema.IDENTITY] for row in test], ids, seed=0)
    for row in test:
        row[schema.SPLIT] = "gallery" if row[schema.OBSERVATION_ID] in gallery else "query"


def _check_once(rows: Sequence[Row], where: str) -> None:
    """Check that the lists do not share an image under two identities."""
    seen: set[str] = set()
    for row in rows:
        if row[reading.LOCATOR] in seen:
            name = Path(row[reading.LOCATOR]).name
            raise ValueError(f"image {name!r} of {where} is in both the train and the test list")
        seen.add(row[reading.LOCATOR])


def _official(source: VehicleIDSource) -> dict[str, tuple[int, int]]:
    train = {"train": (113346, 13164)}
    size = source.test_size
    if size not in QUERIES:
        return train
    return {**train, "query": (QUERIES[size], size), "gallery": (size, size)}


LAYOUT = Layout(
    VehicleIDSource,
    read_vehicleid,
    files,
    recognise,
    _official,
    "non-commercial research only, on request",
    protocol=lambda _: "vehicleid",
)
