"""What does refining predictions cost beyond the products of queries and variants with the gallery?

Times `refine.refine` at the size of PRCC, with six variants of each query and lists of five,
against the bare float32 products of the same embeddings measured in the same run; then with
embeddings of 8 numbers, where products weigh little; then the definitions written as loops, on a
few of the queries.

Peers: DLCR's paper reports 642.6 images/s for its Algorithm 1 on an A100. The released rule's
loop reached about 900 queries/s on two cores beside the products, a vectorised trial 35,000.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support import references
from support.products import in_turn, multiply
from support.reporting import Figure, arguments, report

from ray_reid.ranking.refine import Rule, refine

DIMENSIONS, NUM_QUERIES, NUM_GALLERY, NUM_IDENTITIES = 512, 3543, 3384, 71
NUM_VARIANTS = 6
SHORT = 8
RULES: tuple[Rule, ...] = ("paper", "released")
LOOPED_QUERIES = 20

PAPER_BAR = 642.6
PRODUCT_BAR = 1.5
REST_BAR = 20_000.0


def measure(runs: int, share: float, cpu: bool) -> Iterator[Figure]:
    """Every rule, at a share of the size."""
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((NUM_IDENTITIES, DIMENSIONS), dtype=np.float32)
    count, size = (max(1, round(whole * share)) for whole in (NUM_QUERIES, NUM_GALLERY))

    def around(identity: NDArray[Any]) -> NDArray[Any]:
        shape = (*identity.shape, DIMENSIONS)
        return centres[identity] + 2 * chance.standard_normal(shape, dtype=np.float32)

    wanted = chance.integers(NUM_IDENTITIES, size=count)
    identity = chance.integers(NUM_IDENTITIES, size=size)
    query, gallery = around(wanted), around(identity)
    variants = around(np.repeat(wanted[:, None], NUM_VARIANTS, axis=1))
    views = np.concatenate([query[:, None], variants], axis=1).reshape(-1, DIMENSIONS)
    product = partial(multiply, views, gallery)
    case = f"{count} x {1 + NUM_VARIANTS} x {size}"
    for rule in RULES:
        whole = partial(refine, query, variants, gallery, identity, rule=rule)
        rest = partial(
            refine,
            query[:, :SHORT],
            variants[..., :SHORT],
            gallery[:, :SHORT],
            identity,
            rule=rule,
        )
        # Compiled code is loaded before a clock starts.
        whole()
        rest()
        seconds, bare, alone = in_turn((whole, product, rest), runs, cpu)
        yield Figure(f"{rule}, {case}", count / seconds, "queries/s", bar=PAPER_BAR)
        yield Figure(f"{rule}, {case}, beside the products", seconds, "s", bare, PRODUCT_BAR)
        yield Figure(
            f"{rule}, {case}, {SHORT} dimensions", count / alone, "queries/s", bar=REST_BAR
        )
        loop = references.refined_rankings if rule == "paper" else references.released_similarity
        few = slice(0, min(count, LOOPED_QUERIES))
        looped = partial(loop, query[few], variants[few], gallery, identity.tolist())
        [slow] = in_turn((looped,), 1, cpu)
        yield Figure(
            f"{rule}, {case}, beside the loops",
            count / seconds,
            "queries/s",
            few.stop / slow,
        )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of which the best counts")
    parser.add_argument("--share", type=float, default=1.0, help="part of PRCC's images")
    parser.add_argument("--cpu", action="store_true", help="processor time, for a busy machine")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs {options.runs} is too few; choose at least 1")
    if not 0.01 <= options.share <= 1:
        parser.error(f"--share {options.share} must be between 0.01 and 1")
    report(measure(options.runs, options.share, options.cpu), options.json)


if __name__ == "__main__":
    main()
