"""Protocols of the field's data sets: which images ask, which answer, and by which rule.

A protocol is a function from the labels of a test set to its cases; it never sees an embedding:
`protocol_scores` scores them. Where a protocol draws at random, it does so ten times with the seeds
0 to 9, and its figures are mean and standard deviation.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking import metrics

DRAWS = 10
GAP_FRAMES, QUERY_STRIDE = 30, 60
"""Of the protocol `reassociation`: the defaults of roboflow's package `reid`."""
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TestLabels:
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
    apart: Literal["camera", "track", "nothing"] = "camera"
    """What of the query's identity is junk by the Market rule: its camera, or its track."""
    tracks: Literal["none", "mean", "nearest"] = "none"
    """`mean`: a query or gallery item is the mean of a track's embeddings. `nearest`: a gallery
    item is a track, as similar as its nearest image."""
    within: tuple[Rows, Rows] | None = None
    """(Q,) and (G,) numbers of groups: a query is ranked against the images of its own group alone.
    Null ranks it against all."""


Cases = Mapping[str, Sequence[Case]]
"""Each experiment by its name, once or with every draw; the first one is the headline."""


def cases(protocol: str, labels: TestLabels) -> Cases:
    """What a protocol asks of a test set.

    Raises:
        ValueError: If the protocol is unknown, or the test set lacks what it needs.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose from {list(PROTOCOLS)}")
    experiments = PROTOCOLS[protocol](labels)
    for name, draws in experiments.items():
        for case in draws:
            if not (len(case.query) and len(case.gallery)):
                raise ValueError(
                    f"protocol {protocol!r}: case {name!r} has {len(case.query)} queries and "
                    f"{len(case.gallery)} gallery images; is this the data set it is made for?"
                )
    return experiments


def check_sides(num_queries: int, num_gallery: int) -> None:
    """Refuse a test set of which one side is empty.

    Raises:
        ValueError: Gives both numbers.
    """
    if not (num_queries and num_gallery):
        raise ValueError(
            f"nothing to evaluate: {num_queries} query and {num_gallery} gallery images, and both "
            "are needed; the sources of the recipe must hold test identities seen at "
            "least twice"
        )


def _market(labels: TestLabels) -> Cases:
    return {"standard": [Case(*_sides(labels))]}


def _track(labels: TestLabels) -> Cases:
    """DeepChange and OML: a match from the same camera counts if it is of another track."""
    _need(labels, "track", "track")
    return {"standard": [Case(*_sides(labels), apart="track")]}


def _image_to_track(labels: TestLabels) -> Cases:
    """VeRi-776: every query image against the tracks of the gallery."""
    _need(labels, "track", "image_to_track")
    return {"standard": [Case(*_sides(labels), tracks="nearest")]}


def _clothes(labels: TestLabels, tracks: Literal["none", "mean"] = "none") -> Cases:
    """LTCC: the Market rule, then same clothes and clothes-changing over all images."""
    _need(labels, "clothes", "clothes")
    query, gallery = _sides(labels)
    rules: tuple[metrics.Protocol, ...] = ("market", "sc", "cc")
    names = ("standard", "sc", "cc")
    return {
        name: [Case(query, gallery, rule, tracks=tracks)]
        for name, rule in zip(names, rules, strict=True)
    }


def _ccvid(labels: TestLabels) -> Cases:
    """CCVID: as LTCC, but an item is the mean of a tracklet's frames."""
    _need(labels, "track", "ccvid")
    return _clothes(labels, "mean")


def _prcc(labels: TestLabels) -> Cases:
    """PRCC, multi-shot: queries in other clothes than the gallery's (camera C), then in the same.

    The usual reading (CAL, DLCR): every image of camera A answers.
    """
    changed, same, gallery = _by_clothes(labels)
    return {"cc": [Case(changed, gallery)], "sc": [Case(same, gallery)]}


def _prcc_single_shot(labels: TestLabels) -> Cases:
    """PRCC as its authors have it: one random image of each person answers, ten times."""
    changed, same, gallery = _by_clothes(labels)
    drawn = [_one_each(labels, gallery, seed) for seed in range(DRAWS)]
    return {
        "cc": [Case(changed, images) for images in drawn],
        "sc": [Case(same, images) for images in drawn],
    }


