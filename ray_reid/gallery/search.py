"""Searches that are refined: the gallery's answer to a query in several clothes (DLCR, Alg. 1).

A list needs its first images only, and the ranking those and all images of the subjects in
question. So the gallery is searched as ever, and `refine` sees these few vectors; the first k are
those that it would give over the whole gallery.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.gallery import EVERYTHING, Gallery, Hit
from ray_reid.gallery.searcher import Searcher, read_query
from ray_reid.generation.tailor import Tailor
from ray_reid.places import Place
from ray_reid.ranking import doubt
from ray_reid.ranking.doubt import CalibratedGate
from ray_reid.ranking.refine import refine
from ray_reid.recipe.refine import Refine
from ray_reid.runtime.results import RunState

Dress = Callable[[bytes], Sequence[bytes] | str]
"""An image to the same person in other clothes, or why there are none."""
Vectors = NDArray[np.float32]
# Hits to look for the second identity among; four times as many, and so on, where it is not there.
FIRST = 32


@dataclass(frozen=True)
class Refinement:
    """Whether an answer was refined, and why."""

    refined: bool
    reason: str
    margin: float | None
    """Similarity of the nearest image less that of the nearest of anybody else; null where nobody
    else is in the gallery."""
    threshold: float | None
    """Margin below which queries are refined; null if all are."""
    num_variants: int
    """Images that were made for it."""


@dataclass(frozen=True)
class Answer:
    """Hits, and what became of the refinement."""

    hits: list[Hit]
    """Refined, in the order of the refinement; `similarity` is still the cosine to the query."""
    refinement: Refinement


@dataclass(frozen=True)
class Refiner:
    """A searcher, and what dresses its queries."""

    searcher: Searcher
    dress: Dress
    spec: Refine
    gate: CalibratedGate | None

    @classmethod
    def open(cls, run: RunState, searcher: Searcher, dress: Dress | None = None) -> "Refiner":
        """Read how a run refines; without `dress`, the first query in doubt loads the models here.

        Raises:
            ValueError: If the run does not refine, or lacks what it needs for that.
        """
        spec = needs(run)
        file = run.folder("evaluate") / "model" / doubt.FILE
        gate = doubt.parse(file.read_text()) if file.is_file() else None
        return cls(searcher, tailor(run) if dress is None else dress, spec, gate)

    def search(
        self, encoded: bytes, k: int, where: Where = EVERYTHING, camera: str | None = None
    ) -> Answer:
        """Find the k gallery images that come first for a query; see `Searcher.search`.

        A query that the gate is sure of, or whose clothes are not found, is answered unrefined.

        Raises:
            ValueError: As `Searcher.search`.
        """
        self.searcher.check_camera(camera)
        query = self.searcher.embed([encoded], camera)
        gallery = self.searcher.gallery
        ahead = margin(gallery, query, where)
        known = ahead if math.isfinite(ahead) else None
        level = None if self.gate is None else self.gate.margin

        def unrefined(reason: str) -> Answer:
            hits = self.searcher.decided(gallery.search(query, k, where)[0], camera)
            return Answer(hits, Refinement(False, reason, known, level, 0))

        if level is not None and ahead >= level:
            return unrefined("the first place is sure: its margin is not below the threshold")
        made = self.dress(encoded)
        if isinstance(made, str):
            return unrefined(made)
        variants = self.searcher.embed(made, camera)
        hits = refined(gallery, query, variants, k, self.spec, where)
        told = Refinement(True, "refined by clothes", known, level, len(made))
        return Answer(self.searcher.decided(hits, camera), told)


def needs(run: RunState) -> Refine:
    """The section `refine` of a run that has what a refined search needs.

    Raises:
        ValueError: If it has no such section, or its clothes were not described.
    """
    spec = run.recipe.refine
    if spec is None:
        raise ValueError(
            f"run {str(run.path)!r} refines no query: its recipe has no section 'refine'; run "
            "'dlcr' with --set refine={}"
        )
    run.folder("describe")
    return spec


def tailor(run: RunState) -> Tailor:
    """What makes variants with the models and descriptions of a run, once it needs the models.

    Raises:
        ValueError: If the run refines no query, or too few clothes are described.
    """
    return Tailor(run.recipe, run.folder("describe"))


def margin(gallery: Gallery, query: Vectors, where: Where = EVERYTHING) -> float:
    """How far the nearest image of a (1, D) query is ahead of the nearest of anybody else.

    Infinite where there is nobody else. An image of null identity is a subject of its own.
    """
    k = FIRST
    while True:
        view, (similarity, number) = gallery.find(query, k, where)
        there = number[0] >= 0
        values, identities = similarity[0][there], view.identities(number[0][there])
        first = identities[0] if identities else None
        for value, identity in zip(values[1:], identities[1:], strict=True):
            if first is None or identity != first:
                return float(values[0] - value)
        if len(values) < k:
            return math.inf
        k *= 4


def refined(
    gallery: Gallery,
    query: Vectors,
    variants: Vectors,
    k: int,
    spec: Refine,
    where: Where = EVERYTHING,
) -> list[Hit]:
    """The first k of the gallery for a (1, D) query and its (L, D) variants.

    Raises:
        ValueError: If k is below 1.
    """
    together = np.concatenate([query, variants])
    view, (_, number) = gallery.find(together, max(k, spec.m), where)
    own = number[0, : spec.m]
    asked = {name for name in view.identities(own[own >= 0]) if name is not None}
    # All images of the subjects in question come before all others.
    theirs = view.numbers(replace(where, identities=tuple(sorted(asked)))) if asked else []
    numbers = np.unique(np.append(number[number >= 0], np.array(theirs, np.int64)))
    if not len(numbers):
        return []
    vectors = np.stack([view.vector(int(one)) for one in numbers])
    rows, identities = view.rows(numbers), view.identities(numbers)
    score = refine(query, variants[None], vectors, identities, spec.m, spec.rule)[0]
    cosine = (vectors @ query[0]).clip(-1, 1)
    order = np.lexsort((-cosine, -score))[:k]
    return [
        Hit(rank, float(cosine[at]), *rows[at]) for rank, at in enumerate(order.tolist(), start=1)
    ]


def search_image(run: Place, image: Path, k: int, camera: str | None = None) -> Answer:
    """Search the gallery of a run with an image file, refined by clothes.

    Raises:
        ValueError: If the file is not an image, the camera has no such name, or the run has no
            current index or nothing to refine with.
    """
    encoded = read_query(image, camera)
    state = RunState.read(run)
    needs(state)
    return Refiner.open(state, Searcher.open(state)).search(encoded, k, camera=camera)


def sentence(told: Refinement) -> str:
    """What a person is told below the hits."""
    margin = "nobody else is in the gallery" if told.margin is None else f"margin {told.margin:.4f}"
    level = "" if told.threshold is None else f", threshold {told.threshold:.4f}"
    done = f"refined by {told.num_variants} variants"
    return f"{done if told.refined else f'not refined: {told.reason}'} ({margin}{level})"
