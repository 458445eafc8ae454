"""ImageFolder trees: `<split>/<identity>/<image>`, such as those that layumi's scripts prepare.

pytorch/train_all/0002/0002_c1s1_000451_03.jpg    train and val together
pytorch/train/, pytorch/val/                      val: one image of each identity of train
pytorch/query/, pytorch/multi-query/, pytorch/gallery/
"""

import os
import re
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ray_reid import schema
from ray_reid.datasets import reading, splits
from ray_reid.datasets.readers import folder
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row
from ray_reid.datasets.splits import TEST, VAL


class ImageFolderSource(ReaderSource):
    """`<split>/<identity>/<image>`, as torchvision's ImageFolder reads one split."""

    reader: Literal["imagefolder"] = "imagefolder"
    root: str
    """The folder that holds the splits, or a parent of it. `train_all`, or else `train`, is
    trained on; queries are chosen from `test` (else `val`) where `query` and `gallery` are
    missing. Folders are found in any case and under their usual names (`Training`, `probe`)."""
    train: Literal["train_all", "train"] | None = None
    """The folder to train on; null takes the first of both that exists."""
    query: Literal["query", "multi-query"] = "query"
    """The folder of the queries."""
    camera: str | None = None
    """Regular expression with the group `camera`, searched in the file's base name without its
    extension; null means that no image has a camera."""
    name: str | None = None
    """Name of the source in identities; null takes the name of `root`."""
    licence: str | None = None
    seed: int = Field(0, ge=0)
    """Chooses queries where the folders do not."""

    @field_validator("camera")
    @classmethod
    def _has_camera(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = set(re.compile(pattern).groupindex)
        except re.error as error:
            raise ValueError(f"camera '{pattern}' is not a regular expression: {error}") from error
        if groups != {"camera"}:
            raise ValueError(
                f"camera '{pattern}' has groups {sorted(groups)}; it needs (?P<camera>...) alone"
            )
        return pattern


TRAIN = ("train_all", "train")
QUERIES = ("query", "multi-query")
# A folder of splits has few entries; folders of images below the root need not be listed whole.
FEW = 100
# Cameras in the names that toolkits write: 0002_c1s1_000451_03, 00001_cam1_000001.
CAMERA = r"(?:^|_)c(?:am)?(?P<camera>\d+)"
# Folders of the Market family, which layumi's scripts copy into the gallery.
JUNK, DISTRACTOR = "-1", "0000"


def read_imagefolder(source: ImageFolderSource) -> Reading:
    """List the folders; an image's identity is the folder that it lies in.

    A gallery folder -1 is junk, and 0000 distractors where no query has that name.

    Raises:
        ValueError: If there is nothing to train on or to search for, with the reason.
    """
    place = _locate(source)
    where = repr(str(place))
    rows: list[Row] = []
    strange: list[Path] = []
    blind: list[Path] = []
    stray: list[Path] = []
    for split, name in _folders(source, place).items():
        for file in reading.list_images(place / name):
            identity = _identity(place / name, file)
            if identity is None:
                strange.append(file)
            elif identity == JUNK and split != "gallery":
                stray.append(file)
            else:
                camera = _camera(source, file)
                if camera is None and source.camera is not None:
                    blind.append(file)
                else:
                    rows.append(_row(source, place, file, split, identity, camera))
    warnings = [
        *reading.left_out(strange, "lie in no folder <split>/<identity>", where),
        *reading.left_out(stray, f"are junk ({JUNK}) outside the gallery", where),
        *reading.left_out(blind, f"have no name with a camera like '{source.camera}'", where),
    ]
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no image")
    _mark_distractors(rows, schema.qualified_identity(_name(source), DISTRACTOR))
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    if any(row[schema.SPLIT] == TEST for row in rows):
        warnings += splits.choose_queries(rows, place, source.seed)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: ImageFolderSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source)
    names = _folders(source, place).values()
    return [file for name in names for file in reading.list_images(place / name)]


def recognise(root: Path) -> ImageFolderSource | None:
    """Folders train (or train_all), query and gallery that hold folders of images, and no image."""
    return _shaped(root, chosen=False)


def guess(root: Path) -> ImageFolderSource | None:
    """Folders train and test (or val) of the same form, which many data sets have."""
    return _shaped(root, chosen=True)


