"""Streams that say of themselves what their stages did, and the memory they took meanwhile.

Every stage is wrapped in `Logged`, which writes a line of text for each batch: nothing passes
through the stream that does not pass without it.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from numpy.typing import NDArray

from ray_reid import images, schema, storage
from ray_reid.runtime import stage
from ray_reid.runtime.stage import Step
from ray_reid.schema import Batch

SAMPLE_SECONDS = 2.0
ENCODE = "encode"


@dataclass(frozen=True)
class Call:
    """One call of a stage; times in seconds since the epoch."""

    stage: str
    rows: int
    start: float
    end: float
    cpu: float
    """CPU seconds of the thread that ran it."""


@dataclass(frozen=True)
class Run:
    """One finished stream."""

    calls: Sequence[Call]
    started: float
    written: float
    """When the last file was complete, in seconds since the epoch."""
    ended: float
    watch: "Watch"

    @property
    def first(self) -> float:
        """When the first batch reached a stage."""
        return min(call.start for call in self.calls)

    @property
    def working(self) -> float:
        """Seconds from the first batch to the last write: all of it but the actors' start-up."""
        return self.written - self.first

    @property
    def whole(self) -> float:
        """Seconds of the call of `stream`, start-up and shut-down included."""
        return self.ended - self.started

    def busy(self, name: str | None = None) -> float:
        """CPU seconds inside one stage, or inside all."""
        return sum(call.cpu for call in self.calls if name in (None, call.stage))


class Logged:
    """Another stage, whose calls are written down."""

    def __init__(self, name: str, inner: type[Any], params: Mapping[str, Any], log: str) -> None:
        """Build the inner stage; `log` is a folder that all actors see."""
        self.name, self.inner = name, inner(**params)
        self.file = Path(log) / uuid.uuid4().hex

    def __call__(self, batch: Batch) -> Batch:
        return _logged(self.name, self.inner, batch, self.file)


def _logged(name: str, function: Callable[[Batch], Batch], batch: Batch, file: Path) -> Batch:
    """Call a function and add a line about it to a file that no other process writes."""
    start, cpu = time.time(), time.thread_time()
    result = function(batch)
    cpu = time.thread_time() - cpu
    rows = len(batch[schema.OBSERVATION_ID])
    with file.open("a") as sink:
        sink.write(json.dumps([name, rows, start, time.time(), cpu]) + "\n")
    return result


def _logged_encode(batch: Batch, function: Callable[[Batch], Batch], log: str) -> Batch:
    return _logged(ENCODE, function, batch, Path(log) / uuid.uuid4().hex)


class Pretend:
    """Stand for a model on an accelerator: sleep for every row, and make pixels if asked to."""

    def __init__(self, seconds: float, side: int | None = None) -> None:
        self.seconds, self.side = seconds, side

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        rows = len(batch[schema.OBSERVATION_ID])
        time.sleep(self.seconds * rows)
        if self.side is None:
            return dict(batch)
        pixels = np.empty(rows, dtype=object)
        # A copy a row, as a generator makes them.
        shape = (self.side, self.side, 3)
        pixels[:] = [images.pack(np.full(shape, row % 256, np.uint8)) for row in range(rows)]
        return {**batch, schema.PIXELS: pixels}


def run(
    source: Path | pa.Table,
    steps: Mapping[str, Step],
    out: Path,
    encode: Callable[[Batch], Batch] | None = None,
    by: str | None = None,
) -> Run:
    """Stream a table, on disk or in memory, through named stages into `out`, as jobs do.

    `by` is that of `stage.stream`: the column whose values are blocks.
    """
    log = out.with_name(f"{out.name}-log")
    log.mkdir(parents=True)
    logged = []
    for name, step in steps.items():
        params = {"name": name, "inner": step.stage, "params": step.params, "log": str(log)}
        logged.append(Step(Logged, params, step.spec, step.whole))
    if encode is not None:
        encode = partial(_logged_encode, function=encode, log=str(log))
    whole = storage.dataset(source) if isinstance(source, Path) else source
    columns = whole.schema.names
    started = time.time()
    with Watch() as watch:
        stage.stream(source, columns, logged, out, out.name, encode=encode, by=by)
    ended = time.time()
    lines = [line for file in log.iterdir() for line in file.read_text().splitlines()]
    written = max(file.stat().st_mtime for file in out.rglob("*.parquet"))
    return Run([Call(*json.loads(line)) for line in lines], started, written, ended, watch)


def plan(rows: int) -> pa.Table:
    """Rows without an image, as prompts are."""
    return schema.observations([
        {"observation_id": f"{row:032x}", "image": b"", "source": "made", "split": "train"}
        for row in range(rows)
    ])  # fmt: skip


class Watch:
    """Samples, while a block runs, of this process and everything that it has started."""

    def __init__(self) -> None:
        self.memory = 0
        """Peak of the private memory in bytes."""
        self.store = 0
        """Peak of the blocks in Ray's object store in bytes."""
        self._cpu: list[tuple[float, dict[int, float]]] = []
        self._stolen: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()

    def cpu(self, since: float) -> float:
        """CPU seconds of all processes since a time in seconds since the epoch."""
        before = {
            pid: spent for when, each in self._cpu if when < since for pid, spent in each.items()
        }
        after = {pid: spent for _, each in self._cpu for pid, spent in each.items()}
        return sum(spent - before.get(pid, 0.0) for pid, spent in after.items())

    def stolen(self, since: float) -> float:
        """CPU seconds since a time that the host of a virtual machine gave to others."""
        found = [total for when, total in self._stolen if when >= since]
        return found[-1] - found[0] if found else 0.0

    def _sample(self) -> None:
        driver = psutil.Process()
        has: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        while not self._ended.wait(SAMPLE_SECONDS):
            private, spent = 0, {}
            for process in [driver, *driver.children(recursive=True)]:
                try:
                    memory, times = process.memory_info(), process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                # What is shared is mostly the object store, which every worker maps.
                private += memory.rss - memory.shared
                spent[process.pid] = times.user + times.system
            self._cpu.append((time.time(), spent))
            self._stolen.append((time.time(), getattr(psutil.cpu_times(), "steal", 0.0)))
            free: Mapping[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            used = has["object_store_memory"] - free.get("object_store_memory", 0.0)
            self.memory, self.store = max(self.memory, private), max(self.store, int(used))
