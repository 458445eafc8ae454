"""Validation while training: a search among training identities that the training does without.

What is chosen by it has not seen the test images, neither for stopping early nor for ranking.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import config, schema, scoring, storage
from ray_reid.datasets import splits
from ray_reid.scoring import Side

# Every sweep holds out the same ones, so that all can be compared.
SEED = 0
REAL = storage.TRAINABLE & (pc.field(schema.ORIGIN) == "real")


class Validation:
    """Held-out identities of a table as queries and gallery."""

    def __init__(self, table: str | Path, held_out: Collection[str], spec: config.Evaluate) -> None:
        """Read which real images of `held_out` ask and which answer.

        Raises:
            ValueError: If no query has a true match.
        """
        # Every trainable row, because these are what the trainings' row caches number.
        found = storage.read(table, [*scoring.COLUMNS, schema.ORIGIN], storage.TRAINABLE)
        wanted = pc.and_(
            pc.is_in(found[schema.IDENTITY], value_set=pa.array(sorted(held_out), pa.string())),
            pc.equal(found[schema.ORIGIN], "real"),
        )
        self._numbers = np.flatnonzero(wanted.to_numpy()).tolist()
        self._rows = _split(found.filter(wanted))
        # The rule that any set of identities can answer.
        self._spec = spec.model_copy(update={"protocol": "market", "both_directions": False})
        self._table = table
        self._score(np.zeros((len(self._numbers), 1), np.float32))

    def score(
        self, embed_images: Callable[[Sequence[pa.Buffer]], NDArray[np.float32]]
    ) -> dict[str, float]:
        """Metrics of the images as `embed_images` sees them."""
        from ray_reid import loader

        cache = storage.RowCache(self._table, loader.cache_directory(), loader.TRAINABLE)
        return self._score(embed_images([cache.image(row) for row in self._numbers]))

    def _score(self, vectors: NDArray[np.float32]) -> dict[str, float]:
        query, gallery = sides(self._rows, vectors)
        return scoring.flatten(scoring.score(query, gallery, schema.EMBEDDING, self._spec))


def held_out(table: str | Path, share: float, source: str | None = None) -> frozenset[str]:
    """Choose a share of the real training identities; those added later move no other.

    Args:
        source: Name of the source that they are from; null takes all.

    Raises:
        ValueError: If there are fewer than four.
    """
    where = REAL if source is None else REAL & (pc.field(schema.SOURCE) == source)
    names = storage.read(table, [schema.IDENTITY], where)[schema.IDENTITY].unique().to_pylist()
    return frozenset(splits.held_out(set(names), share, SEED))


def sides(rows: pa.Table, vectors: NDArray[np.float32]) -> tuple[Side, Side]:
    """Queries and gallery of rows that carry a split, with their embeddings.

    Raises:
        ValueError: If one of them is empty.
    """
    # The floor without learning belongs to the images and is the same for every training.
    nothing = np.zeros((len(rows), 1), np.float32)
    for name, values in ((schema.EMBEDDING, vectors), (schema.REFERENCE_EMBEDDING, nothing)):
        rows = rows.append_column(name, schema.to_table({name: values})[name])
    return scoring.read_sides(rows)


def _split(rows: pa.Table) -> pa.Table:
    """Of each identity the first image of every other camera asks; the rest answers."""
    names = (schema.IDENTITY, schema.CAMERA, schema.OBSERVATION_ID)
    columns = [rows[name].to_pylist() for name in names]
    seen: dict[str, list[str | None]] = {}
    queries = set()
    for row in sorted(range(len(rows)), key=lambda row: [str(column[row]) for column in columns]):
        cameras = seen.setdefault(columns[0][row], [])
        if columns[1][row] not in cameras:
            cameras.append(columns[1][row])
            if len(cameras) % 2:
                queries.add(row)
    split = ["query" if row in queries else "gallery" for row in range(len(rows))]
    place = rows.schema.get_field_index(schema.SPLIT)
    return rows.set_column(place, rows.schema.field(schema.SPLIT), pa.array(split, pa.string()))
