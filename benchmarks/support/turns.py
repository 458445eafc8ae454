"""Sides of a comparison take turns in short blocks, so that all see the same machine."""

import time
from collections.abc import Callable

Step = Callable[[], object]

WARM_UP = 2
BLOCK_SECONDS = 0.5


def seconds_per_step(steps: dict[str, Step], budget: float, ahead: int = 0) -> dict[str, float]:
    """Mean seconds of each step, within `budget` seconds for all; a block has at least one step.

    Args:
        ahead: Steps that may have been prepared while another block ran; they are not counted.
    """
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    length = min(BLOCK_SECONDS, budget / len(steps))
    spent, done = dict.fromkeys(steps, 0.0), dict.fromkeys(steps, 0)
    while sum(spent.values()) < budget:
        for name, step in steps.items():
            for _ in range(ahead):
                step()
            start, block = time.perf_counter(), 0.0
            while block < length:
                step()
                done[name] += 1
                block = time.perf_counter() - start
            spent[name] += block
    return {name: spent[name] / done[name] for name in steps}
