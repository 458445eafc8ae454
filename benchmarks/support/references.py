"""The definitions, as slowly and plainly as they read: what fast code is held against."""

from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def unit(rows: NDArray[np.floating]) -> Doubles:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def k_reciprocal(
    query: NDArray[np.floating],
    gallery: NDArray[np.floating],
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> Doubles:
    """Zhong et al., CVPR 2017, with every matrix dense; of equal distances the first row's."""
    rows = np.concatenate([unit(query), unit(gallery)])
    euclidean = np.sqrt(np.maximum(2 - 2 * rows @ rows.T, 0))
    np.fill_diagonal(euclidean, 0)
    squared = euclidean**2
    original = (squared / squared.max(axis=0)).T
    ranking = np.argsort(original, axis=1, kind="stable")[:, : max(k1 + 1, k2)].tolist()

    @cache
    def reciprocal(row: int, k: int) -> set[int]:
        return {other for other in ranking[row][: k + 1] if row in ranking[other][: k + 1]}

    encoding = np.zeros_like(original)
    for row in range(len(rows)):
        own = reciprocal(row, k1)
        expanded = set(own)
        for candidate in own:
            brought = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(brought & own) > 2 / 3 * len(brought):
                expanded |= brought
        columns = sorted(expanded)
        weight = np.exp(-original[row, columns])
        encoding[row, columns] = weight / weight.sum()
    encoding = np.array([encoding[ranking[row][:k2]].mean(axis=0) for row in range(len(rows))])
    final = np.empty((len(query), len(gallery)))
    for row in range(len(query)):
        minima = np.minimum(encoding[row], encoding[len(query) :]).sum(axis=1)
        maxima = np.maximum(encoding[row], encoding[len(query) :]).sum(axis=1)
        jaccard = 1 - minima / maxima
        final[row] = (1 - lambda_value) * jaccard + lambda_value * original[row, len(query) :]
    return final


def refined_rankings(
    query: NDArray[np.floating],
    variants: NDArray[np.floating],
    gallery: NDArray[np.floating],
    gallery_identity: Sequence[Hashable],
    m: int = 5,
) -> list[list[int]]:
    """DLCR, Algorithm 1, and its ranking of all gallery images for each query.

    A list whose largest cosine is not positive adds nothing.
    """
    rankings = []
    for own, others in zip(unit(query), unit(variants), strict=True):
        cosine = unit(gallery) @ own
        nearest = [int(i) for i in np.argsort(-cosine, kind="stable")]
        score: dict[Hashable, float] = {gallery_identity[i]: 0.0 for i in nearest[:m]}
        for view in (own, *others):
            of_view = unit(gallery) @ view
            listed = [int(i) for i in np.argsort(-of_view, kind="stable")[:m]]
            largest = max(of_view[i] for i in listed)
            for i in listed:
                if gallery_identity[i] in score and largest > 0:
                    score[gallery_identity[i]] += of_view[i] / largest
        # Sorting is stable: subjects of one score stay in the order of the query's list.
        ranking = []
        for subject in sorted(score, key=lambda subject: -score[subject]):
            ranking += [i for i in nearest if gallery_identity[i] == subject]
        rankings.append(ranking + [i for i in nearest if gallery_identity[i] not in score])
    return rankings


def released_similarity(
    query: NDArray[np.floating],
    variants: NDArray[np.floating],
    gallery: NDArray[np.floating],
    gallery_identity: Sequence[Hashable],
    m: int = 5,
    junk: NDArray[np.bool_] | None = None,
) -> Doubles:
    """The rule of DLCR's released code; `junk` (Q, G) is True where a pair is in no list."""
    similarities = []
    for q, (own, others) in enumerate(zip(unit(query), unit(variants), strict=True)):
        bests: list[dict[Hashable, float]] = []
        listed: list[int] = []
        similarity = unit(gallery) @ own + 1
        for view in (own, *others):
            of_view = unit(gallery) @ view + 1
            order = [int(i) for i in np.argsort(-of_view, kind="stable")]
            order = [i for i in order if junk is None or not junk[q, i]][:m]
            best: dict[Hashable, float] = {}
            for i in order:
                best[gallery_identity[i]] = max(best.get(gallery_identity[i], 0.0), of_view[i])
            listed = listed if bests else order
            bests.append(best)
        score = dict(bests[0])
        for best in bests:
            for subject in score:
                if subject in best:
                    score[subject] += best[subject] * best[subject] / max(best.values())
        for i in listed:
            similarity[i] = max(score[gallery_identity[i]], similarity[i])
        similarities.append(similarity)
    return np.array(similarities)


def mean_average_precision(
    distances: NDArray[np.floating],
    query_identity: NDArray[np.integer],
    gallery_identity: NDArray[np.integer],
) -> float:
    """The rectangle, of queries that have a match, without junk; lower distances rank first."""
    precisions = []
    for row, identity in zip(distances, query_identity, strict=True):
        rank = 1 + np.flatnonzero(gallery_identity[np.argsort(row, kind="stable")] == identity)
        if rank.size:
            precisions.append((np.arange(1, rank.size + 1) / rank).mean())
    return float(np.mean(precisions))
