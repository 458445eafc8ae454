"""The three folders of Market-1501, which other sets took over with names of their own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Named, Row

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


@dataclass(frozen=True)
class Names:
    """What the base names of a set tell."""

    pattern: "re.Pattern[str]"
    """Groups `identity` and `camera`; it matches the beginning of a name."""
    example: str
    roles: Mapping[int, str]
    """Identities that are nobody's: gallery images of this role."""


def read_folders(
    source: Named, place: Path, names: Names, root: Path
) -> tuple[list[Row], list[str]]:
    """The rows of the three folders in `place`, and what was left out.

    Args:
        root: What the ids of the rows are relative to.

    Raises:
        ValueError: If there is none.
    """
    where = repr(str(place))
    rows: list[Row] = []
    strange: list[Path] = []
    stray: list[Path] = []
    for split, folder in FOLDERS.items():
        for file in reading.list_images(place / folder):
            name = names.pattern.match(file.stem)
            if name is None:
                strange.append(file)
            elif split != "gallery" and int(name["identity"]) in names.roles:
                stray.append(file)
            else:
                role = names.roles.get(int(name["identity"]), "normal")
                rows.append(row(source, root, split, role, file, name))
    warnings = [
        *reading.left_out(strange, f"have no name like {names.example}", where),
        *reading.left_out(stray, "are junk or distractors outside the gallery", where),
    ]
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no image")
    return rows, warnings


def row(
    source: Named,
    root: Path,
    split: str,
    role: str,
    file: Path,
    name: "re.Match[str] | None",
) -> Row:
    """The row of an image; junk and distractors have no identity, and may lack a name."""
    identity = camera = None
    if name is not None:
        camera = name["camera"]
        if role == "normal":
            identity = schema.qualified_identity(source.name, name["identity"])
    return reading.file_row(
        source.name,
        root,
        file,
        identity=identity,
        camera=camera,
        licence=source.licence,
        split=split,
        role=role,
    )


def check(rows: Sequence[Row], where: str) -> list[str]:
    """The rules of a usable test set; returns warnings.

    Raises:
        ValueError: If train and test share an identity, there are too few to train on, or no
            query can be answered.
    """
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    return reading.check_queries(rows, where)


def files(place: Path) -> list[Path]:
    """The images of the three folders."""
    return [file for name in FOLDERS.values() for file in reading.list_images(place / name)]


def has_names(place: Path, names: Names) -> bool:
    """Whether the first query is named so."""
    first = reading.list_images(place / FOLDERS["query"])[:1]
    return any(names.pattern.match(file.stem) for file in first)
