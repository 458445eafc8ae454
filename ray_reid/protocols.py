"""Protocols of the field's data sets: which images ask, which answer, and by which rule.

A protocol is a function from the labels of a test set to its cases; it never sees an embedding.
Each case is post-processed by itself, if steps are given, and scored by `metrics`. Where a protocol
draws at random, it does so ten times with the seeds 0 to 9, and its figures are mean and standard
deviation.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ray_reid import doubt, metrics, postprocess
from ray_reid.doubt import Margins
from ray_reid.metrics import AveragePrecision, Metrics
from ray_reid.refine import Rule, refine
from ray_reid.retrieval import Step

DRAWS = 10
RANKS = (1, 5, 10)
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of every image of a test set, queries and gallery together; null is None."""

    is_query: NDArray[np.bool_]
    """(N,) as the data set divides them."""
    identity: Sequence[Hashable]
    camera: Sequence[Hashable]
    clothes: Sequence[Hashable]
    track: Sequence[Hashable]
    time: Sequence[float | None] | None = None
    source: Sequence[Hashable] | None = None

    def take(self, name: str, rows: Rows) -> list[Hashable]:
        """One label of some rows."""
        values: Sequence[Hashable] = getattr(self, name)
        return [values[row] for row in rows]


@dataclass(frozen=True, eq=False)
class Case:
    """One ranking experiment: row numbers of the queries and of the gallery."""

    query: Rows
    gallery: Rows
    rule: metrics.Protocol = "market"
    apart: Literal["camera", "track"] = "camera"
    """What of the query's identity is junk by the Market rule: its camera, or its track."""
    tracks: Literal["none", "mean", "nearest"] = "none"
    """`mean`: a query or gallery item is the mean of a track's embeddings. `nearest`: a gallery
    item is a track, as similar as its nearest image."""


Cases = Mapping[str, Sequence[Case]]
"""Each experiment by its name, once or with every draw; the first one is the headline."""


@dataclass(frozen=True, eq=False)
class Refinement:
    """Queries in other clothes, and how they vote; see `refine`."""

    variants: NDArray[np.float32]
    """(Q, L, D) of the first Q rows of a test set; a query of zero rows has none, and keeps the
    ranking that it has alone."""
    m: int
    rule: Rule


@dataclass(frozen=True, eq=False)
class Refined:
    """What the queries of a case score alone and with their variants."""

    plain: Metrics
    refined: Metrics
    margin: Margins
    """(Q,) how sure the first place is alone; see `doubt`."""
    identity: Sequence[Any]
    """(Q,) of the queries."""


def run(
    protocol: str,
    labels: Labels,
    embedding: NDArray[Any],
    average_precision: AveragePrecision = "rectangle",
    steps: Sequence[Step] = (),
    camera_embedding: NDArray[Any] | None = None,
) -> dict[str, list[Metrics]]:
    """Score (N, D) embeddings of a test set.

    Args:
        protocol: Its name in `PROTOCOLS`.
        labels: Of the test set.
        embedding: (N, D)
        average_precision: Which of the two definitions.
        steps: Post-processing of each case's queries and gallery, in order.
        camera_embedding: (N, C) what a camera classifier makes of the images, if a step needs it.

    Returns:
        The metrics of every draw by case, the headline first. `ap` has one entry a query of the
        case, in the order of its rows; `changes` one a step.

    Raises:
        ValueError: If the protocol is unknown, its labels are missing, nothing can be scored, or
            a step lacks what it needs.
    """
    return {
        name: [
            _score(case, labels, embedding, average_precision, steps, camera_embedding)
            for case in draws
        ]
        for name, draws in cases(protocol, labels).items()
    }


def run_refined(
    protocol: str,
    labels: Labels,
    embedding: NDArray[Any],
    refinement: Refinement,
    average_precision: AveragePrecision = "rectangle",
) -> dict[str, list[Refined]]:
    """Score (N, D) embeddings of a test set with variants of its queries and without; see `run`.

    What is junk for a query is in none of its lists, as in the released code of DLCR: otherwise
    the images that a protocol leaves out because they are easy would decide the vote.
    """
    return {
        name: [_refined(case, labels, embedding, refinement, average_precision) for case in draws]
        for name, draws in cases(protocol, labels).items()
    }


