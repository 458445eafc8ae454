"""How fast does the miniature world draw, and how near is that to what the arithmetic allows?

Images per second of the street world with their JPEG, and the rays that the caster tests per
second beside the same test in a loop that does nothing else.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numba
import numpy as np
from support.reporting import Figure, arguments, report

from ray_reid.miniature import Shot, draw_shot, plan_street, vehicle_identities
from ray_reid.miniature.cameras import STREET
from ray_reid.miniature.caster_solids import enter_hull
from ray_reid.miniature.chance import generator
from ray_reid.miniature.drawing import arrange
from ray_reid.miniature.shapes import Floats
from ray_reid.miniature.staging import GRID, screen_bounds, trace

SIZE = (64, 64)
NUM_PROCESSES = 2
IMAGES_PER_IDENTITY = 16
IMAGES_BAR = 150.0
# The caster spends part of its time on ground, backdrop and light.
TESTS_BAR = 0.2


def images_per_second(shots: list[Shot]) -> float:
    with ProcessPoolExecutor(NUM_PROCESSES) as pool:
        # Each process loads the compiled kernels before the clock starts.
        list(pool.map(draw_shot, shots[: 4 * NUM_PROCESSES]))
        start = time.perf_counter()
        list(pool.map(draw_shot, shots, chunksize=32))
        return len(shots) / (time.perf_counter() - start)


def images_per_cpu_second(shots: list[Shot]) -> float:
    for shot in shots[:4]:
        draw_shot(shot)
    start = time.process_time()
    for shot in shots:
        draw_shot(shot)
    return len(shots) / (time.process_time() - start)


def tests_per_second(num_images: int) -> float:
    """Ray against solid, primary rays alone: how many pairs the caster looks at per second."""
    tests, seconds = 0, 0.0
    rays = np.array(SIZE) * GRID
    for number, vehicle in enumerate(vehicle_identities(num_images, 0)):
        camera = STREET[f"c{number % len(STREET) + 1}"]
        setting = arrange(vehicle, camera, generator("benchmark", number), SIZE)
        bounds = screen_bounds(setting.objects, setting.lens, SIZE)
        high = np.minimum(bounds[:, 1::2] + 1, rays)
        spans = np.maximum(0, high - np.maximum(0, bounds[:, ::2]))
        tests += int(spans.prod(axis=1).sum())
        arguments = (setting.objects, setting.lens, camera, setting.offsets, SIZE, False)
        trace(*arguments)
        start = time.process_time()
        trace(*arguments)
        seconds += time.process_time() - start
    return tests / seconds


@numba.njit(cache=True)
def _hammer(planes: Floats, directions: Floats) -> float:
    total = 0.0
    for i in range(len(directions)):
        dx, dy, dz = directions[i, 0], directions[i, 1], directions[i, 2]
        total += enter_hull(planes, 0, len(planes), -3.0, 0.1, 0.2, dx, dy, dz)[0]
    return total


def limit_of_tests() -> float:
    """The same test of a six-plane box in a loop that does nothing else."""
    planes = np.concatenate([np.eye(3), -np.eye(3)])
    planes = np.concatenate([planes, np.ones((6, 1))], axis=1)
    directions = np.random.default_rng(0).normal((1.0, 0.0, 0.0), 0.3, (400_000, 3))
    _hammer(planes, directions)
    start = time.process_time()
    _hammer(planes, directions)
    return len(directions) / (time.process_time() - start)


def measure(num_images: int) -> Iterator[Figure]:
    for kind, size in (("vehicle", SIZE), ("pedestrian", (64, 32))):
        shots = plan_street(kind, num_images // IMAGES_PER_IDENTITY, 0, 2, 8, 0, size)
        one, together = images_per_cpu_second(shots[:200]), images_per_second(shots)
        name = f"{kind} {size[0]}x{size[1]} with JPEG"
        yield Figure(f"{name}, per CPU second", one, "images/s", bar=IMAGES_BAR)
        yield Figure(f"{name}, {NUM_PROCESSES} processes", together, "images/s", bar=IMAGES_BAR)
        cores = min(NUM_PROCESSES, os.cpu_count() or 1)
        yield Figure(
            f"{name}, {NUM_PROCESSES} processes, of one each", together, "images/s", one * cores
        )
    achieved, limit = tests_per_second(32), limit_of_tests()
    yield Figure("ray-solid tests, no shadows", achieved, "tests/s", limit, TESTS_BAR)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--num-images", type=int, default=640, help="pictures per case")
    options = parser.parse_args()
    if options.num_images < IMAGES_PER_IDENTITY:
        parser.error(f"--num-images {options.num_images} is less than {IMAGES_PER_IDENTITY}")
    report(measure(options.num_images), options.json)


if __name__ == "__main__":
    main()
