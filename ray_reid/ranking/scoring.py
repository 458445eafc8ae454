"""Embeddings of queries and gallery to metrics, as the protocol of a recipe asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import schema, storage
from ray_reid.ranking import doubt, protocol_scores, protocols
from ray_reid.ranking.doubt import CalibratedGate, Point
from ray_reid.ranking.metrics import Metrics, chosen
from ray_reid.recipe.evaluate import Evaluate
from ray_reid.recipe.refine import Refine

COLUMNS = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.CAMERA,
    schema.CLOTHES,
    schema.TRACK,
    schema.TIME,
    schema.SOURCE,
    schema.SPLIT,
    schema.ROLE,
)
"""What a row must have to be scored, besides the embeddings."""
FORWARD = "forward"
# Queries that the gate of a package is calibrated on, evenly spaced: more move no quantile.
CALIBRATING = 2000
Names = Sequence[str | None]
Found = Mapping[str, Sequence[Metrics]]
UNREFINED = "unrefined_"
"""Begins the names of what the queries score alone, where the headline is refined."""


@dataclass(frozen=True, eq=False)
class Side:
    """The queries or the gallery of a test; junk is not in it, distractors have no identity."""

    observation_id: Sequence[str]
    identity: Names
    camera: Names
    clothes: Names
    track: Names
    embedding: NDArray[np.float32]
    """(N, D) what is scored."""
    reference: NDArray[np.float32]
    """(N, B) colour histograms."""
    time: Sequence[float | None] | None = None
    source: Sequence[str] | None = None
    camera_embedding: NDArray[np.float32] | None = None
    """(N, C) what a camera classifier makes of the images."""
    alone: NDArray[np.float32] | None = None
    """(N, E) what the package gives by itself, where that is not what is scored."""

    def cameras(self) -> list[str | None]:
        """Names of the cameras that are unique over all sources."""
        if self.source is None:
            return list(self.camera)
        return schema.qualified_cameras(self.source, self.camera)


class AveragedCases(dict[str, Sequence[Metrics]]):
    """Cases whose headline is the mean of all of them, not the first one."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model scores as its recipe asks."""

    found: Found
    """Refined, if the recipe has the section `refine`."""
    unrefined: Found | None = None
    """Then also what the queries score alone."""
    gate: CalibratedGate | None = None
    curve: Sequence[Point] = ()
    """What refining a share of the queries gives; of the headline's first draw."""
    missing: str | None = None
    """Why there is no curve."""

    def ap(self) -> NDArray[np.float32]:
        """Average precision of each query of the headline, NaN where it was skipped.

        All draws, and both directions or all sources, one after the other. Where there are
        several, each is scaled by its number of queries: the mean is the mAP of the headline.
        """
        found = self.found
        averaged = FORWARD in found or isinstance(found, AveragedCases)
        cases = list(found) if averaged else list(found)[:1]
        draws = [draw for case in cases for draw in found[case]]
        share = sum(draw.num_queries for draw in draws) / len(draws)
        scaled = [draw.ap * (share / draw.num_queries) for draw in draws]
        return np.concatenate(scaled).astype(np.float32)

    def figures(self) -> dict[str, float]:
        """Name the figures; see `flatten`."""
        alone = {} if self.unrefined is None else flatten(self.unrefined)
        return flatten(self.found) | {f"{UNREFINED}{name}": value for name, value in alone.items()}


def read_sides(table: pa.Table) -> tuple[Side, Side]:
    """Queries and gallery of a table: no junk, and distractors without identity.

    Raises:
        ValueError: If one of them is empty.
    """
    useful = table.filter(pc.not_equal(table[schema.ROLE], "junk"))
    sides = {
        split: useful.filter(pc.equal(useful[schema.SPLIT], split))
        for split in ("query", "gallery")
    }
    protocols.check_sides(len(sides["query"]), len(sides["gallery"]))
    return _side(sides["query"]), _side(sides["gallery"])


def score(query: Side, gallery: Side, column: str, spec: Evaluate) -> Found:
    """Metrics of one column of embeddings, as the protocol asks.

    What a network has learned is post-processed before; the floor without learning never is.

    Returns:
        Every draw by case, the headline first; of both directions `forward` and `reverse`; by
        source the headline of each.

    Raises:
        ValueError: If the test set lacks what the protocol needs.
    """
    if spec.both_directions:
        # A distractor is nobody's match, so it is no query either.
        named = [row for row, name in enumerate(gallery.identity) if name is not None]
        reverse = _run(_take(gallery, named), query, column, spec)
        forward = _run(query, gallery, column, spec)
        return AveragedCases({FORWARD: forward["standard"], "reverse": reverse["standard"]})
    if spec.by_source:
        return AveragedCases(_by_source(query, gallery, column, spec))
    return _run(query, gallery, column, spec)


