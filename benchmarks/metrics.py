"""What does scoring a retrieval cost beyond the matrix product that no scorer can avoid?

Times `metrics.evaluate` at the sizes of VeRi-776 and Market-1501 against one bare float32
product of the same embeddings, measured in the same run.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ray_reid import metrics

DIMENSIONS = 512
# Limit on measured/reference. The product in double precision costs two; the rest runs on one
# core while the product has them all.
BAR = 8.0


@dataclass(frozen=True)
class Size:
    """Counts of a benchmark's test set."""

    case: str
    num_queries: int
    num_gallery: int
    num_identities: int
    num_cameras: int


SIZES = (
    Size("VeRi-776, 1678 x 11579 x 512", 1678, 11579, 200, 20),
    Size("Market-1501, 3368 x 15913 x 512", 3368, 15913, 750, 6),
)


@dataclass(frozen=True)
class Figure:
    """One measured case beside the bare product of the same run, in the same unit."""

    case: str
    measured: float
    unit: str
    reference: float
    ratio: float
    bar: float
    holds: bool


def draw(size: Size, seed: int = 0) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]]]:
    """Embeddings of query and gallery around identity centres, then identities, then cameras."""
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((size.num_identities, DIMENSIONS), dtype=np.float32)
    embeddings, labels, cameras = [], [], []
    for count in (size.num_queries, size.num_gallery):
        identity = chance.integers(size.num_identities, size=count)
        noise = chance.standard_normal((count, DIMENSIONS), dtype=np.float32)
        embeddings.append(centres[identity] + 2 * noise)
        labels.append(identity)
        cameras.append(chance.integers(size.num_cameras, size=count))
    return embeddings, [*labels, *cameras]


def seconds(work: Callable[[], object], runs: int) -> float:
    """Best wall time of several runs: the least disturbed by the machine's other work."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def measure(runs: int) -> Iterator[Figure]:
    """Measure every size."""
    for size in SIZES:
        (query, gallery), labels = draw(size)

        def product(q: NDArray[np.float32] = query, g: NDArray[np.float32] = gallery) -> object:
            return q @ g.T

        def score(
            q: NDArray[np.float32] = query,
            g: NDArray[np.float32] = gallery,
            columns: tuple[NDArray[np.int64], ...] = tuple(labels),
        ) -> object:
            return metrics.evaluate(
                q,
                g,
                query_identity=columns[0],
                gallery_identity=columns[1],
                query_camera=columns[2],
                gallery_camera=columns[3],
            )

        reference, measured = seconds(product, runs), seconds(score, runs)
        ratio = measured / reference
        yield Figure(
            case=size.case,
            measured=round(measured, 4),
            unit="s",
            reference=round(reference, 4),
            ratio=round(ratio, 2),
            bar=BAR,
            holds=ratio <= BAR,
        )


def main() -> None:
    """Measure and report; a bar that does not hold is a figure, not an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of which the best counts")
    parser.add_argument("--json", action="store_true", help="one JSON object per case")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs {options.runs} is too few; choose at least 1")
    layout = "{:<34} {:>9} {:>4} {:>10} {:>6} {:>5} {:>6}\n"
    if not options.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}"
        sys.stdout.write(f"{machine}; reference: one bare float32 product\n")
        titles = ("case", "measured", "unit", "reference", "ratio", "bar", "holds")
        sys.stdout.write(layout.format(*titles))
    for figure in measure(options.runs):
        line = asdict(figure)
        cells = [*list(line.values())[:-1], "yes" if figure.holds else "NO"]
        sys.stdout.write(json.dumps(line) + "\n" if options.json else layout.format(*cells))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
