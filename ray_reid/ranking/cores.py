"""Threads for kernels that release Python's lock, one per core, in which BLAS itself uses one.

What a thread has multiplied it works on while that is in the cache of its core.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Part = TypeVar("Part")
Done = TypeVar("Done")

# The number of BLAS threads belongs to the process, so one caller at a time may change it.
_blas = threading.Lock()


class Cores:
    """As many threads as BLAS has."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool, self.count = pool, count

    def map(self, work: Callable[[Part], Done], parts: Iterable[Part]) -> list[Done]:
        """The work on every part, in order."""
        if self.count == 1:
            return [work(part) for part in parts]
        return list(self._pool.map(work, parts))


@contextmanager
def every_core() -> Iterator[Cores]:
    """Take BLAS's threads for a while; who asks inside waits for ever."""
    from threadpoolctl import ThreadpoolController

    with _blas:
        blas = ThreadpoolController().select(user_api="blas")
        count = max((library["num_threads"] for library in blas.info()), default=1)
        with blas.limit(limits=1), ThreadPoolExecutor(count) as pool:
            yield Cores(pool, count)
