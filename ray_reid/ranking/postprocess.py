"""Post-processing of a retrieval as steps in a row (VehicleNet, section IV-C; Zheng et al., 2020).

A step takes the state of a retrieval and gives the next one, with counts of what it changed. It
either changes the queries' embeddings, excludes gallery images of a query, or makes similarities of
the embeddings; `check_order` in `recipe.postprocess` says what may follow what.

An excluded image stays in the ranking of its query, below all that are not excluded; of the
excluded ones the wrong come first. So a true match that a step throws out counts as missed. If it
were taken out instead, a step that excludes all but the easy matches would score best.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking import metrics
from ray_reid.ranking.grid import on_grid
from ray_reid.ranking.labels import number
from ray_reid.ranking.protocols import Case, TestLabels
from ray_reid.ranking.rerank import k_reciprocal
from ray_reid.recipe.postprocess import (
    CameraVerification,
    QueryExpansion,
    Rerank,
    Step,
    TemporalWindow,
    check_order,
)

Column = Sequence[Hashable]
Counts = dict[str, int]
Change = Mapping[str, str | int]
"""The name of a step, and counts of what it changed."""
Groups = tuple[NDArray[np.int64], NDArray[np.int64]]

# Queries whose similarities to the whole gallery are in memory at a time.
BLOCK = 256


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Queries and a gallery on their way to a ranking; null is None, of times NaN too."""

    query: NDArray[np.floating[Any]]
    """(Q, D) embeddings, of any length."""
    gallery: NDArray[np.floating[Any]]
    """(G, D)"""
    query_camera: Column | None = None
    gallery_camera: Column | None = None
    query_time: Sequence[float | None] | None = None
    gallery_time: Sequence[float | None] | None = None
    query_source: Column | None = None
    """Cameras and times are comparable within one source; without it there is one."""
    gallery_source: Column | None = None
    query_camera_embedding: NDArray[np.floating[Any]] | None = None
    """(Q, C) what a camera classifier makes of the images."""
    gallery_camera_embedding: NDArray[np.floating[Any]] | None = None
    """(G, C)"""
    similarity: NDArray[np.floating[Any]] | None = None
    """(Q, G) once a step has made one; it is what ranks."""
    excluded: NDArray[np.bool_] | None = None
    """(Q, G) True where a gallery image comes last."""

    def scores(self) -> NDArray[np.floating[Any]]:
        """(Q, G) what ranks, before exclusion: the similarity, or cosines on the metrics' grid."""
        if self.similarity is not None:
            return self.similarity
        return on_grid(metrics.unit(self.query, "query") @ metrics.unit(self.gallery, "gallery").T)


def apply(steps: Sequence[Step], state: Retrieval) -> tuple[Retrieval, tuple[Change, ...]]:
    """Take every step in order.

    Returns:
        The last state, and of each step its name and counts of what it changed.

    Raises:
        ValueError: If a step cannot follow another, or what it needs is missing.
    """
    check_order(steps)
    _check(state)
    changes: list[Change] = []
    for step in steps:
        if state.similarity is not None and step.name in ("rerank", "query_expansion"):
            raise ValueError(
                f"postprocess: {step.name!r} needs embeddings, but similarities are given already"
            )
        state, counts = STEPS[step.name](step, state)
        changes.append({"step": step.name, **counts})
    return state, tuple(changes)


def check_columns(steps: Sequence[Step], labels: TestLabels, case: Case) -> None:
    """Refuse steps whose columns say nothing of a case, before there is any embedding.

    Raises:
        ValueError: As `apply` does for the same columns.
    """
    state = Retrieval(np.empty((len(case.query), 0)), np.empty((len(case.gallery), 0)))
    for side, rows in (("query", case.query), ("gallery", case.gallery)):
        known: dict[str, Any] = {
            f"{side}_{name}": labels.take(name, rows)
            for name in ("camera", "time", "source")
            if getattr(labels, name) is not None
        }
        state = replace(state, **known)
    for step in steps:
        if isinstance(step, TemporalWindow):
            _times(state)
        elif isinstance(step, CameraVerification) and step.kind == "label":
            _by_label(state)
        elif isinstance(step, CameraVerification) and step.kind == "kmeans":
            _num_clusters(step, state)


