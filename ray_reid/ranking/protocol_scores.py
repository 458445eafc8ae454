"""Cases of a protocol to metrics: their items, post-processed or refined, and what they score.

A case is one ranking experiment; see `protocols`. Each is post-processed by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking import doubt, metrics, postprocess
from ray_reid.ranking.doubt import Margins
from ray_reid.ranking.labels import number
from ray_reid.ranking.metrics import AveragePrecision, Metrics
from ray_reid.ranking.protocols import Case, Rows, TestLabels, cases
from ray_reid.ranking.refine import Rule, refine
from ray_reid.recipe.postprocess import Step

RANKS = (1, 5, 10)
# Over subjects rank-1 is that over images.
SUBJECT_RANKS = (5, 10)


@dataclass(frozen=True, eq=False)
class QueryVariants:
    """Queries in other clothes, and how they vote; see `refine`."""

    embedding: NDArray[np.float32]
    """(Q, L, D) of the first Q rows of a test set; a query of zero rows has none, and keeps the
    ranking that it has alone."""
    m: int
    rule: Rule


@dataclass(frozen=True, eq=False)
class RefinedScores:
    """What the queries of a case score alone and with their variants."""

    plain: Metrics
    refined: Metrics
    margin: Margins
    """(Q,) how sure the first place is alone; see `doubt`."""
    identity: Sequence[Any]
    """(Q,) of the queries."""
    has_variants: NDArray[np.bool_]
    """(Q,) True where a query has variants."""


def run(
    protocol: str,
    labels: TestLabels,
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
    labels: TestLabels,
    embedding: NDArray[Any],
    variants: QueryVariants,
    average_precision: AveragePrecision = "rectangle",
) -> dict[str, list[RefinedScores]]:
    """Score (N, D) embeddings of a test set with variants of its queries and without; see `run`.

    What is junk for a query is in none of its lists, as in the released code of DLCR: otherwise
    the images that a protocol leaves out because they are easy would decide the vote.
    """
    return {
        name: [_refined(case, labels, embedding, variants, average_precision) for case in draws]
        for name, draws in cases(protocol, labels).items()
    }


def figures(scores: Mapping[str, Sequence[Metrics]]) -> dict[str, float]:
    """Name the figures: those of the headline plainly, those of other cases with their name.

    Means over the draws, and their standard deviations (`mAP_std`) where there are several.
    """
    flat: dict[str, float] = {}
    for position, (name, draws) in enumerate(scores.items()):
        prefix = f"{name}_" if position else ""
        flat |= _spread(_columns(draws), prefix)
    return flat


def mean_figures(cases_of: Sequence[Sequence[Metrics]]) -> dict[str, float]:
    """Name the means over cases of equally many draws: draw by draw, then as `figures` does."""
    columns = [_columns(draws) for draws in cases_of]
    means = {name: np.mean([one[name] for one in columns], axis=0).tolist() for name in columns[0]}
    return _spread(means)


def _columns(draws: Sequence[Metrics]) -> dict[str, list[float]]:
    """Values of every figure, one a draw."""
    columns: dict[str, list[float]] = {"mAP": [draw.mAP for draw in draws]}
    columns |= {f"rank-{k}": [draw.rank(k) for draw in draws] for k in RANKS}
    columns |= {
        f"subject-rank-{k}": [draw.subject_rank(k) for draw in draws] for k in SUBJECT_RANKS
    }
    columns["mINP"] = [draw.mINP for draw in draws]
    return columns


def _spread(columns: Mapping[str, Sequence[float]], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for figure, values in columns.items():
        flat[f"{prefix}{figure}"] = float(np.mean(values))
        if len(values) > 1:
            flat[f"{prefix}{figure}_std"] = float(np.std(values))
    return flat


def _score(
    case: Case,
    labels: TestLabels,
    embedding: NDArray[Any],
    average_precision: AveragePrecision,
    steps: Sequence[Step],
    camera_embedding: NDArray[Any] | None,
) -> Metrics:
    asking, query = _items(case, case.query, labels, embedding)
    answering, gallery = _items(case, case.gallery, labels, embedding)
    known = _known(case, labels, query, gallery, average_precision)
    if case.within is not None:
        _refuse_within(steps, "evaluate.postprocess")
        return metrics.evaluate_within(asking, answering, *case.within, **known)
    if not steps:
        return metrics.evaluate(asking, answering, **known)
    of_steps: dict[str, Any] = {}
    for side, rows, all_rows in (
        ("query", query, case.query),
        ("gallery", gallery, case.gallery),
    ):
        for name in ("camera", "time", "source"):
            if getattr(labels, name) is not None:
                of_steps[f"{side}_{name}"] = labels.take(name, rows)
        if camera_embedding is not None:
            seen, _ = _items(case, all_rows, labels, camera_embedding)
            of_steps[f"{side}_camera_embedding"] = seen
    state, changes = postprocess.apply(steps, postprocess.Retrieval(asking, answering, **of_steps))
    if state.similarity is None and state.excluded is None:
        scored = metrics.evaluate(state.query, state.gallery, **known)
    else:
        scored = metrics.evaluate_similarity(state.scores(), excluded=state.excluded, **known)
    return replace(scored, changes=changes)


def _refined(
    case: Case,
    labels: TestLabels,
    embedding: NDArray[Any],
    variants: QueryVariants,
    average_precision: AveragePrecision,
) -> RefinedScores:
    asking, query = _items(case, case.query, labels, embedding)
    answering, gallery = _items(case, case.gallery, labels, embedding)
    _refuse_within(case.within, "refine")
    known = _known(case, labels, query, gallery, average_precision)
    plain = metrics.evaluate(asking, answering, **known)
    columns = [
        {name: known[f"{side}_{name}"] for name in ("identity", "camera", "clothes")}
        for side in ("query", "gallery")
    ]
    hidden = doubt.junk(case.rule, *columns)
    identity = known["gallery_identity"]
    outfits = _of_items(case, labels, variants.embedding)
    similarity = refine(
        asking, outfits, answering, identity, variants.m, variants.rule, hidden=hidden
    )
    has_variants = np.asarray(outfits.any(axis=(1, 2)))
    return RefinedScores(
        plain,
        metrics.chosen(plain, metrics.evaluate_similarity(similarity, **known), has_variants),
        doubt.margins(asking, answering, identity, hidden),
        known["query_identity"],
        has_variants,
    )


def _of_items(case: Case, labels: TestLabels, variants: NDArray[Any]) -> NDArray[Any]:
    """(Q, L, D) variants of what asks in a case."""
    if case.tracks != "mean":
        return variants[case.query]
    # Rows that are zero add nothing to the mean of their track.
    outfits = variants[case.query].swapaxes(0, 1)
    means = [_mean_of_tracks(rows, case.query, labels)[0] for rows in outfits]
    return np.stack(means, axis=1)


def _known(
    case: Case, labels: TestLabels, query: Rows, gallery: Rows, average_precision: AveragePrecision
) -> dict[str, Any]:
    """Arguments of `metrics` for a case, besides embeddings or similarities."""
    clothes, apart = case.rule != "market", case.apart != "nothing"
    return {
        "query_identity": labels.take("identity", query),
        "gallery_identity": labels.take("identity", gallery),
        "query_camera": labels.take(case.apart, query) if apart else None,
        "gallery_camera": labels.take(case.apart, gallery) if apart else None,
        "query_clothes": labels.take("clothes", query) if clothes else None,
        "gallery_clothes": labels.take("clothes", gallery) if clothes else None,
        "protocol": case.rule,
        "average_precision": average_precision,
        "gallery_track": labels.take("track", gallery) if case.tracks == "nearest" else None,
    }


def _refuse_within(asked: object, section: str) -> None:
    if asked:
        raise ValueError(
            f"protocol 'reassociation' ranks the few images of one frame: {section} has no place"
        )


def _items(
    case: Case, rows: Rows, labels: TestLabels, embedding: NDArray[Any]
) -> tuple[NDArray[Any], Rows]:
    """Embeddings of what asks or answers, and a row of each for its labels."""
    if case.tracks == "mean":
        return _mean_of_tracks(embedding[rows], rows, labels)
    return embedding[rows], rows


def _mean_of_tracks(
    embedding: NDArray[Any], rows: Rows, labels: TestLabels
) -> tuple[NDArray[np.float64], Rows]:
    """Mean of the unit embeddings of each track, and the first row of each for its labels."""
    tracks = zip(labels.take("track", rows), rows.tolist(), strict=True)
    # An image without a track is one of its own.
    (group,) = number([(track, None if track is not None else row) for track, row in tracks])
    _, first = np.unique(group, return_index=True)
    total = np.zeros((len(first), embedding.shape[1]))
    np.add.at(total, group, metrics.unit(embedding, "tracked"))
    return total / np.bincount(group)[:, None], rows[first]
