"""Retrieval metrics as Market-1501 defines them (Zheng et al., ICCV 2015), and ROC.

AP is the rectangle, the mean of the precisions at the true matches, or the trapezoid of the
data set's own code, which averages each with the precision just before it: half a point to three
apart. mINP is the mean share of true matches among the images down to the last of them (Ye et al.,
TPAMI 2021). Rank-k counts images; rank-k over subjects counts whom they show, each once, which is
what a refinement that ranks subjects is to be judged by.

Nothing is sorted, for all these figures need is the rank of each true match, and a rank is a count:
1 + the true matches above + the wrong images as similar or more similar. A table of the query's
thresholds gives for each value at once how many matches it reaches. `inputs` lays the images of an
identity side by side, `proxies` makes the rows of similarities, block by block, `count_kernels`
counts in them, and `ranks` and `verification` put these together.

Two similarities tie if they are equal on a grid of 2**-30. Similarity is the inner product of the
rows as given, summed in double precision, over the product of their lengths. Of images that tie the
wrong ones come first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

# Others compare similarities as the metrics do.
from ray_reid.ranking.grid import GRID as GRID
from ray_reid.ranking.labels import Labels

Protocol = Literal["market", "sc", "cc"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
AveragePrecision = Literal["rectangle", "trapezoid"]
AVERAGE_PRECISIONS: tuple[str, ...] = get_args(AveragePrecision)

RULES: Mapping[Protocol, int] = {"market": 0, "sc": 1, "cc": 2}
"""What clothes a match wears, as `match_kernels` numbers it."""

# Similarities in memory at a time in each thread: twice 16 MB in single precision.
BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Metrics:
    """What a set of queries found in a gallery; every share is between 0 and 1."""

    mAP: float
    cmc: NDArray[np.float64]
    """(G,) share of queries with a true match among the first 1, 2, ... images."""
    mINP: float
    num_queries: int
    """Queries that were scored."""
    num_skipped: int
    """Queries left out because no true match of theirs is in the gallery."""
    ap: NDArray[np.float64]
    """(Q,) average precision of each query, NaN where it was skipped."""
    inp: NDArray[np.float64]
    """(Q,) inverse negative penalty of each query, likewise."""
    first: NDArray[np.int64]
    """(Q,) rank of its first true match, from 1; 0 where it was skipped."""
    place: NDArray[np.int64]
    """(Q,) rank of its subject among subjects, likewise."""
    changes: tuple[Mapping[str, str | int], ...] = ()
    """What each step of a post-processing before it changed."""

    def rank(self, k: int) -> float:
        """CMC at rank k; in a gallery of fewer images, at its last rank."""
        return float(self.cmc[min(k, len(self.cmc)) - 1])

    def subject_rank(self, k: int) -> float:
        """Share of queries whose subject is among the first k subjects.

        A subject is where its most similar image is that is not junk; a null identity is a subject
        of its own. At k = 1 it is `rank(1)`.
        """
        return int(((self.place > 0) & (self.place <= k)).sum()) / self.num_queries


def evaluate(
    query: NDArray[Any],
    gallery: NDArray[Any],
    *,
    query_identity: Labels,
    gallery_identity: Labels,
    query_camera: Labels | None = None,
    gallery_camera: Labels | None = None,
    query_clothes: Labels | None = None,
    gallery_clothes: Labels | None = None,
    protocol: Protocol = "market",
    average_precision: AveragePrecision = "rectangle",
    gallery_track: Labels | None = None,
) -> Metrics:
    """Rank the gallery for every query by cosine similarity and score the rankings.

    `query` is (Q, D) and `gallery` (G, D), of any length: they are normalised here, and a zero row
    is similar to nothing. Gallery images of the query's identity from the query's camera are junk:
    they are taken out of its ranking. A null camera equals no camera, and a null identity (a
    distractor) no identity. A query without a true match is skipped and counted. Ties are
    pessimistic: of equally similar images (to 2**-30) the wrong ones come first, so no order of
    the rows changes a figure.

    Args:
        protocol: What else of the query's identity is junk. `market`: nothing, it does not look at
            clothes. `cc` (clothes-changing): images in the query's clothes. `sc` (same clothes):
            images in others. Null clothes are like no others, so `cc` keeps them.
        average_precision: Which of the two definitions; see the module.
        gallery_track: With it the gallery is one of tracks, each as similar as the most similar
            of its images (VeRi-776, image to track); a null track is an image of its own.

    Raises:
        ValueError: If a choice is unknown, shapes or lengths disagree, an embedding is not finite,
            only one side has cameras, a protocol lacks its clothes, a track mixes identities,
            cameras or clothes, or no query has a true match.
    """
    rule = _rule(protocol, query_clothes)
    trapezoid = _is_trapezoid(average_precision)
    # numba is loaded where it is used, so that a command that scores nothing starts fast.
    from ray_reid.ranking import ranks
    from ray_reid.ranking.inputs import num_matches, prepare

    inputs = prepare(
        (query, gallery),
        (query_identity, gallery_identity),
        (query_camera, gallery_camera),
        (query_clothes, gallery_clothes),
        gallery_track,
    )
    matches = num_matches(inputs, rule)
    valid = inputs.by_identity(np.flatnonzero(matches))
    inputs = inputs.of_queries(valid)
    scores = ranks.rank(inputs, rule, matches[valid], trapezoid, BLOCK)
    return _summary(scores, valid, len(matches), inputs.num_items)


def evaluate_within(
    query: NDArray[Any],
    gallery: NDArray[Any],
    query_group: NDArray[np.int64],
    gallery_group: NDArray[np.int64],
    *,
    query_identity: Labels,
    gallery_identity: Labels,
    **known: Any,
) -> Metrics:
    """Rank for every query the gallery images of its own group alone, and score the rankings.

    Args:
        query: (Q, D)
        gallery: (G, D)
        query_group: (Q,) number of the group of each query.
        gallery_group: (G,) likewise.
        query_identity: See `evaluate`, as all others; they may not be labels of single images.
        gallery_identity: Likewise.

    Returns:
        As `evaluate`; `cmc` is as long as the largest group.

    Raises:
        ValueError: As `evaluate`, in any of the groups.
    """
    ap, inp = np.full(len(query), np.nan), np.full(len(query), np.nan)
    rank, place = np.zeros((2, len(query)), np.int64)
    largest = 1
    for group in np.unique(query_group):
        asking, answering = (
            np.flatnonzero(numbers == group) for numbers in (query_group, gallery_group)
        )
        found = evaluate(
            query[asking],
            gallery[answering],
            query_identity=[query_identity[row] for row in asking.tolist()],
            gallery_identity=[gallery_identity[row] for row in answering.tolist()],
            **known,
        )
        ap[asking], inp[asking] = found.ap, found.inp
        rank[asking], place[asking] = found.first, found.place
        largest = max(largest, len(answering))
    valid = np.flatnonzero(rank)
    scores = ap[valid], inp[valid], rank[valid], place[valid]
    return _summary(scores, valid, len(query), largest)


def evaluate_similarity(
    similarity: NDArray[Any],
    *,
    query_identity: Labels,
    gallery_identity: Labels,
    query_camera: Labels | None = None,
    gallery_camera: Labels | None = None,
    query_clothes: Labels | None = None,
    gallery_clothes: Labels | None = None,
    protocol: Protocol = "market",
    average_precision: AveragePrecision = "rectangle",
    gallery_track: Labels | None = None,
    excluded: NDArray[np.bool_] | None = None,
) -> Metrics:
    """Score the rankings of given similarities (Q, G), as `evaluate` does those of embeddings.

    They may be any finite numbers, such as negative distances of re-ranking, and are compared as
    they are; of equal ones the wrong images come first.

    Args:
        similarity: (Q, G), higher is nearer.
        query_identity: See `evaluate`, as all other labels and choices.
        excluded: (Q, G) True where an image comes after all that are not; of those the wrong ones
            come first, so an excluded true match has been missed.

    Raises:
        ValueError: As `evaluate`; or if the similarities are not a matrix of finite numbers.
    """
    rule = _rule(protocol, query_clothes)
    trapezoid = _is_trapezoid(average_precision)
    from ray_reid.ranking import ranks
    from ray_reid.ranking.inputs import num_matches, prepare

    values = _similarities(similarity, excluded)
    inputs = prepare(
        (np.zeros((len(values), 1), np.float32), np.zeros((values.shape[1], 1), np.float32)),
        (query_identity, gallery_identity),
        (query_camera, gallery_camera),
        (query_clothes, gallery_clothes),
        gallery_track,
    )
    matches = num_matches(inputs, rule)
    valid = inputs.by_identity(np.flatnonzero(matches))
    values = values[np.ix_(valid, inputs.image)]
    if gallery_track is not None:
        values = np.maximum.reduceat(values, inputs.first[:-1], axis=1)
    inputs = inputs.of_queries(valid)
    scores = ranks.rank_given(inputs, rule, matches[valid], trapezoid, values)
    return _summary(scores, valid, len(matches), inputs.num_items)


def chosen(first: Metrics, second: Metrics, where: NDArray[np.bool_]) -> Metrics:
    """Take what queries score from `second` where a (Q,) mask says so, else from `first`.

    Both are of the same queries and the same gallery.
    """
    ap, inp, rank, place = (
        np.where(where, getattr(second, name), getattr(first, name))
        for name in ("ap", "inp", "first", "place")
    )
    valid = np.flatnonzero(rank)
    scored = ap[valid], inp[valid], rank[valid], place[valid]
    return _summary(scored, valid, len(ap), len(first.cmc))


@dataclass(frozen=True, eq=False)
class Roc:
    """Verification: how many genuine pairs pass where few impostor pairs do."""

    far: NDArray[np.float64]
    """(N,) false accept rates asked for."""
    tar: NDArray[np.float64]
    """(N,) share of genuine pairs accepted (TAR@FAR)."""
    threshold: NDArray[np.float64]
    """(N,) cosine similarity above which a pair is accepted; -inf accepts all."""
    num_genuine: int
    num_impostor: int


def roc(
    query: NDArray[Any],
    gallery: NDArray[Any],
    *,
    query_identity: Labels,
    gallery_identity: Labels,
    query_camera: Labels | None = None,
    gallery_camera: Labels | None = None,
    query_clothes: Labels | None = None,
    gallery_clothes: Labels | None = None,
    protocol: Protocol = "market",
    gallery_track: Labels | None = None,
    far: Sequence[float] = (1e-4, 1e-3, 1e-2),
) -> Roc:
    """True accept rate at false accept rates, over all pairs of a query and a gallery item.

    A pair of one identity is genuine unless it is junk (see `evaluate`), one of two identities an
    impostor, as is a query with a distractor. Queries with a null identity are left out. At a rate
    f of n impostors, the threshold is the similarity of impostor floor(f n) + 1 from the top: at
    most f n of them lie above it, and equals of it are refused. It is exact, on the grid of 2**-30.

    Raises:
        ValueError: As `evaluate`; if a rate is not between 0 and 1; or if no pair is an impostor.
    """
    from ray_reid.ranking.inputs import num_matches, prepare
    from ray_reid.ranking.verification import separate

    rates = np.asarray(far, dtype=np.float64)
    if rates.ndim != 1 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"far must be a list of rates between 0 and 1, not {far!r}")
    rule = _rule(protocol, query_clothes)
    inputs = prepare(
        (query, gallery),
        (query_identity, gallery_identity),
        (query_camera, gallery_camera),
        (query_clothes, gallery_clothes),
        gallery_track,
    )
    matches = num_matches(inputs, rule)
    named = inputs.by_identity(np.flatnonzero(inputs.query_labels[:, 2] >= 0))
    inputs = inputs.of_queries(named)
    num_impostor = int((inputs.num_items - np.diff(inputs.own, axis=1)).sum())
    if not num_impostor:
        raise ValueError("no pair is an impostor: all images have one identity")
    allowed = np.floor(rates * num_impostor).astype(np.int64)
    limited = allowed < num_impostor
    genuine, impostor = separate(inputs, rule, matches[named], allowed[limited], BLOCK)
    threshold = np.full(len(rates), -np.inf)
    threshold[limited] = impostor
    genuine.sort()
    passed = len(genuine) - np.searchsorted(genuine, threshold, "right")
    return Roc(rates, passed / len(genuine), threshold / GRID, len(genuine), num_impostor)


def unit(embeddings: NDArray[Any], side: str) -> NDArray[np.float64]:
    """L2-normalise (N, D) embeddings in double precision; zero rows stay zero.

    Raises:
        ValueError: If they are not a non-empty (N, D) array of finite numbers.
    """
    from ray_reid.ranking.inputs import measured

    rows, norm = measured(np.asarray(embeddings), side, np.float64)
    return rows / norm[:, None]


def _is_trapezoid(average_precision: str) -> bool:
    if average_precision not in AVERAGE_PRECISIONS:
        raise ValueError(
            f"unknown average_precision {average_precision!r}; choose from "
            f"{list(AVERAGE_PRECISIONS)}"
        )
    return average_precision == "trapezoid"


def _summary(
    scored: tuple[NDArray[Any], NDArray[Any], NDArray[np.int64], NDArray[np.int64]],
    valid: NDArray[np.int64],
    num_all: int,
    num_items: int,
) -> Metrics:
    """Figures of AP, INP, first rank and place of the queries `valid` among all."""
    ap, inp = np.full(num_all, np.nan), np.full(num_all, np.nan)
    rank, place = np.zeros((2, num_all), np.int64)
    ap[valid], inp[valid], rank[valid], place[valid] = scored
    first = np.bincount(scored[2] - 1, minlength=num_items)
    return Metrics(
        # Rounded once, so that the order of the queries does not matter.
        mAP=math.fsum(scored[0]) / len(valid),
        cmc=np.cumsum(first) / len(valid),
        mINP=math.fsum(scored[1]) / len(valid),
        num_queries=len(valid),
        num_skipped=num_all - len(valid),
        ap=ap,
        inp=inp,
        first=rank,
        place=place,
    )


def _similarities(
    similarity: NDArray[Any], excluded: NDArray[np.bool_] | None
) -> NDArray[np.floating[Any]]:
    """The values as float32 or float64, minus infinity where they are excluded."""
    values = np.asarray(similarity)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"similarity must be (Q, G) with Q, G > 0, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("similarity must not hold NaN or infinity")
    if excluded is None:
        return values
    if excluded.shape != values.shape or excluded.dtype != np.bool_:
        raise ValueError(
            f"excluded must be bool {values.shape} like similarity, not {excluded.dtype} "
            f"{excluded.shape}"
        )
    return np.where(excluded, values.dtype.type(-np.inf), values)


def _rule(protocol: Protocol, clothes: Labels | None) -> int:
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose from {list(PROTOCOLS)}")
    if protocol != "market" and clothes is None:
        raise ValueError(f"protocol {protocol!r} needs query_clothes and gallery_clothes")
    return RULES[protocol]
