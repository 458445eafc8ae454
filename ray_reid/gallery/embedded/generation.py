"""The files of one generation of a gallery, which count once its manifest is written."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_reid.gallery.embedded import disk, segment, store
from ray_reid.gallery.embedded.edits import Edits
from ray_reid.gallery.embedded.log import Log
from ray_reid.gallery.embedded.segment import Block, Vectors
from ray_reid.gallery.embedded.store import GalleryManifest

FLAT: Mapping[str, Any] = {"kind": "flat"}


def check_index(index: Mapping[str, Any]) -> None:
    """Refuse a section `index` that breaks a rule.

    Raises:
        ValueError: Says which.
    """
    if dict(index) != FLAT:
        # faiss is an extra, and a writer of a flat gallery needs none.
        from ray_reid.gallery.embedded import ann

        ann.checked(index)


def write(
    path: Path, draft: GalleryManifest, blocks: Iterable[Block], edits: Edits
) -> GalleryManifest:
    """Write the files of a generation from its rows.

    Args:
        path: The gallery.
        draft: Its manifest, but for rows, approximate index and checksums.
        blocks: Rows and vectors, all in the order of the ids.
        edits: Which of the rows are of people.

    Raises:
        ValueError: If a row or the index breaks a rule.
    """
    number = draft.generation
    _make_room(path, number)
    rows = segment.write(path, number, blocks)
    names = [segment.table_name(number), segment.vectors_name(number)]
    vectors = np.empty((0, draft.dimension), np.float32)
    if rows:
        shape = (rows, draft.dimension)
        vectors = np.memmap(path / names[1], np.float32, "r", shape=shape)
    search = _build(path, number, vectors, draft.index, None)
    names += [] if search is None else [search]
    checksums = {name: disk.checksum(path / name) for name in names}
    return _finished(path, replace(draft, rows=rows, search=search, checksums=checksums), edits)


def adopt(path: Path, source: Path, generation: int, seed: str | None) -> GalleryManifest:
    """Make a generation of the immutable files of another gallery, which has no log.

    Args:
        path: The gallery.
        source: The other one; its files are linked where the file system can.
        generation: The number of the new one.
        seed: The key of the other one.

    Raises:
        ValueError: If `source` is no gallery.
    """
    theirs = GalleryManifest.read(source)
    _make_room(path, generation)
    renamed = {
        name: name.replace(f"part-{theirs.generation}", f"part-{generation}", 1)
        for name in theirs.checksums
        if not name.startswith(store.EDITS)
    }
    for old, new in renamed.items():
        disk.link(source / old, path / new)
    ours = replace(
        theirs,
        generation=generation,
        search=None if theirs.search is None else renamed[theirs.search],
        seed=seed,
        checksums={new: theirs.checksums[old] for old, new in renamed.items()},
    )
    return _finished(path, ours, Edits())


def rebuild(
    path: Path, old: GalleryManifest, vectors: Vectors, index: Mapping[str, Any]
) -> GalleryManifest:
    """Write the approximate index of a generation again, beside the old one.

    Raises:
        ValueError: If the index does not fit the vectors, or faiss is missing.
    """
    search = _build(path, old.generation, vectors, index, old.search)
    checksums = {name: one for name, one in old.checksums.items() if name != old.search}
    if search is not None:
        disk.sync(path / store.SEARCH)
        checksums[search] = disk.checksum(path / search)
    return replace(old, index=dict(index), search=search, checksums=checksums)


def _make_room(path: Path, generation: int) -> None:
    """Make the directories, without what a killed attempt left there.

    Such a file may be a link to one of another gallery: it must not be written, but replaced.
    """
    for folder in store.FOLDERS:
        disk.make_folder(path / folder)
        for file in (path / folder).glob(f"part-{generation}[.-]*"):
            file.unlink()


def _finished(path: Path, manifest: GalleryManifest, edits: Edits) -> GalleryManifest:
    """Write what every generation has, and bring all names to the disk."""
    name = store.edits_name(manifest.generation)
    edits.write(path / name)
    Log.create(path / store.log_name(manifest.generation))
    for folder in store.FOLDERS:
        disk.sync(path / folder)
    return replace(manifest, checksums={**manifest.checksums, name: disk.checksum(path / name)})


def _build(
    path: Path, generation: int, vectors: Vectors, index: Mapping[str, Any], old: str | None
) -> str | None:
    """Write the approximate index of a segment; returns its name, None for the kind flat."""
    if index.get("kind") == "flat" or not len(vectors):
        return None
    from ray_reid.gallery.embedded import ann

    tried = int(old.rpartition("-")[2].partition(".")[0]) + 1 if old else 1
    name = f"{store.SEARCH}/part-{generation}-{tried}.faiss"
    ann.write(ann.build(vectors, index), path / name)
    disk.sync(path / name)
    return name
