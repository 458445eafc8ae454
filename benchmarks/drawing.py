"""How fast does the miniature world draw, and how near is that to what the arithmetic allows?

python benchmarks/drawing.py          a table
python benchmarks/drawing.py --json   one JSON object per case
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numba
import numpy as np

from ray_reid.miniature import Shot, draw_shot, plan_street, vehicle_identities
from ray_reid.miniature.cameras import STREET
from ray_reid.miniature.caster_solids import enter_hull
from ray_reid.miniature.chance import generator
from ray_reid.miniature.drawing import arrange
from ray_reid.miniature.shapes import Floats
from ray_reid.miniature.staging import GRID, screen_bounds, trace

SIZE = (64, 64)
NUM_PROCESSES = 2
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


def case(
    name: str, measured: float, unit: str, reference: float | None, bar: float, share: bool = False
) -> dict[str, Any]:
    """`share` holds the ratio to the reference against the bar, otherwise the measure itself."""
    ratio = measured / reference if reference else None
    holds = (ratio if share and ratio is not None else measured) >= bar
    return {
        "case": name,
        "measured": round(measured, 1),
        "unit": unit,
        "reference": None if reference is None else round(reference, 1),
        "ratio": None if ratio is None else round(ratio, 3),
        "bar": bar,
        "holds": bool(holds),
    }


def cases(num_images: int) -> list[dict[str, Any]]:
    limit = limit_of_tests()
    achieved = tests_per_second(32)
    rows = []
    for kind, size in (("vehicle", SIZE), ("pedestrian", (64, 32))):
        identities = max(1, num_images // 16)
        shots = plan_street(kind, identities, 0, 2, 8, 0, size)
        one = images_per_cpu_second(shots[:200])
        together = images_per_second(shots)
        name = f"street {kind} {size[0]}x{size[1]} with JPEG"
        cores = min(NUM_PROCESSES, os.cpu_count() or 1)
        rows.append(case(name, together, "images/s, two processes", one * cores, IMAGES_BAR))
        rows.append(case(name, one, "images per CPU second", None, IMAGES_BAR))
    rows.append(
        case("ray-solid tests, no shadows", achieved, "tests/s", limit, TESTS_BAR, share=True)
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object per case")
    parser.add_argument("--num-images", type=int, default=640, help="pictures per case")
    arguments = parser.parse_args()
    rows = cases(arguments.num_images)
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
        return
    print(f"{'case':38} {'measured':>14} {'reference':>14} {'ratio':>6} {'bar':>6}  holds  unit")
    for row in rows:
        reference = "-" if row["reference"] is None else f"{row['reference']:.1f}"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(
            f"{row['case']:38} {row['measured']:14.1f} {reference:>14} {ratio:>6} "
            f"{row['bar']:6.1f}  {row['holds']!s:5}  {row['unit']}"
        )


if __name__ == "__main__":
    main()
