"""Which rows of a gallery a search or a deletion is about."""

import math
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import schema

Mask = NDArray[np.bool_]
Names = tuple[str, ...] | None


@dataclass(frozen=True)
class Where:
    """Rows that fit every condition given; a row without the value fits no condition on it."""

    cameras: Names = None
    sources: Names = None
    identities: Names = None
    since: float | None = None
    """Time in seconds, this one included; times compare within one source only."""
    until: float | None = None
    """Time in seconds, this one excluded."""

    def __post_init__(self) -> None:
        """Refuse conditions that nothing can fit.

        Raises:
            ValueError: If a list of names is not a tuple of strings or is empty, or the times
                are not finite or not in order.
        """
        for name in ("cameras", "sources", "identities"):
            wanted = getattr(self, name)
            whole = isinstance(wanted, tuple) and all(isinstance(one, str) for one in wanted)
            if wanted is not None and not (whole and wanted):
                raise ValueError(
                    f"{name} {wanted!r} must be a tuple of names, or be left out for all"
                )
        for name in ("since", "until"):
            time = getattr(self, name)
            if time is not None and not math.isfinite(time):
                raise ValueError(f"{name} {time} must be a finite number of seconds")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError(f"since {self.since} must be before until {self.until}")

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    def mask(self, table: pa.Table) -> Mask:
        """(N,) bool, True for the rows of a table that fit."""
        kept = np.ones(len(table), bool)
        named = (
            (schema.CAMERA, self.cameras),
            (schema.SOURCE, self.sources),
            (schema.IDENTITY, self.identities),
        )
        for column, wanted in named:
            if wanted is not None:
                kept &= _numpy(pc.is_in(table[column], pa.array(wanted, pa.string())))
        if self.since is not None:
            kept &= _numpy(pc.greater_equal(table[schema.TIME], self.since))
        if self.until is not None:
            kept &= _numpy(pc.less(table[schema.TIME], self.until))
        return kept


def _numpy(column: pa.ChunkedArray) -> Mask:
    mask: Mask = pc.fill_null(column, False).to_numpy()
    return mask