def _check(state: Retrieval) -> None:
    """Refuse what does not belong together, with the side and the numbers."""
    sizes = {"query": len(state.query), "gallery": len(state.gallery)}
    for name in ("camera", "time", "source", "camera_embedding"):
        columns = {side: getattr(state, f"{side}_{name}") for side in sizes}
        if (columns["query"] is None) != (columns["gallery"] is None):
            raise ValueError(f"postprocess: give query_{name} and gallery_{name}, or neither")
        for side, values in columns.items():
            if values is not None and len(values) != sizes[side]:
                raise ValueError(
                    f"postprocess: {side} has {sizes[side]} embeddings but {len(values)} values "
                    f"of {side}_{name}"
                )
    for name in ("similarity", "excluded"):
        values = getattr(state, name)
        if values is not None and values.shape != tuple(sizes.values()):
            raise ValueError(
                f"postprocess: {name} must be (Q, G) = {tuple(sizes.values())}, not {values.shape}"
            )


def _expand(step: QueryExpansion, state: Retrieval) -> tuple[Retrieval, Counts]:
    query = metrics.unit(state.query, "query")
    if step.kind == "dbscan":
        expanded, counts = _mean_of_clusters(query, step.eps, step.min_samples)
    else:
        expanded, counts = _with_neighbours(query, state, step)
    kind = np.result_type(state.query.dtype, np.float32)
    return replace(state, query=metrics.unit(expanded, "expanded").astype(kind)), counts


def _mean_of_clusters(
    query: NDArray[np.float64], eps: float, min_samples: int
) -> tuple[NDArray[np.float64], Counts]:
    """Every query becomes the mean of the others of its cluster; one that is alone stays."""
    group = _dbscan(query, eps, min_samples)
    num_clusters = int(group.max(initial=-1)) + 1
    total = np.zeros((num_clusters, query.shape[1]))
    clustered = group >= 0
    np.add.at(total, group[clustered], query[clustered])
    sizes = np.bincount(group[clustered], minlength=num_clusters)
    expanded = query.copy()
    # A mean keeps its direction without the division.
    together = clustered.copy()
    together[clustered] = sizes[group[clustered]] > 1
    expanded[together] = total[group[together]] - query[together]
    return expanded, {"clusters": num_clusters, "changed": int(sizes[sizes > 1].sum())}


def _with_neighbours(
    query: NDArray[np.float64], state: Retrieval, step: QueryExpansion
) -> tuple[NDArray[np.float64], Counts]:
    """Every query plus its k nearest gallery images that are not excluded, weighted."""
    gallery = metrics.unit(state.gallery, "gallery")
    k, changed = min(step.k, len(gallery)), 0
    expanded = query.copy()
    for start in range(0, len(query), BLOCK):
        rows = slice(start, start + BLOCK)
        similarity = query[rows] @ gallery.T
        if state.excluded is not None:
            similarity[state.excluded[rows]] = -np.inf
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        nearness = np.take_along_axis(similarity, near, axis=1)
        if step.kind == "aqe":
            weight = np.isfinite(nearness).astype(float)
        else:
            weight = np.where(nearness > 0, np.maximum(nearness, 0) ** step.alpha, 0)
        expanded[rows] += np.einsum("qk,qkd->qd", weight, gallery[near])
        changed += int(weight.any(axis=1).sum())
    return expanded, {"changed": changed}


def _verify_cameras(step: CameraVerification, state: Retrieval) -> tuple[Retrieval, Counts]:
    query, gallery = _by_label(state) if step.kind == "label" else _by_cluster(step, state)
    own = (query[:, None] == gallery) & (query[:, None] >= 0)
    groups = np.union1d(query, gallery)
    return _excluding(state, own, {"groups": int((groups >= 0).sum())})


def _by_label(state: Retrieval) -> Groups:
    if state.query_camera is None or state.gallery_camera is None:
        raise ValueError("postprocess: camera_verification by label needs cameras; none are given")
    query, gallery = number(*(_qualified(state, side) for side in ("query", "gallery")))
    if not ((query >= 0).any() or (gallery >= 0).any()):
        raise ValueError(
            "postprocess: camera_verification by label needs the column 'camera', which is null in "
            "every image"
        )
    return query, gallery


def _by_cluster(step: CameraVerification, state: Retrieval) -> Groups:
    if state.query_camera_embedding is None or state.gallery_camera_embedding is None:
        raise ValueError(
            f"postprocess: camera_verification by {step.kind} needs camera-aware embeddings; set "
            "embed.camera_model to a model trained with train.target camera, or kind to label"
        )
    rows = np.concatenate(
        [
            metrics.unit(state.query_camera_embedding, "query camera"),
            metrics.unit(state.gallery_camera_embedding, "gallery camera"),
        ]
    )
    if step.kind == "dbscan":
        group = _dbscan(rows, step.eps, step.min_samples)
    else:
        from sklearn.cluster import KMeans

        count = _num_clusters(step, state)
        if count > len(rows):
            raise ValueError(
                f"postprocess: camera_verification asks for {count} clusters of {len(rows)} images"
            )
        group = KMeans(count, n_init=4, random_state=0).fit_predict(rows).astype(np.int64)
    return group[: len(state.query)], group[len(state.query) :]


