"""Which rows of a gallery are of people: those that they enrolled or changed, and deleted ones.

A gallery that is seeded anew keeps both: the rows as they are, and the deleted ones deleted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pyarrow as pa

from ray_reid import schema
from ray_reid.gallery.embedded import disk

_DELETED = "deleted"
_KIND = pa.schema([
    pa.field(schema.OBSERVATION_ID, pa.string(), nullable=False),
    pa.field(_DELETED, pa.bool_(), nullable=False),
])  # fmt: skip


@dataclass
class Edits:
    """What writes have done to a gallery since it was first seeded, by `observation_id`."""

    kept: set[str] = field(default_factory=set)
    """Rows that are there."""
    deleted: set[str] = field(default_factory=set)
    """Rows that are not, and that no seed brings back."""

    def __bool__(self) -> bool:
        return bool(self.kept or self.deleted)

    def put(self, ids: Iterable[str]) -> None:
        """Note rows that were enrolled or changed."""
        self.kept.update(ids)
        self.deleted.difference_update(ids)

    def delete(self, ids: Iterable[str]) -> None:
        """Note rows that were deleted."""
        self.deleted.update(ids)
        self.kept.difference_update(ids)

    def write(self, file: Path) -> None:
        """Write a file whose content is on the disk when this returns."""
        ids = [*sorted(self.kept), *sorted(self.deleted)]
        deleted = [False] * len(self.kept) + [True] * len(self.deleted)
        table = pa.table({schema.OBSERVATION_ID: ids, _DELETED: deleted}, schema=_KIND)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, _KIND) as writer:
            writer.write_table(table)
        disk.sync(file)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file.

        Raises:
            FileNotFoundError: If there is none: a compaction has replaced it meanwhile.
            ValueError: If it is damaged.
        """
        content = file.read_bytes()
        try:
            table = pa.ipc.open_file(content).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{str(file)!r} is damaged: {error}; restore the gallery from a snapshot"
            ) from error
        found = cls()
        for row in table.to_pylist():
            place = found.deleted if row[_DELETED] else found.kept
            place.add(row[schema.OBSERVATION_ID])
        return found
