"""What the readers of clothes-changing sets share: shots, told by the place of a file in its set.

Clothes are named `identity_outfit`, so that they are one person's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Named, Reading, Row


@dataclass(frozen=True)
class ClothesShot:
    """What the place of an image says about it."""

    identity: str
    camera: str | None = None
    clothes: str | None = None
    track: str | None = None


Parse = Callable[[PurePosixPath], ClothesShot | None]
"""From the path relative to the set's folder; null for a name that the set does not have."""


def row(source: Named, root: Path, file: Path, split: str, shot: ClothesShot) -> Row:
    """The row of a real image."""
    return reading.file_row(
        source.name,
        root,
        file,
        identity=schema.qualified_identity(source.name, shot.identity),
        camera=shot.camera,
        clothes=shot.clothes,
        track=shot.track,
        licence=source.licence,
        split=split,
    )


def read_folders(
    source: Named, place: Path, folders: Sequence[tuple[str, str]], parse: Parse, example: str
) -> Reading:
    """Read a set whose folders are its splits.

    Args:
        source: What the rows are named after.
        place: The set's folder.
        folders: Split and folder below `place`.
        parse: What the place of an image says.
        example: A name of the set, for the sentence about others.

    Raises:
        ValueError: If a split is empty, train and test share an identity, or no query can be
            answered.
    """
    where = repr(str(place))
    rows: list[Row] = []
    strange: list[Path] = []
    for split, folder in folders:
        for file in reading.list_images(place / folder):
            shot = parse(PurePosixPath(file.relative_to(place).as_posix()))
            if shot is None:
                strange.append(file)
            else:
                rows.append(row(source, place, file, split, shot))
    return checked(rows, reading.left_out(strange, f"have no name like {example}", where), where)


def checked(rows: list[Row], warnings: list[str], where: str) -> Reading:
    """The reading, once its rows can be trained and tested on.

    Raises:
        ValueError: If they cannot.
    """
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no image")
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    return Reading(rows, warnings + reading.check_queries(rows, where))


def list_folders(place: Path, folders: Sequence[tuple[str, str]]) -> list[Path]:
    """All images of the folders of `read_folders`."""
    return [file for _, folder in folders for file in reading.list_images(place / folder)]


def begins_with(place: Path, folder: str, parse: Parse) -> bool:
    """Whether the first image of a folder, in the order of paths, has a name of the set.

    Only the first sub-folder is listed, so that a large set is recognised at once.
    """
    here = place / folder
    below = sorted(path for path in here.iterdir() if path.is_dir())
    first = reading.list_images(below[0] if below else here)[:1]
    return any(parse(PurePosixPath(file.relative_to(place).as_posix())) for file in first)
