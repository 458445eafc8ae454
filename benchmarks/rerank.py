"""What does k-reciprocal re-ranking cost beyond the products of all pairs, and how does it grow?

Times `rerank.k_reciprocal` at the size of VeRi-776 against bare float32 products of the same
embeddings measured in the same run, and its answer against the definition written with dense
matrices. Then approximate neighbours in growing galleries, with the recall of the 21 nearest.

Peers at that size, all with the same answer, on two cores where the product of 1,678 x 11,579 x
512 took 0.2 s, best of three: 27.7 s and 3 GB the best, 86 s and 4.6 GB the authors' function. The
first bar is a tenth of 27.7 s for 0.2 s of that product.
"""

import resource
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from support import references
from support.products import Floats, in_turn, multiply
from support.reporting import Figure, arguments, report

from ray_reid.ranking import rerank
from ray_reid.ranking.neighbours import nearest, unit

DIMENSIONS = 512
NUM_QUERIES, NUM_GALLERY, NUM_IDENTITIES = 1678, 11579, 200
# Images of an identity in the growing galleries, where the number of identities grows instead.
IMAGES = 30
GALLERIES = (25_000, 100_000, 200_000)
NEIGHBOURS = 21
RECALL_ROWS = 500
GROWING_NOISE = 1.0

PEER_BAR = 27.7 / 10 / 0.2
PRODUCT_BAR = 1.5
MEMORY_BAR = 1000.0
# Of the definition's mAP; the two differ by less than 1e-4.
MAP_BAR = 1 - 1e-4
GROWTH_BAR = 2.0

Ids = NDArray[np.int64]


def draw(count: int, centres: Floats, noise: float, seed: int) -> tuple[Floats, Ids]:
    """Embeddings around identity centres, and their identities."""
    chance = np.random.default_rng(seed)
    identity = chance.integers(len(centres), size=count)
    rows = noise * chance.standard_normal((count, DIMENSIONS), dtype=np.float32)
    rows += centres[identity]
    return rows, identity


def measure(runs: int, share: float, reference_share: float, cpu: bool) -> Iterator[Figure]:
    """The size of VeRi-776, or a share of it."""
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((NUM_IDENTITIES, DIMENSIONS), dtype=np.float32)
    query, _ = draw(max(2, round(NUM_QUERIES * share)), centres, 2, 1)
    gallery, _ = draw(max(2, round(NUM_GALLERY * share)), centres, 2, 2)
    ours = partial(rerank.k_reciprocal, query, gallery)
    ours()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = np.concatenate([query, gallery])
    works = (ours, partial(np.matmul, query, gallery.T), partial(multiply, rows, rows))
    seconds, product, all_pairs = in_turn(works, runs, cpu)
    size = f"{len(query)} x {len(gallery)} x {DIMENSIONS}"
    yield Figure(f"{size}, beside its product", seconds, "s", product, PEER_BAR)
    yield Figure(f"{size}, beside all pairs' products", seconds, "s", all_pairs, PRODUCT_BAR)
    yield Figure(f"{size}, peak memory of the process", memory, "MB", bar=MEMORY_BAR)

    query, query_identity = draw(max(2, round(NUM_QUERIES * reference_share)), centres, 3, 3)
    gallery, gallery_identity = draw(max(2, round(NUM_GALLERY * reference_share)), centres, 3, 4)
    few = partial(rerank.k_reciprocal, query, gallery)
    dense = partial(references.k_reciprocal, query, gallery)
    seconds, reference = in_turn((few, dense), 1, cpu)
    size = f"{len(query)} x {len(gallery)} x {DIMENSIONS}"
    yield Figure(f"{size}, beside the dense definition", seconds, "s", reference)
    found, expected = (
        references.mean_average_precision(distances, query_identity, gallery_identity)
        for distances in (few(), dense())
    )
    yield Figure(f"{size}, mAP beside the definition's", found, "mAP", expected, MAP_BAR)


def grow(galleries: list[int], cpu: bool) -> Iterator[Figure]:
    """Approximate neighbours and the whole re-ranking for more and more gallery images."""
    before = None
    for count in galleries:
        chance = np.random.default_rng(0)
        shape = max(1, count // IMAGES), DIMENSIONS
        centres = chance.standard_normal(shape, dtype=np.float32)
        gallery, gallery_identity = draw(count, centres, GROWING_NOISE, 1)
        query, query_identity = draw(min(count, 100), centres, GROWING_NOISE, 2)

        def work(query: Floats = query, gallery: Floats = gallery) -> None:
            blocks = rerank.k_reciprocal_blocks(query, gallery, neighbours="approximate")
            for _ in blocks:
                pass

        [seconds] = in_turn([work], 1, cpu)
        yield Figure(f"{count:,} in the gallery, approximate", seconds, "s")
        each = 1000 * seconds / count
        if before:
            yield Figure(f"{count:,} in the gallery, per image", each, "ms", before, GROWTH_BAR)
        before = before or each
        rows = unit(gallery, "gallery")
        picked = chance.choice(count, min(count, RECALL_ROWS), replace=False)
        true = np.argpartition(-(rows[picked] @ rows.T), NEIGHBOURS - 1, axis=1)
        near = nearest(rows, NEIGHBOURS, "approximate").rows[picked]
        shares = [
            np.isin(here, there).mean()
            for here, there in zip(true[:, :NEIGHBOURS], near, strict=True)
        ]
        recall = float(np.mean(shares))
        yield Figure(f"{count:,} in the gallery, recall of {NEIGHBOURS}", recall, "share")
        if count == galleries[0]:
            approximate, exact = (
                references.mean_average_precision(
                    rerank.k_reciprocal(query, gallery, neighbours=kind),
                    query_identity,
                    gallery_identity,
                )
                for kind in ("approximate", "exact")
            )
            yield Figure(f"{count:,} in the gallery, mAP; exact", approximate, "mAP", exact)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of which the best counts")
    parser.add_argument("--share", type=float, default=1.0, help="part of VeRi-776's images")
    parser.add_argument(
        "--reference-share", type=float, default=0.1, help="part that the definition re-ranks"
    )
    parser.add_argument(
        "--galleries", type=int, nargs="*", default=GALLERIES, help="sizes, smallest first"
    )
    parser.add_argument("--cpu", action="store_true", help="processor time, for a busy machine")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs {options.runs} is too few; choose at least 1")
    for name in ("share", "reference_share"):
        if not 0.01 <= getattr(options, name) <= 1:
            parser.error(f"--{name.replace('_', '-')} must be between 0.01 and 1")
    if min(options.galleries, default=NEIGHBOURS) < NEIGHBOURS:
        parser.error(f"--galleries must be {NEIGHBOURS} or more")
    figures = [
        measure(options.runs, options.share, options.reference_share, options.cpu),
        grow(list(options.galleries), options.cpu),
    ]
    report((figure for part in figures for figure in part), options.json)


if __name__ == "__main__":
    main()
