"""How much an image looks like an identity, and what a threshold on that is worth.

A pair is an image and an identity: genuine if the image shows the identity, else an impostor. The
similarity is that to the centroid of the identity's images, or to the nearest of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.labels import number_sorted
from ray_reid.ranking.open_set import ENOUGH, Highest

Against = Literal["centroid", "nearest"]
Similarities = NDArray[np.float32]

RATES = tuple(
    step * 10.0**power for power in range(-5, 0) for step in (1, 1.5, 2, 3, 5, 7)
)  # fmt: skip
"""False-match rates of a curve."""
BLOCK = 1 << 22
MOST = 4096
"""Images that a curve rests on, evenly spaced; enough for the lowest of the rates."""


@dataclass(frozen=True)
class CurvePoint:
    """One threshold of a curve; shares from 0 to 1."""

    far: float
    """Share of impostor pairs that may lie above the threshold."""
    threshold: float
    tar: float
    """Share of genuine pairs that lie above it."""


@dataclass(frozen=True)
class FalseMatches:
    """The false-match curve of one kind of similarity."""

    points: tuple[CurvePoint, ...]
    """By rising rate; rates that the pairs are too few for are left out."""
    genuine: int
    """Pairs."""
    impostors: int

    def threshold(self, far: float) -> float:
        """Return the threshold of a false-match rate: that of the next lower rate of the curve.

        Raises:
            ValueError: If the pairs are too few for the rate.
        """
        fit = [point.threshold for point in self.points if point.far <= far * (1 + 1e-9)]
        if not fit:
            known = f"{self.points[0].far:g}" if self.points else "no rate at all"
            raise ValueError(
                f"far {far:g} needs {int(np.ceil(ENOUGH / far)):,} impostor pairs, but there are "
                f"{self.impostors:,}; the lowest rate is {known}: ask for a higher one, or give a "
                "threshold"
            )
        return fit[-1]


class Identities:
    """The images of some identities, to which others are compared."""

    def __init__(self, embedding: NDArray[Any], identity: Sequence[str]) -> None:
        """Take (N, D) unit-norm embeddings and the identity of each."""
        self.names, (owner,) = number_sorted(identity)
        order = np.argsort(owner, kind="stable")
        self.order = order
        """Rows in the order in which they lie here, identity by identity."""
        self.owner: NDArray[np.int64] = owner[order]
        self.embedding: NDArray[np.float32] = np.asarray(embedding, np.float32)[order]
        self.starts = np.searchsorted(self.owner, np.arange(len(self.names)))
        self.sums: NDArray[np.float32] = np.add.reduceat(self.embedding, self.starts, axis=0)
        self.counts = np.bincount(self.owner, minlength=len(self.names))
        self.number_of = {name: number for number, name in enumerate(self.names)}

    def similarity(self, vectors: NDArray[Any], against: Against) -> Similarities:
        """Compare (N, D) unit-norm vectors with every identity.

        Returns:
            (N, I) cosine similarities, identities in the order of their names.
        """
        if against == "centroid":
            return _found(vectors @ _unit(self.sums).T)
        return _found(np.maximum.reduceat(vectors @ self.embedding.T, self.starts, axis=1))

    def own_similarity(
        self, vectors: NDArray[Any], identity: Sequence[str], against: Against
    ) -> Similarities:
        """Compare (N, D) unit-norm vectors each with one identity.

        Raises:
            KeyError: If there is no such identity.
        """
        numbers = [self.number_of[name] for name in identity]
        if against == "centroid":
            return _found(np.einsum("nd,nd->n", vectors, _unit(self.sums[numbers])))
        found = np.empty(len(numbers), np.float32)
        for row, number in enumerate(numbers):
            start = self.starts[number]
            own = self.embedding[start : start + self.counts[number]]
            found[row] = (own @ vectors[row]).max()
        return found

    def curve(self, against: Against) -> FalseMatches:
        """Measure the similarity of these images to their own and to all other identities.

        An image is left out of what it is compared with; one that is alone has no genuine pair.
        """
        impostors = len(self._asked()) * (len(self.names) - 1)
        top = Highest(int(max(RATES) * impostors) + 1)
        genuine = []
        for own, others in self._pairs(against):
            genuine.append(own)
            top.add(others)
        same = np.concatenate(genuine) if genuine else np.empty(0)
        rates = [rate for rate in RATES if rate * impostors >= ENOUGH]
        points = []
        for rate in rates if len(same) else ():
            level = top.level(rate)
            # At the threshold an image is kept, and at most this share lies above the level.
            threshold = float(np.nextafter(level, np.inf))
            points.append(CurvePoint(rate, threshold, float((same >= threshold).mean())))
        return FalseMatches(tuple(points), len(same), impostors)

    def _asked(self) -> NDArray[np.int64]:
        size = len(self.owner)
        return np.linspace(0, size - 1, min(MOST, size)).round().astype(np.int64)

    def _pairs(self, against: Against) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Similarities of genuine and of impostor pairs, some images at a time."""
        asked = self._asked()
        step = max(1, BLOCK // len(self.owner))
        for start in range(0, len(asked), step):
            rows = asked[start : start + step]
            owner = self.owner[rows]
            vectors = self.embedding[rows]
            similarity = self.similarity(vectors, against).astype(np.float64)
            other = np.ones_like(similarity, np.bool_)
            other[np.arange(len(rows)), owner] = False
            several = self.counts[owner] > 1
            yield self._own(rows[several], against), similarity[other]

    def _own(self, rows: NDArray[np.int64], against: Against) -> NDArray[np.float64]:
        """Similarity of images to the others of their identity, of which there are some."""
        vectors, owner = self.embedding[rows], self.owner[rows]
        if against == "centroid":
            rest = _unit(self.sums[owner] - vectors)
            return np.einsum("nd,nd->n", vectors, rest).astype(np.float64)
        found = np.empty(len(rows))
        for place, (row, number) in enumerate(zip(rows, owner, strict=True)):
            start = self.starts[number]
            similarity = self.embedding[start : start + self.counts[number]] @ vectors[place]
            similarity[row - start] = -np.inf
            found[place] = similarity.max()
        return found


def _found(similarity: NDArray[Any]) -> Similarities:
    return similarity.astype(np.float32, copy=False)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.maximum(norm, np.float32(1e-12))