def _vc_clothes(labels: TestLabels) -> Cases:
    """VC-Clothes: all cameras; cameras 2 and 3, same clothes; cameras 3 and 4, changed clothes."""
    query, gallery = _sides(labels)

    def under(rows: Rows, cameras: tuple[int, int]) -> Rows:
        return rows[[_number(name) in cameras for name in labels.take("camera", rows)]]

    pairs = {"sc": (2, 3), "cc": (3, 4)}
    parts = {name: [Case(under(query, two), under(gallery, two))] for name, two in pairs.items()}
    return {"all": [Case(query, gallery)], **parts}


def _changing(protocol: Callable[[TestLabels], Cases]) -> Callable[[TestLabels], Cases]:
    """A protocol with its clothes-changing case as the headline, as papers of CC-ReID report it."""

    def reordered(labels: TestLabels) -> Cases:
        experiments = protocol(labels)
        return {name: experiments[name] for name in ("cc", *experiments)}

    return reordered


def _vehicleid(labels: TestLabels) -> Cases:
    """PKU VehicleID: one random image of each vehicle is the gallery, all others ask."""
    return {"standard": [Case(rest, drawn) for drawn, rest in _draws(labels)]}


def _vehicleid_inverse(labels: TestLabels) -> Cases:
    """The older reading: one random image of each vehicle asks, all others are the gallery."""
    return {"standard": [Case(drawn, rest) for drawn, rest in _draws(labels)]}


def _cuhk03_classic(labels: TestLabels) -> Cases:
    """CUHK03, 1,367 / 100: one random gallery image of each person, ten times; look at the CMC."""
    query, gallery = _sides(labels)
    drawn = [_one_each(labels, gallery, seed) for seed in range(DRAWS)]
    return {"standard": [Case(query, images) for images in drawn]}


