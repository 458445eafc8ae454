"""The ranks of true matches, counted in blocks of similarities, and what they score.

By a block's bound of error the kernels decide what it lets them decide; the few pairs in doubt are
computed in double precision. So a count is a function of the rows alone: no block size, number of
threads or BLAS changes a figure. Where single precision leaves too much in doubt (a collapsed
model, to which all images are alike), the rest of the blocks are products in double precision.
"""

import numpy as np

from ray_reid.ranking.cores import every_core
from ray_reid.ranking.count_kernels import UNLIMITED, Ahead, count, count_given, nobody, score
from ray_reid.ranking.inputs import RankingInput
from ray_reid.ranking.match_kernels import match_similarities
from ray_reid.ranking.proxies import TOO_MANY, Precision, Proxies
from ray_reid.ranking.similarity_kernels import Floats, Integers

Scores = tuple[Floats, Floats, Integers, Integers]
"""AP, INP, first rank among items and rank among subjects of every query."""


def rank(
    inputs: RankingInput, rule: int, num_matches: Integers, trapezoid: bool, size: int
) -> Scores:
    """Score embeddings, by blocks of `size` similarities a thread.

    Args:
        inputs: Queries that have a match, and the gallery.
        rule: What clothes a match wears; see `match_kernels`.
        num_matches: (Q,) of each query.
        trapezoid: Which average precision.
        size: Similarities in memory at a time.
    """
    ap, inp, first, place = scores = _empty_scores(len(num_matches))
    with every_core() as cores:
        proxies = Proxies(inputs, size, cores)

        def score_stripe(rows: slice) -> None:
            ends = np.r_[0, np.cumsum(num_matches[rows])]
            grids = match_similarities(inputs, rule, rows.start, rows.stop, ends)
            counts = np.zeros(len(grids) + len(ends) - 1, dtype=np.int64)
            ahead = nobody(len(ends) - 1, inputs.subject)
            for tile in range(len(proxies.tiles)):
                _count_tile(proxies, rows, tile, grids, ends, counts, ahead)
            score(counts, ends, trapezoid, ap[rows], inp[rows], first[rows])
            place[rows] = 1 + ahead.number

        cores.map(score_stripe, proxies.stripes())
    return scores


def rank_given(
    inputs: RankingInput, rule: int, num_matches: Integers, trapezoid: bool, similarity: Floats
) -> Scores:
    """Score given similarities (Q, I), compared as they are; otherwise see `rank`."""
    ap, inp, first, place = scores = _empty_scores(len(num_matches))
    ends = np.append(0, np.cumsum(num_matches))
    counts = np.zeros(ends[-1] + len(num_matches), dtype=np.int64)
    ahead = nobody(len(num_matches), inputs.subject)
    count_given(inputs, rule, similarity, ends, counts, ahead)
    score(counts, ends, trapezoid, ap, inp, first)
    place[:] = 1 + ahead.number
    return scores


def _empty_scores(size: int) -> Scores:
    first, place = np.empty((2, size), dtype=np.int64)
    return np.empty(size), np.empty(size), first, place


def _count_tile(
    proxies: Proxies,
    rows: slice,
    tile: int,
    grids: Integers,
    ends: Integers,
    counts: Integers,
    ahead: Ahead,
) -> None:
    """Count a stripe's block in single precision as far as that goes, the rest in double."""
    done = 0
    if not proxies.single_is_vain:
        done = _count(proxies, rows, 0, tile, np.float32, grids, ends, counts, ahead)
    if done < len(ends) - 1:
        proxies.single_is_vain = True
        _count(proxies, rows, done, tile, np.float64, grids, ends, counts, ahead)


def _count(
    proxies: Proxies,
    rows: slice,
    done: int,
    tile: int,
    kind: Precision,
    grids: Integers,
    ends: Integers,
    counts: Integers,
    ahead: Ahead,
) -> int:
    """Count one block after its first `done` rows; return the number of its rows then done."""
    left = slice(rows.start + done, rows.stop)
    block, error = proxies.block(left, tile, kind)
    return done + count(
        proxies.inputs,
        block,
        error,
        proxies.shift[left],
        left.start,
        proxies.tiles[tile].start,
        grids,
        ends[done:],
        UNLIMITED if kind is np.float64 else int(TOO_MANY * block.size),
        # Each row has one count more than it has matches.
        counts[done:],
        Ahead(ahead.number[done:], ahead.known[done:]),
    )
