"""What else could keep a gallery: LanceDB, and SQLite for the rows with faiss for the search.

Both hold the rows and vectors of a gallery, without images, and answer with the columns of a hit.
Neither is a dependency of the project.
"""

import importlib
import importlib.util
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ray_reid.gallery.embedded.segment import HIT_COLUMNS, Block, Vectors

VECTOR = "vector"


class Store(Protocol):
    """What a gallery must do."""

    def enrol(self, row: dict[str, Any], vector: Vectors) -> None:
        """Add one row, or replace it; kept when this returns."""

    def search(self, queries: Vectors, k: int, camera: str | None = None) -> list[list[str]]:
        """Ids of the k nearest rows of each query, exactly, of one camera if it is given."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows."""


class LanceStore:
    """A table of LanceDB without a vector index, which is its exact search."""

    def __init__(self, path: Path, blocks: Iterable[Block] | None = None) -> None:
        """Open a table; with blocks, make it of these."""
        database = importlib.import_module("lancedb").connect(path)
        if blocks is None:
            self._table = database.open_table("gallery")
        else:
            tables = [_with_vectors(*block) for block in blocks]
            self._table = database.create_table("gallery", pa.concat_tables(tables))

    def enrol(self, row: dict[str, Any], vector: Vectors) -> None:
        """Add or replace by `observation_id`."""
        full = {name: row.get(name) for name in HIT_COLUMNS} | {VECTOR: vector}
        found = self._table.merge_insert("observation_id")
        found.when_matched_update_all().when_not_matched_insert_all().execute([full])

    def search(self, queries: Vectors, k: int, camera: str | None = None) -> list[list[str]]:
        """All queries at once."""
        query = self._table.search(list(queries)).distance_type("dot").limit(k)
        if camera is not None:
            query = query.where(f"camera = '{camera}'", prefilter=True)
        found = query.select([*HIT_COLUMNS, "_distance"]).to_arrow().to_pylist()
        hits: list[list[str]] = [[] for _ in queries]
        for row in found:
            hits[row.get("query_index", 0)].append(row["observation_id"])
        return hits

    def delete(self, ids: Sequence[str]) -> None:
        """Delete by a list of ids."""
        self._table.delete("observation_id IN (" + ", ".join(f"'{one}'" for one in ids) + ")")


class SqliteStore:
    """Rows and vectors in SQLite, each commit on the disk, and a faiss index of them in memory."""

    def __init__(self, path: Path, blocks: Iterable[Block] | None = None) -> None:
        """Open a database and fill the index; with blocks, make it of these."""
        self._rows = sqlite3.connect(path)
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute("PRAGMA synchronous = FULL")
        if blocks is not None:
            columns = ", ".join(HIT_COLUMNS)
            self._rows.execute(
                f"CREATE TABLE gallery (number INTEGER PRIMARY KEY, {columns}, {VECTOR} BLOB)"
            )
            self._rows.execute("CREATE UNIQUE INDEX ids ON gallery (observation_id)")
            self._rows.execute("CREATE INDEX cameras ON gallery (camera)")
            for table, vectors in blocks:
                rows = zip(*(table[name].to_pylist() for name in HIT_COLUMNS), strict=True)
                blobs = (vector.tobytes() for vector in vectors)
                self._insert([*row, blob] for row, blob in zip(rows, blobs, strict=True))
            self._rows.commit()
        faiss = importlib.import_module("faiss")
        found = self._rows.execute(f"SELECT number, {VECTOR} FROM gallery ORDER BY number")
        numbers, stored = zip(*found.fetchall(), strict=True)
        vectors = np.frombuffer(b"".join(stored), np.float32).reshape(len(stored), -1)
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
        self._index.add_with_ids(vectors, np.array(numbers))
        self._faiss = faiss

    def enrol(self, row: dict[str, Any], vector: Vectors) -> None:
        """Insert, commit, and then add to the index."""
        self._insert([[*(row.get(name) for name in HIT_COLUMNS), vector.tobytes()]])
        self._rows.commit()
        (number,) = self._rows.execute("SELECT last_insert_rowid()").fetchone()
        self._index.add_with_ids(vector[None], np.array([number]))

    def search(self, queries: Vectors, k: int, camera: str | None = None) -> list[list[str]]:
        """Search by faiss, among numbers that SQLite selects, and fetch the rows of the hits."""
        options = {}
        if camera is not None:
            fitting = self._rows.execute("SELECT number FROM gallery WHERE camera = ?", (camera,))
            selected = self._faiss.IDSelectorBatch([number for (number,) in fitting])
            options["params"] = self._faiss.SearchParameters(sel=selected)
        _, numbers = self._index.search(queries, k, **options)
        wanted = ", ".join(map(str, np.unique(numbers)))
        columns = ", ".join(HIT_COLUMNS)
        rows = self._rows.execute(
            f"SELECT number, {columns} FROM gallery WHERE number IN ({wanted})"
        )
        ids = {number: row[0] for number, *row in rows}
        return [[ids[number] for number in hits if number >= 0] for hits in numbers.tolist()]

    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows, commit, and then take them out of the index."""
        marks = ", ".join("?" * len(ids))
        gone = self._rows.execute(
            f"DELETE FROM gallery WHERE observation_id IN ({marks}) RETURNING number", list(ids)
        ).fetchall()
        self._rows.commit()
        self._index.remove_ids(np.array([number for (number,) in gone]))

    def _insert(self, rows: Iterable[Sequence[Any]]) -> None:
        marks = ", ".join("?" * (len(HIT_COLUMNS) + 1))
        columns = ", ".join((*HIT_COLUMNS, VECTOR))
        self._rows.executemany(f"INSERT OR REPLACE INTO gallery ({columns}) VALUES ({marks})", rows)


STORES: dict[str, type[LanceStore] | type[SqliteStore]] = {
    "lancedb": LanceStore,
    "sqlite": SqliteStore,
}
NEEDS = {"lancedb": "lancedb", "sqlite": "faiss"}


def missing(name: str) -> str | None:
    """The package that a store needs and that is not installed, or None."""
    return None if importlib.util.find_spec(NEEDS[name]) else NEEDS[name]


def _with_vectors(table: pa.Table, vectors: Vectors) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return table.select(list(HIT_COLUMNS)).append_column(VECTOR, column)
