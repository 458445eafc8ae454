"""Steps after embedding, against their definitions written as loops."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid.ranking import metrics, postprocess, protocol_scores, protocols
from ray_reid.ranking.postprocess import Retrieval
from ray_reid.ranking.rerank import k_reciprocal
from ray_reid.recipe import recipes
from ray_reid.recipe.postprocess import (
    CameraVerification,
    QueryExpansion,
    Rerank,
    TemporalWindow,
    describe,
)
from ray_reid.recipe.recipe import Recipe


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def a_retrieval(seed: int = 0, queries: int = 12, gallery: int = 30) -> Retrieval:
    """Six vehicles under three cameras of two sources; some cameras and times are null."""
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((6, 8))
    side: dict[str, Any] = {}
    for name, size in (("query", queries), ("gallery", gallery)):
        side[name] = centres[np.arange(size) % 6] + 0.4 * chance.standard_normal((size, 8))
        camera = chance.integers(0, 3, size)
        side[f"{name}_camera"] = [None if n % 7 == 3 else f"c{c}" for n, c in enumerate(camera)]
        side[f"{name}_time"] = [
            None if n % 5 == 2 else float(t) for n, t in enumerate(chance.uniform(0, 100, size))
        ]
        side[f"{name}_source"] = [("a", "b")[n % 2] for n in range(size)]
        side[f"{name}_camera_embedding"] = np.eye(3)[camera] + 0.05 * chance.standard_normal(
            (size, 3)
        )
    return Retrieval(**side)


def identities(state: Retrieval) -> dict[str, Any]:
    return {
        "query_identity": [n % 6 for n in range(len(state.query))],
        "gallery_identity": [n % 6 for n in range(len(state.gallery))],
        "query_camera": state.query_camera,
        "gallery_camera": state.gallery_camera,
    }


def naive_ap(values: Any, match: Any, junk: Any) -> float:
    """Mean of the precisions at the matches, the wrong of equal images first."""
    order = sorted(np.flatnonzero(~junk), key=lambda n: (-values[n], bool(match[n])))
    found, precisions = 0, []
    for rank, image in enumerate(order, 1):
        if match[image]:
            found += 1
            precisions.append(found / rank)
    return float(np.mean(precisions))


def test_given_similarities_are_scored_as_a_sorted_list_is() -> None:
    chance = np.random.default_rng(1)
    state = a_retrieval()
    labels = identities(state)
    # Coarse values tie; they reach beyond 1, as those of refinement do.
    values = chance.integers(-9, 9, (12, 30)) / 2
    excluded = chance.random((12, 30)) < 0.3
    found = metrics.evaluate_similarity(values, excluded=excluded, **labels)
    ranked = np.where(excluded, -np.inf, values)
    for query in range(12):
        same = np.array([name == query % 6 for name in labels["gallery_identity"]])
        camera = labels["query_camera"][query]
        junk = same & np.array(
            [camera is not None and one == camera for one in state.gallery_camera]
        )
        expected = naive_ap(ranked[query], same & ~junk, junk)
        assert found.ap[query] == pytest.approx(expected, abs=1e-12)
    assert found.mAP == pytest.approx(np.nanmean(found.ap))


def test_cosines_score_as_their_embeddings_do() -> None:
    state = a_retrieval(2)
    labels = identities(state)
    for kind in metrics.AVERAGE_PRECISIONS:
        tracks = [f"t{n % 6}" for n in range(30)]
        for track in (None, tracks):
            # A track has one camera.
            own = {**labels, "gallery_camera": [None] * 30} if track else labels
            plain = metrics.evaluate(
                state.query, state.gallery, **own, average_precision=kind, gallery_track=track
            )
            given = metrics.evaluate_similarity(
                state.scores(), **own, average_precision=kind, gallery_track=track
            )
            np.testing.assert_allclose(given.ap, plain.ap, atol=1e-12)
            np.testing.assert_array_equal(given.cmc, plain.cmc)
            assert given.mINP == pytest.approx(plain.mINP)


def test_an_excluded_true_match_ranks_last() -> None:
    excluded = np.array([[True, False, False, True]])
    found = metrics.evaluate_similarity(
        np.array([[0.9, 0.5, 0.1, 0.3]]),
        query_identity=["a"],
        gallery_identity=["a", "b", "c", "d"],
        excluded=excluded,
    )
    assert found.mAP == pytest.approx(1 / 4)
    assert found.rank(3) == 0


def test_similarities_that_are_no_finite_matrix_are_refused() -> None:
    labels = {"query_identity": [1], "gallery_identity": [1, 2]}
    for values, rule in (
        (np.array([[np.nan, 1]]), "must not hold NaN"),
        (np.array([[np.inf, 1]]), "must not hold NaN or infinity"),
        (np.zeros(3), r"must be \(Q, G\)"),
    ):
        with pytest.raises(ValueError, match=rule):
            metrics.evaluate_similarity(values, **labels)
    with pytest.raises(ValueError, match="excluded must be bool"):
        metrics.evaluate_similarity(np.zeros((1, 2)), excluded=np.zeros((1, 3), bool), **labels)


def test_dbscan_gives_every_query_of_a_chain_the_mean_of_the_others() -> None:
    angles = np.radians([0, 10, 20, 90, 180])
    query = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    state = Retrieval(3 * query, np.eye(2))
    # 10 degrees apart is near, 20 is not: a chain joins the first three.
    step = QueryExpansion(eps=1 - float(np.cos(np.radians(12))))
    after, (change,) = postprocess.apply([step], state)
    others = np.radians([15, 10, 5])
    expected = np.stack([np.cos(others), np.sin(others)], axis=1)
    np.testing.assert_allclose(after.query, [*expected, query[3], query[4]], atol=1e-12)
    assert change == {"step": "query_expansion", "clusters": 1, "changed": 3}


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_query_is_expanded_by_its_nearest_gallery_images(alpha: float | None) -> None:
    state = a_retrieval(3)
    excluded = np.random.default_rng(0).random((12, 30)) < 0.4
    excluded[4] = True
    step = QueryExpansion(kind="aqe" if alpha is None else "alpha_qe", k=4, alpha=alpha or 0)
    after, (change,) = postprocess.apply([step], replace(state, excluded=excluded))
    query, gallery = unit(state.query), unit(state.gallery)
    for row in range(12):
        left = [n for n in range(30) if not excluded[row, n]]
        near = sorted(left, key=lambda n: -(gallery[n] @ query[row]))[:4]
        total = query[row].copy()
        for image in near:
            cosine = gallery[image] @ query[row]
            total += gallery[image] * (1 if alpha is None else max(cosine, 0) ** alpha)
        np.testing.assert_allclose(after.query[row], total / np.linalg.norm(total), atol=1e-12)
    assert change["changed"] == 11


def test_images_of_the_querys_camera_cluster_are_excluded() -> None:
    state = a_retrieval(4)
    own = np.argmax(state.query_camera_embedding, axis=1)[:, None] == np.argmax(
        state.gallery_camera_embedding, axis=1
    )
    for step in (
        CameraVerification(num_clusters=3),
        CameraVerification(kind="dbscan", eps=0.1, min_samples=3),
    ):
        after, (change,) = postprocess.apply([step], state)
        np.testing.assert_array_equal(after.excluded, own)
        assert (change["groups"], change["excluded"]) == (3, own.sum())


def test_cameras_are_compared_within_a_source_and_null_ones_never() -> None:
    state = a_retrieval(5)
    after, _ = postprocess.apply([CameraVerification(kind="label")], state)
    assert after.excluded is not None
    asked, answering = state.query_camera, state.gallery_camera
    for query in range(12):
        for image in range(30):
            expected = (
                asked[query] is not None
                and asked[query] == answering[image]
                and state.query_source[query] == state.gallery_source[image]
            )
            assert after.excluded[query, image] == expected


def test_a_window_excludes_distant_times_of_one_source_and_keeps_null_ones() -> None:
    state = a_retrieval(6)
    after, (change,) = postprocess.apply([TemporalWindow(tau=30)], state)
    assert after.excluded is not None
    for query in range(12):
        for image in range(30):
            times = state.query_time[query], state.gallery_time[image]
            expected = (
                None not in times
                and abs(times[0] - times[1]) > 30
                and state.query_source[query] == state.gallery_source[image]
            )
            assert after.excluded[query, image] == expected
    assert change["excluded"] == after.excluded.sum() > 0


def test_exclusions_add_up_and_count_only_what_is_new() -> None:
    state = a_retrieval(7)
    window, camera = TemporalWindow(tau=30), CameraVerification(kind="label")
    both, (first, second) = postprocess.apply([window, camera], state)
    other, _ = postprocess.apply([camera, window], state)
    np.testing.assert_array_equal(both.excluded, other.excluded)
    assert first["excluded"] + second["excluded"] == both.excluded.sum()
    _, (_, none) = postprocess.apply([window, window], state)
    assert none["excluded"] == 0


def test_reranking_goes_with_exclusions_before_and_after_it() -> None:
    state = a_retrieval(8)
    rerank, window = Rerank(k1=5, k2=2), TemporalWindow(tau=30)
    one, (change, _) = postprocess.apply([rerank, window], state)
    other, _ = postprocess.apply([window, rerank], state)
    expected = -k_reciprocal(state.query, state.gallery, 5, 2, 0.3)
    for after in (one, other):
        np.testing.assert_array_equal(after.scores(), expected)
    np.testing.assert_array_equal(one.excluded, other.excluded)
    moved = state.scores().argmax(axis=1) != expected.argmax(axis=1)
    assert change == {"step": "rerank", "first_changed": moved.sum()}


def test_the_order_of_the_gallery_changes_no_figure() -> None:
    state = a_retrieval(9)
    steps = [
        QueryExpansion(),
        QueryExpansion(kind="aqe", k=3),
        CameraVerification(kind="label"),
        TemporalWindow(tau=40),
        Rerank(k1=5, k2=2),
    ]
    order = np.random.default_rng(0).permutation(30)
    shuffled = {
        name: value[order] if isinstance(value, np.ndarray) else [value[n] for n in order]
        for name, value in vars(state).items()
        if name.startswith("gallery")
    }
    found = []
    for one, rows in ((state, range(30)), (replace(state, **shuffled), order)):
        after, changes = postprocess.apply(steps, one)
        labels = identities(state) | {
            "gallery_identity": [n % 6 for n in rows],
            "gallery_camera": one.gallery_camera,
        }
        scored = metrics.evaluate_similarity(after.scores(), excluded=after.excluded, **labels)
        found.append((scored.ap, changes))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    assert found[0][1] == found[1][1]


def test_one_query_and_one_image_go_through_every_step() -> None:
    state = Retrieval(
        np.ones((1, 4), np.float32),
        np.ones((1, 4), np.float32),
        *(["c1"], ["c2"], [0.0], [5.0], None, None),
        np.ones((1, 2)),
        np.array([[1.0, -1.0]]),
    )
    steps = [
        QueryExpansion(),
        QueryExpansion(kind="alpha_qe", k=9),
        CameraVerification(),
        TemporalWindow(tau=9),
        Rerank(),
    ]
    after, changes = postprocess.apply(steps, state)
    assert after.query.dtype == np.float32
    assert after.scores().shape == (1, 1)
    assert not after.excluded.any()
    assert [change["step"] for change in changes] == [step.name for step in steps]


def test_steps_that_lack_what_they_need_say_it_in_one_sentence() -> None:
    bare = Retrieval(np.eye(2), np.eye(2))
    timeless = replace(bare, query_time=[None, None], gallery_time=[1.0, None])
    for step, state, rule in (
        (CameraVerification(), bare, "set embed.camera_model to a model trained with train.target"),
        (CameraVerification(kind="label"), bare, "by label needs cameras; none are given"),
        (TemporalWindow(tau=1), bare, "temporal_window needs times"),
        (TemporalWindow(tau=1), timeless, "'time', which is null in every query"),
        (Rerank(), replace(bare, similarity=np.eye(2)), "similarities are given already"),
        (Rerank(), replace(bare, query_time=[1.0]), "give query_time and gallery_time, or neither"),
        (
            CameraVerification(),
            replace(bare, query_camera_embedding=np.eye(2), gallery_camera_embedding=np.eye(2)),
            "labels that name 0; set num_clusters",
        ),
    ):
        with pytest.raises(ValueError, match=rule):
            postprocess.apply([step], state)


def test_a_recipe_refuses_what_cannot_be_composed() -> None:
    def parse(*steps: dict[str, Any]) -> Recipe:
        return recipes.validate({"name": "one", "evaluate": {"postprocess": list(steps)}})

    found = parse({"name": "rerank", "k1": 5}, {"name": "temporal_window", "tau": 9})
    assert [describe(step) for step in found.evaluate.postprocess] == [
        "rerank(k1=5, k2=6, lambda_value=0.3, neighbours=exact)",
        "temporal_window(tau=9.0)",
    ]
    assert recipes.validate(found.model_dump(mode="json")) == found
    for steps, rule in (
        ([{"name": "rerank"}, {"name": "query_expansion"}], "'query_expansion' needs embeddings"),
        ([{"name": "rerank"}, {"name": "rerank"}], "'rerank' needs embeddings"),
        ([{"name": "temporal_window"}], "Field required"),
        ([{"name": "rerank", "k3": 1}], r"choose from \['k1', 'k2', 'lambda_value'"),
        ([{"name": "sharpen"}], "'rerank'"),
        ([{"name": "camera_verification"}], "needs embed.camera_model"),
    ):
        with pytest.raises(ValueError, match=rule):
            parse(*steps)


def test_a_protocol_takes_the_steps_on_its_own_rows() -> None:
    state = a_retrieval(10)
    labels = protocols.TestLabels(
        np.arange(42) < 12,
        identity=[n % 6 for n in range(12)] + [n % 6 for n in range(30)],
        camera=[*state.query_camera, *state.gallery_camera],
        clothes=[None] * 42,
        track=[None] * 42,
        time=[*state.query_time, *state.gallery_time],
        source=[*state.query_source, *state.gallery_source],
    )
    embedding = np.concatenate([state.query, state.gallery])
    steps = [QueryExpansion(kind="aqe", k=2), TemporalWindow(tau=60), Rerank(k1=5, k2=2)]
    (found,) = protocol_scores.run("market", labels, embedding, steps=steps)["standard"]
    after, changes = postprocess.apply(steps, state)
    expected = metrics.evaluate_similarity(
        after.scores(), excluded=after.excluded, **identities(state)
    )
    np.testing.assert_array_equal(found.ap, expected.ap)
    assert found.changes == changes
    draws = protocol_scores.run("vehicleid", labels, embedding, steps=steps[1:])["standard"]
    assert len(draws) == 10
    assert all(one.changes[0]["step"] == "temporal_window" for one in draws)