def judge(
    query: Side,
    gallery: Side,
    spec: Evaluate,
    refine: Refine | None = None,
    variants: pa.Table | None = None,
) -> Judged:
    """Metrics of what a network has learned, refined if the recipe asks for it.

    Args:
        query: The queries.
        gallery: What they are searched in.
        spec: Section of the recipe.
        refine: Section of the recipe, or none.
        variants: Embedded variants of the queries, which only `refine` needs; null if no query has
            any.

    Raises:
        ValueError: If the test set lacks what the protocol needs, or the variants are too few.
    """
    if refine is None:
        return Judged(score(query, gallery, schema.EMBEDDING, spec))
    scores = protocol_scores.run_refined(
        spec.protocol,
        _labels(query, gallery),
        np.concatenate([query.embedding, gallery.embedding]),
        _query_variants(query, refine, variants),
        spec.average_precision,
    )
    first = next(iter(scores.values()))[0]
    gate = None
    if refine.gate is not None:
        counted = doubt.named(first.identity, first.plain)
        gate = doubt.calibrate(first.margin, counted, refine.gate.share)
    level = np.inf if gate is None else gate.margin
    judged = {
        name: [
            draw.refined if gate is None else chosen(draw.plain, draw.refined, draw.margin < level)
            for draw in draws
        ]
        for name, draws in scores.items()
    }
    alone = {name: [draw.plain for draw in draws] for name, draws in scores.items()}
    try:
        curve = doubt.curve(
            first.plain, first.refined, first.margin, first.identity, first.has_variants
        )
    except ValueError as error:
        return Judged(judged, alone, gate, missing=str(error))
    return Judged(judged, alone, gate, curve)


def served_gate(query: Side, gallery: Side, share: float) -> CalibratedGate:
    """A gate for those who ask the package itself: single images, of which only junk is hidden.

    A protocol may hide clothes, compare means of tracks, or score another embedding; a service does
    not. So it is calibrated anew by the Market rule, as the thresholds of the open set are.
    """
    alone, images = (
        side.embedding if side.alone is None else side.alone for side in (query, gallery)
    )
    size = len(query.identity)
    rows = np.linspace(0, size - 1, min(size, CALIBRATING)).round().astype(np.int64).tolist()
    identity, cameras = query.identity, query.cameras()
    asking = {
        "identity": [identity[row] for row in rows],
        "camera": [cameras[row] for row in rows],
    }
    hidden = doubt.junk(
        "market", asking, {"identity": gallery.identity, "camera": gallery.cameras()}
    )
    margin = doubt.margins(alone[rows], images, gallery.identity, hidden)
    return doubt.calibrate(margin, asking["identity"], share)


def stacked(variants: pa.Table, queries: Sequence[str], count: int) -> NDArray[np.float32]:
    """(Q, count, D) embeddings of each query's first variants, zero where it lacks any.

    Raises:
        ValueError: If fewer were made.
    """
    scored = schema.TEST_EMBEDDING in variants.column_names
    ordered = variants.sort_by([(schema.PARENT, "ascending"), (schema.NUMBER, "ascending")])
    rows = storage.embeddings(ordered, schema.TEST_EMBEDDING if scored else schema.EMBEDDING)
    of: dict[str, list[int]] = {}
    for row, parent in enumerate(ordered[schema.PARENT].to_pylist()):
        of.setdefault(parent, []).append(row)
    most = max(map(len, of.values()), default=count)
    if most < count:
        raise ValueError(
            f"the queries have {most} variants, fewer than refine.num_variants {count}; make more "
            "of them, or ask for fewer"
        )
    stack = np.zeros((len(queries), count, rows.shape[1]), dtype=np.float32)
    for query, name in enumerate(queries):
        own = of.get(name, [])
        # Where one was refused, the lists of the others would be those of fewer clothes.
        if len(own) >= count:
            stack[query] = rows[own[:count]]
    return stack


def flatten(scores: Found) -> dict[str, float]:
    """Name the figures: those of the headline plainly, those of other cases with their name.

    The headline of `AveragedCases` is their mean, draw by draw where there are several.
    """
    if not isinstance(scores, AveragedCases):
        return protocol_scores.figures(scores)
    flat = protocol_scores.mean_figures(list(scores.values()))
    for case, draws in scores.items():
        named = protocol_scores.figures({case: draws})
        flat |= {f"{case}_{name}": value for name, value in named.items()}
    return flat


