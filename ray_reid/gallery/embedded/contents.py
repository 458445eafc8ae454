"""A gallery in memory: the rows of its segment, and what its log has added and taken away.

A replaced or updated row is a new one, and its old self is dead. So rows never move, and a `View`
taken before a write stays what it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_reid import schema, storage
from ray_reid.gallery.embedded import log
from ray_reid.gallery.embedded.edits import Edits
from ray_reid.gallery.embedded.log import Record
from ray_reid.gallery.embedded.segment import (
    COLUMNS,
    HIT_COLUMNS,
    ROWS,
    Block,
    Segment,
    Vectors,
    complete,
    merged,
)
from ray_reid.gallery.embedded.where import Mask, Where

Row = dict[str, Any]
_HITS = pa.schema([ROWS.field(name) for name in HIT_COLUMNS])


@dataclass(frozen=True)
class View:
    """A gallery at one moment; it never changes.

    Rows are numbered through the segment and then through what was added behind it.
    """

    segment: Segment
    alive: Mask
    """(N,) of the segment."""
    num_dead: int
    """How many of the segment are not."""
    vectors: Vectors
    """(M, D) of the added rows."""
    added: Sequence[Row]
    """All columns of at least those rows."""
    added_alive: Mask
    """(M,)."""

    def __len__(self) -> int:
        return len(self.segment) - self.num_dead + int(self.added_alive.sum())

    def masks(self, where: Where) -> tuple[Mask, Mask]:
        """Which rows of the segment, and which added ones, are alive and fit."""
        if not where:
            return self.alive, self.added_alive
        found = where.mask(self.segment.table) & self.alive
        return found, where.mask(self._added_table) & self.added_alive

    def rows(self, numbers: NDArray[np.int64]) -> list[tuple[Any, ...]]:
        """The columns of a hit for each row number, in the order of `HIT_COLUMNS`."""
        before = len(self.segment)
        found = self.segment.table.take(numbers[numbers < before])
        stored = zip(*map(_values, found.columns), strict=True)
        return [
            next(stored) if number < before else _hit_columns(self.added[number - before])
            for number in numbers.tolist()
        ]

    def identities(self, numbers: NDArray[np.int64]) -> list[str | None]:
        """The identity of each row number."""
        at = HIT_COLUMNS.index(schema.IDENTITY)
        return [row[at] for row in self.rows(numbers)]

    def pairs(self, names: tuple[str, str]) -> set[tuple[Any, ...]]:
        """The distinct values of two columns of a hit, over all rows that are alive."""
        tables = (self.segment.table, self.alive), (self._added_table, self.added_alive)
        found: set[tuple[Any, ...]] = set()
        for table, alive in tables:
            # Grouped, because a gallery may have millions of rows and few cameras.
            columns = table.select(list(names)).filter(pa.array(alive))
            groups = columns.group_by(list(names)).aggregate([])
            found |= set(zip(*(groups[name].to_pylist() for name in names), strict=True))
        return found

    def id(self, number: int) -> str:
        """The `observation_id` of a row number."""
        before = len(self.segment)
        if number < before:
            return self.segment.id(number)
        text: str = self.added[number - before][schema.OBSERVATION_ID]
        return text

    def full(self, number: int) -> Row:
        """All columns of a row number."""
        before = len(self.segment)
        return self.segment.full(number) if number < before else dict(self.added[number - before])

    def vector(self, number: int) -> Vectors:
        """(D,) of a row number."""
        before = len(self.segment)
        stored, at = (
            (self.segment.vectors, number) if number < before else (self.vectors, number - before)
        )
        found: Vectors = stored[at]
        return found

    def numbers(self, where: Where) -> list[int]:
        """The row numbers that are alive and fit."""
        stored, added = self.masks(where)
        return [*np.flatnonzero(stored).tolist(), *(np.flatnonzero(added) + len(stored)).tolist()]

    def first(self) -> int | None:
        """The first row number that is alive, or None."""
        for start, alive in ((0, self.alive), (len(self.alive), self.added_alive)):
            if alive.any():
                return start + int(alive.argmax())
        return None

    def blocks(self) -> Iterator[Block]:
        """Every living row with all its columns, in the order of the ids, block by block."""
        return merged(self._stored_blocks(), self._added_blocks())

    def _stored_blocks(self) -> Iterator[Block]:
        start = 0
        for table in self.segment.batches():
            end = start + len(table)
            kept = self.alive[start:end]
            yield table.filter(pa.array(kept)), self.segment.vectors[start:end][kept]
            start = end

    def _added_blocks(self) -> Iterator[Block]:
        rows = sorted(
            np.flatnonzero(self.added_alive).tolist(),
            key=lambda row: self.added[row][schema.OBSERVATION_ID],
        )
        for start in range(0, len(rows), storage.ROW_GROUP):
            some = rows[start : start + storage.ROW_GROUP]
            table = pa.Table.from_pylist([self.added[row] for row in some], ROWS)
            yield table, self.vectors[some]

    @cached_property
    def _added_table(self) -> pa.Table:
        rows = self.added[: len(self.added_alive)]
        return pa.Table.from_pylist(
            [{name: row[name] for name in HIT_COLUMNS} for row in rows], _HITS
        )


class Contents:
    """What the records of a log make of a segment."""

    def __init__(self, segment: Segment, edits: Edits) -> None:
        """Begin with the whole segment alive; `edits` says which rows of it are of people."""
        self.segment, self.edits = segment, edits
        self._alive = np.ones(len(segment), bool)
        self._num_dead = 0
        # Arrays grow by doubling; views keep the array and the length they were made with.
        self._vectors = np.empty((64, segment.vectors.shape[1]), np.float32)
        self._added: list[Row] = []
        self._added_alive = np.zeros(64, bool)
        self._place: dict[str, int] = {}
        self._view: View | None = None

    def number(self, observation_id: str) -> int | None:
        """The row number of a living id, or None."""
        added = self._place.get(observation_id)
        if added is not None:
            return len(self.segment) + added
        row = self.segment.row(observation_id)
        return row if row is not None and self._alive[row] else None

    def apply(self, record: Record) -> None:
        """Do what a record says."""
        table = decode(record.payload)
        self._own()
        ids = table[schema.OBSERVATION_ID].to_pylist()
        if record.operation == log.DELETE:
            self.edits.delete(ids)
            for observation_id in ids:
                self._remove(observation_id)
            return
        self.edits.put(ids)
        vectors = storage.embeddings(table, schema.EMBEDDING)
        for row, vector in zip(complete(table, COLUMNS).to_pylist(), vectors, strict=True):
            self._remove(row[schema.OBSERVATION_ID])
            self._add(row, vector)

    def view(self) -> View:
        """What the gallery is now."""
        if self._view is None:
            num = len(self._added)
            self._view = View(
                self.segment,
                self._alive,
                self._num_dead,
                self._vectors[:num],
                self._added,
                self._added_alive[:num],
            )
        return self._view

    def _own(self) -> None:
        """Leave the masks to the view that has them, if there is one."""
        if self._view is not None:
            self._alive, self._added_alive = self._alive.copy(), self._added_alive.copy()
            self._view = None

    def _remove(self, observation_id: str) -> None:
        added = self._place.pop(observation_id, None)
        if added is not None:
            self._added_alive[added] = False
            return
        row = self.segment.row(observation_id)
        if row is not None and self._alive[row]:
            self._alive[row] = False
            self._num_dead += 1

    def _add(self, row: Row, vector: Vectors) -> None:
        num = len(self._added)
        if num == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
            self._added_alive = np.concatenate([self._added_alive, np.zeros(num, bool)])
        self._vectors[num] = vector
        self._added_alive[num] = True
        self._place[row[schema.OBSERVATION_ID]] = num
        self._added.append(row)


def encode(table: pa.Table) -> bytes:
    """A table as the payload of a record."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def decode(payload: bytes) -> pa.Table:
    """The table of a record."""
    return pa.ipc.open_stream(payload).read_all()


def put_table(rows: Sequence[Mapping[str, Any]], vectors: Vectors) -> pa.Table:
    """Rows and their vectors as a record that puts them has them."""
    table = pa.Table.from_pylist([dict(row) for row in rows], ROWS)
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return table.append_column(schema.EMBEDDING, column)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """As `to_pylist`, in a tenth of the time for text."""
    if pa.types.is_floating(column.type):
        return list(column.to_pylist())
    values: list[Any] = column.cast(pa.string()).to_numpy().tolist()
    return values


def _hit_columns(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in HIT_COLUMNS)
