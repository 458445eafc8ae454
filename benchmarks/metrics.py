"""What does scoring a retrieval cost beyond the matrix product that no scorer can avoid?

Times `metrics.evaluate` at the sizes of VeRi-776 and Market-1501 against one bare float32
product of the same embeddings, measured in the same run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from support.reporting import Figure, arguments, best, report

from ray_reid import metrics

DIMENSIONS = 512
# Limit on measured / reference. The product in double precision costs two of it.
BAR = 4.0


@dataclass(frozen=True)
class Size:
    """Counts of a benchmark's test set."""

    name: str
    num_queries: int
    num_gallery: int
    num_identities: int
    num_cameras: int


SIZES = (
    Size("VeRi-776", 1678, 11579, 200, 20),
    Size("Market-1501", 3368, 15913, 750, 6),
)


def draw(size: Size, share: float) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]]]:
    """Embeddings of query and gallery around identity centres, then identities, then cameras."""
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((size.num_identities, DIMENSIONS), dtype=np.float32)
    embeddings, identities, cameras = [], [], []
    for whole in (size.num_queries, size.num_gallery):
        count = max(1, round(whole * share))
        identity = chance.integers(size.num_identities, size=count)
        noise = chance.standard_normal((count, DIMENSIONS), dtype=np.float32)
        embeddings.append(centres[identity] + 2 * noise)
        identities.append(identity)
        cameras.append(chance.integers(size.num_cameras, size=count))
    return embeddings, [*identities, *cameras]


def measure(runs: int, share: float) -> Iterator[Figure]:
    """Measure every size."""
    for size in SIZES:
        (query, gallery), labels = draw(size, share)
        score = partial(
            metrics.evaluate,
            query,
            gallery,
            query_identity=labels[0],
            gallery_identity=labels[1],
            query_camera=labels[2],
            gallery_camera=labels[3],
        )
        product = partial(np.matmul, query, gallery.T)
        case = f"{size.name}, {len(query)} x {len(gallery)} x {DIMENSIONS}"
        yield Figure(case, best(score, runs), "s", best(product, runs), BAR)


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
