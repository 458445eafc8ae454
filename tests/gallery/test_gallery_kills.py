"""Writers killed with SIGKILL at any instant, and readers beside a writer that goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ray_reid.gallery.embedded.store import Reader
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer


@dataclass(frozen=True)
class State:
    """What a gallery should hold."""

    model: str
    rows: dict[str, tuple[int, str, bytes]]
    kept: frozenset[str] = frozenset()
    deleted: frozenset[str] = frozenset()


class Writers:
    """The process that forks writers, and what the last of them has said."""

    def __init__(self, script: ModuleType) -> None:
        self.script = script
        self._process = subprocess.Popen(
            [sys.executable, str(script.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self.said: list[str] = []
        self.pid = 0

    def start(self, path: Path, mode: str, seed: int) -> None:
        self.said = []
        self._process.stdin.write(f"{path} {mode} {seed}\n")
        self._process.stdin.flush()
        self.pid = 0
        while not self.pid:
            self.hear()

    def hear(self) -> str:
        line = self._process.stdout.readline().rstrip("\n")
        assert line, "the writers are gone"
        if line.startswith("pid "):
            self.pid = int(line[4:])
        else:
            self.said.append(line)
        return line

    def kill(self) -> None:
        """Kill the writer, and hear all that it said before."""
        os.kill(self.pid, signal.SIGKILL)
        while self.hear() != "end":
            pass

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=20)


@pytest.fixture
def writers(gallery_writer: ModuleType) -> Iterator[Writers]:
    found = Writers(gallery_writer)
    yield found
    found.close()


def after(state: State, said: str, script: ModuleType) -> State:
    """What a write makes of a state."""
    operation, chosen, version = json.loads(said.removeprefix("do "))
    ids = [one for one, _ in chosen]
    if operation == "compact":
        return state
    if operation == "seed":
        hidden = state.kept | state.deleted
        seeded = {one for one in script.INDEXED if one not in hidden}
        rows = {one: (0, "c0", script.picture(one, 0)) for one in seeded}
        own = {one: state.rows[one] for one in state.kept}
        return replace(state, model=ids[0], rows=rows | own)
    if operation in ("enrol", "update"):
        rows = dict(state.rows)
        for one, camera in chosen:
            image = script.picture(one, version)
            rows[one] = (version, camera, image)
            if operation == "update":
                rows[one] = (version, *state.rows[one][1:])
        return replace(
            state, rows=rows, kept=state.kept.union(ids), deleted=state.deleted.difference(ids)
        )
    if operation == "delete_where":
        ids = [one for one, row in state.rows.items() if row[1] == chosen[0][1]]
    rows = {one: row for one, row in state.rows.items() if one not in ids}
    return replace(
        state, rows=rows, kept=state.kept.difference(ids), deleted=state.deleted.union(ids)
    )


def stored(path: Path, script: ModuleType) -> State:
    """The gallery on the disk; every vector must be the one of its row's version and model."""
    rows = {}
    with Reader(path) as reader:
        assert reader.check() == []
        view = reader.view()
        for number in view.numbers(Where()):
            row = view.full(number)
            version = int(row["identity"][1:])
            rows[view.id(number)] = (version, row["camera"], row["image"])
            expected = script.vector(view.id(number), version, reader.model)
            np.testing.assert_array_equal(view.vector(number), expected)
        edits = reader.edits
        return State(reader.model, rows, frozenset(edits.kept), frozenset(edits.deleted))


def kill_writers(path: Path, writers: Writers, kills: int) -> dict[str, int]:
    """Kill writers of one gallery one after another; counts what they were doing."""
    script = writers.script
    for model in script.MODELS:
        script.make_index(path.parent / "indexes", model, {"kind": "flat"})
    Writer.create(path, script.MODEL, script.DIMENSION).close()
    chance = random.Random(0)
    state = State(script.MODEL, {})
    interrupted: dict[str, int] = {}
    for seed in range(1, kills + 1):
        writers.start(path, "random", seed)
        wanted = {0: 'do ["compact"', 2: 'do ["seed"'}.get(seed % 4, "do ")
        for _ in range(1 if seed % 2 == 0 else chance.randint(1, 8)):
            while not writers.hear().startswith(wanted):
                pass
        time.sleep(chance.uniform(0, 0.008))
        writers.kill()
        spoken = [line for line in writers.said if line.startswith("do ")]
        acknowledged = writers.said.count("ok")
        for line in spoken[:acknowledged]:
            state = after(state, line, script)
        found = stored(path, script)
        if len(spoken) > acknowledged:
            operation = json.loads(spoken[-1][3:])[0]
            interrupted[operation] = interrupted.get(operation, 0) + 1
            assert found in (state, after(state, spoken[-1], script))
            state = found
        assert found == state
    with Writer(path) as writer:
        writer.compact()
    assert stored(path, script) == state
    return interrupted


def test_no_kill_of_a_writer_loses_or_halves_a_write(tmp_path: Path, writers: Writers) -> None:
    interrupted = kill_writers(tmp_path / "gallery", writers, 25)
    assert sum(interrupted.values()) > 0


@pytest.mark.drill
def test_two_hundred_kills_lose_nothing(tmp_path: Path, writers: Writers) -> None:
    interrupted = kill_writers(tmp_path / "gallery", writers, 220)
    assert interrupted["compact"] >= 10
    assert interrupted["seed"] >= 10
    assert len(interrupted) >= 4


def test_readers_see_whole_writes_only_and_never_an_older_state(
    tmp_path: Path, writers: Writers
) -> None:
    path = tmp_path / "gallery"
    script = writers.script
    Writer.create(path, script.MODEL, script.DIMENSION).close()
    writers.start(path, "all", 1)
    while writers.hear() != "ok":
        pass
    seen: list[int] = []
    with Reader(path) as reader:
        for _ in range(60):
            reader.refresh()
            seen.append(version_of(reader.view(), script))
    writers.kill()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    # The last version that was acknowledged is there.
    assert version_of(Reader(path).view(), script) >= writers.said.count("ok")


def version_of(view: Any, script: ModuleType) -> int:
    identities = view.identities(np.array(view.numbers(Where())))
    assert len(identities) == len(script.IDS)
    (identity,) = set(identities)
    version = int(identity[1:])
    for number in view.numbers(Where()):
        expected = script.vector(view.id(number), version)
        np.testing.assert_array_equal(view.vector(number), expected)
    return version
