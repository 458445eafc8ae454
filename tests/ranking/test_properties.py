"""What must hold of every scene, whatever its embeddings and labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ray_reid.ranking import metrics, open_set, postprocess, refine, rerank
from ray_reid.recipe.postprocess import CameraVerification, QueryExpansion

# Compilation counts as the first example's time.
properties = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much],
)


@dataclass(frozen=True)
class Scene:
    query: np.ndarray
    gallery: np.ndarray
    query_identity: list[Any]
    gallery_identity: list[Any]
    query_camera: list[Any]
    gallery_camera: list[Any]

    def labels(self) -> dict[str, list[Any]]:
        sides = ("query", "gallery")
        names = [f"{side}_{kind}" for side in sides for kind in ("identity", "camera")]
        return {name: getattr(self, name) for name in names}

    def of(self, queries: Any, images: Any) -> "Scene":
        """The same with some of the rows, in this order."""
        rows = {"query": queries, "gallery": images}
        vectors = {side: getattr(self, side)[list(which)] for side, which in rows.items()}
        labels = {
            name: [values[n] for n in rows[name.partition("_")[0]]]
            for name, values in self.labels().items()
        }
        return Scene(**vectors, **labels)

    def evaluate(self) -> metrics.Metrics:
        return metrics.evaluate(self.query, self.gallery, **self.labels())

    def has_match(self) -> bool:
        return any(
            name is not None and name == other and (place is None or place != seen)
            for name, place in zip(self.query_identity, self.query_camera, strict=True)
            for other, seen in zip(self.gallery_identity, self.gallery_camera, strict=True)
        )


@st.composite
def scenes(draw, queries=5, images=9, dimensions=3, nulls=True):
    """Few directions, so that rows tie; nulls, junk, distractors and zero rows among them."""
    q, g = draw(st.integers(1, queries)), draw(st.integers(1, images))
    value = st.integers(-2, 2).map(float)
    rows = draw(arrays(np.float32, (q + g, dimensions), elements=value))
    null = st.none() if nulls else st.nothing()
    identity = draw(st.lists(st.sampled_from("abc") | null, min_size=q + g, max_size=q + g))
    camera = draw(st.lists(st.sampled_from([1, 2]) | null, min_size=q + g, max_size=q + g))
    return Scene(rows[:q], rows[q:], identity[:q], identity[q:], camera[:q], camera[q:])


def orders(scene):
    return st.tuples(
        st.permutations(range(len(scene.query))), st.permutations(range(len(scene.gallery)))
    )


def by_sorting(scene: Scene) -> tuple[list[float], float, float]:
    """AP of each scored query, rank-1 and mINP, of whole sorted lists."""
    query, gallery = (
        rows / np.maximum(np.linalg.norm(rows.astype(float), axis=1, keepdims=True), 1e-300)
        for rows in (scene.query, scene.gallery)
    )
    precisions, firsts, penalties = [], [], []
    for q, row in enumerate(np.round(query @ gallery.T, 8)):
        identity, camera = scene.query_identity[q], scene.query_camera[q]
        listed = sorted(
            (-row[g], same)
            for g in range(len(gallery))
            for same in [identity is not None and identity == scene.gallery_identity[g]]
            if not (same and camera is not None and camera == scene.gallery_camera[g])
        )
        ranks = [rank for rank, (_, same) in enumerate(listed, 1) if same]
        if ranks:
            precisions.append(float(np.mean([n / rank for n, rank in enumerate(ranks, 1)])))
            firsts.append(ranks[0] == 1)
            penalties.append(len(ranks) / ranks[-1])
    return precisions, float(np.mean(firsts)), float(np.mean(penalties))


@properties
@given(scenes())
def test_metrics_are_those_of_sorted_lists(scene):
    assume(scene.has_match())
    found = scene.evaluate()
    precisions, first, penalty = by_sorting(scene)
    assert found.num_queries == len(precisions)
    assert found.num_queries + found.num_skipped == len(scene.query)
    assert found.mAP == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found.rank(1) == pytest.approx(first, abs=1e-6)
    assert found.subject_rank(1) == pytest.approx(first, abs=1e-6)
    assert (found.place <= found.first).all()
    assert found.mINP == pytest.approx(penalty, abs=1e-6)
    assert (np.diff(found.cmc) >= 0).all()
    assert found.cmc[-1] == pytest.approx(1)


@properties
@given(st.data())
def test_no_order_of_the_rows_changes_a_metric(data):
    scene = data.draw(scenes())
    assume(scene.has_match())
    queries, images = data.draw(orders(scene))
    before, after = scene.evaluate(), scene.of(queries, images).evaluate()
    np.testing.assert_array_equal(after.ap, before.ap[list(queries)])
    np.testing.assert_array_equal(after.cmc, before.cmc)
    np.testing.assert_array_equal(after.place, before.place[list(queries)])
    assert (after.mAP, after.mINP) == (before.mAP, before.mINP)


@properties
@given(scenes())
def test_every_query_twice_changes_no_metric(scene):
    assume(scene.has_match())
    before = scene.evaluate()
    twice = [n // 2 for n in range(2 * len(scene.query))]
    after = scene.of(twice, range(len(scene.gallery))).evaluate()
    assert after.num_queries == 2 * before.num_queries
    assert after.mAP == pytest.approx(before.mAP, abs=1e-12)
    np.testing.assert_allclose(after.cmc, before.cmc, atol=1e-12)


@properties
@given(scenes(), st.floats(1e-3, 1e3))
def test_the_lengths_of_embeddings_do_not_matter(scene, scale):
    assume(scene.has_match())
    longer = Scene(scene.query * np.float32(scale), scene.gallery, **scene.labels())
    assert longer.evaluate().mAP == scene.evaluate().mAP


@properties
@given(scenes(images=1))
def test_a_gallery_of_one_image_is_found_first_or_is_no_match(scene):
    if scene.has_match():
        found = scene.evaluate()
        assert (found.mAP, found.mINP, found.cmc.tolist()) == (1, 1, [1])
    else:
        with pytest.raises(ValueError, match="no query has a true match"):
            scene.evaluate()


@properties
@given(scenes(), st.sampled_from([1, 2]))
def test_queries_that_have_junk_alone_are_skipped_or_refused(scene, camera):
    everywhere = Scene(
        scene.query,
        scene.gallery,
        scene.query_identity,
        scene.gallery_identity,
        [camera] * len(scene.query),
        [camera] * len(scene.gallery),
    )
    with pytest.raises(ValueError, match="no query has a true match in the gallery from another"):
        everywhere.evaluate()


@properties
@given(
    scenes(),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.sampled_from(["query", "gallery"]),
    st.randoms(use_true_random=False),
)
def test_a_value_that_is_not_finite_is_named_by_side_and_row(scene, value, side, chance):
    rows = {"query": scene.query.copy(), "gallery": scene.gallery.copy()}
    at = chance.randrange(len(rows[side]))
    rows[side][at, chance.randrange(3)] = value
    variants = np.zeros((len(scene.query), 1, 3), np.float32)
    with pytest.raises(ValueError, match=f"{side} embedding {at} is not finite"):
        metrics.evaluate(**rows, **scene.labels())
    with pytest.raises(ValueError, match=f"{side} embedding {at} is not finite"):
        rerank.k_reciprocal(**rows)
    with pytest.raises(ValueError, match=f"{side} embedding {at} is not finite"):
        refine.refine(
            rows["query"], variants, rows["gallery"], gallery_identity=scene.gallery_identity
        )


@properties
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 4), st.data())
def test_reranking_follows_the_order_of_its_rows(seed, k1, k2, data):
    # Of equal distances the first row's counts, so these have none.
    chance = np.random.default_rng(seed)
    query, gallery = chance.standard_normal((4, 8)), chance.standard_normal((14, 8))
    asked, order = data.draw(st.permutations(range(4))), data.draw(st.permutations(range(14)))
    before = rerank.k_reciprocal(query, gallery, k1, k2)
    after = rerank.k_reciprocal(query[asked], gallery[order], k1, k2)
    np.testing.assert_allclose(after, before[np.ix_(asked, order)], atol=1e-6)
    assert (before >= 0).all()
    assert (before <= 1 + 1e-6).all()


@properties
@given(scenes(nulls=False), st.sampled_from(["paper", "released"]), st.data())
def test_refinement_follows_the_order_of_its_queries(scene, rule, data):
    value = st.integers(-2, 2).map(float)
    variants = data.draw(arrays(np.float32, (len(scene.query), 2, 3), elements=value))
    order = list(data.draw(st.permutations(range(len(scene.query)))))
    names = scene.gallery_identity
    before = refine.refine(scene.query, variants, scene.gallery, names, 3, rule)
    after = refine.refine(scene.query[order], variants[order], scene.gallery, names, 3, rule)
    np.testing.assert_allclose(after, before[order], atol=1e-5)
    assert np.isfinite(before).all()


@properties
@given(scenes(), st.sampled_from(["dbscan", "aqe", "alpha_qe"]))
def test_excluded_images_come_last_and_expanded_queries_stay_unit(scene, kind):
    steps = (
        QueryExpansion(kind=kind, k=3),
        CameraVerification(kind="label"),
    )
    cameras = {"query_camera": scene.query_camera, "gallery_camera": scene.gallery_camera}
    state = postprocess.Retrieval(scene.query, scene.gallery, **cameras)
    if not any(place is not None for places in cameras.values() for place in places):
        with pytest.raises(ValueError, match="null in every image"):
            postprocess.apply(steps, state)
        return
    found, changes = postprocess.apply(steps, state)
    length = np.linalg.norm(found.query, axis=1)
    assert np.all(np.isclose(length, 1, atol=1e-5) | np.isclose(length, 0, atol=1e-5))
    own = [
        [place is not None and place == other for other in scene.gallery_camera]
        for place in scene.query_camera
    ]
    np.testing.assert_array_equal(found.excluded, own)
    assert changes[-1]["excluded"] == np.sum(own)


@properties
@given(scenes(), st.data())
def test_exclusion_misses_matches_and_never_invents_one(scene, data):
    assume(scene.has_match())
    shape = len(scene.query), len(scene.gallery)
    excluded = data.draw(arrays(np.bool_, shape))
    scores = postprocess.Retrieval(scene.query, scene.gallery).scores()
    plain = metrics.evaluate_similarity(scores, **scene.labels())
    assert plain.mAP == pytest.approx(scene.evaluate().mAP, abs=1e-12)
    none = metrics.evaluate_similarity(scores, excluded=np.zeros(shape, bool), **scene.labels())
    assert none.mAP == plain.mAP
    everything = metrics.evaluate_similarity(
        scores, excluded=~np.zeros(shape, bool), **scene.labels()
    )
    some = metrics.evaluate_similarity(scores, excluded=excluded, **scene.labels())
    assert some.num_queries == everything.num_queries == plain.num_queries
    assert everything.mAP <= plain.mAP + 1e-12


@properties
@given(
    st.floats(-1, 1),
    st.floats(0, 0.5),
    st.floats(-1, 1),
    st.sampled_from([None, "s:1", "s:2"]),
    st.sampled_from([None, "s:1", "s:2"]),
)
def test_a_decision_is_symmetric_and_rises_with_similarity(match, gap, similarity, one, other):
    found = open_set.Thresholds(match, match - gap, {("s:1", "s:2"): (match + 0.1, match)})
    decision = found.decide(similarity, one, other)
    assert decision == found.decide(similarity, other, one)
    order = ["unknown", "possible", "match"]
    assert order.index(found.decide(similarity + 0.2, one, other)) >= order.index(decision)
    assert open_set.parse(found.dump()) == found
