"""Retrieval metrics against the slowest obvious loop, and against numbers made by hand."""

import numpy as np
import pytest

from ray_reid.ranking import metrics


def by_loop(
    query,
    gallery,
    query_identity,
    gallery_identity,
    query_camera,
    gallery_camera,
    query_clothes=None,
    gallery_clothes=None,
    protocol="market",
    trapezoid=False,
):
    """One ranking at a time: remove junk, sort with wrong images first in ties, walk down."""
    aps, inps, firsts, places, skipped = [], [], [], [], 0
    for q in range(len(query)):
        ranking = []
        for g in range(len(gallery)):
            same = query_identity[q] is not None and query_identity[q] == gallery_identity[g]
            camera = query_camera[q] is not None and query_camera[q] == gallery_camera[g]
            if same and (camera or clothes_junk(q, g, query_clothes, gallery_clothes, protocol)):
                continue
            cosine = float(np.dot(query[q], gallery[g]))
            cosine /= float(np.linalg.norm(query[q]) * np.linalg.norm(gallery[g]))
            ranking.append((-round(cosine, 7), same, gallery_identity[g] or f"nobody {g}"))
        ranking.sort()
        positions = [at for at, (_, same, _) in enumerate(ranking, start=1) if same]
        if not positions:
            skipped += 1
            continue
        precisions = []
        for found, at in enumerate(positions, start=1):
            before = 1.0 if at == 1 else (found - 1) / (at - 1)
            precisions.append((before + found / at) / 2 if trapezoid else found / at)
        aps.append(np.mean(precisions))
        inps.append(len(positions) / positions[-1])
        firsts.append(positions[0])
        places.append(len({subject for *_, subject in ranking[: positions[0]]}))
    cmc = [np.mean([first <= k for first in firsts]) for k in range(1, len(gallery) + 1)]
    return np.mean(aps), cmc, np.mean(inps), skipped, places


def clothes_junk(q, g, query_clothes, gallery_clothes, protocol):
    if protocol == "market":
        return False
    same = query_clothes[q] is not None and query_clothes[q] == gallery_clothes[g]
    return same if protocol == "cc" else not same


def scene(seed, queries=30, images=90, dimensions=6, discrete=False):
    """Random embeddings and labels with nulls; `discrete` ones tie often."""
    chance = np.random.default_rng(seed)
    shape = (queries + images, dimensions)
    rows = chance.integers(1, 3, shape) if discrete else chance.standard_normal(shape)
    identity = [f"v{n}" if n else None for n in chance.integers(0, 12, len(rows))]
    identity[0] = None
    camera = [int(n) if n else None for n in chance.integers(0, 4, len(rows))]
    return (
        (rows[:queries].astype(np.float32), rows[queries:].astype(np.float32)),
        {
            "query_identity": identity[:queries],
            "gallery_identity": identity[queries:],
            "query_camera": camera[:queries],
            "gallery_camera": camera[queries:],
        },
    )


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("block", [1, 200, 10**6])
def test_metrics_match_a_loop_with_ties_nulls_and_junk(monkeypatch, discrete, block):
    monkeypatch.setattr(metrics, "BLOCK", block)
    for seed in range(4):
        rows, labels = scene(seed, discrete=discrete)
        found = metrics.evaluate(*rows, **labels)
        expected_map, cmc, minp, skipped, places = by_loop(*rows, **labels)
        assert found.mAP == pytest.approx(expected_map, abs=1e-12)
        np.testing.assert_allclose(found.cmc, cmc, atol=1e-12)
        assert found.mINP == pytest.approx(minp, abs=1e-12)
        assert found.num_skipped == skipped > 0
        assert found.num_queries + skipped == len(rows[0])
        assert np.isnan(found.ap).sum() == skipped
        np.testing.assert_array_equal(found.place[found.first > 0], places)
        given = metrics.evaluate_similarity(
            np.round(metrics.unit(rows[0], "query") @ metrics.unit(rows[1], "gallery").T, 7),
            **labels,
        )
        np.testing.assert_array_equal(given.place, found.place)


