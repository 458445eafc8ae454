"""A progress bar on the driver for work that goes on in Ray workers."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from tqdm import tqdm


class Meter:
    """How far the workers are; they write it and the driver's bar reads it."""

    def __init__(self) -> None:
        """Start at nothing done of nothing."""
        self._state = (0, 0)

    def set(self, done: int, total: int) -> None:
        """Say how much is done, and of how much."""
        self._state = (done, total)

    def get(self) -> tuple[int, int]:
        """What was said last."""
        return self._state


@contextmanager
def bar(name: str, unit: str) -> Iterator[Any]:
    """Draw a bar while the block runs; yields the `Meter` actor for the workers to set."""
    actor: Any = ray.remote(num_cpus=0)(Meter)
    meter = actor.remote()
    finished = threading.Event()

    def draw() -> None:
        # A log file wants a line now and then, not a moving picture.
        interval = 0.5 if sys.stderr.isatty() else 10.0
        with tqdm(desc=name, unit=unit, dynamic_ncols=True, mininterval=interval) as line:
            while not finished.wait(0.5):
                done, line.total = ray.get(meter.get.remote())
                if done > line.n:
                    line.update(done - line.n)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        finished.set()
        thread.join(timeout=5)
        ray.kill(meter)
