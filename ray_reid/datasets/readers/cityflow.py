"""CityFlow-ReID (Tang et al., CVPR 2019) and CityFlowV2-ReID of the AI City Challenges.

image_train/000001.jpg                      36,935 images of 333 vehicles; names say nothing
image_query/, image_test/                   numbered from 1 again; their labels are not public
train_label.xml                             vehicle and camera of every train image
query_label.xml, test_label.xml             cameras only, and only since 2021
name_train.txt ..., train_track.txt, test_track.txt   which images are of the set; tracks
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ray_reid import schema
from ray_reid.datasets import labels, reading, splits
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class CityFlowSource(ReaderSource):
    """CityFlow-ReID and CityFlowV2-ReID, track 2 of the AI City Challenges of 2019 to 2022."""

    reader: Literal["cityflow"] = "cityflow"
    root: str
    """The folder that holds image_train and train_label.xml, or a parent of it."""
    hold_out: float = Field(0.0, ge=0)
    """Train identities that become query and gallery in place of the official test images, whose
    labels are not public: a share below 1, or how many (78 of 333 in VehicleNet, which does not
    name them); 0 trains on all and reads the official test images."""
    gallery: Literal["held_out", "all"] = "held_out"
    """What the queries held out are searched in: their own vehicles, or as in VehicleNet all train
    images, those that are trained on being distractors."""
    seed: int = Field(0, ge=0)
    """Chooses the identities held out, and their queries."""
    name: str = "cityflow"
    licence: str | None = "research use only (AI City Challenge)"

    @model_validator(mode="after")
    def _held_out(self) -> "CityFlowSource":
        if self.hold_out >= 1 and (self.hold_out < 2 or self.hold_out % 1):
            raise ValueError(
                f"hold_out {self.hold_out:g} must be a share below 1 or a number of vehicles from 2"
            )
        if self.gallery == "all" and not self.hold_out:
            raise ValueError("gallery 'all' needs hold_out above 0, or no image can be asked for")
        return self


TRAIN, LABELS = "image_train", "train_label.xml"
FOLDERS = {"train": TRAIN, "query": "image_query", "gallery": "image_test"}
LISTS = {"train": "name_train.txt", "query": "name_query.txt", "gallery": "name_test.txt"}
ITEMS = {"train": LABELS, "query": "query_label.xml", "gallery": "test_label.xml"}
IMAGE_NUMBER = "image_number"
"""Attribute of the official test images: their name without its ending."""
# No file says which tracks the queries are of.
TRACKS = {"train": "train_track.txt", "gallery": "test_track.txt"}


def read_cityflow(source: CityFlowSource) -> Reading:
    """List the train images, and the official test images or vehicles held out in their place.

    The official test images have no identity: a server scores what is found for them.

    Raises:
        ValueError: If a folder or train_label.xml is missing, there is nothing to train on, or
            too little to hold out.
    """
    place = _locate(source)
    where = repr(str(place))
    rows: list[Row] = []
    warnings: list[str] = []
    for split in _splits(source):
        found, notes = _read(source, place, split)
        rows += found
        warnings += notes
    reading.check_training(rows, where)
    if source.hold_out:
        warnings += _hold_out(rows, source, place)
        return Reading(rows, warnings + reading.check_queries(rows, where))
    queries = sum(row[schema.SPLIT] == "query" for row in rows)
    warnings.append(
        f"the {queries} queries of {where} have no labels and cannot be evaluated here; set "
        "hold_out to test on train identities"
    )
    return Reading(rows, warnings)


def files(source: CityFlowSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source)
    found: list[Path] = []
    for split in _splits(source):
        texts = [place / one[split] for one in (LISTS, ITEMS, TRACKS) if split in one]
        found += reading.list_images(place / FOLDERS[split])
        found += [file for file in texts if file.is_file()]
    return found


def recognise(root: Path) -> CityFlowSource | None:
    """A folder with the three folders, train_label.xml and queries whose names are numbers."""
    place = reading.found(root, (*FOLDERS.values(), LABELS))
    names = () if place is None else reading.list_images(place / FOLDERS["query"])[:1]
    return CityFlowSource(root=str(root)) if any(f.stem.isdecimal() for f in names) else None


def _splits(source: CityFlowSource) -> tuple[str, ...]:
    return ("train",) if source.hold_out else tuple(FOLDERS)


def _locate(source: CityFlowSource) -> Path:
    folders = [FOLDERS[split] for split in _splits(source)]
    return reading.locate(source.root, (*folders, LABELS), "CityFlow")


def _read(source: CityFlowSource, place: Path, split: str) -> tuple[list[Row], list[str]]:
    """The rows of one folder; train images without a vehicle in the labels are left out."""
    where = f"{FOLDERS[split]} of {str(place)!r}"
    found = reading.list_images(place / FOLDERS[split])
    named, others, warnings = labels.chosen(found, place / LISTS[split], where)
    warnings += reading.left_out(others, f"are not in {LISTS[split]}", where)
    entries, notes = _entries(place / ITEMS[split])
    warnings += notes
    tracks = labels.tracks(place / TRACKS[split], split) if split in TRACKS else {}
    rows: list[Row] = []
    plain: list[Path] = []
    for file in named:
        entry = entries.get(file.stem, {})
        vehicle = entry.get("vehicleID", "") if split == "train" else None
        if vehicle is not None and not vehicle.isdecimal():
            plain.append(file)
        else:
            rows.append(_row(source, place, split, file, vehicle, entry, tracks))
    warnings += reading.left_out(plain, f"have no vehicle in {LABELS}", where)
    idle = labels.absent(entries, found, ITEMS[split], where)
    return rows, warnings + idle


def _entries(file: Path) -> tuple[dict[str, Mapping[str, str]], list[str]]:
    if not file.is_file():
        return {}, []
    found, warnings = labels.entries(file)
    return {labels.stem(name): entry for name, entry in found.items()}, warnings


def _row(
    source: CityFlowSource,
    place: Path,
    split: str,
    file: Path,
    vehicle: str | None,
    entry: Mapping[str, str],
    tracks: Mapping[str, str],
) -> Row:
    camera = labels.number(entry.get("cameraID", ""))
    return reading.file_row(
        source.name,
        place,
        file,
        identity=None if vehicle is None else schema.qualified_identity(source.name, vehicle),
        camera=None if camera is None else str(camera),
        track=tracks.get(file.stem),
        licence=source.licence,
        split=split,
        # What a submission calls a test image.
        attributes={IMAGE_NUMBER: file.stem} if vehicle is None else None,
    )


def _hold_out(rows: list[Row], source: CityFlowSource, place: Path) -> list[str]:
    """Turn some of the train identities into query and gallery, in place."""
    chosen = _chosen({row[schema.IDENTITY] for row in rows}, source)
    for row in rows:
        row[schema.SPLIT] = splits.TEST if row[schema.IDENTITY] in chosen else "train"
    # Queries are chosen as for any folder without them: one per camera, as in Market-1501.
    warnings = splits.choose_queries(rows, place, source.seed)
    if source.gallery == "all":
        rows += [_again(row) for row in rows if _answers_too(row)]
    return warnings


def _chosen(identities: set[str], source: CityFlowSource) -> set[str]:
    if source.hold_out < 1:
        return splits.held_out(identities, source.hold_out, source.seed)
    left = len(identities) - int(source.hold_out)
    if left < 2:
        raise ValueError(
            f"hold_out {source.hold_out:g} leaves {max(left, 0)} of {len(identities)} vehicles to "
            f"train on; choose at most {len(identities) - 2}"
        )
    order = sorted(identities, key=lambda name: (reading.share(source.seed, name), name))
    return set(order[: int(source.hold_out)])


def _answers_too(row: Row) -> bool:
    """Whether an image that is not in the gallery is put there too.

    A query is junk to itself by its camera; without one it would be its own best match.
    """
    split = row[schema.SPLIT]
    return split == "train" or (split == "query" and row[schema.CAMERA] is not None)


def _again(row: Row) -> Row:
    """The same image in the gallery; a vehicle that is trained on is nobody's match there."""
    again: Row = {schema.SPLIT: "gallery"}
    if row[schema.SPLIT] == "train":
        again |= {schema.IDENTITY: None, schema.ROLE: "distractor"}
    key = schema.observation_id(row[schema.OBSERVATION_ID], "gallery")
    return {**row, **again, schema.OBSERVATION_ID: key}


def _official(source: CityFlowSource) -> dict[str, tuple[int, int]]:
    """Counts of the first edition, which has no labels of the test images at all."""
    later = any((_locate(source) / ITEMS[split]).is_file() for split in ("query", "gallery"))
    return {} if source.hold_out or later else {"train": (36935, 333)}


LAYOUT = Layout(
    CityFlowSource,
    read_cityflow,
    files,
    recognise,
    _official,
    "research use only; test labels are not public",
    aside=lambda _: FOLDERS.values(),
)
