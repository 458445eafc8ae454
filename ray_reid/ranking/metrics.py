"""Retrieval metrics as Market-1501 defines them (Zheng et al., ICCV 2015), and ROC.

AP is the rectangle, the mean of the precisions at the true matches, or the trapezoid of the
data set's own code, which averages each with the precision just before it: half a point to three
apart. mINP is the mean share of true matches among the images down to the last of them (Ye et al.,
TPAMI 2021).

Nothing is sorted, for all these figures need is the rank of each true match, and a rank is a count:
1 + the true matches above + the wrong images as similar or more similar. Gallery images of one
identity are laid side by side, so the wrong ones of a query are two plain stretches of its row of
similarities. A table of the query's thresholds tells for each value at once how many matches it
reaches. `ranking` makes the rows, block by block, and `counting` counts.

Two similarities tie if they are equal on a grid of 2**-30. Similarity is the inner product of the
rows as given, summed in double precision, over the product of their lengths. Of images that tie the
wrong ones come first.
"""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ray_reid.ranking import counting

Labels = Sequence[Hashable] | NDArray[Any]
"""One label per row; None or NaN is null. Arrow columns and pandas series do too."""
Protocol = Literal["market", "sc", "cc"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
AveragePrecision = Literal["rectangle", "trapezoid"]
AVERAGE_PRECISIONS: tuple[str, ...] = get_args(AveragePrecision)

RULES: Mapping[Protocol, int] = {"market": 0, "sc": 1, "cc": 2}
"""What clothes a match wears, as `counting` numbers it."""
SIDES = ("query", "gallery")
_Sides = tuple[Labels | None, Labels | None]

# Similarities are compared on this grid. It is coarse enough that vectors tie which are equal but
# for rounding, and finer than float32 embeddings can tell.
GRID = 2.0**30
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
    changes: tuple[Mapping[str, str | int], ...] = ()
    """What each step of a post-processing before it changed."""

    def rank(self, k: int) -> float:
        """CMC at rank k; in a gallery of fewer images, at its last rank."""
        return float(self.cmc[min(k, len(self.cmc)) - 1])


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
    from ray_reid.ranking import ranks

    scene, found = _scene(
        (query, gallery),
        (query_identity, gallery_identity),
        (query_camera, gallery_camera),
        (query_clothes, gallery_clothes),
        rule,
        gallery_track,
    )
    valid = np.flatnonzero(found)
    if not valid.size:
        raise ValueError(_nothing(scene))
    scene, valid = _of_queries(scene, valid)
    scored = ranks.rank(scene, rule, found[valid], trapezoid, BLOCK)
    return _summary(scored, valid, len(found), len(scene.first) - 1)


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
    from ray_reid.ranking import counting

    values = _similarities(similarity, excluded)
    scene, found = _scene(
        (np.zeros((len(values), 1), np.float32), np.zeros((values.shape[1], 1), np.float32)),
        (query_identity, gallery_identity),
        (query_camera, gallery_camera),
        (query_clothes, gallery_clothes),
        rule,
        gallery_track,
    )
    valid = np.flatnonzero(found)
    if not valid.size:
        raise ValueError(_nothing(scene))
    scene, valid = _of_queries(scene, valid)
    values = values[np.ix_(valid, scene.image)]
    if gallery_track is not None:
        values = np.maximum.reduceat(values, scene.first[:-1], axis=1)
    ends = np.append(0, np.cumsum(found[valid]))
    counts = np.zeros(ends[-1] + len(valid), dtype=np.int64)
    counting.count_given(scene, rule, values, ends, counts)
    ap, inp = np.empty(len(valid)), np.empty(len(valid))
    first = np.empty(len(valid), dtype=np.int64)
    counting.score(counts, ends, trapezoid, ap, inp, first)
    return _summary((ap, inp, first), valid, len(found), len(scene.first) - 1)


def chosen(first: Metrics, second: Metrics, where: NDArray[np.bool_]) -> Metrics:
    """What queries score that are ranked as in `second` where a (Q,) mask says so.

    Both are of the same queries and the same gallery.
    """
    ap, inp, rank = (
        np.where(where, getattr(second, name), getattr(first, name))
        for name in ("ap", "inp", "first")
    )
    valid = np.flatnonzero(rank)
    return _summary((ap[valid], inp[valid], rank[valid]), valid, len(ap), len(first.cmc))


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
    from ray_reid.ranking import ranks

    rates = np.asarray(far, dtype=np.float64)
    if rates.ndim != 1 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"far must be a list of rates between 0 and 1, not {far!r}")
    rule = _rule(protocol, query_clothes)
    scene, found = _scene(
        (query, gallery),
        (query_identity, gallery_identity),
        (query_camera, gallery_camera),
        (query_clothes, gallery_clothes),
        rule,
        gallery_track,
    )
    if not found.any():
        raise ValueError(_nothing(scene))
    scene, kept = _of_queries(scene, np.flatnonzero(scene.query_labels[:, 2] >= 0))
    num_impostor = int((len(scene.first) - 1 - np.diff(scene.own, axis=1)).sum())
    if not num_impostor:
        raise ValueError("no pair is an impostor: all images have one identity")
    allowed = np.floor(rates * num_impostor).astype(np.int64)
    some = allowed < num_impostor
    genuine, impostor = ranks.separate(scene, rule, found[kept], allowed[some], BLOCK)
    threshold = np.full(len(rates), -np.inf)
    threshold[some] = impostor
    genuine.sort()
    passed = len(genuine) - np.searchsorted(genuine, threshold, "right")
    return Roc(rates, passed / len(genuine), threshold / GRID, len(genuine), num_impostor)


