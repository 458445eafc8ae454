"""Bare matrix products on every core, and works timed in turn: what speed is held against."""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.cores import every_core
from ray_reid.ranking.neighbours import slices

Floats = NDArray[np.float32]
BLOCK = 512


def multiply(left: Floats, right: Floats) -> None:
    """Multiply (N, D) by (M, D) transposed, block by block, and keep nothing."""

    def block(pair: tuple[slice, slice]) -> int:
        return (left[pair[0]] @ right[pair[1]].T).size

    pairs = [(i, j) for i in slices(len(left), BLOCK) for j in slices(len(right), 8 * BLOCK)]
    with every_core() as cores:
        cores.map(block, pairs)


def in_turn(works: Sequence[Callable[[], object]], runs: int, cpu: bool) -> list[float]:
    """Fastest seconds of each work, all run one after another and all over again.

    Seconds of the processor, shared by its cores, where `cpu`: for machines with other work.
    """
    clock, share = (time.process_time, _cores()) if cpu else (time.perf_counter, 1)
    seconds = [float("inf")] * len(works)
    for _ in range(runs):
        for number, work in enumerate(works):
            start = clock()
            work()
            seconds[number] = min(seconds[number], (clock() - start) / share)
    return seconds


def _cores() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