def cases(protocol: str, labels: Labels) -> Cases:
    """What a protocol asks of a test set.

    Raises:
        ValueError: If the protocol is unknown, or the test set lacks what it needs.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose from {list(PROTOCOLS)}")
    found = PROTOCOLS[protocol](labels)
    for name, draws in found.items():
        for case in draws:
            if not (len(case.query) and len(case.gallery)):
                raise ValueError(
                    f"protocol {protocol!r}: case {name!r} has {len(case.query)} queries and "
                    f"{len(case.gallery)} gallery images; is this the data set it is made for?"
                )
    return found


def figures(found: Mapping[str, Sequence[Metrics]]) -> dict[str, float]:
    """Name the figures: those of the headline plainly, those of other cases with their name.

    Means over the draws, and their standard deviations (`mAP_std`) where there are several.
    """
    flat: dict[str, float] = {}
    for number, (name, draws) in enumerate(found.items()):
        columns: dict[str, list[float]] = {"mAP": [one.mAP for one in draws]}
        columns |= {f"rank-{k}": [one.rank(k) for one in draws] for k in RANKS}
        columns["mINP"] = [one.mINP for one in draws]
        prefix = f"{name}_" if number else ""
        for figure, values in columns.items():
            flat[f"{prefix}{figure}"] = float(np.mean(values))
            if len(values) > 1:
                flat[f"{prefix}{figure}_std"] = float(np.std(values))
    return flat


def _score(
    case: Case,
    labels: Labels,
    embedding: NDArray[Any],
    average_precision: AveragePrecision,
    steps: Sequence[Step],
    camera_embedding: NDArray[Any] | None,
) -> Metrics:
    asked, query = _items(case, case.query, labels, embedding)
    answering, gallery = _items(case, case.gallery, labels, embedding)
    known = _known(case, labels, query, gallery, average_precision)
    if not steps:
        return metrics.evaluate(asked, answering, **known)
    of_steps: dict[str, Any] = {}
    for side, rows, all_rows in (
        ("query", query, case.query),
        ("gallery", gallery, case.gallery),
    ):
        for name in ("camera", "time", "source"):
            if getattr(labels, name) is not None:
                of_steps[f"{side}_{name}"] = labels.take(name, rows)
        if camera_embedding is not None:
            found, _ = _items(case, all_rows, labels, camera_embedding)
            of_steps[f"{side}_camera_embedding"] = found
    state, changes = postprocess.apply(steps, postprocess.Retrieval(asked, answering, **of_steps))
    if state.similarity is None and state.excluded is None:
        scored = metrics.evaluate(state.query, state.gallery, **known)
    else:
        scored = metrics.evaluate_similarity(state.scores(), excluded=state.excluded, **known)
    return replace(scored, changes=changes)


def _refined(
    case: Case,
    labels: Labels,
    embedding: NDArray[Any],
    refinement: Refinement,
    average_precision: AveragePrecision,
) -> Refined:
    asked, query = _items(case, case.query, labels, embedding)
    answering, gallery = _items(case, case.gallery, labels, embedding)
    known = _known(case, labels, query, gallery, average_precision)
    plain = metrics.evaluate(asked, answering, **known)
    columns = [
        {name: known[f"{side}_{name}"] for name in ("identity", "camera", "clothes")}
        for side in ("query", "gallery")
    ]
    hidden = doubt.junk(case.rule, *columns)
    identity = known["gallery_identity"]
    variants = _of_items(case, labels, refinement.variants)
    similarity = refine(
        asked, variants, answering, identity, refinement.m, refinement.rule, hidden=hidden
    )
    made = np.asarray(variants.any(axis=(1, 2)))
    return Refined(
        plain,
        metrics.chosen(plain, metrics.evaluate_similarity(similarity, **known), made),
        doubt.margins(asked, answering, identity, hidden),
        known["query_identity"],
    )


def _of_items(case: Case, labels: Labels, variants: NDArray[Any]) -> NDArray[Any]:
    """(Q, L, D) variants of what asks in a case."""
    if case.tracks != "mean":
        return variants[case.query]
    # Rows that are zero add nothing to the mean of their track.
    outfits = variants[case.query].swapaxes(0, 1)
    return np.stack([_mean_of_tracks(one, case.query, labels)[0] for one in outfits], axis=1)


def _known(
    case: Case, labels: Labels, query: Rows, gallery: Rows, average_precision: AveragePrecision
) -> dict[str, Any]:
    """What `metrics` is told of a case, besides embeddings or similarities."""
    clothes = case.rule != "market"
    return {
        "query_identity": labels.take("identity", query),
        "gallery_identity": labels.take("identity", gallery),
        "query_camera": labels.take(case.apart, query),
        "gallery_camera": labels.take(case.apart, gallery),
        "query_clothes": labels.take("clothes", query) if clothes else None,
        "gallery_clothes": labels.take("clothes", gallery) if clothes else None,
        "protocol": case.rule,
        "average_precision": average_precision,
        "gallery_track": labels.take("track", gallery) if case.tracks == "nearest" else None,
    }


def _items(
    case: Case, rows: Rows, labels: Labels, embedding: NDArray[Any]
) -> tuple[NDArray[Any], Rows]:
    """Embeddings of what asks or answers, and a row of each for its labels."""
    if case.tracks == "mean":
        return _mean_of_tracks(embedding[rows], rows, labels)
    return embedding[rows], rows


def _mean_of_tracks(
    embedding: NDArray[Any], rows: Rows, labels: Labels
) -> tuple[NDArray[np.float64], Rows]:
    """Mean of the unit embeddings of each track, and the first row of each for its labels."""
    tracks = zip(labels.take("track", rows), rows.tolist(), strict=True)
    # An image without a track is one of its own.
    names = [(track, None if track is not None else row) for track, row in tracks]
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    group = np.array([number[name] for name in names])
    _, first = np.unique(group, return_index=True)
    total = np.zeros((len(number), embedding.shape[1]))
    np.add.at(total, group, metrics.unit(embedding, "tracked"))
    return total / np.bincount(group)[:, None], rows[first]


def _market(labels: Labels) -> Cases:
    return {"standard": [Case(*_sides(labels))]}


def _track(labels: Labels) -> Cases:
    """DeepChange and OML: a match from the same camera counts if it is of another track."""
    _need(labels, "track", "track")
    return {"standard": [Case(*_sides(labels), apart="track")]}


def _image_to_track(labels: Labels) -> Cases:
    """VeRi-776: every query image against the tracks of the gallery."""
    _need(labels, "track", "image_to_track")
    return {"standard": [Case(*_sides(labels), tracks="nearest")]}


def _clothes(labels: Labels, tracks: Literal["none", "mean"] = "none") -> Cases:
    """LTCC: the Market rule, then same clothes and clothes-changing over all images."""
    _need(labels, "clothes", "clothes")
    query, gallery = _sides(labels)
    rules: tuple[metrics.Protocol, ...] = ("market", "sc", "cc")
    names = ("standard", "sc", "cc")
    return {
        name: [Case(query, gallery, rule, tracks=tracks)]
        for name, rule in zip(names, rules, strict=True)
    }


def _clothes_changing(labels: Labels) -> Cases:
    """The same, with the clothes-changing case as the headline."""
    found = _clothes(labels)
    return {name: found[name] for name in ("cc", "sc", "standard")}


def _ccvid(labels: Labels) -> Cases:
    """CCVID: as LTCC, but an item is the mean of a tracklet's frames."""
    _need(labels, "track", "ccvid")
    return _clothes(labels, "mean")


