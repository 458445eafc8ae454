"""Which first places are in doubt, and what refining only those gains: margins and their gate.

The margin of a query is the similarity of its best gallery image less that of the best image of
anybody else, junk left out. A gate refines the queries below a threshold, which is a quantile of
the margins of one half of the identities, chosen by the hash of their names; no figure decides it.
What it gains is measured on the other half.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking import metrics, open_set
from ray_reid.ranking.labels import number, split_nulls
from ray_reid.ranking.metrics import Metrics
from ray_reid.ranking.neighbours import unit

Margins = NDArray[np.float64]
Mask = NDArray[np.bool_]

FILE = "gate.json"
"""In a model package."""
SHARES = tuple(tenth / 10 for tenth in range(11))
# Queries whose similarities are in memory at a time.
BLOCK = 256


@dataclass(frozen=True)
class CalibratedGate:
    """The margin below which a query is refined."""

    margin: float
    """Difference of two cosines."""
    share: float
    """Of the queries, asked for."""
    calibrated: float
    """Share below it in the half that it was chosen on."""
    measured: float
    """Share below it in the other half."""

    def dump(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class Point:
    """What a test scores when a share of its queries is refined; shares from 0 to 1."""

    share: float
    """Asked for."""
    refined: float
    """Measured on these queries."""
    mAP: float
    rank1: float


def parse(text: str) -> CalibratedGate:
    """Read what `CalibratedGate.dump` wrote.

    Raises:
        ValueError: If it is something else.
    """
    try:
        values = json.loads(text)
        return CalibratedGate(**{name: float(value) for name, value in values.items()})
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"this is not the gate of a refinement: {error!r}") from error


def junk(
    rule: metrics.Protocol,
    query: Mapping[str, Sequence[Hashable]],
    gallery: Mapping[str, Sequence[Hashable]],
) -> Mask:
    """(Q, G) True where an image says nothing of a query, as `metrics.evaluate` has it.

    Args:
        rule: What of the query's identity is junk besides its camera.
        query: Columns identity, camera and, where the rule looks at them, clothes.
        gallery: Likewise.
    """
    same = _same(query["identity"], gallery["identity"])
    excluded = _same(query["camera"], gallery["camera"])
    if rule != "market":
        worn = _same(query["clothes"], gallery["clothes"])
        excluded |= worn if rule == "cc" else ~worn
    return same & excluded


def margins(query: Any, gallery: Any, identity: Sequence[Hashable], hidden: Mask) -> Margins:
    """How far the best image of each query is ahead of the best one of anybody else.

    Infinite where nobody else is in the gallery. A gallery image of null identity is a subject of
    its own.

    Args:
        query: (Q, D) of any length.
        gallery: (G, D)
        identity: (G,)
        hidden: (Q, G) True where an image is not looked at.
    """
    queries, images = unit(query, "query"), unit(gallery, "gallery")
    subject = split_nulls(*number(identity))
    margin = np.full(len(queries), np.inf)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        similarity = np.where(hidden[rows], -np.inf, queries[rows] @ images.T)
        best = similarity.argmax(axis=1)
        first = np.take_along_axis(similarity, best[:, None], 1)[:, 0]
        similarity[subject[best][:, None] == subject] = -np.inf
        second = similarity.max(axis=1)
        finite = np.isfinite(first) & np.isfinite(second)
        margin[rows][finite] = first[finite].astype(float) - second[finite]
    return margin


def threshold(margin: Margins, share: float) -> float:
    """The margin that about this share of the queries lies below: none at 0, all at 1."""
    if share in (0, 1):
        return -np.inf if share == 0 else np.inf
    return float(np.quantile(margin, share, method="higher"))


def named(identity: Sequence[str | None], scored: Metrics) -> list[str | None]:
    """Identities of the queries that are scored, null for the others.

    One whose every match is junk has a margin between two strangers, and would fill a gate.
    """
    return [name if rank > 0 else None for name, rank in zip(identity, scored.first, strict=True)]


def calibrate(margin: Margins, identity: Sequence[str | None], share: float) -> CalibratedGate:
    """A gate for a share of the queries, chosen on one half of the identities.

    Args:
        margin: (Q,)
        identity: (Q,) null for a query that does not count.
        share: Of the queries that are refined.

    Raises:
        ValueError: If a half has no query with an identity.
    """
    first, second = _halves(identity)
    level = threshold(margin[first], share)
    if not np.isfinite(level):
        raise ValueError(
            f"refine.gate: {share:g} of the queries have no margin that is finite: their gallery "
            "holds one identity; leave refine.gate out"
        )
    below = margin < level
    return CalibratedGate(level, share, float(below[first].mean()), float(below[second].mean()))


def curve(
    plain: Metrics,
    refined: Metrics,
    margin: Margins,
    identity: Sequence[str | None],
    has_variants: Mask,
) -> list[Point]:
    """What refining a share of the queries gives, the most doubtful first.

    The thresholds are of one half of the identities, the figures of the other.

    Args:
        plain: What the queries score alone.
        refined: What they score with variants.
        margin: (Q,)
        identity: (Q,)
        has_variants: (Q,) True where a query has variants; the others cannot be refined.

    Raises:
        ValueError: If a half has no query that is scored.
    """
    first, second = _halves(named(identity, plain))
    points = []
    for share in SHARES:
        doubtful = margin < threshold(margin[first], share)
        if share == 1:
            doubtful = np.ones_like(doubtful)
        doubtful &= has_variants
        scores = metrics.chosen(plain, refined, doubtful)
        points.append(
            Point(
                share,
                float(doubtful[second].mean()),
                float(scores.ap[second].mean()),
                float((scores.first[second] == 1).mean()),
            )
        )
    return points


def _halves(identity: Sequence[str | None]) -> tuple[Mask, Mask]:
    """Queries of either half of the identities; those without one are in neither."""
    # Those of the open-set thresholds.
    half = np.array(
        [-1 if name is None else open_set.half(f"identity {name}") for name in identity]
    )
    halves = half == 0, half == 1
    if not all(mask.any() for mask in halves):
        counts = [int(mask.sum()) for mask in halves]
        raise ValueError(
            f"the halves of the test identities have {counts[0]} and {counts[1]} queries, and both "
            "are needed: one gives the thresholds, the other says what they are worth"
        )
    return halves


def _same(query: Sequence[Hashable], gallery: Sequence[Hashable]) -> Mask:
    """(Q, G) where two labels are equal and not null."""
    asking, answering = number(query, gallery)
    return (asking[:, None] == answering) & (asking >= 0)[:, None]
