"""What does scoring a retrieval cost beyond the matrix product that no scorer can avoid?

Times `metrics.evaluate` at the sizes of VeRi-776, Market-1501 and MSMT17, with embeddings of a good
and of a useless model, against one bare float32 product of the same embeddings and against a full
argsort of every ranking, as most evaluations have it. Sides take turns, so that a busy machine
slows all of them. Memory is the peak of a fresh process with nothing but the embeddings.

The fastest other scorer that was measured on two cores, compiled Cython (as fast-reid and
torchreid have it), took for distances + ranking 0.20 + 0.95 s at VeRi's size, 0.57 + 2.8 s at
Market's (0.9 to 1.9 GB) and 8.3 + 71 s at MSMT17's (11.3 GB); an argsort in NumPy 0.7 s and 2.4 s
at the first two.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from support.reporting import Figure, arguments, report, timed

from ray_reid.ranking import metrics

DIMENSIONS = 512
# Queries of which a product is in memory at a time.
STRIPE = 2048
# Noise around an identity's centre: most matches come first, or hardly any.
NOISE = {"good": 2.0, "poor": 10.0}


@dataclass(frozen=True)
class Size:
    """Counts of a benchmark's test set."""

    name: str
    num_queries: int
    num_gallery: int
    num_identities: int
    num_cameras: int
    bar: float
    """Limit on measured / reference."""
    sorts: bool = True
    """Whether the argsort is measured too."""
    turns: int = 4
    """Each of `--runs` is so many turns: what takes a tenth of a second needs more of them."""


SIZES = (
    Size("VeRi-776", 1678, 11579, 200, 20, 2.0),
    Size("Market-1501", 3368, 15913, 750, 6, 2.0),
    Size("MSMT17", 11659, 82161, 3060, 15, 2.5, sorts=False, turns=1),
)
MEMORY_MB = 1500.0
REST = 0.1

Embeddings = list[NDArray[np.float32]]
Labels = list[NDArray[np.int64]]


def draw(size: Size, share: float, noise: float) -> tuple[Embeddings, Labels]:
    """Embeddings of query and gallery around identity centres, then identities, then cameras."""
    chance = np.random.default_rng(0)
    # A part of a set has fewer identities, not fewer images of each.
    num_identities = max(2, round(size.num_identities * share))
    centres = chance.standard_normal((num_identities, DIMENSIONS), dtype=np.float32)
    embeddings, identities, cameras = [], [], []
    for whole in (size.num_queries, size.num_gallery):
        count = max(1, round(whole * share))
        identity = chance.integers(num_identities, size=count)
        rows = chance.standard_normal((count, DIMENSIONS), dtype=np.float32)
        rows *= noise
        for start in range(0, count, STRIPE):
            rows[start : start + STRIPE] += centres[identity[start : start + STRIPE]]
        embeddings.append(rows)
        identities.append(identity)
        cameras.append(chance.integers(size.num_cameras, size=count))
    return embeddings, [*identities, *cameras]


def score(embeddings: Embeddings, labels: Labels) -> metrics.Metrics:
    return metrics.evaluate(
        *embeddings,
        query_identity=labels[0],
        gallery_identity=labels[1],
        query_camera=labels[2],
        gallery_camera=labels[3],
    )


def product(embeddings: Embeddings, out: NDArray[np.float32]) -> None:
    query, gallery = embeddings
    for start in range(0, len(query), STRIPE):
        rows = query[start : start + STRIPE]
        np.matmul(rows, gallery.T, out=out[: len(rows)])


def argsort(embeddings: Embeddings, labels: Labels) -> float:
    """The mAP by a full sort of every ranking."""
    query, gallery = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in embeddings)
    order = np.argsort(-(query @ gallery.T), axis=1)
    found = []
    for row in range(len(order)):
        same = labels[1][order[row]] == labels[0][row]
        hits = same[~(same & (labels[3][order[row]] == labels[2][row]))]
        ranks = np.flatnonzero(hits) + 1
        if len(ranks):
            found.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(found))


def rested(work: Callable[[], object]) -> float:
    """Seconds of the work once the last product's threads, which spin for a while, have stopped."""
    time.sleep(REST)
    return timed(work)


def peak_megabytes(size: Size, share: float) -> float:
    """Peak resident memory of this process after scoring; embeddings included."""
    score(*draw(size, share, NOISE["good"]))
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def measure(runs: int, share: float) -> Iterator[Figure]:
    """Measure every size."""
    # Compiled code is loaded, and if need be made, before anything counts.
    score(*draw(SIZES[0], 0.02, 1.0))
    for size in SIZES:
        for model, noise in NOISE.items():
            embeddings, labels = draw(size, share, noise)
            count, images = len(embeddings[0]), len(embeddings[1])
            out = np.empty((min(STRIPE, count), images), dtype=np.float32)
            works: list[Callable[[], object]] = [
                partial(score, embeddings, labels),
                partial(product, embeddings, out),
            ]
            sorts = size.sorts and model == "good"
            if sorts:
                works.append(partial(argsort, embeddings, labels))
            turns = [[rested(work) for work in works] for _ in range(runs * size.turns)]
            seconds = [min(times) for times in zip(*turns, strict=True)]
            case = f"{size.name}, {count} x {images} x {DIMENSIONS}, {model}"
            yield Figure(case, seconds[0], "s", seconds[1], size.bar)
            if sorts:
                yield Figure(f"{size.name}, argsort of all", seconds[2], "s", seconds[1])
    # A spawned process, for a forked one would begin with the memory of this one.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
        peak = fresh.submit(peak_megabytes, SIZES[-1], share).result()
    yield Figure(f"{SIZES[-1].name}, peak memory", peak, "MB", bar=MEMORY_MB)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of which the best counts")
    parser.add_argument("--share", type=float, default=1.0, help="part of the images to score")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs {options.runs} is too few; choose at least 1")
    if not 0.02 <= options.share <= 1:
        parser.error(f"--share {options.share} must be between 0.02 and 1")
    report(measure(options.runs, options.share), options.json)


if __name__ == "__main__":
    main()
