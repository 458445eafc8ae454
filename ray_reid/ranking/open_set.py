"""Answers match, possible or unknown: thresholds for false-match rates, and what they are worth.

Half of the test identities, chosen by the hash of their names, gives the thresholds; the other
half says how many genuine and how many impostor pairs pass them. A pair is a query and a gallery
image by the Market rule: of one identity it is genuine, unless one camera took both, and of two
identities an impostor.

A camera pair with enough impostors has thresholds of its own, because some cameras make all things
alike. Confidence intervals are a bootstrap over identities, for pairs of one identity are not
independent: one that is drawn w_i times counts its genuine pairs w_i times, and its impostor pairs
with another w_i w_j times (the subsets bootstrap of Bolle et al., CVIU 2004).
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ray_reid import schema
from ray_reid.ranking import metrics
from ray_reid.ranking.grid import on_grid
from ray_reid.ranking.labels import number, number_sorted

Decision = Literal["match", "possible", "unknown"]
Cameras = tuple[str, str]
"""Two cameras as `source:camera`, in the order of their names."""
Pairs = NDArray[np.float64]

FILE = "thresholds.json"
"""In a model package."""
ENOUGH = 10
"""Impostor pairs that must be expected above a threshold: 10 / rate of them are needed."""
DRAWS = 500
BLOCK = 1 << 22
LEVELS = ("match", "possible")


@dataclass(frozen=True)
class Level:
    """What a threshold is worth on identities that it has not seen; shares from 0 to 1."""

    target: float
    """False-match rate asked for."""
    tar: float
    """Share of genuine pairs that pass (TAR@FAR)."""
    tar_low: float
    """Bounds of the 95 % confidence interval."""
    tar_high: float
    far: float
    """Share of impostor pairs that pass."""
    far_low: float
    far_high: float


@dataclass(frozen=True)
class Thresholds:
    """Cosine similarities above which two images are a match, or possibly one."""

    match: float
    possible: float
    cameras: Mapping[Cameras, tuple[float, float]] = field(default_factory=dict)
    """Match and possible of the camera pairs that have their own."""
    levels: Mapping[str, Level] = field(default_factory=dict)
    """Of match and possible."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Identities and pairs that they rest on."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Which training and which test they are from."""

    def decide(
        self,
        similarity: float,
        query_camera: str | None = None,
        gallery_camera: str | None = None,
    ) -> Decision:
        """Say what a cosine similarity means; cameras are named `source:camera`."""
        match, possible = self.of(query_camera, gallery_camera)
        if similarity > match:
            return "match"
        return "possible" if similarity > possible else "unknown"

    def of(self, query_camera: str | None, gallery_camera: str | None) -> tuple[float, float]:
        """Thresholds of match and possible between two cameras, else the overall ones."""
        overall = self.match, self.possible
        if query_camera is None or gallery_camera is None:
            return overall
        return self.cameras.get(_ordered(query_camera, gallery_camera), overall)

    def dump(self) -> str:
        """Write them as JSON."""
        values = asdict(self)
        values["cameras"] = [
            {"cameras": list(pair), "match": match, "possible": possible}
            for pair, (match, possible) in sorted(self.cameras.items())
        ]
        return json.dumps({"similarity": "cosine", **values}, indent=2) + "\n"


def parse(text: str) -> Thresholds:
    """Read what `Thresholds.dump` wrote.

    Raises:
        ValueError: If it is something else.
    """
    try:
        values = json.loads(text)
        return Thresholds(
            float(values["match"]),
            float(values["possible"]),
            {
                _ordered(*entry["cameras"]): (float(entry["match"]), float(entry["possible"]))
                for entry in values["cameras"]
            },
            {name: Level(**level) for name, level in values["levels"].items()},
            values["counts"],
            values["origin"],
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"these are not thresholds: {error!r}") from error


@dataclass(frozen=True, eq=False)
class LabelledEmbeddings:
    """Queries or gallery; an image without identity is a distractor, unlike all others."""

    embedding: NDArray[Any]
    """(N, D)"""
    identity: Sequence[str | None]
    camera: Sequence[str | None]
    """As `source:camera`."""
    observation_id: Sequence[str]
    """Names distractors, which have no other."""


def calibrate(
    query: LabelledEmbeddings,
    gallery: LabelledEmbeddings,
    match_far: float = 1e-3,
    possible_far: float = 1e-2,
    *,
    seed: int = 0,
    origin: Mapping[str, str] | None = None,
) -> Thresholds:
    """Find thresholds on one half of the identities, and measure them on the other.

    Args:
        query: Of a test; those without identity are left out.
        gallery: Likewise, with distractors.
        match_far: False-match rate of a match.
        possible_far: Of a match or a possible one.
        seed: Of the bootstrap.
        origin: Which training and which test; it is kept with the result.

    Raises:
        ValueError: If the data are too few for the rates.
    """
    first, second = (_Half.of(query, gallery, number) for number in (0, 1))
    rates = (match_far, possible_far)
    needed = math.ceil(ENOUGH / match_far)
    num_impostors = first.num_impostors
    if num_impostors < needed:
        raise ValueError(
            f"a false-match rate of {match_far:g} needs {needed:,} impostor pairs, but half of the "
            f"test identities has {num_impostors:,}; ask for a higher rate or add test images"
        )
    if not second.num_genuine or not second.num_impostors:
        raise ValueError(
            f"the half of the test identities to measure thresholds on has {second.num_genuine} "
            f"genuine and {second.num_impostors} impostor pairs, and both are needed"
        )
    overall, own = _thresholds(first, rates, needed)
    levels = _measure(second, Thresholds(*overall, own), rates, seed)
    counts = {
        "calibration_identities": first.num_identities,
        "calibration_impostors": num_impostors,
        "identities": second.num_identities,
        "genuine": second.num_genuine,
        "impostors": second.num_impostors,
    }
    return Thresholds(*overall, own, levels, counts, dict(origin or {}))


@dataclass(frozen=True, eq=False)
class _Half:
    """Images of half of the identities, in numbers; a camera that is null is -1."""

    query: NDArray[np.float64]
    gallery: NDArray[np.float64]
    query_identity: NDArray[np.int64]
    gallery_identity: NDArray[np.int64]
    """Every distractor has one of its own."""
    query_camera: NDArray[np.int64]
    gallery_camera: NDArray[np.int64]
    cameras: Sequence[str]
    num_identities: int
    """Distractors included."""
    num_genuine: int
    num_impostors: int

    @classmethod
    def of(cls, query: LabelledEmbeddings, gallery: LabelledEmbeddings, which: int) -> "_Half":
        """Take the identities, and the distractors, whose names have this half's hash."""
        names = [_names(side) for side in (query, gallery)]
        rows = [[n for n, name in enumerate(side) if half(name) == which] for side in names]
        rows[0] = [n for n in rows[0] if query.identity[n] is not None]
        if not all(rows):
            raise ValueError(
                f"half of the test identities has {len(rows[0])} query and {len(rows[1])} gallery "
                "images, and both are needed"
            )
        kept = [[side[n] for n in own] for side, own in zip(names, rows, strict=True)]
        sides = query, gallery
        seen = [[side.camera[n] for n in own] for side, own in zip(sides, rows, strict=True)]
        identity = number(*kept)
        cameras, camera = number_sorted(*seen)
        same = Counter(kept[1])
        genuine = sum(same[name] for name in kept[0])
        junk = Counter(zip(kept[1], seen[1], strict=True))
        num_junk = sum(
            junk[name, view]
            for name, view in zip(kept[0], seen[0], strict=True)
            if view is not None
        )
        return cls(
            metrics.unit(query.embedding[rows[0]], "query"),
            metrics.unit(gallery.embedding[rows[1]], "gallery"),
            identity[0],
            identity[1],
            camera[0],
            camera[1],
            cameras,
            len({*kept[0], *kept[1]}),
            genuine - num_junk,
            len(rows[0]) * len(rows[1]) - genuine,
        )

    def blocks(
        self, queries: NDArray[np.int64], images: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Pairs, NDArray[np.bool_]]]:
        """Some queries at a time: their rows, similarities to the images, and who is the same."""
        step = max(1, BLOCK // max(1, len(images)))
        for start in range(0, len(queries), step):
            rows = queries[start : start + step]
            # On the grid of the metrics, so that copies of an image tie.
            similarity = on_grid(self.query[rows] @ self.gallery[images].T)
            same = self.query_identity[rows][:, None] == self.gallery_identity[images]
            yield rows, similarity, same


def half(name: str) -> int:
    """Which half of the identities a name is in, 0 or 1; others do not change it."""
    return int(schema.observation_id("half", name)[-1], 16) % 2


class Highest:
    """The largest of many values, some at a time."""

    def __init__(self, size: int) -> None:
        """Keep the `size` largest of all values that come."""
        self._size, self._parts, self._held = size, [np.empty(0)], 0
        self.count = 0

    def add(self, values: Pairs) -> None:
        """Take some values."""
        self.count += len(values)
        self._parts.append(values)
        self._held += len(values)
        if self._held > 2 * self._size + BLOCK:
            self._trim()

    def level(self, rate: float) -> float:
        """Return the largest value that at most this share of all lies above."""
        self._trim()
        allowed = math.floor(rate * self.count)
        return float(self._parts[0][-1 - allowed])

    def _trim(self) -> None:
        kept = np.sort(np.concatenate(self._parts))[-self._size :]
        self._parts, self._held = [kept], len(kept)


def _thresholds(
    part: _Half, rates: tuple[float, float], needed: int
) -> tuple[tuple[float, float], dict[Cameras, tuple[float, float]]]:
    """Match and possible, overall and of the camera pairs with impostors enough."""
    asked = [np.flatnonzero(part.query_camera == n) for n in range(-1, len(part.cameras))]
    answering = [np.flatnonzero(part.gallery_camera == n) for n in range(-1, len(part.cameras))]
    # One more than may pass.
    overall = Highest(math.floor(rates[1] * part.num_impostors) + 1)
    own: dict[Cameras, tuple[float, float]] = {}
    # Camera 0 is none; of two cameras either may be that of the query.
    for first in range(len(asked)):
        for second in range(first, len(asked)):
            ways = sorted({(first, second), (second, first)})
            size = sum(len(asked[a]) * len(answering[b]) for a, b in ways)
            top = Highest(math.floor(rates[1] * size) + 1)
            for a, b in ways:
                for _, similarity, same in part.blocks(asked[a], answering[b]):
                    top.add(similarity[~same])
                    overall.add(similarity[~same])
            if first and top.count >= needed:
                pair = _ordered(part.cameras[first - 1], part.cameras[second - 1])
                own[pair] = (top.level(rates[0]), top.level(rates[1]))
    return (overall.level(rates[0]), overall.level(rates[1])), own


def _measure(
    part: _Half, thresholds: Thresholds, rates: tuple[float, float], seed: int
) -> dict[str, Level]:
    """Rates of genuine and impostor pairs that pass, with intervals."""
    from scipy.sparse import csr_array

    table = _by_camera(part.cameras, thresholds)
    everything = np.arange(len(part.gallery))
    size = part.num_identities
    genuine = np.zeros(size)
    passed = np.zeros((2, size))
    # Impostors that pass are few: their identities, pair by pair.
    through: list[list[NDArray[np.int64]]] = [[], []]
    for rows, similarity, same in part.blocks(np.arange(len(part.query)), everything):
        camera = part.query_camera[rows]
        junk = same & (camera[:, None] >= 0) & (camera[:, None] == part.gallery_camera)
        identity = part.query_identity[rows]
        np.add.at(genuine, identity, (same & ~junk).sum(axis=1))
        for level in range(2):
            accepted = similarity > table[level][camera[:, None], part.gallery_camera]
            np.add.at(passed[level], identity, (accepted & same & ~junk).sum(axis=1))
            row, image = np.nonzero(accepted & ~same)
            through[level].append(identity[row] * size + part.gallery_identity[image])
    queries = np.bincount(part.query_identity, minlength=size).astype(float)
    images = np.bincount(part.gallery_identity, minlength=size).astype(float)
    weights = _draws(size, seed)
    genuine_pairs = weights @ genuine
    impostor_pairs = (weights @ queries) * (weights @ images) - weights**2 @ (queries * images)
    levels = {}
    for level, name in enumerate(LEVELS):
        code, times = np.unique(np.concatenate(through[level]), return_counts=True)
        counts = csr_array((times, np.divmod(code, size)), shape=(size, size))
        accepted_pairs = ((counts @ weights.T) * weights.T).sum(axis=0)
        # The first draw takes everybody once.
        tar = _bounds(weights @ passed[level], genuine_pairs)
        far = _bounds(accepted_pairs, impostor_pairs)
        levels[name] = Level(rates[level], *tar, *far)
    return levels


def _by_camera(cameras: Sequence[str], thresholds: Thresholds) -> NDArray[np.float64]:
    """(2, C + 1, C + 1) match and possible of each camera pair; the last camera, -1, is none."""
    names: list[str | None] = [*cameras, None]
    pairs = [[thresholds.of(query, gallery) for gallery in names] for query in names]
    return np.moveaxis(np.array(pairs), -1, 0)


def _draws(size: int, seed: int) -> NDArray[np.float64]:
    """(1 + DRAWS, size) how often each identity is drawn; in the first draw once."""
    chance = np.random.default_rng(seed)
    drawn = chance.multinomial(size, np.full(size, 1 / size), DRAWS)
    return np.concatenate([np.ones((1, size)), drawn])


def _bounds(passed: NDArray[np.float64], pairs: NDArray[np.float64]) -> tuple[float, float, float]:
    """The share of the first draw, and the bounds of the middle 95 % of the others."""
    # A draw without such a pair says nothing.
    share = passed[pairs > 0] / pairs[pairs > 0]
    low, high = np.quantile(share[1:], (0.025, 0.975)) if len(share) > 1 else (0.0, 1.0)
    return float(share[0]), float(low), float(high)


def _names(side: LabelledEmbeddings) -> list[str]:
    pairs = zip(side.identity, side.observation_id, strict=True)
    return [f"distractor {key}" if name is None else f"identity {name}" for name, key in pairs]


def _ordered(first: str, second: str) -> Cameras:
    return (first, second) if first <= second else (second, first)
