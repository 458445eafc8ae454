"""Whether the nodes of a cluster hold some workers all at once, and how far these must shrink.

Plain arithmetic: Ray counts resources in ten-thousandths, and so does this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PARTS = 10_000
"""Of one CPU or GPU; Ray knows no smaller ones."""


@dataclass(frozen=True)
class Share:
    """CPUs and GPUs: what one worker asks for, or what one node has."""

    num_cpus: float
    num_gpus: float = 0.0


READER = Share(1.0)
"""The task that reads or writes, beside the actors of a stream."""


def fits(asked: Sequence[Share], nodes: Sequence[Share]) -> bool:
    """Return whether all workers fit at once, each whole on one node, the GPUs packed.

    CPUs are not packed, because Ray spreads workers over the nodes: each must find its CPUs
    wherever Ray put the others.
    """
    return _gpus_fit(asked, nodes) and all(
        _finds_cpus(one, [*asked[:place], *asked[place + 1 :]], nodes)
        for place, one in enumerate(asked)
    )


def shrunk(asked: Sequence[Share], nodes: Sequence[Share]) -> list[Share] | None:
    """Return what workers may ask for so that they and the reader fit at once.

    GPUs up to one are scaled by one factor and CPUs by another, neither more than it must. Several
    GPUs stay as they are: a model that needs them does not fit on fewer.

    Returns:
        None if no factors make room.
    """

    def scaled(cpu_parts: int, gpu_parts: int) -> list[Share]:
        return [_scaled(one, cpu_parts, gpu_parts) for one in asked]

    gpus = _largest(lambda parts: _gpus_fit(scaled(0, parts), nodes))
    cpus = _largest(lambda parts: fits([READER, *scaled(parts, gpus)], nodes))
    found = scaled(cpus, gpus)
    # A worker without a GPU would compute on the CPU.
    lost = any(one.num_gpus > 0 == few.num_gpus for one, few in zip(asked, found, strict=True))
    return None if lost or not fits([READER, *found], nodes) else found


def _finds_cpus(one: Share, others: Sequence[Share], nodes: Sequence[Share]) -> bool:
    """Whether the others cannot leave too few CPUs on every node that could take this worker."""
    need = _parts(one.num_cpus)
    rooms = [
        _parts(node.num_cpus) - need
        for node in nodes
        if node.num_cpus >= one.num_cpus and node.num_gpus >= one.num_gpus
    ]
    taken = [_parts(other.num_cpus) for other in others if other.num_cpus]
    # To block a node takes one worker at least, and more CPUs than the node has to spare.
    return len(taken) < len(rooms) or (bool(rooms) and sum(taken) <= sum(rooms))


def _gpus_fit(asked: Sequence[Share], nodes: Sequence[Share]) -> bool:
    """Whether the GPUs hold all workers, the largest first; a fraction shares one GPU."""
    free = [[PARTS] * int(node.num_gpus) for node in nodes]
    largest_first = sorted((_parts(one.num_gpus) for one in asked), reverse=True)
    return all(any(_take(gpus, need) for gpus in free) for need in largest_first)


def _take(gpus: list[int], need: int) -> bool:
    """Place a worker on the GPUs of a node if it fits; they hold what is free of each."""
    count, each = -(-need // PARTS), min(need, PARTS)
    # As Ray does, the fullest GPU that still has room.
    chosen = sorted(free for free in gpus if free >= each)[:count]
    if len(chosen) < count:
        return False
    for free in chosen:
        gpus.remove(free)
        gpus.append(free - each)
    return True


def _parts(amount: float) -> int:
    return round(amount * PARTS)


def _scaled(one: Share, cpu_parts: int, gpu_parts: int) -> Share:
    """Scale by ten-thousandths, down to a whole number of them."""
    gpus = one.num_gpus
    if gpus <= 1:
        gpus = _parts(gpus) * gpu_parts // PARTS / PARTS
    return Share(_parts(one.num_cpus) * cpu_parts // PARTS / PARTS, gpus)


def _largest(fitting: Callable[[int], bool]) -> int:
    """The largest number of parts that passes, by bisection; 0 if none does."""
    if fitting(PARTS):
        return PARTS
    low, high = 0, PARTS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fitting(middle) else (low, middle)
    return low
