"""A gallery on disk, opened for writing by the one process that may.

A write is checked, put into the log, brought to the disk and only then seen and acknowledged. A
kill at any instant loses no acknowledged write and leaves each other whole or not there.
"""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from ray_reid import schema
from ray_reid.gallery.embedded import contents, disk, log, rules, segment, store
from ray_reid.gallery.embedded.contents import Row
from ray_reid.gallery.embedded.log import Log, Record
from ray_reid.gallery.embedded.segment import Vectors
from ray_reid.gallery.embedded.store import GalleryManifest, Reader
from ray_reid.gallery.embedded.where import Where

logger = logging.getLogger(__name__)

FLAT: Mapping[str, Any] = {"kind": "flat"}


class Writer(Reader):
    """A gallery held by this process; methods return when their work is on the disk."""

    _writes = True

    def __init__(self, path: Path) -> None:
        """Open a gallery for writing and remove what a killed writer left half-done.

        Raises:
            ValueError: If it is none, is damaged, or another process writes it.
        """
        GalleryManifest.read(path)
        self._lock = _hold(path)
        self._broken = False
        try:
            super().__init__(path)
            assert self._log is not None
            torn = self._log.cut()
            if torn:
                logger.warning("%s: cut %d bytes of an unfinished write", path, torn)
            for file in store.leftovers(path, self.manifest):
                file.unlink()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        path: Path,
        model: str,
        dimension: int,
        blocks: Iterable[tuple[pa.Table, Vectors]] = (),
        index: Mapping[str, Any] = FLAT,
    ) -> Self:
        """Make a gallery, with rows to begin with or none, and open it for writing.

        Args:
            path: A directory without a gallery; it is made if needed.
            model: Version of the model that makes the vectors.
            dimension: D of the vectors.
            blocks: Tables with the columns of `segment.ROWS`, all in the order of
                `observation_id`, each with its (N, D) unit-norm vectors.
            index: A recipe's section `index`.

        Raises:
            ValueError: If there is a gallery already, another process makes one, or the model,
                the dimension or the index breaks a rule.
        """
        if not model:
            raise ValueError("model '' must name the version of the model that makes the vectors")
        if dimension < 1:
            raise ValueError(f"dimension is {dimension}; it must be at least 1")
        disk.make_folder(path)
        lock = _hold(path)
        try:
            _check_index(index)
            if (path / store.CURRENT).exists():
                raise ValueError(f"{str(path)!r} is a gallery already; open it, or choose another")
            _generation(path, 1, model, dimension, blocks, index).write(path)
        finally:
            os.close(lock)
        return cls(path)

    def close(self) -> None:
        """Close the files and let others write."""
        with self._guard:
            super().close()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def refresh(self) -> None:
        """Nothing to do: nobody else writes."""

    def enrol(self, rows: Sequence[Mapping[str, Any]], vectors: Vectors, model: str) -> None:
        """Add rows, or replace those whose `observation_id` is there, all of them or none.

        Args:
            rows: Columns of `segment.ROWS`; all but the id and the source may be left out.
            vectors: (N, D) unit-norm.
            model: Version of the model that made them.

        Raises:
            ValueError: If a row or vector breaks a rule or is of another model, or the disk
                refuses; nothing is changed then.
        """
        self._check_model(model)
        checked = [rules.checked(row) for row in rows]
        rules.check_ids([row[schema.OBSERVATION_ID] for row in checked])
        self._put(checked, rules.checked_vectors(vectors, len(checked), self.dimension))

    def update(
        self,
        rows: Sequence[Mapping[str, Any]],
        vectors: Vectors | None = None,
        model: str | None = None,
    ) -> None:
        """Change some columns, or the vectors, of rows that are there, all of them or none.

        Args:
            rows: The `observation_id` of each, and the columns to change.
            vectors: (N, D) unit-norm; None keeps the old ones.
            model: Version of the model that made them.

        Raises:
            ValueError: If a row is not there, or as with `enrol`.
        """
        if vectors is not None:
            self._check_model(model)
        wanted = [rules.known(row) for row in rows]
        ids = [row.get(schema.OBSERVATION_ID) for row in wanted]
        rules.check_ids(ids)
        with self._guard:
            numbers = self._numbers(ids)
            view = self.view()
            full = [
                rules.checked({**view.full(number), **row})
                for number, row in zip(numbers, wanted, strict=True)
            ]
            if vectors is None:
                old = [view.vector(number) for number in numbers]
                vectors = np.array(old, np.float32).reshape(len(old), self.dimension)
            self._put(full, rules.checked_vectors(vectors, len(full), self.dimension))

    def delete(self, observation_ids: Sequence[str]) -> None:
        """Remove rows by id, all of them or none.

        Raises:
            ValueError: If one is not there or named twice, or the disk refuses.
        """
        if isinstance(observation_ids, str):
            raise ValueError(
                f"observation_ids {observation_ids[: rules.SHOWN]!r} must be a list of ids"
            )
        ids = list(observation_ids)
        rules.check_ids(ids)
        with self._guard:
            self._numbers(ids)
            if ids:
                column = pa.array(ids, pa.string())
                self._append(log.DELETE, pa.table({schema.OBSERVATION_ID: column}))

    def delete_where(self, where: Where) -> int:
        """Remove every row that fits, an identity's for example; returns how many.

        Raises:
            ValueError: If `where` has no condition, which would empty the gallery.
        """
        if not where:
            raise ValueError("a deletion needs a condition: cameras, sources, identities or times")
        with self._guard:
            view = self.view()
            ids = [view.id(number) for number in view.numbers(where)]
            self.delete(ids)
            return len(ids)

    def compact(self) -> None:
        """Fold the log into a new segment, and its index; readers go on with the old ones."""
        with self._guard:
            self._check_usable()
            old, blocks = self.manifest, self.view().blocks()
            with self._replacing("compacted"):
                _generation(
                    self.path, old.generation + 1, old.model, old.dimension, blocks, old.index
                ).write(self.path)
            self._load()
            self._clean(self.manifest)

    def rebuild(self, index: Mapping[str, Any] | None = None) -> None:
        """Make the index again from the vectors, or one of another kind.

        Args:
            index: A recipe's section `index`; None keeps the one there is.

        Raises:
            ValueError: If the index breaks a rule, or faiss is missing.
        """
        with self._guard:
            self._check_usable()
            old, vectors = self.manifest, self._contents.segment.vectors
            index = dict(old.index if index is None else index)
            _check_index(index)
            data = {
                name: value
                for name, value in old.checksums.items()
                if not name.startswith(f"{store.SEARCH}/")
            }
            with self._replacing("rebuilt"):
                name, built = _build(self.path, old.generation, vectors, index, old.search)
                new = replace(old, index=index, search=name, checksums={**data, **built})
                new.write(self.path)
            self.manifest = new
            self._clean(new)

    @contextmanager
    def _replacing(self, done: str) -> Iterator[None]:
        """Take half-made files away if the manifest that would have named them is not written."""
        try:
            yield
        except (OSError, ValueError) as error:
            # A rename that took place, but perhaps not on the disk: what holds, opening tells.
            self._broken = GalleryManifest.read(self.path) != self.manifest
            if not self._broken:
                self._clean(self.manifest)
            if isinstance(error, ValueError):
                raise
            raise ValueError(
                f"gallery {str(self.path)!r} cannot be {done}: {error.strerror or error}; "
                "nothing is lost"
            ) from error

    def _clean(self, manifest: GalleryManifest) -> None:
        for file in store.leftovers(self.path, manifest):
            file.unlink()

    def _check_model(self, model: str | None) -> None:
        if model != self.model:
            raise ValueError(
                f"the vectors are of model {model!r} but the gallery's are of {self.model!r}; "
                "embed them with that model, or make a gallery of the new one"
            )

    def _numbers(self, ids: Iterable[Any]) -> list[int]:
        numbers = []
        for observation_id in ids:
            number = self._contents.number(observation_id)
            if number is None:
                raise ValueError(
                    f"the gallery has no observation {observation_id[: rules.SHOWN]!r}"
                )
            numbers.append(number)
        return numbers

    def _put(self, rows: Sequence[Row], vectors: Vectors) -> None:
        if not rows:
            return
        try:
            table = contents.put_table(rows, vectors)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"a row has a value of another type: {error}") from error
        with self._guard:
            self._append(log.PUT, table)

    def _append(self, operation: int, table: pa.Table) -> None:
        self._check_usable()
        assert self._log is not None
        payload, sequence = contents.encode(table), self._log.sequence
        try:
            self._log.append(operation, payload)
        except OSError as error:
            self._undo()
            kept = "open it again to see whether it was kept" if self._broken else "it was not kept"
            raise ValueError(
                f"a write to gallery {str(self.path)!r} failed: {error.strerror or error}; {kept}"
            ) from error
        self._contents.apply(Record(operation, sequence, payload, self._log.end))

    def _undo(self) -> None:
        """Take a failed record away; where the disk refuses that too, take no other."""
        assert self._log is not None
        try:
            self._log.cut()
        except OSError:
            self._broken = True

    def _check_usable(self) -> None:
        if self._log is None:
            raise ValueError(f"gallery {str(self.path)!r} is closed")
        if self._broken:
            raise ValueError(f"gallery {str(self.path)!r} could not be written; open it again")


