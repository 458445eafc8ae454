"""A gallery on disk, opened for writing by the one process that may.

A write is checked, put into the log, brought to the disk and only then seen and acknowledged. A
kill at any instant loses no acknowledged write and leaves each other whole or not there.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from ray_reid import schema
from ray_reid.gallery.embedded import contents, disk, generation, log, rules, seeding, store
from ray_reid.gallery.embedded.contents import Row
from ray_reid.gallery.embedded.edits import Edits
from ray_reid.gallery.embedded.generation import FLAT
from ray_reid.gallery.embedded.log import Record
from ray_reid.gallery.embedded.seeding import Embed, UnembeddableError
from ray_reid.gallery.embedded.segment import Block, Vectors
from ray_reid.gallery.embedded.store import GalleryManifest, Reader
from ray_reid.gallery.embedded.where import Where

logger = logging.getLogger(__name__)


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
        blocks: Iterable[Block] = (),
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
            generation.check_index(index)
            _check_new(path)
            draft = GalleryManifest(
                store.FORMAT, 1, model, dimension, 0, dict(index), None, None, {}
            )
            generation.write(path, draft, blocks, Edits()).write(path)
        finally:
            os.close(lock)
        return cls(path)

    @classmethod
    def adopt(cls, path: Path, source: Path, key: str) -> Self:
        """Make a gallery of the files of another and open it for writing.

        Args:
            path: A directory without a gallery; it is made if needed.
            source: A gallery that nobody writes, such as an index job publishes.
            key: Its key.

        Raises:
            ValueError: If there is a gallery already, another process makes one, or `source` is
                none.
        """
        GalleryManifest.read(source)
        disk.make_folder(path)
        lock = _hold(path)
        try:
            _check_new(path)
            generation.adopt(path, source, 1, key).write(path)
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
            draft = replace(self.manifest, generation=self.manifest.generation + 1)
            blocks, edits = self.view().blocks(), self.edits
            self._renew("compacted", lambda: generation.write(self.path, draft, blocks, edits))

    def seed(
        self, source: Path, key: str, embed: Embed, drop_unembeddable: bool = False
    ) -> list[str]:
        """Take the rows, model and index of another gallery, and keep what people did to this one.

        Rows that were enrolled or changed here stay as they are, with their vectors if the model
        is the same; deleted ones stay deleted. Other writes wait meanwhile.

        Args:
            source: A gallery that nobody writes, such as an index job publishes.
            key: Its key.
            embed: Makes vectors of rows with their images, if the model is another.
            drop_unembeddable: Leave out rows without an image that can be read.

        Returns:
            The ids that were left out.

        Raises:
            UnembeddableError: If there are such rows; nothing is changed then.
            ValueError: If `source` is no gallery, or the disk refuses.
        """
        with self._guard, Reader(source) as theirs:
            self._check_usable()
            number = self.manifest.generation + 1
            mine = seeding.edits_of(self)
            if not mine:
                self._renew("seeded", lambda: generation.adopt(self.path, source, number, key))
                return []
            new = (theirs.model, theirs.dimension) != (self.model, self.dimension)
            lost = seeding.unembeddable(self.view(), mine.kept) if new else []
            if lost and not drop_unembeddable:
                raise UnembeddableError(self.path, lost)
            edits = Edits(mine.kept - set(lost), mine.deleted)
            blocks = seeding.blocks(self.view(), theirs.view(), edits, embed if new else None)
            draft = replace(theirs.manifest, generation=number, seed=key)
            self._renew("seeded", lambda: generation.write(self.path, draft, blocks, edits))
            return lost

    def _renew(self, done: str, make: Callable[[], GalleryManifest]) -> None:
        with self._replacing(done):
            make().write(self.path)
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
            generation.check_index(index)
            with self._replacing("rebuilt"):
                new = generation.rebuild(self.path, old, vectors, index)
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


def _check_new(path: Path) -> None:
    if (path / store.CURRENT).exists():
        raise ValueError(f"{str(path)!r} is a gallery already; open it, or choose another")
