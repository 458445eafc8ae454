"""Sequences of an identity under one camera: what is described, and what a model is tuned to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_reid import schema

COLUMNS = (
    schema.OBSERVATION_ID, schema.IDENTITY, schema.SOURCE, schema.CAMERA, schema.CLOTHES,
    schema.TIME, schema.PATH,
)  # fmt: skip
"""What is read of a table."""


@dataclass(frozen=True)
class CameraSequence:
    """Images of one identity from one camera, in order."""

    identity: str
    source: str
    camera: str | None
    images: tuple[str, ...]
    """Observation ids."""


def camera_sequences(rows: Iterable[Mapping[str, Any]], around: int) -> list[CameraSequence]:
    """Choose the images of every identity: the middle of its longest sequence, and those around it.

    A sequence is the images of one camera (images without one are together) in one set of clothes,
    where the source tells them apart. Of sequences of one length the first by name counts. Images
    stand in the order of their time; where one has none, of their path, then of their id.

    Args:
        rows: With the columns `COLUMNS`; rows without an identity are left out.
        around: Most images beside the middle one.

    Returns:
        One for each identity, by name.
    """
    found: dict[str, dict[tuple[str, str], list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row[schema.IDENTITY] is not None:
            place = (row[schema.CAMERA] or "", row[schema.CLOTHES] or "")
            found.setdefault(row[schema.IDENTITY], {}).setdefault(place, []).append(row)
    chosen = []
    for identity, own in sorted(found.items()):
        longest = min(own.items(), key=lambda entry: (-len(entry[1]), entry[0]))[1]
        middle = _around_the_middle(_ordered(longest), around)
        chosen.append(
            CameraSequence(
                identity=identity,
                source=middle[0][schema.SOURCE],
                camera=middle[0][schema.CAMERA],
                images=tuple(row[schema.OBSERVATION_ID] for row in middle),
            )
        )
    return chosen


def _ordered(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """In order of time where every image has one; frames are told by paths."""
    timed = all(row[schema.TIME] is not None for row in rows)

    def order(row: Mapping[str, Any]) -> tuple[float, str, str]:
        time = row[schema.TIME] if timed else 0.0
        return time, row[schema.PATH] or "", row[schema.OBSERVATION_ID]

    return sorted(rows, key=order)


def _around_the_middle(rows: list[Mapping[str, Any]], around: int) -> list[Mapping[str, Any]]:
    """At most `around + 1` neighbours, the middle of the sequence among them."""
    wanted = min(len(rows), around + 1)
    first = (len(rows) - wanted) // 2
    return rows[first : first + wanted]