def _hold(path: Path) -> int:
    """Become the only writer, until the descriptor is closed or the process ends."""
    try:
        lock = os.open(path / store.LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"gallery {str(path)!r} cannot be written: {error.strerror or error}"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode() or "unknown"
        os.close(lock)
        raise ValueError(
            f"process {holder} is writing gallery {str(path)!r}; end it, or open it for reading"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _generation(
    path: Path,
    number: int,
    model: str,
    dimension: int,
    blocks: Iterable[tuple[pa.Table, Vectors]],
    index: Mapping[str, Any],
) -> GalleryManifest:
    """Write the files of a generation; they count once its manifest is written."""
    for folder in store.FOLDERS:
        disk.make_folder(path / folder)
    rows = segment.write(path, number, blocks)
    Log.create(path / store.log_name(number))
    names = (segment.table_name(number), segment.vectors_name(number))
    checksums = {name: disk.checksum(path / name) for name in names}
    vectors = np.empty((0, dimension), np.float32)
    if rows:
        vectors = np.memmap(path / names[1], np.float32, "r", shape=(rows, dimension))
    search, built = _build(path, number, vectors, index, None)
    for folder in store.FOLDERS:
        disk.sync(path / folder)
    return GalleryManifest(
        store.FORMAT, number, model, dimension, rows, dict(index), search, {**checksums, **built}
    )


def _build(
    path: Path, generation: int, vectors: Vectors, index: Mapping[str, Any], old: str | None
) -> tuple[str | None, dict[str, int]]:
    """Write the approximate index of a segment, beside an older one; None for the kind flat."""
    if index.get("kind") == "flat" or not len(vectors):
        return None, {}
    # faiss is an extra, and a writer of a flat gallery needs none.
    from ray_reid.gallery.embedded import ann

    tried = int(old.rpartition("-")[2].partition(".")[0]) + 1 if old else 1
    name = f"{store.SEARCH}/part-{generation}-{tried}.faiss"
    ann.write(ann.build(vectors, index), path / name)
    disk.sync(path / name)
    disk.sync(path / store.SEARCH)
    return name, {name: disk.checksum(path / name)}


def _check_index(index: Mapping[str, Any]) -> None:
    if dict(index) != FLAT:
        from ray_reid.gallery.embedded import ann

        ann.checked(index)