def _prcc(labels: Labels) -> Cases:
    """PRCC, multi-shot: queries in other clothes than the gallery's (camera C), then in the same.

    The usual reading (CAL, DLCR): every image of camera A answers.
    """
    changed, same, gallery = _by_clothes(labels)
    return {"cc": [Case(changed, gallery)], "sc": [Case(same, gallery)]}


def _prcc_single_shot(labels: Labels) -> Cases:
    """PRCC as its authors have it: one random image of each person answers, ten times."""
    changed, same, gallery = _by_clothes(labels)
    drawn = [_one_each(labels, gallery, seed) for seed in range(DRAWS)]
    return {
        "cc": [Case(changed, one) for one in drawn],
        "sc": [Case(same, one) for one in drawn],
    }


def _vc_clothes(labels: Labels) -> Cases:
    """VC-Clothes: all cameras; cameras 2 and 3, same clothes; cameras 3 and 4, changed clothes."""
    query, gallery = _sides(labels)

    def under(rows: Rows, cameras: tuple[int, int]) -> Rows:
        return rows[[_number(one) in cameras for one in labels.take("camera", rows)]]

    pairs = {"sc": (2, 3), "cc": (3, 4)}
    parts = {name: [Case(under(query, two), under(gallery, two))] for name, two in pairs.items()}
    return {"all": [Case(query, gallery)], **parts}


