"""What the readers of tables share: paths that stay below the root, and rows that differ."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ray_reid import schema
from ray_reid.datasets.reading import LOCATOR, Row


def inside(path: str | None) -> str:
    """A path of a table, relative to its root.

    Raises:
        ValueError: If it is empty or may lead out of the root.
    """
    place = Path((path or "").replace("\\", "/"))
    if not path or place.is_absolute() or ".." in place.parts:
        raise ValueError(f"path {path!r} is not a path below root")
    return place.as_posix()


def check_distinct(rows: Sequence[Row], where: str) -> None:
    """Check that no two rows are the same observation.

    Raises:
        ValueError: If some are; names the place of the first.
    """
    count = Counter(row[schema.OBSERVATION_ID] for row in rows)
    twice = [row[LOCATOR] for row in rows if count[row[schema.OBSERVATION_ID]] > 1]
    if twice:
        raise ValueError(f"{len(twice)} rows of {where} are of one image or box, {twice[0]!r}")