def unit(embeddings: NDArray[Any], side: str) -> NDArray[np.float64]:
    """L2-normalise (N, D) embeddings in double precision; zero rows stay zero.

    Raises:
        ValueError: If they are not a non-empty (N, D) array of finite numbers.
    """
    rows, norm = _measured(np.asarray(embeddings), side, np.float64)
    return rows / norm[:, None]


def _measured(
    embeddings: NDArray[Any], side: str, kind: type[np.float32] | type[np.float64]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
    """The rows in a precision, and their lengths; 1 for a zero row."""
    from ray_reid.ranking import counting

    rows = np.require(embeddings, kind, ["C_CONTIGUOUS", "WRITEABLE"])
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{side} embeddings must be (N, D) with N, D > 0, not {rows.shape}")
    norm = counting.norms(rows)
    broken = np.flatnonzero(~np.isfinite(norm))
    if broken.size:
        raise ValueError(
            f"{side} embedding {broken[0]} is not finite, as are {broken.size} of {len(rows)}; "
            "embeddings must not hold NaN or infinity"
        )
    norm[norm == 0] = 1
    return rows, norm


def _is_trapezoid(average_precision: str) -> bool:
    if average_precision not in AVERAGE_PRECISIONS:
        raise ValueError(
            f"unknown average_precision {average_precision!r}; choose from "
            f"{list(AVERAGE_PRECISIONS)}"
        )
    return average_precision == "trapezoid"


def _summary(
    scored: tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]],
    valid: NDArray[np.int64],
    num_all: int,
    num_items: int,
) -> Metrics:
    """Figures of AP, INP and first rank of the queries `valid` among all."""
    ap, inp = np.full(num_all, np.nan), np.full(num_all, np.nan)
    rank = np.zeros(num_all, np.int64)
    ap[valid], inp[valid], rank[valid] = scored
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


def _scene(
    embeddings: tuple[NDArray[Any], NDArray[Any]],
    identities: _Sides,
    cameras: _Sides,
    clothes: _Sides,
    rule: int,
    gallery_track: Labels | None,
) -> tuple["counting.Scene", NDArray[np.int64]]:
    """What the kernels work on, and the number of true matches of each query."""
    from ray_reid.ranking import counting

    given = [np.asarray(rows) for rows in embeddings]
    # One precision for both sides: the kernels are compiled for each.
    single = all(rows.dtype in (np.float16, np.float32) for rows in given)
    kind = np.float32 if single else np.float64
    (query, query_norm), (gallery, gallery_norm) = (
        _measured(rows, side, kind) for rows, side in zip(given, SIDES, strict=True)
    )
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query embeddings have {query.shape[1]} dimensions but gallery embeddings "
            f"{gallery.shape[1]}; both must come from one model"
        )
    sizes = len(query), len(gallery)
    identity = _codes("identity", sizes, *identities)
    camera = _codes("camera", sizes, *cameras)
    worn = _codes("clothes", sizes, *clothes)
    image = np.arange(len(gallery))
    first = np.arange(len(gallery) + 1)
    if gallery_track is not None:
        image, starts = _tracks(gallery_track, len(gallery))
        labels = {"identity": identity, "camera": camera, "clothes": worn}
        identity, camera, worn = (
            (codes[0], _of_tracks(name, codes[1][image], starts)) for name, codes in labels.items()
        )
        first = np.append(starts, len(image))
    # Items of an identity adjoin, so that a query's own are left out as one piece.
    order = np.argsort(identity[1], kind="stable")
    in_order, lengths = identity[1][order], np.diff(first)[order]
    placed = np.append(0, np.cumsum(lengths))
    image = image[np.repeat(first[:-1][order] - placed[:-1], lengths) + np.arange(len(image))]
    own = np.stack([np.searchsorted(in_order, identity[0], side) for side in ("left", "right")], 1)
    own[identity[0] < 0] = 0
    scene = counting.Scene(
        query,
        gallery,
        query_norm,
        gallery_norm,
        image,
        placed,
        own,
        np.stack([camera[0], worn[0], identity[0]], axis=1),
        np.stack([camera[1][order], worn[1][order]]),
    )
    return scene, counting.num_matches(scene, rule)