def _drawn_halves(labels: TestLabels) -> Cases:
    """VIPeR, PRID2011, GRID and i-LIDS as targets: half of the people, ten times.

    Domain generalisation trains on none of their people, and still scores halves as large as those
    that other works test on: 316 people of VIPeR, 100 of PRID2011, 125 of GRID, 60 of i-LIDS. One
    image of each asks and one answers; where no camera is known, any two do. Distractors always
    answer.
    """
    query, gallery = _sides(labels)
    asking, answering = _by_identity(labels, query), _by_identity(labels, gallery)
    names = sorted((name for name in asking if name in answering), key=str)
    distractors = [row for row in gallery.tolist() if labels.identity[row] is None]
    draws = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        pairs = []
        for place in np.sort(rng.permutation(len(names))[: -(-len(names) // 2)]).tolist():
            pairs.append(_pair(labels, asking[names[place]], answering[names[place]], rng))
        asked = np.array([pair[0] for pair in pairs], dtype=np.int64)
        rows = np.array([*(pair[1] for pair in pairs), *distractors], dtype=np.int64)
        draws.append(Case(np.sort(asked), np.sort(rows)))
    return {"standard": draws}


def _pair(
    labels: TestLabels, asking: Sequence[int], answering: Sequence[int], rng: np.random.Generator
) -> tuple[int, int]:
    """An image of a person that asks, and another one that answers, by another camera if any is."""
    both = [*asking, *answering]
    if all(labels.camera[row] is None for row in both):
        one, other = rng.permutation(len(both))[:2].tolist()
        return both[one], both[other]
    asked = asking[int(rng.integers(len(asking)))]
    apart = [row for row in answering if labels.camera[row] != labels.camera[asked]]
    others = apart or answering
    return asked, others[int(rng.integers(len(others)))]


def _by_identity(labels: TestLabels, rows: Rows) -> dict[Hashable, list[int]]:
    """Rows of each identity; those of nobody are left out."""
    of: dict[Hashable, list[int]] = {}
    for row, name in zip(rows.tolist(), labels.take("identity", rows), strict=True):
        if name is not None:
            of.setdefault(name, []).append(row)
    return of


def _reassociation(labels: TestLabels) -> Cases:
    """Crops of videos, MOT and its kin: who is who, a gap of frames later in the same sequence.

    As `ReassociationProtocol` of roboflow's package `reid` 0.1 defines it. Every test image of a
    frame that `QUERY_STRIDE` divides asks; the images of its sequence exactly `GAP_FRAMES` later
    answer, if they are two or more and its identity is among them. So a query has one true match,
    and mAP is the mean reciprocal rank. A sequence is a camera of a source, `time` the frame.
    """
    _need(labels, "time", "reassociation")
    frame = _frames(labels)
    source = labels.source if labels.source is not None else [None] * len(frame)
    sequence = list(zip(source, labels.camera, strict=True))
    shown: dict[Hashable, dict[Hashable, int]] = {}
    for row, name in enumerate(labels.identity):
        if frame[row] is not None and name is not None:
            images = shown.setdefault((sequence[row], frame[row]), {})
            if images.setdefault(name, row) != row:
                raise ValueError(
                    f"protocol 'reassociation': identity {name!r} is twice in frame {frame[row]}, "
                    "but a frame shows an object once"
                )
    query: list[tuple[int, Hashable]] = []
    answering: dict[int, Hashable] = {}
    for row, (name, number) in enumerate(zip(labels.identity, frame, strict=True)):
        if number is None or name is None or number % QUERY_STRIDE:
            continue
        later = (sequence[row], number + GAP_FRAMES)
        candidates = shown.get(later, {})
        if len(candidates) > 1 and name in candidates:
            query.append((row, later))
            answering |= dict.fromkeys(candidates.values(), later)
    group = {later: place for place, later in enumerate(dict.fromkeys(answering.values()))}
    within = (
        np.array([group[later] for _, later in query], dtype=np.int64),
        np.array([group[later] for later in answering.values()], dtype=np.int64),
    )
    rows = np.array([row for row, _ in query], dtype=np.int64)
    gallery = np.array(list(answering), dtype=np.int64)
    return {"standard": [Case(rows, gallery, apart="nothing", within=within)]}


def _frames(labels: TestLabels) -> list[int | None]:
    """Number of the frame of each image.

    Raises:
        ValueError: If one is not whole.
    """
    assert labels.time is not None, "asked for only where there are times"
    for value in labels.time:
        if value is not None and value != int(value):
            raise ValueError(
                f"protocol 'reassociation' needs the number of the frame in 'time', not {value}"
            )
    return [None if value is None else int(value) for value in labels.time]


PROTOCOLS: Mapping[str, Callable[[TestLabels], Cases]] = {
    "market": _market,
    "track": _track,
    "image_to_track": _image_to_track,
    "clothes": _clothes,
    "clothes_changing": _changing(_clothes),
    "ccvid": _ccvid,
    "ccvid_changing": _changing(_ccvid),
    "prcc": _prcc,
    "prcc_single_shot": _prcc_single_shot,
    "vc_clothes": _vc_clothes,
    "vc_clothes_changing": _changing(_vc_clothes),
    "vehicleid": _vehicleid,
    "vehicleid_inverse": _vehicleid_inverse,
    "cuhk03_classic": _cuhk03_classic,
    "drawn_halves": _drawn_halves,
    "reassociation": _reassociation,
}
"""VIPeR, PRID2011, GRID and i-LIDS are `market` on each of ten splits of their source, where its
other half is trained on, and `drawn_halves` where nobody of them is."""


def _sides(labels: TestLabels) -> tuple[Rows, Rows]:
    return np.flatnonzero(labels.is_query), np.flatnonzero(~labels.is_query)


def _by_clothes(labels: TestLabels) -> tuple[Rows, Rows, Rows]:
    """Queries in clothes that the gallery does not have, queries in clothes it has, gallery."""
    _need(labels, "clothes", "prcc")
    query, gallery = _sides(labels)
    known = set(labels.take("clothes", gallery)) - {None}
    same = np.array([worn in known for worn in labels.take("clothes", query)], dtype=bool)
    return query[~same], query[same], gallery


def _draws(labels: TestLabels) -> Iterator[tuple[Rows, Rows]]:
    """Ten times one random image of each identity, and all others."""
    known = np.array([name is not None for name in labels.identity])
    rows = np.flatnonzero(known)
    for seed in range(DRAWS):
        drawn = _one_each(labels, rows, seed)
        yield drawn, np.setdiff1d(rows, drawn)


def _one_each(labels: TestLabels, rows: Rows, seed: int) -> Rows:
    """One random row of each identity among `rows`, in the order of the rows."""
    of = _by_identity(labels, rows)
    rng = np.random.default_rng(seed)
    # By name, so that a draw depends on the images of a set and not on who comes first.
    return np.sort([of[name][rng.integers(len(of[name]))] for name in sorted(of, key=str)])


def _need(labels: TestLabels, name: str, protocol: str) -> None:
    assert name in {field.name for field in fields(labels)}
    values = getattr(labels, name)
    if values is None or all(value is None for value in values):
        raise ValueError(
            f"protocol {protocol!r} needs the column {name!r}, which is null in every test image"
        )


def _number(camera: Hashable) -> int | None:
    digits = str(camera).lstrip("c")
    return int(digits) if digits.isdecimal() else None