@pytest.mark.parametrize("protocol", ["market", "sc", "cc"])
@pytest.mark.parametrize("block", [1, 200, 10**6])
def test_clothes_and_the_trapezoid_match_a_loop(monkeypatch, protocol, block):
    monkeypatch.setattr(metrics, "BLOCK", block)
    for seed in range(3):
        rows, labels = scene(seed, images=150)
        chance = np.random.default_rng(seed)
        outfits = [str(n) if n else None for n in chance.integers(0, 3, len(rows[0]) + 150)]
        labels |= {"query_clothes": outfits[: len(rows[0])], "gallery_clothes": outfits[-150:]}
        found = metrics.evaluate(*rows, **labels, protocol=protocol, average_precision="trapezoid")
        expected_map, cmc, minp, skipped, places = by_loop(
            *rows, **labels, protocol=protocol, trapezoid=True
        )
        assert found.mAP == pytest.approx(expected_map, abs=1e-12)
        np.testing.assert_allclose(found.cmc, cmc, atol=1e-12)
        assert found.mINP == pytest.approx(minp, abs=1e-12)
        assert found.num_skipped == skipped
        np.testing.assert_array_equal(found.place[found.first > 0], places)


@pytest.mark.parametrize("block", [1, 10**6])
def test_tracks_are_as_near_as_their_nearest_image(monkeypatch, block):
    monkeypatch.setattr(metrics, "BLOCK", block)
    (query, gallery), _ = scene(3, queries=12, images=60)
    chance = np.random.default_rng(0)
    # Tracks 0 to 19 of three images each in random order, of 5 identities and 4 cameras.
    track = chance.permutation(np.repeat(np.arange(20), 3))
    sides = {
        "query_identity": [n % 5 for n in range(12)],
        "gallery_identity": [int(t) % 5 for t in track],
        "query_camera": [n % 4 for n in range(12)],
        "gallery_camera": [int(t) // 5 for t in track],
    }
    found = metrics.evaluate(query, gallery, **sides, gallery_track=track)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (query, gallery)]
    cosine = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    firsts, aps = [], []
    for q in range(12):
        best = {
            t: cosine[q, track == t].max() for t in range(20) if (t % 5, t // 5) != (q % 5, q % 4)
        }
        order = sorted(best, key=lambda t: -best[t])
        hits = [at for at, t in enumerate(order, start=1) if t % 5 == q % 5]
        aps.append(np.mean([n / at for n, at in enumerate(hits, start=1)]))
        firsts.append(hits[0])
    assert found.mAP == pytest.approx(np.mean(aps), abs=1e-12)
    assert len(found.cmc) == 20
    assert found.rank(1) == pytest.approx(np.mean([first == 1 for first in firsts]))
    # Images without a track stand for themselves.
    alone = metrics.evaluate(query, gallery, **sides, gallery_track=[None] * 60)
    np.testing.assert_array_equal(alone.ap, metrics.evaluate(query, gallery, **sides).ap)
    with pytest.raises(ValueError, match="40 gallery images have another identity than the first"):
        metrics.evaluate(
            query,
            gallery,
            **{
                **sides,
                "gallery_track": np.arange(60) // 60,
                "gallery_identity": np.arange(60) % 3,
            },
        )


def test_rank_over_subjects_counts_whom_images_show_once():
    # Three images of one stranger and two of unknown people come before the query's own.
    labels = {
        "query_identity": ["a", "b"],
        "gallery_identity": ["b", "b", "b", None, None, "a"],
    }
    similarity = np.array([[6.0, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]])
    found = metrics.evaluate_similarity(similarity, **labels)
    assert found.first.tolist() == [6, 1]
    assert found.place.tolist() == [4, 1]
    assert [found.subject_rank(k) for k in (1, 3, 4, 5)] == [0.5, 0.5, 1, 1]
    assert found.subject_rank(1) == found.rank(1)
    either = metrics.chosen(found, found, np.array([True, False]))
    assert either.place.tolist() == [4, 1]


def test_the_trapezoid_of_a_hand_made_ranking():
    # Wrong, right, right: (0 + 1/2) / 2 and (1/2 + 2/3) / 2.
    found = metrics.evaluate(
        np.array([[1.0, 0.0]]),
        np.array([[1, 0.1], [1, 0.2], [1, 0.3]]),
        query_identity=["a"],
        gallery_identity=["b", "a", "a"],
        average_precision="trapezoid",
    )
    assert found.mAP == pytest.approx((0.25 + 7 / 12) / 2)


def test_metrics_of_a_hand_made_ranking():
    # Right, wrong, right: AP = (1/1 + 2/3) / 2 and INP = 2/3; the junk image is nearest of all.
    gallery = np.array([[1, 0], [0.9, 0.1], [0.8, 0.3], [0.5, 0.5]])
    found = metrics.evaluate(
        np.array([[2.0, 0.0]]),
        gallery,
        query_identity=["a"],
        gallery_identity=["a", "a", "b", "a"],
        query_camera=["c1"],
        gallery_camera=["c1", "c2", "c1", "c2"],
    )
    assert found.mAP == pytest.approx((1 + 2 / 3) / 2)
    assert found.mINP == pytest.approx(2 / 3)
    assert found.cmc.tolist() == [1, 1, 1, 1]
    assert found.rank(1) == found.rank(99) == 1


def test_no_order_of_the_rows_changes_a_figure():
    rows, labels = scene(7, queries=40, images=200, dimensions=64, discrete=True)
    before = metrics.evaluate(*rows, **labels)
    chance = np.random.default_rng(1)
    to_query, to_gallery = chance.permutation(40), chance.permutation(200)
    shuffled = {
        name: [values[i] for i in (to_query if name.startswith("query") else to_gallery)]
        for name, values in labels.items()
    }
    after = metrics.evaluate(rows[0][to_query], rows[1][to_gallery], **shuffled)
    np.testing.assert_array_equal(after.ap, before.ap[to_query])
    np.testing.assert_array_equal(after.cmc, before.cmc)


def test_an_embedding_that_is_always_the_same_scores_as_the_worst_ranking():
    found = metrics.evaluate(
        np.ones((1, 512), dtype=np.float32),
        np.full((10, 512), 0.1, dtype=np.float32),
        query_identity=["a"],
        gallery_identity=["a", *["b"] * 9],
    )
    assert found.mAP == pytest.approx(1 / 10)
    assert found.rank(9) == 0


def test_a_null_camera_removes_nothing_and_a_distractor_never_matches():
    rows = np.eye(3)
    found = metrics.evaluate(
        rows,
        rows,
        query_identity=["a", None, "b"],
        gallery_identity=["a", None, None],
        query_camera=[None, 1, 1],
        gallery_camera=[None, 2, 2],
    )
    assert (found.num_queries, found.num_skipped, found.mAP) == (1, 2, 1.0)


def test_labels_may_be_arrays_with_nan_for_null():
    rows, labels = scene(3)
    arrays = {name: np.array(values, dtype=object) for name, values in labels.items()}
    for name in ("query_camera", "gallery_camera"):
        arrays[name] = np.array([np.nan if v is None else v for v in labels[name]])
    same = metrics.evaluate(*rows, **labels)
    assert metrics.evaluate(*rows, **arrays).mAP == same.mAP


def good():
    rows = np.eye(3)
    return {
        "query": rows,
        "gallery": rows,
        "query_identity": [0, 1, 2],
        "gallery_identity": [0, 1, 2],
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocol": "cuhk03"}, r"unknown protocol 'cuhk03'; choose from \['market', 'sc'"),
        ({"average_precision": "area"}, r"unknown average_precision 'area'; choose from \['rect"),
        ({"protocol": "cc"}, "protocol 'cc' needs query_clothes and gallery_clothes"),
        ({"query": np.ones(3)}, r"query embeddings must be \(N, D\).*\(3,\)"),
        ({"gallery": np.empty((0, 3))}, r"gallery embeddings must be \(N, D\)"),
        ({"gallery": np.eye(3)[:, :2]}, "3 dimensions but gallery embeddings 2"),
        ({"query": np.diag([1, np.nan, 1])}, "query embedding 1 is not finite"),
        ({"gallery": np.diag([1, 1, np.inf])}, "gallery embedding 2 is not finite"),
        ({"query_identity": [0, 1]}, "3 embeddings but 2 values of query_identity"),
        ({"gallery_camera": [1, 1, 1]}, "gallery_camera is given but query_camera is not"),
        ({"query_clothes": [1], "gallery_clothes": [1]}, "3 embeddings but 1 values of query_cl"),
        (
            {"query_camera": [1, 1, 1], "gallery_camera": [1, 1, 1]},
            "no query has a true match in the gallery from another camera: 3 queries, 3 gallery",
        ),
    ],
)
def test_bad_input_gets_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        metrics.evaluate(**{**good(), **change})
