"""CUHK03 (Li et al., CVPR 2014) as released, with the new (Zhong et al., CVPR 2017) or old splits.

cuhk03_release/cuhk-03.mat                 all images, and the 20 classic splits
images_labeled/1_001_1_01.png              camera pair 1, person 1, view 1, image 1; read where they
images_detected/                           are, else the images in cuhk-03.mat are
cuhk03_new_protocol_config_labeled.mat     the new split, by these names
cuhk03_new_protocol_config_detected.mat
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import Field, model_validator

from ray_reid import schema
from ray_reid.datasets import cuhk03_mat, reading
from ray_reid.datasets.readers import cuhk03_np
from ray_reid.datasets.readers.cuhk03_np import Boxes
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row


class CUHK03Source(ReaderSource):
    """CUHK03 as released: cuhk-03.mat, or the images extracted from it."""

    reader: Literal["cuhk03"] = "cuhk03"
    root: str
    """The folder that holds cuhk03_release and the two cuhk03_new_protocol_config_*.mat files, or
    a parent of it; images_labeled or images_detected beside them takes the place of the first."""
    name: str = "cuhk03"
    licence: str | None = "research use only (CUHK03)"
    boxes: Boxes = "labeled"
    """Boxes drawn by hand, or those of a person detector."""
    protocol: Literal["new", "classic"] = "new"
    """`new` has 767 train and 700 test identities, `classic` 1,367 and 100."""
    split: int = Field(0, ge=0, le=19)
    """Which of the 20 classic splits."""

    @model_validator(mode="after")
    def _one_new_split(self) -> Self:
        if self.protocol == "new" and self.split:
            raise ValueError(
                f"split {self.split} has no effect: the new protocol has one split; set protocol "
                "to classic, or split to 0"
            )
        return self


RELEASE, MAT = "cuhk03_release", "cuhk-03.mat"
NAME = re.compile(r"(?P<pair>\d+)_(?P<person>\d+)_(?P<view>\d+)_(?P<image>\d+)")
EXAMPLE = "1_001_1_01.png"
INDICES = {"train": "train_idx", "query": "query_idx", "gallery": "gallery_idx"}

Images = Mapping[str, str]
"""Locators by name without suffix."""
Splits = Mapping[str, str]
"""Splits by name without suffix."""


def read_cuhk03(source: CUHK03Source) -> Reading:
    """Give the images their splits; in the classic ones view 1 is searched in view 2.

    Raises:
        ValueError: If a file is missing or unreadable, train and test share an identity, or no
            query can be answered.
    """
    place = _locate(source)
    where = repr(str(place))
    images, warnings = _images(source, place)
    splits = _new(source, place) if source.protocol == "new" else _classic(source, place, images)
    usable = sorted(splits.keys() & images)
    rows = [_row(source, place, name, images[name], splits[name]) for name in usable]
    absent = [Path(name) for name in sorted(splits.keys() - images)]
    idle = [Path(name) for name in sorted(images.keys() - splits)]
    warnings += reading.left_out(absent, "are in the split but not on the disk", where)
    warnings += reading.left_out(idle, "are in no split", where)
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: CUHK03Source) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source)
    extracted = _extracted(source, place)
    config = [place / _config(source.boxes)] if source.protocol == "new" else []
    mat = [] if source.protocol == "new" and extracted else [_mat(place)]
    return [*config, *mat, *extracted]


def recognise(root: Path) -> CUHK03Source | None:
    """A folder with the files of the new split, or cuhk-03.mat alone, and the images."""
    for protocol in ("new", "classic"):
        for boxes in get_args(Boxes):
            source = CUHK03Source(root=str(root), boxes=boxes, protocol=protocol)
            try:
                found = files(source)
            except ValueError:
                continue
            if found[-1].name == MAT or NAME.fullmatch(found[-1].stem):
                return source
    return None


def _locate(source: CUHK03Source) -> Path:
    if source.protocol == "new":
        return reading.locate(source.root, [_config(source.boxes)], "CUHK03")
    whole = reading.found(reading.folder(source.root), [f"{RELEASE}/{MAT}"])
    return whole or reading.locate(source.root, [MAT], "CUHK03")


def _config(boxes: Boxes) -> str:
    return f"cuhk03_new_protocol_config_{boxes}.mat"


def _folder(boxes: Boxes) -> str:
    return f"images_{boxes}"


def _mat(place: Path) -> Path:
    for file in (place / RELEASE / MAT, place / MAT):
        if file.is_file():
            return file
    raise ValueError(
        f"{str(place)!r} holds no images: it has neither {RELEASE}/{MAT} nor images in "
        f"{' or '.join(_folder(boxes) for boxes in get_args(Boxes))}"
    )


def _extracted(source: CUHK03Source, place: Path) -> list[Path]:
    folder = place / _folder(source.boxes)
    return reading.list_images(folder) if folder.is_dir() else []


def _images(source: CUHK03Source, place: Path) -> tuple[Images, list[str]]:
    """Locators by name, from the extracted images or else from cuhk-03.mat."""
    extracted = _extracted(source, place)
    if not extracted:
        mat = _mat(place)
        names = cuhk03_mat.names(mat, source.boxes)
        return {name: cuhk03_mat.locator(mat, source.boxes, name) for name in names}, []
    strange = [file for file in extracted if not NAME.fullmatch(file.stem)]
    named = {file.stem: str(file) for file in extracted if NAME.fullmatch(file.stem)}
    where = repr(str(place))
    return named, reading.left_out(strange, f"have no name like {EXAMPLE}", where)


def _new(source: CUHK03Source, place: Path) -> Splits:
    """The split of each name in the file of the new protocol."""
    file = place / _config(source.boxes)
    config = _load(file, ("filelist", *INDICES.values()))
    # A cell of one string is an array of one string.
    names = [Path(str(np.ravel(name)[0])).stem for name in np.ravel(config["filelist"])]
    splits: dict[str, str] = {}
    for split, key in INDICES.items():
        for index in np.ravel(config[key]).tolist():
            if not 1 <= index <= len(names):
                raise ValueError(
                    f"{key} of {str(file)!r} has {index}, but filelist has {len(names)} names"
                )
            name = names[index - 1]
            if name in splits:
                raise ValueError(f"{str(file)!r} puts {name!r} in {splits[name]} and in {split}")
            splits[name] = split
    return splits


def _load(file: Path, keys: Sequence[str]) -> Mapping[str, Any]:
    from scipy.io import loadmat

    try:
        config: Mapping[str, Any] = loadmat(file, variable_names=list(keys))
    # What scipy says of MATLAB 7.3 is a NotImplementedError.
    except (OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{str(file)!r} is not a readable .mat file: {error}") from error
    missing = [key for key in keys if key not in config]
    if missing:
        raise ValueError(f"{str(file)!r} has no {missing}; is it the file of the new protocol?")
    return config


def _classic(source: CUHK03Source, place: Path, images: Images) -> Splits:
    """Everybody who is not tested on in this split is trained on."""
    tested = cuhk03_mat.people_to_test(_mat(place), source.split)
    splits = {}
    for name in images:
        pair, person, view, _ = map(int, name.split("_"))
        side = "query" if view == 1 else "gallery"
        splits[name] = side if (pair, person) in tested else "train"
    return splits


def _row(source: CUHK03Source, place: Path, name: str, locator: str, split: str) -> Row:
    pair, person, view, _ = name.split("_")
    # An image has one id, extracted or not.
    return reading.file_row(
        source.name,
        place,
        place / _folder(source.boxes) / f"{name}.png",
        identity=schema.qualified_identity(source.name, f"{pair}_{person}"),
        camera=view,
        licence=source.licence,
        split=split,
        locator=locator,
    )


def _official(source: CUHK03Source) -> Mapping[str, tuple[int, int]]:
    return cuhk03_np.OFFICIAL[source.boxes] if source.protocol == "new" else {}


LAYOUT = Layout(
    CUHK03Source,
    read_cuhk03,
    files,
    recognise,
    _official,
    "research use only",
    aside=lambda _: [_folder(boxes) for boxes in get_args(Boxes)],
    protocol=lambda source: "cuhk03_classic" if source.protocol == "classic" else "market",
)
