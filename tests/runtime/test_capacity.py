"""The arithmetic of fitting workers to nodes, with pretended nodes."""

import itertools

import pytest

from ray_reid.runtime.capacity import READER, Share, fits, shrunk

# Generator, detector and image-text model of the paper profiles.
PAPER = [Share(1, 1), Share(1, 0.25), Share(1, 0.25)]


@pytest.mark.parametrize(
    ("asked", "nodes", "found"),
    [
        (PAPER, [Share(16, 1)], [Share(1, 0.6667), Share(1, 0.1666), Share(1, 0.1666)]),
        (PAPER, [Share(16, 2)], PAPER),
        (PAPER, [Share(4, 1), Share(4, 1)], PAPER),
        # One GPU to two cores, of which one is the reader's.
        (PAPER, [Share(2, 1)],
         [Share(0.3333, 0.6667), Share(0.3333, 0.1666), Share(0.3333, 0.1666)]),
        # Several GPUs stay as they are, and fractions may share what they leave.
        ([Share(1, 2), Share(1, 0.25)], [Share(8, 2), Share(8, 1)], [Share(1, 2), Share(1, 0.25)]),
        ([Share(1, 2), Share(1, 1), Share(1, 0.25)], [Share(8, 3)],
         [Share(1, 2), Share(1, 0.8), Share(1, 0.2)]),
        # Two pools and three nodes: whatever node they are on, one is left.
        ([Share(1), Share(1)], [Share(1)] * 3, [Share(1), Share(1)]),
        # On two nodes they may lie on both, and nobody would read.
        ([Share(1), Share(1)], [Share(1)] * 2, [Share(0), Share(0)]),
        ([Share(16)], [Share(8)] * 3, [Share(8)]),
    ],
)  # fmt: skip
def test_workers_shrink_to_what_the_nodes_have(
    asked: list[Share], nodes: list[Share], found: list[Share]
) -> None:
    assert shrunk(asked, nodes) == found
    assert fits([READER, *found], nodes)


@pytest.mark.parametrize(
    ("asked", "nodes"),
    [
        ([Share(1, 1)], [Share(8)]),
        ([Share(1, 2)], [Share(8, 1), Share(8, 1)]),
        # What two GPUs are taken of has no place for a fraction.
        ([Share(1, 2), Share(1, 0.25)], [Share(8, 2)]),
        ([Share(1)], [Share(0.5)]),
    ],
)
def test_no_factor_makes_room_for_what_no_node_has(asked: list[Share], nodes: list[Share]) -> None:
    assert shrunk(asked, nodes) is None


@pytest.mark.parametrize("cpus", [*itertools.product((1.0, 4.0), (2.0, 5.0), (0.5, 6.0))])
def test_shrunk_pools_leave_a_reader_wherever_ray_puts_them(cpus: tuple[float, ...]) -> None:
    nodes = [Share(4), Share(8)]
    found = shrunk([Share(count) for count in cpus], nodes)
    assert found is not None
    for places in itertools.product(range(len(nodes)), repeat=len(cpus)):
        free = [node.num_cpus for node in nodes]
        for share, place in zip(found, places, strict=True):
            free[place] -= share.num_cpus
        # Ray never puts more on a node than it has.
        assert min(free) < 0 or max(free) >= READER.num_cpus
