"""The definitions, as slowly and plainly as they read: what fast code is held against."""

from collections.abc import Hashable, Sequence

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
    ranking = np.argsort(original, axis=1, kind="stable")

    def reciprocal(row: int, k: int) -> list[int]:
        return [int(other) for other in ranking[row, : k + 1] if row in ranking[other, : k + 1]]

    encoding = np.zeros_like(original)
    for row in range(len(rows)):
        own = set(reciprocal(row, k1))
        expanded = set(own)
        for candidate in own:
            brought = set(reciprocal(candidate, int(np.around(k1 / 2))))
            if len(brought & own) > 2 / 3 * len(brought):
                expanded |= brought
        columns = sorted(expanded)
        weight = np.exp(-original[row, columns])
        encoding[row, columns] = weight / weight.sum()
    encoding = np.array([encoding[ranking[row, :k2]].mean(axis=0) for row in range(len(rows))])
    final = np.empty((len(query), len(gallery)))
    for row in range(len(query)):
        minima = np.minimum(encoding[row], encoding[len(query) :]).sum(axis=1)
        maxima = np.maximum(encoding[row], encoding[len(query) :]).sum(axis=1)
        jaccard = 1 - minima / maxima
        final[row] = (1 - lambda_value) * jaccard + lambda_value * original[row, len(query) :]
    return final
