"""Progress bars on the driver for work that goes on in Ray workers."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.exceptions

from ray_reid.runtime.bars import bar
from ray_reid.runtime.patience import patient

Read = Callable[[], tuple[int, int] | tuple[int, int, str]]
"""What is done, of how much, and maybe a note."""


class Meter:
    """How far the workers are; they write it and the driver's bar reads it."""

    def __init__(self) -> None:
        """Start at nothing done of nothing."""
        self._state = (0, 0, "")

    def set(self, done: int, total: int, note: str = "") -> None:
        """Say how much is done, of how much, and what to write behind the bar."""
        self._state = (done, total, note)

    def get(self) -> tuple[int, int, str]:
        """What was said last."""
        return self._state


@contextmanager
def metered(name: str, unit: str) -> Iterator[Any]:
    """Draw a bar of what workers say; yields the `Meter` actor for them to set."""
    meter = beside_driver(Meter)
    try:
        with watched(name, unit, lambda: ray.get(meter.get.remote())):
            yield meter
    finally:
        ray.kill(meter)


def beside_driver(kind: type[Any], *arguments: Any) -> Any:
    """Start an actor that takes no resources on the driver's own node, so that no other ends it."""
    node = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node})(kind)
    return actor.remote(*arguments)


@contextmanager
def watched(name: str, unit: str, read: Read) -> Iterator[None]:
    """Draw a bar of what `read` gives while the block runs, and say when it waits for resources.

    Raises:
        ValueError: If it waits too long; see `patience`.
    """
    finished = threading.Event()
    # A log file wants a line now and then, not a moving picture.
    interval = 0.5 if sys.stderr.isatty() else 10.0
    line = bar(name, unit, interval=interval)

    def draw() -> None:
        # Where Ray has ended, or the actor that is read, the block's own wait says why.
        with suppress(ray.exceptions.RayError):
            while not finished.wait(0.5):
                _advance(line, read)
            _advance(line, read)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        with patient(name, lambda: line.n):
            yield
    finally:
        finished.set()
        thread.join(timeout=5)
        line.close()


def _advance(line: Any, read: Read) -> None:
    done, line.total, *note = read()
    line.set_postfix_str("".join(note), refresh=False)
    if done > line.n:
        line.update(done - line.n)