def _shaped(root: Path, chosen: bool) -> ImageFolderSource | None:
    """The source of a folder whose splits hold folders of images, and no image.

    Args:
        chosen: Whether its queries are to be chosen, or lie in a folder of their own.
    """
    try:
        source = ImageFolderSource(root=str(root))
        place = _locate(source)
        names = _folders(source, place)
    except ValueError:
        return None
    if (TEST in names) != chosen:
        return None
    first = []
    for name in names.values():
        below = sorted(path for path in (place / name).iterdir() if not path.name.startswith("."))
        if not below or not all(path.is_dir() for path in below):
            return None
        first += [file for file in reading.list_images(below[0]) if file.parent == below[0]][:1]
    if len(first) < len(names):
        return None
    told = all(re.search(CAMERA, file.stem) for file in first)
    return ImageFolderSource(root=str(root), camera=CAMERA if told else None)


def _folders(source: ImageFolderSource, place: Path) -> dict[str, str]:
    """Folder of each split.

    Raises:
        ValueError: If one is missing, or two are named after one split.
    """
    known = _known(place)
    wanted = (source.train,) if source.train else TRAIN
    train = next((known[name] for name in wanted if name in known), None)
    if train is not None and {source.query, "gallery"} <= known.keys():
        return {"train": train, "query": known[source.query], "gallery": known["gallery"]}
    test = next((known[name] for name in (TEST, VAL) if name in known), None)
    if train is None or test is None or source.query != "query":
        raise ValueError(
            f"{str(place)!r} lacks folders: it needs {' or '.join(wanted)}, with {source.query} "
            f"and gallery, or with test (or val); it has {_inner(place)}"
        )
    return {"train": train, TEST: test}


def _known(place: Path, most: int | None = None) -> dict[str, str]:
    """The folders that are named after splits, by the name that this layout has for them.

    Args:
        most: Entries of `place` that are looked at.

    Raises:
        ValueError: If two are named after one.
    """
    inner = _inner(place, most)
    own = {name.lower(): name for name in inner if name.lower() in (TRAIN[0], QUERIES[1])}
    return splits.split_folders(inner) | own


def _locate(source: ImageFolderSource) -> Path:
    """The folder that holds the splits, at the root or at most two levels below."""
    top = reading.folder(source.root)
    trains = {source.train} if source.train else set(TRAIN)
    for places in reading.levels(top):
        known = {path: _known(path, None if path == top else FEW).keys() for path in places}
        for others in ({source.query, "gallery"}, {TEST}, {VAL}):
            found = [path for path, names in known.items() if names >= others and names & trains]
            if len(found) == 1:
                return found[0]
    wanted = (source.train or TRAIN[-1], source.query, "gallery")
    return reading.locate(source.root, wanted, "ImageFolder")


def _copies(source: ImageFolderSource) -> set[str]:
    """The folders whose images another folder that is read has as well."""
    place = _locate(source)
    known = _known(place)
    copies = {known[name] for name in (*QUERIES, *TRAIN) if name in known}
    whole = known.get(TRAIN[0]) in _folders(source, place).values()
    return copies | {known[VAL]} if whole and VAL in known else copies


def _inner(place: Path, most: int | None = None) -> list[str]:
    """The folders among the entries of a folder, or among `most` of them."""
    try:
        with os.scandir(place) as entries:
            return sorted(entry.name for entry in islice(entries, most) if entry.is_dir())
    except OSError:
        return []


def _identity(split: Path, file: Path) -> str | None:
    inner = file.relative_to(split).parts
    return inner[0] if len(inner) == 2 else None


def _camera(source: ImageFolderSource, file: Path) -> str | None:
    match = re.search(source.camera, file.stem) if source.camera is not None else None
    if match is None:
        return None
    folder.check_whole_numbers(match, file)
    return match["camera"] or None


def _row(
    source: ImageFolderSource,
    place: Path,
    file: Path,
    split: str,
    identity: str,
    camera: str | None,
) -> Row:
    junk = identity == JUNK
    return reading.file_row(
        _name(source),
        place,
        file,
        identity=None if junk else schema.qualified_identity(_name(source), identity),
        camera=camera,
        licence=source.licence,
        split=split,
        role="junk" if junk else "normal",
    )


def _mark_distractors(rows: list[Row], identity: str) -> None:
    """Give the role to images of a gallery whose identity no other split has."""
    found = [row for row in rows if row[schema.IDENTITY] == identity]
    if all(row[schema.SPLIT] == "gallery" for row in found):
        for row in found:
            row[schema.ROLE], row[schema.IDENTITY] = "distractor", None


def _name(source: ImageFolderSource) -> str:
    return source.name or reading.folder(source.root).name


LAYOUT = Layout(ImageFolderSource, read_imagefolder, files, recognise, guess=guess, aside=_copies)