def _of_queries(
    scene: "counting.Scene", kept: NDArray[np.int64]
) -> tuple["counting.Scene", NDArray[np.int64]]:
    """Some queries alone, those of an identity together: they read the same gallery rows."""
    kept = kept[np.argsort(scene.own[kept, 0], kind="stable")]
    scene = scene._replace(
        query=scene.query[kept],
        query_norm=scene.query_norm[kept],
        own=scene.own[kept],
        query_labels=scene.query_labels[kept],
    )
    return scene, kept


def _tracks(labels: Labels, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order of the gallery in which tracks are neighbours, and where each begins in it."""
    tracks, _ = _codes("track", (size, 0), labels, [])
    alone = tracks < 0
    tracks[alone] = tracks.max(initial=0) + 1 + np.arange(alone.sum())
    order = np.argsort(tracks, kind="stable")
    return order, np.flatnonzero(np.diff(tracks[order], prepend=-1))


def _of_tracks(name: str, codes: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The one label of each track."""
    lengths = np.diff(starts, append=len(codes))
    mixed = np.flatnonzero(codes != np.repeat(codes[starts], lengths))
    if mixed.size:
        raise ValueError(
            f"{mixed.size} gallery images have another {name} than the first of their track"
        )
    return codes[starts]


def _codes(
    name: str, sizes: tuple[int, int], query: Labels | None, gallery: Labels | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the labels of both sides alike; null is -1."""
    if (query is None) != (gallery is None):
        given, missing = ("query", "gallery") if gallery is None else ("gallery", "query")
        raise ValueError(f"{given}_{name} is given but {missing}_{name} is not; give both or none")
    columns = []
    for side, size, labels in zip(SIDES, sizes, (query, gallery), strict=True):
        if labels is not None and len(labels) != size:
            raise ValueError(
                f"{side} has {size} embeddings but {len(labels)} values of {side}_{name}"
            )
        columns.append(labels)
    if query is None or gallery is None:
        return np.full(sizes[0], -1), np.full(sizes[1], -1)
    numbers = _integers(query, gallery)
    if numbers is None:
        values = [_values(query), _values(gallery)]
        distinct = dict.fromkeys(itertools.chain(*values))
        number = {v: -1 if _is_null(v) else n for n, v in enumerate(distinct)}
        numbers = np.fromiter(map(number.__getitem__, itertools.chain(*values)), np.int64)
    return numbers[: sizes[0]], numbers[sizes[0] :]


def _integers(query: Labels, gallery: Labels) -> NDArray[np.int64] | None:
    """Labels that are integers number themselves; None where they are not, or too far apart."""
    for labels in (query, gallery):
        if not isinstance(labels, np.ndarray) or not np.can_cast(labels.dtype, np.int64):
            return None
    both = np.concatenate([query, gallery]).astype(np.int64)
    lowest = both.min(initial=0)
    return both - lowest if int(both.max(initial=0)) - int(lowest) < 2**62 else None


def _values(labels: Labels) -> list[Hashable]:
    # Arrays and Arrow columns become plain values, which hash far faster than their scalars.
    return list(labels.tolist() if hasattr(labels, "tolist") else labels)


def _is_null(value: Hashable) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _nothing(scene: "counting.Scene") -> str:
    known = int((scene.own[:, 0] < scene.own[:, 1]).sum())
    return (
        "no query has a true match in the gallery from another camera: "
        f"{len(scene.query)} queries, {len(scene.gallery)} gallery images; {known} queries have "
        "their identity in the gallery, but only under their own camera"
    )
