"""Sets of two cameras, `cam_a` and `cam_b`, without a split: a draw halves their people."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Named, Row

FOLDERS = {"a": "cam_a", "b": "cam_b"}
Tested = Literal["half", "all"]
"""How many people of a set without an official split are tested on. `half` leaves the others to
train on; `all` is for a set that no training sees, and goes with the protocol `drawn_halves`."""


@dataclass(frozen=True)
class CameraShot:
    """An image of one person by one camera."""

    file: Path
    camera: str
    name: "re.Match[str]"
    """Its group `identity` is the person."""

    @property
    def person(self) -> str:
        """As the name writes it."""
        return self.name["identity"]


def shots(
    place: Path, pattern: "re.Pattern[str]", example: str
) -> tuple[list[CameraShot], list[str]]:
    """All images of both cameras whose names match, and a warning about the others.

    Raises:
        ValueError: If no name matches.
    """
    found: list[CameraShot] = []
    strange: list[Path] = []
    for camera, folder in FOLDERS.items():
        for file in reading.list_images(place / folder):
            name = pattern.fullmatch(file.stem)
            if name is None:
                strange.append(file)
            else:
                found.append(CameraShot(file, camera, name))
    where = repr(str(place))
    if not found:
        raise ValueError(f"{where} holds no image with a name like {example}")
    return found, reading.left_out(strange, f"have no name like {example}", where)


def files(place: Path) -> list[Path]:
    """The images of both cameras."""
    return [file for name in FOLDERS.values() for file in reading.list_images(place / name)]


def has_names(place: Path, pattern: "re.Pattern[str]") -> bool:
    """Whether the first image of the first camera is named so."""
    first = reading.list_images(place / FOLDERS["a"])[:1]
    return any(pattern.fullmatch(file.stem) for file in first)


def on_both(found: Sequence[CameraShot]) -> set[str]:
    """The people that both cameras saw, matched by name and never by position."""
    seen = [{shot.person for shot in found if shot.camera == camera} for camera in FOLDERS]
    return seen[0] & seen[1]


def half(people: Set[str], seed: int, tested: Tested, where: str, seen: str) -> set[str]:
    """Draw the people to train on: one half, or nobody where all are tested on.

    Args:
        people: All that can be searched for.
        seen: What makes them so, for the sentence.

    Raises:
        ValueError: If there are fewer than four.
    """
    if len(people) < 4:
        raise ValueError(
            f"{where} has {len(people)} people {seen}; it takes at least 4 to train on "
            "one half and test on the other"
        )
    if tested == "all":
        return set()
    drawn = sorted(people, key=lambda person: (reading.share(seed, person), person))
    return set(drawn[: len(drawn) // 2])


def splits(
    people: Set[str], query_camera: str, seed: int, where: str, tested: Tested = "half"
) -> Mapping[tuple[str, str], str]:
    """The split of each person's image by camera: one half is trained on, the other searched.

    Args:
        people: Those that both cameras saw.
        tested: `all` trains on nobody.

    Raises:
        ValueError: If there are fewer than four.
    """
    train = half(people, seed, tested, where, "on both cameras")

    def split(person: str, camera: str) -> str:
        if person in train:
            return "train"
        return "query" if camera == query_camera else "gallery"

    return {(person, camera): split(person, camera) for person in people for camera in FOLDERS}


def row(source: Named, place: Path, shot: CameraShot, split: str, **columns: Any) -> Row:
    """The row of a person's image."""
    return reading.file_row(
        source.name,
        place,
        shot.file,
        **{
            schema.IDENTITY: schema.qualified_identity(source.name, shot.person),
            schema.CAMERA: shot.camera,
            schema.LICENCE: source.licence,
            schema.SPLIT: split,
            **columns,
        },
    )
