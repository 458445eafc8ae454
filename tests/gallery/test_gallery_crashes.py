"""A power failure at any moment, which loses or tears what was not synced.

A kill with SIGKILL keeps what is in the page cache; here only what `fsync` brought to the disk is
sure to be there. Every acknowledged write must be, and is not with any one of the syncs left out.
"""

import ast
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_reid import gallery
from ray_reid.gallery.embedded.segment import ROWS
from ray_reid.gallery.embedded.store import CURRENT, LOCK
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer

pytest.importorskip("faiss", reason="faiss is an extra")

HNSW = {"kind": "hnsw", "num_links": 2}


def sites() -> Iterator[tuple[str, int]]:
    """Every call in the package of galleries that syncs a file or a directory."""
    for file in sorted(Path(gallery.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in ("fsync", "sync"):
                    yield str(file), node.lineno


SITES = list(sites())


def state(writer: Writer) -> tuple[Any, ...]:
    """All rows with their vectors, and which of them are of people."""
    view = writer.view()
    numbers = view.numbers(Where())
    rows = ((view.full(number), view.vector(number).tobytes()) for number in numbers)
    found = {row["observation_id"]: (row["identity"], row["image"], vec) for row, vec in rows}
    return found, sorted(writer.edits.kept), sorted(writer.edits.deleted)


class Story:
    """A gallery that is written in every way while a disk records; it knows what must be kept."""

    def __init__(self, disk: Any, script: ModuleType, patch: pytest.MonkeyPatch) -> None:
        self.disk, self.script, self.patch = disk, script, patch
        self.path = disk.root / "deep" / "gallery"
        self.version = 0
        self.allowed: dict[str, list[Any]] = {}

    def tell(self) -> None:
        writer = self.create()
        self.write(writer, "enrol", ["id03", "id01"])
        self.write(writer, "update", ["id00"])
        self.refuse(writer)
        self.write(writer, "delete", ["id02"])
        self.write(writer, "compact", [])
        self.write(writer, "enrol", ["id04"])
        self.disk.settle()
        with self.changing("deep/gallery", lambda: state(writer)):
            writer.rebuild(HNSW)
        self.disk.settle()
        self.snapshot(writer, "linked")
        with self.patch.context() as patched:
            patched.setattr(os, "link", refused)
            self.snapshot(writer, "copied")
        self.write(writer, "delete", ["id01"])
        writer.close()
        self.disk.settle()
        self.seeds()

    def seeds(self) -> None:
        """A gallery that is seeded, changed, and seeded with the index of another model."""
        script = self.script
        indexes, path = self.disk.root / "indexes", self.disk.root / "seeded" / "gallery"
        for model in script.MODELS:
            script.make_index(indexes, model, HNSW)
        self.disk.settle()
        with self.changing("seeded/gallery", lambda: state(writer)):
            writer = Writer.adopt(path, indexes / "key1", "a")
        for key, model, operation, ids in (
            ("b", "key1", "enrol", ["id03"]),
            ("c", "key2", "delete", ["id09"]),
        ):
            with self.changing("seeded/gallery", lambda: state(writer)):
                writer.seed(indexes / model, key, partial(script.embed, model=model))
            self.disk.settle()
            with self.changing("seeded/gallery", lambda: state(writer)):
                script.perform(writer, operation, [[one, "c0"] for one in ids], 1)
        with self.changing("seeded/gallery", lambda: state(writer)):
            writer.compact()
        writer.close()

    def create(self) -> Writer:
        ids = ["id00", "id02", "id05"]
        rows = [self.script.row(one, 0, "c0") for one in ids]
        block = pa.Table.from_pylist(rows, ROWS), self.vectors(ids)
        with self.changing("deep/gallery", lambda: state(writer)):
            script = self.script
            writer = Writer.create(self.path, script.MODEL, script.DIMENSION, [block], HNSW)
        return writer

    def write(self, writer: Writer, operation: str, ids: list[str]) -> None:
        self.version += 1
        chosen = [[one, "c0"] for one in ids]
        with self.changing("deep/gallery", lambda: state(writer)):
            self.script.perform(writer, operation, chosen, self.version)

    def refuse(self, writer: Writer) -> None:
        """Let the disk fail once a whole record is written, which is then taken away."""
        before, sync = state(writer), os.fsync
        found, kept, deleted = before
        row = self.script.row("id07", 99, "c0")
        new = {"id07": (row["identity"], row["image"], self.script.vector("id07", 99).tobytes())}
        calls = iter([refused, sync])
        changing = self.changing(
            "deep/gallery", lambda: before, (found | new, [*kept, "id07"], deleted)
        )
        with self.patch.context() as patched, changing:
            patched.setattr(os, "fsync", lambda descriptor: next(calls)(descriptor))
            with pytest.raises(ValueError, match="it was not kept"):
                self.script.perform(writer, "enrol", [["id07", "c0"]], 99)

    def snapshot(self, writer: Writer, name: str) -> None:
        with self.changing(name, lambda: state(writer)):
            writer.snapshot(self.disk.root / name)
        self.disk.settle()

    def vectors(self, ids: list[str]) -> np.ndarray:
        return np.stack([self.script.vector(one, self.version) for one in ids])

    @contextmanager
    def changing(self, name: str, after: Callable[[], Any], *others: Any) -> Iterator[None]:
        """Meanwhile there may be what was before, what comes after or others; then only that."""
        during = [*self.allowed.get(name, [None]), *others]
        self.allowed = {**self.allowed, name: during}
        self.disk.promise = self.allowed
        yield
        during.append(after())
        self.allowed = {**self.allowed, name: during[-1:]}
        self.disk.promise = self.allowed
        self.disk.look()


def refused(*_: Any) -> None:
    raise OSError(errno.EIO, "the disk refuses")


def judge(path: Path, states: list[Any]) -> str | None:
    """What is wrong with the gallery that a failure left."""
    if not (path / CURRENT).exists():
        return None if None in states else "it is gone"
    try:
        with Writer(path) as writer:
            wrong = writer.check()
            found = state(writer)
    except ValueError as error:
        return str(error)
    if wrong:
        return wrong[0]
    if found in states:
        return None
    return f"it holds {sorted(found[0])}, not one of {[one and sorted(one[0]) for one in states]}"


def failures(
    path: Path,
    crash_model: ModuleType,
    script: ModuleType,
    patch: pytest.MonkeyPatch,
    skip: tuple[str, int] | None = None,
) -> tuple[int, str | None]:
    """Syncs that were skipped, and the first failure that breaks a promise."""
    (path / "disk").mkdir()
    disk = crash_model.Disk(path / "disk", LOCK)
    with disk.recording(patch, skip):
        Story(disk, script, patch).tell()
    with patch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        return disk.skipped, disk.broken(path / "left", judge)


@pytest.mark.slow
def test_no_power_failure_loses_or_halves_a_write(
    tmp_path: Path,
    crash_model: ModuleType,
    gallery_writer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert failures(tmp_path, crash_model, gallery_writer, monkeypatch) == (0, None)


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{Path(site[0]).name}:{site[1]}")
def test_without_any_one_sync_a_power_failure_breaks_a_promise(
    site: tuple[str, int],
    tmp_path: Path,
    crash_model: ModuleType,
    gallery_writer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skipped, broken = failures(tmp_path, crash_model, gallery_writer, monkeypatch, site)
    assert skipped > 0, "the story does not come to this sync"
    assert broken is not None