def _query_variants(
    query: Side, refine: Refine, variants: pa.Table | None
) -> protocol_scores.QueryVariants:
    """Embedded variants as the protocols take them; zero rows where there are none."""
    if variants is None:
        shape = len(query.identity), refine.num_variants, query.embedding.shape[1]
        stack = np.zeros(shape, np.float32)
    else:
        stack = stacked(variants, query.observation_id, refine.num_variants)
    return protocol_scores.QueryVariants(stack, refine.m, refine.rule)


def _by_source(
    query: Side, gallery: Side, column: str, spec: Evaluate
) -> dict[str, Sequence[Metrics]]:
    """The headline of every source that has queries, by its name.

    Raises:
        ValueError: If a source has queries but no gallery.
    """
    found: dict[str, Sequence[Metrics]] = {}
    owners = [side.source or [""] * len(side.identity) for side in (query, gallery)]
    for name in sorted(set(owners[0])):
        asking, answering = (
            [row for row, owner in enumerate(names) if owner == name] for names in owners
        )
        if not answering:
            raise ValueError(
                f"evaluate.by_source: source {name!r} has {len(asking)} queries and no gallery"
            )
        scored = _run(_take(query, asking), _take(gallery, answering), column, spec)
        found[name] = next(iter(scored.values()))
    return found


def _run(query: Side, gallery: Side, column: str, spec: Evaluate) -> Found:
    learned = column == schema.EMBEDDING
    both = [side.embedding if learned else side.reference for side in (query, gallery)]
    seen = [side.camera_embedding for side in (query, gallery)]
    return protocol_scores.run(
        spec.protocol,
        _labels(query, gallery),
        np.concatenate(both),
        spec.average_precision,
        spec.postprocess if learned else (),
        None if seen[0] is None or seen[1] is None else np.concatenate([seen[0], seen[1]]),
    )


def _labels(query: Side, gallery: Side) -> protocols.TestLabels:
    return protocols.TestLabels(
        is_query=np.arange(len(query.identity) + len(gallery.identity)) < len(query.identity),
        identity=[*query.identity, *gallery.identity],
        camera=[*query.camera, *gallery.camera],
        clothes=[*query.clothes, *gallery.clothes],
        track=[*query.track, *gallery.track],
        time=_both(query.time, gallery.time),
        source=_both(query.source, gallery.source),
    )


def _both(query: Sequence[Any] | None, gallery: Sequence[Any] | None) -> list[Any] | None:
    return None if query is None or gallery is None else [*query, *gallery]


def _side(table: pa.Table) -> Side:
    roles = table[schema.ROLE].to_pylist()
    identities = table[schema.IDENTITY].to_pylist()
    alone = storage.embeddings(table, schema.EMBEDDING)
    scored, seen = (
        storage.embeddings(table, name) if name in table.column_names else None
        for name in (schema.TEST_EMBEDDING, schema.CAMERA_EMBEDDING)
    )
    return Side(
        observation_id=table[schema.OBSERVATION_ID].to_pylist(),
        identity=[
            None if role == "distractor" else name
            for role, name in zip(roles, identities, strict=True)
        ],
        camera=table[schema.CAMERA].to_pylist(),
        clothes=table[schema.CLOTHES].to_pylist(),
        track=table[schema.TRACK].to_pylist(),
        embedding=alone if scored is None else scored,
        reference=storage.embeddings(table, schema.REFERENCE_EMBEDDING),
        time=table[schema.TIME].to_pylist(),
        source=table[schema.SOURCE].to_pylist(),
        camera_embedding=seen,
        alone=None if scored is None else alone,
    )


def _take(side: Side, rows: Sequence[int]) -> Side:
    return Side(
        observation_id=[side.observation_id[row] for row in rows],
        identity=[side.identity[row] for row in rows],
        camera=[side.camera[row] for row in rows],
        clothes=[side.clothes[row] for row in rows],
        track=[side.track[row] for row in rows],
        embedding=side.embedding[rows],
        reference=side.reference[rows],
        time=None if side.time is None else [side.time[row] for row in rows],
        source=None if side.source is None else [side.source[row] for row in rows],
        camera_embedding=None if side.camera_embedding is None else side.camera_embedding[rows],
        alone=None if side.alone is None else side.alone[rows],
    )
