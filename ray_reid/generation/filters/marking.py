"""What filters share: which rows they measure, and how a verdict is written down."""

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


def made_rows(batch: Batch) -> list[int]:
    """Rows that hold a generated image, whatever the filters before said of it.

    A row that its generator refused holds a black image or the source; no filter measures it.
    """
    pairs = zip(batch[schema.DROP_REASON], batch[schema.SCORES], strict=True)
    return [
        row
        for row, (reason, scores) in enumerate(pairs)
        if reason is None or any(name.startswith(schema.PASSED) for name in scores or {})
    ]


def pixels_of(batch: Batch, rows: Sequence[int]) -> list[Pixels]:
    """The images of some rows."""
    return [images.unpack(batch[schema.PIXELS][row]) for row in rows]


def marked(
    batch: Batch, rows: Sequence[int], verdicts: Sequence[Verdict], name: str
) -> dict[str, NDArray[Any]]:
    """The batch with the verdicts of the filter `name` in its scores, drop reasons and pixels.

    The reason of an earlier filter stays. A filter that a recipe names twice has passed an image
    if both of its settings keep it.
    """
    names = (schema.SCORES, schema.DROP_REASON, schema.PIXELS)
    changed = {column: np.array(batch[column], dtype=object) for column in names}
    for row, verdict in zip(rows, verdicts, strict=True):
        before = batch[schema.SCORES][row] or {}
        passed = min(float(verdict.reason is None), before.get(f"{schema.PASSED}{name}", 1.0))
        changed[schema.SCORES][row] = {**before, **verdict.scores, f"{schema.PASSED}{name}": passed}
        if changed[schema.DROP_REASON][row] is None:
            changed[schema.DROP_REASON][row] = verdict.reason
        if verdict.pixels is not None:
            changed[schema.PIXELS][row] = images.pack(verdict.pixels)
    return {**batch, **changed}