def _vehicleid(labels: Labels) -> Cases:
    """PKU VehicleID: one random image of each vehicle is the gallery, all others ask."""
    return {"standard": [Case(rest, one) for one, rest in _draws(labels)]}


def _vehicleid_inverse(labels: Labels) -> Cases:
    """The older reading: one random image of each vehicle asks, all others are the gallery."""
    return {"standard": [Case(one, rest) for one, rest in _draws(labels)]}


def _cuhk03_classic(labels: Labels) -> Cases:
    """CUHK03, 1,367 / 100: one random gallery image of each person, ten times; look at the CMC."""
    query, gallery = _sides(labels)
    drawn = [_one_each(labels, gallery, seed) for seed in range(DRAWS)]
    return {"standard": [Case(query, one) for one in drawn]}


PROTOCOLS: Mapping[str, Callable[[Labels], Cases]] = {
    "market": _market,
    "track": _track,
    "image_to_track": _image_to_track,
    "clothes": _clothes,
    "clothes_changing": _clothes_changing,
    "ccvid": _ccvid,
    "prcc": _prcc,
    "prcc_single_shot": _prcc_single_shot,
    "vc_clothes": _vc_clothes,
    "vehicleid": _vehicleid,
    "vehicleid_inverse": _vehicleid_inverse,
    "cuhk03_classic": _cuhk03_classic,
}
"""VIPeR and PRID2011 are `market` on each of ten seeded splits of their source."""


def _sides(labels: Labels) -> tuple[Rows, Rows]:
    return np.flatnonzero(labels.is_query), np.flatnonzero(~labels.is_query)


def _by_clothes(labels: Labels) -> tuple[Rows, Rows, Rows]:
    """Queries in clothes that the gallery does not have, queries in clothes it has, gallery."""
    _need(labels, "clothes", "prcc")
    query, gallery = _sides(labels)
    known = set(labels.take("clothes", gallery)) - {None}
    same = np.array([one in known for one in labels.take("clothes", query)], dtype=bool)
    return query[~same], query[same], gallery


def _draws(labels: Labels) -> Iterator[tuple[Rows, Rows]]:
    """Ten times one random image of each identity, and all others."""
    known = np.array([name is not None for name in labels.identity])
    rows = np.flatnonzero(known)
    for seed in range(DRAWS):
        one = _one_each(labels, rows, seed)
        yield one, np.setdiff1d(rows, one)


def _one_each(labels: Labels, rows: Rows, seed: int) -> Rows:
    """One random row of each identity among `rows`, in the order of the rows."""
    of: dict[Hashable, list[int]] = {}
    for row, name in zip(rows.tolist(), labels.take("identity", rows), strict=True):
        if name is not None:
            of.setdefault(name, []).append(row)
    rng = np.random.default_rng(seed)
    # By name, so that a draw depends on the images of a set and not on who comes first.
    return np.sort([of[name][rng.integers(len(of[name]))] for name in sorted(of, key=str)])


def _need(labels: Labels, name: str, protocol: str) -> None:
    assert name in {field.name for field in fields(labels)}
    if all(value is None for value in getattr(labels, name)):
        raise ValueError(
            f"protocol {protocol!r} needs the column {name!r}, which is null in every test image"
        )


def _number(camera: Hashable) -> int | None:
    digits = str(camera).lstrip("c")
    return int(digits) if digits.isdecimal() else None