def _num_clusters(step: CameraVerification, state: Retrieval) -> int:
    """How many there are to be, or as many as the labels name cameras."""
    if step.num_clusters is not None:
        return step.num_clusters
    known = {
        camera
        for side in ("query", "gallery")
        if getattr(state, f"{side}_camera") is not None
        for camera in _qualified(state, side)
        if camera is not None
    }
    if len(known) < 2:
        raise ValueError(
            f"postprocess: camera_verification cannot tell the number of cameras from labels that "
            f"name {len(known)}; set num_clusters"
        )
    return len(known)


def _qualified(state: Retrieval, side: str) -> list[tuple[Hashable, Hashable] | None]:
    """Source and camera of each image of a side; None where the camera is null."""
    cameras, sources = getattr(state, f"{side}_camera"), getattr(state, f"{side}_source")
    pairs = zip(sources or [None] * len(cameras), cameras, strict=True)
    return [None if camera is None else (source, camera) for source, camera in pairs]


def _dbscan(rows: NDArray[np.float64], eps: float, min_samples: int) -> NDArray[np.int64]:
    """(N,) cluster of each unit row by cosine distance, -1 where it is in none."""
    from sklearn.cluster import DBSCAN

    group = DBSCAN(eps=eps, min_samples=min_samples, metric="cosine").fit_predict(rows)
    return np.asarray(group, dtype=np.int64)


def _times(state: Retrieval) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times of the queries and of the gallery; one that is null is NaN."""
    if state.query_time is None or state.gallery_time is None:
        raise ValueError("postprocess: temporal_window needs times, and none are given")
    query, gallery = (
        np.array(times, dtype=np.float64) for times in (state.query_time, state.gallery_time)
    )
    if np.isnan(query).all() or np.isnan(gallery).all():
        raise ValueError(
            "postprocess: temporal_window needs the column 'time', which is null in every query or "
            "every gallery image"
        )
    return query, gallery


def _limit_time(step: TemporalWindow, state: Retrieval) -> tuple[Retrieval, Counts]:
    query, gallery = _times(state)
    # A null time is NaN, and farther than nothing.
    far = np.abs(query[:, None] - gallery) > step.tau
    if state.query_source is not None and state.gallery_source is not None:
        asking, answering = number(state.query_source, state.gallery_source)
        far &= asking[:, None] == answering
    return _excluding(state, far, {})


def _excluding(
    state: Retrieval, more: NDArray[np.bool_], counts: Counts
) -> tuple[Retrieval, Counts]:
    """Exclude more pairs; count those that were not yet, and queries that have nothing left."""
    before = 0
    if state.excluded is not None:
        before = int(state.excluded.sum())
        more = more | state.excluded
    counts |= {"excluded": int(more.sum()) - before, "emptied": int(more.all(axis=1).sum())}
    return replace(state, excluded=more), counts


def _rerank(step: Rerank, state: Retrieval) -> tuple[Retrieval, Counts]:
    """Neighbourhoods are those of all images: exclusion changes no other pair."""
    distance = k_reciprocal(
        state.query,
        state.gallery,
        step.k1,
        step.k2,
        step.lambda_value,
        neighbours=step.neighbours,
    )
    reranked = replace(state, similarity=-distance)
    return reranked, {"first_changed": int((_first(state) != _first(reranked)).sum())}


def _first(state: Retrieval) -> NDArray[np.int64]:
    """(Q,) the gallery image that each query ranks first."""
    first = np.empty(len(state.query), dtype=np.int64)
    for start in range(0, len(first), BLOCK):
        rows = slice(start, start + BLOCK)
        block = replace(
            state,
            query=state.query[rows],
            similarity=None if state.similarity is None else state.similarity[rows],
        )
        scores = block.scores()
        if state.excluded is not None:
            scores = np.where(state.excluded[rows], -np.inf, scores)
        first[rows] = scores.argmax(axis=1)
    return first


STEPS: Mapping[str, Callable[[Any, Retrieval], tuple[Retrieval, Counts]]] = {
    "query_expansion": _expand,
    "camera_verification": _verify_cameras,
    "temporal_window": _limit_time,
    "rerank": _rerank,
}
