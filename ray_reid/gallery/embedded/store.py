"""A gallery on disk, opened for reading: a manifest that is replaced whole, a segment and a log.

`CURRENT` names the files of one generation. Whoever reads sees the segment and every record of
the log that was whole, and may `refresh` while a writer goes on.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ray_reid import schema, storage
from ray_reid.gallery.embedded import disk, segment
from ray_reid.gallery.embedded.contents import Contents, View
from ray_reid.gallery.embedded.edits import Edits
from ray_reid.gallery.embedded.log import Log
from ray_reid.gallery.embedded.segment import Segment, is_unit
from ray_reid.gallery.embedded.where import Where

CURRENT = "CURRENT"
LOCK = "lock"
LOG, SEARCH, EDITS = "log", "search", "edits"
FOLDERS = (segment.TABLE, segment.VECTORS, LOG, SEARCH, EDITS)
FORMAT = 2
# A compaction may replace the files between two steps of opening them; ten times is no chance.
_ATTEMPTS = 10


@dataclass(frozen=True)
class GalleryManifest:
    """What `CURRENT` says."""

    format: int
    generation: int
    """Counts the compactions; names the files."""
    model: str
    """Version of the model that made every vector."""
    dimension: int
    rows: int
    """Of the segment."""
    index: dict[str, Any]
    """The recipe's section `index`, as far as the search needs it."""
    search: str | None
    """File of the approximate index over the segment; null for the kind flat."""
    seed: str | None
    """Key of the index that the gallery was last seeded from; null if it never was."""
    checksums: dict[str, int]
    """CRC-32 of each immutable file, by its path in the gallery."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the manifest of a gallery.

        Raises:
            ValueError: If there is none, or it is damaged or of another format.
        """
        try:
            values = json.loads((path / CURRENT).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{str(path)!r} is not a gallery: it has no file {CURRENT!r}; the index job or "
                "Writer.create makes one"
            ) from None
        except ValueError as error:
            raise ValueError(f"{str(path / CURRENT)!r} is damaged: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else values
            raise ValueError(
                f"{str(path)!r} is a gallery of format {found!r}, and this version reads "
                f"{FORMAT}; run its recipe again to index anew, and enrol again what was enrolled"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{str(path / CURRENT)!r} is damaged: {error}") from error

    def write(self, path: Path) -> None:
        """Make this the state of a gallery, in one rename that is on the disk afterwards."""
        aside = path / f".{CURRENT}"
        with aside.open("w") as sink:
            json.dump(asdict(self), sink, indent=2)
            sink.flush()
            os.fsync(sink.fileno())
        aside.replace(path / CURRENT)
        disk.sync(path)

    def files(self) -> list[str]:
        """Every file of this generation, by its path in the gallery."""
        return [*self.checksums, log_name(self.generation)]


class Reader:
    """A gallery that others may write meanwhile."""

    _writes = False

    def __init__(self, path: Path) -> None:
        """Open a gallery.

        Raises:
            ValueError: If it is none, or a file of it is damaged.
        """
        self.path = path
        self._guard = threading.RLock()
        self._log: Log | None = None
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.view())

    @property
    def model(self) -> str:
        """Version of the model that made the vectors."""
        return self.manifest.model

    @property
    def dimension(self) -> int:
        """D of the vectors."""
        return self.manifest.dimension

    @property
    def log_bytes(self) -> int:
        """What a compaction would fold away."""
        assert self._log is not None, "closed"
        return self._log.end

    def close(self) -> None:
        """Close the files; views that were taken stay readable."""
        with self._guard:
            self._close_log()

    @property
    def edits(self) -> Edits:
        """Which rows are of people; changes with the gallery."""
        return self._contents.edits

    def view(self) -> View:
        """The gallery as it is now."""
        return self.state()[1]

    def state(self) -> tuple[GalleryManifest, View]:
        """The gallery as it is now, and the files that belong to it."""
        with self._guard:
            return self.manifest, self._contents.view()

    def find(self, observation_id: str) -> tuple[View, int | None]:
        """The gallery as it is now, and the row number of an id in it, or None."""
        with self._guard:
            return self._contents.view(), self._contents.number(observation_id)

    def refresh(self) -> None:
        """See what has been written since.

        Raises:
            ValueError: If a file is damaged, or the gallery is of another model now; what was seen
                before stays.
        """
        with self._guard:
            manifest = GalleryManifest.read(self.path)
            if manifest.model != self.model:
                raise ValueError(
                    f"gallery {str(self.path)!r} was of model {self.model!r} and has been seeded "
                    f"with {manifest.model!r} since; open it again, with that model"
                )
            if manifest != self.manifest:
                self._load()
            else:
                self._replay(self._log, self._contents)

    def check(self) -> list[str]:
        """Look at every byte on the disk; no sentence means that the gallery is whole."""
        with self._guard:
            return check(self.path)

    def snapshot(self, path: Path) -> None:
        """Make a copy of the gallery as it is now; links to the immutable files where it can.

        Raises:
            ValueError: If something is at `path` already.
        """
        if path.exists():
            raise ValueError(f"{str(path)!r} exists; a snapshot needs a name of its own")
        for attempt in range(_ATTEMPTS):
            self.refresh()
            with self._guard:
                manifest = self.manifest
                assert self._log is not None
                head = self._log.head()
            try:
                self._copy(path, manifest, head)
            except FileNotFoundError:
                shutil.rmtree(path, ignore_errors=True)
                if attempt + 1 == _ATTEMPTS:
                    raise
            else:
                return

    def _copy(self, path: Path, manifest: GalleryManifest, head: bytes) -> None:
        for folder in FOLDERS:
            disk.make_folder(path / folder)
        for name in manifest.checksums:
            disk.link(self.path / name, path / name)
        (path / log_name(manifest.generation)).write_bytes(head)
        disk.sync(path / log_name(manifest.generation))
        for folder in FOLDERS:
            disk.sync(path / folder)
        manifest.write(path)

    def _load(self) -> None:
        """Open what `CURRENT` names, again where a compaction replaced it meanwhile."""
        for attempt in range(_ATTEMPTS):
            manifest = GalleryManifest.read(self.path)
            try:
                found = Segment(self.path, manifest.generation, manifest.rows, manifest.dimension)
                edits = Edits.read(self.path / edits_name(manifest.generation))
                records = Log(self.path / log_name(manifest.generation), self._writes)
                break
            except FileNotFoundError as error:
                same = GalleryManifest.read(self.path).generation == manifest.generation
                if same or attempt + 1 == _ATTEMPTS:
                    raise ValueError(
                        f"gallery {str(self.path)!r} lacks the file {error.filename!r}; restore "
                        "it from a snapshot"
                    ) from error
        contents = Contents(found, edits)
        try:
            self._replay(records, contents)
        except ValueError:
            records.close()
            raise
        self._close_log()
        self.manifest, self._log, self._contents = manifest, records, contents

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    @staticmethod
    def _replay(records: Log | None, contents: Contents) -> None:
        assert records is not None, "closed"
        for record in records.read():
            contents.apply(record)


def log_name(generation: int) -> str:
    """Where the log of a generation lies in its gallery."""
    return f"{LOG}/part-{generation}.log"


def edits_name(generation: int) -> str:
    """Where the edits of a generation lie in its gallery."""
    return f"{EDITS}/part-{generation}.arrow"


def leftovers(path: Path, manifest: GalleryManifest) -> Iterator[Path]:
    """Files of other generations: what a killed compaction, or one after its rename, left."""
    named = set(manifest.files())
    for folder in FOLDERS:
        for file in sorted((path / folder).glob("part-*")):
            if f"{folder}/{file.name}" not in named:
                yield file


def check(path: Path) -> list[str]:
    """Look at every byte of a gallery on the disk, afresh; what is wrong, in sentences."""
    try:
        manifest = GalleryManifest.read(path)
        damaged = [
            sentence for name in manifest.files() if (sentence := _damage(path, name, manifest))
        ]
        # A compaction may have gone by, and taken the files away.
        if damaged and GalleryManifest.read(path) != manifest:
            return check(path)
        if damaged:
            return damaged
        with Reader(path) as fresh:
            return list(_wrong_rows(fresh.view()))
    except ValueError as error:
        return [str(error)]


def _damage(path: Path, name: str, manifest: GalleryManifest) -> str | None:
    try:
        # The log has checksums of its own.
        expected = manifest.checksums.get(name)
        if expected not in (None, disk.checksum(path / name)):
            return f"{name} is damaged: its checksum is not that of the manifest"
    except FileNotFoundError:
        return f"{name} is missing"
    return None


def _wrong_rows(view: View) -> Iterator[str]:
    ids = view.segment.table[schema.OBSERVATION_ID].to_numpy()
    if (ids[:-1] >= ids[1:]).any():
        yield "the rows of the table are not in the order of their ids"
    for vectors in (view.segment.vectors, view.vectors):
        starts = range(0, len(vectors), storage.ROW_GROUP)
        if not all(is_unit(vectors[start : start + storage.ROW_GROUP]).all() for start in starts):
            yield "a vector is not of unit norm"
    living = [view.id(number) for number in view.numbers(Where())]
    if len(set(living)) != len(living):
        yield "an observation_id is there twice"
