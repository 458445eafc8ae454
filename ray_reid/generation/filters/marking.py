"""What filters share: which rows are still in question, and how a verdict is written down."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid import images, schema
from ray_reid.images import Pixels
from ray_reid.schema import Batch


@dataclass
class Verdict:
    """What a filter found out about one image."""

    scores: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    """Why it is dropped; null keeps it."""
    pixels: Pixels | None = None
    """Takes the place of the image; null leaves it."""


def open_rows(batch: Batch) -> list[int]:
    """Rows that no filter has dropped yet."""
    return [row for row, reason in enumerate(batch[schema.DROP_REASON]) if reason is None]


def pixels_of(batch: Batch, rows: Sequence[int]) -> list[Pixels]:
    """The images of some rows."""
    return [images.unpack(batch[schema.PIXELS][row]) for row in rows]


def marked(
    batch: Batch, rows: Sequence[int], verdicts: Sequence[Verdict]
) -> dict[str, NDArray[Any]]:
    """The batch with verdicts written into its scores, drop reasons and pixels."""
    names = (schema.SCORES, schema.DROP_REASON, schema.PIXELS)
    changed = {name: np.array(batch[name], dtype=object) for name in names}
    for row, verdict in zip(rows, verdicts, strict=True):
        changed[schema.SCORES][row] = {**(batch[schema.SCORES][row] or {}), **verdict.scores}
        changed[schema.DROP_REASON][row] = verdict.reason
        if verdict.pixels is not None:
            changed[schema.PIXELS][row] = images.pack(verdict.pixels)
    return {**batch, **changed}
