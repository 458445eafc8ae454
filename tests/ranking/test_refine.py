"""Prediction refinement against loops written from the definitions, and by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ray_reid.ranking import refine as module
from ray_reid.ranking.refine import refine

REFERENCES = Path(__file__).resolve().parents[2] / "benchmarks" / "support" / "references.py"


@pytest.fixture(scope="module")
def references():
    spec = importlib.util.spec_from_file_location("references", REFERENCES)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def scene(seed, queries=30, variants=6, images=150, dimensions=12, people=14, noise=1.0):
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((people, dimensions))

    def around(identity):
        drawn = noise * chance.standard_normal((*identity.shape, dimensions))
        # Lengths must not matter.
        return (centres[identity] + drawn) * chance.uniform(0.1, 9, (*identity.shape, 1))

    wanted, identity = chance.integers(people, size=queries), chance.integers(people, size=images)
    outfits = np.repeat(wanted[:, None], variants, axis=1)
    names = [f"p{n}" for n in identity]
    return around(wanted), around(outfits), around(identity), names, [f"p{n}" for n in wanted]


def ranked(similarity):
    return np.argsort(-similarity, axis=1, kind="stable")


@pytest.mark.parametrize("m", [1, 5, 20, 1000])
@pytest.mark.parametrize("similarities", [1, 10**6])
def test_the_papers_ranking_matches_loops(monkeypatch, references, m, similarities):
    monkeypatch.setattr(module, "SIMILARITIES", similarities)
    for seed, noise in ((0, 0.7), (1, 1.0), (2, 2.0)):
        *rows, names, _ = scene(seed, noise=noise)
        found = refine(*rows, names, m=m)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(ranked(found), references.refined_rankings(*rows, names, m=m))


@pytest.mark.parametrize("m", [1, 5, 20, 1000])
def test_the_released_similarity_matches_loops_with_junk(references, m):
    for seed in range(3):
        *rows, names, wanted = scene(seed)
        chance = np.random.default_rng(seed)
        here, there = chance.integers(3, size=len(wanted)), chance.integers(3, size=len(names))
        junk = np.array(wanted)[:, None] == np.array(names)
        junk &= here[:, None] == there
        found = refine(*rows, names, m=m, rule="released")
        expected = references.released_similarity(*rows, names, m=m)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        labels = {"query_identity": wanted, "query_camera": here, "gallery_camera": there}
        found = refine(*rows, names, m=m, rule="released", **labels)
        expected = references.released_similarity(*rows, names, m=m, junk=junk)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def at(*cosines):
    """Rows of unit length whose cosine to (1, 0) these are."""
    return np.array([[c, np.sqrt(1 - c * c)] for c in cosines])


def test_the_papers_scores_of_a_hand_made_list():
    # The query's list of two is a with 1 and b with 0.9; c is not in question.
    gallery = np.vstack([at(1.0, 0.9, 0.2), [[-0.5, np.sqrt(0.75)]]])
    same = refine(at(1.0), at(1.0)[None], gallery, ["a", "b", "a", "c"], m=2)
    np.testing.assert_allclose(same[0], [1 + 6, 0.9 + 3, 0.2 + 6, -0.5], atol=1e-5)
    # Another variant's is b with 0.941 and a's second image with 0.840: 0.9 + 1 is more than
    # 1 + 0.840 / 0.941.
    other = refine(at(1.0), at(0.7)[None], gallery, ["a", "b", "a", "c"], m=2)
    np.testing.assert_allclose(other[0], [1 + 3, 0.9 + 6, 0.2 + 3, -0.5], atol=1e-5)


def test_the_released_scores_of_a_hand_made_list():
    gallery = at(1.0, 0.8, 0.6)
    found = refine(at(1.0), at(0.8)[None], gallery, ["a", "b", "a"], m=2, rule="released")
    # The variant's cosines to the gallery are 0.8, 1 and 0.96: its list is b and a (by 0.6).
    a = 2 + 2 * 2 / 2 + 1.96**2 / 2
    b = 1.8 + 1.8**2 / 2 + 2 * 2 / 2
    np.testing.assert_allclose(found[0], [a, b, 1.6], atol=1e-5)
    # With a longer list both images of a tie exactly.
    found = refine(at(1.0), at(0.8)[None], gallery, ["a", "b", "a"], m=3, rule="released")
    assert found[0, 0] == found[0, 2]


def test_subjects_in_question_come_first_and_others_keep_their_cosine(references):
    *rows, names, _ = scene(3)
    cosine = references.unit(rows[0]) @ references.unit(rows[2]).T
    found = refine(*rows, names, m=5)
    for row, own in zip(found, cosine, strict=True):
        asked = {names[i] for i in np.argsort(-own)[:5]}
        inside = np.array([name in asked for name in names])
        assert row[inside].min() > row[~inside].max()
        np.testing.assert_allclose(row[~inside], own[~inside], atol=1e-6)
        for name in asked:
            own_images = np.array(names) == name
            lifted = row[own_images] - own[own_images]
            assert np.ptp(lifted) < 1e-5
            assert lifted[0] == pytest.approx(3 * round(lifted[0] / 3), abs=1e-5)


def test_without_variants_the_own_list_decides(references):
    query, variants, gallery, names, _ = scene(4)
    found = refine(query, variants[:, :0], gallery, names)
    np.testing.assert_array_equal(
        ranked(found), references.refined_rankings(query, variants[:, :0], gallery, names)
    )
    # Of one image each, the order is the query's own.
    alone = refine(query, variants[:, :0], gallery, range(len(gallery)))
    cosine = references.unit(query) @ references.unit(gallery).T
    np.testing.assert_array_equal(ranked(alone), ranked(cosine))


@pytest.mark.parametrize("rule", module.RULES)
def test_no_order_of_the_gallery_changes_a_similarity(rule):
    query, variants, gallery, names, _ = scene(5)
    order = np.random.default_rng(0).permutation(len(gallery))
    before = refine(query, variants, gallery, names, rule=rule)
    after = refine(query, variants, gallery[order], [names[i] for i in order], rule=rule)
    np.testing.assert_allclose(after, before[:, order], atol=1e-5)


@pytest.mark.parametrize("rule", module.RULES)
def test_equal_images_of_one_subject_have_one_similarity(rule):
    query, variants, gallery, names, _ = scene(6)
    found = refine(
        query, variants, np.repeat(gallery, 2, axis=0), np.repeat(names, 2), m=6, rule=rule
    )
    np.testing.assert_allclose(found[:, ::2], found[:, 1::2], atol=1e-5)


def test_equal_images_of_two_subjects_tie_as_they_did():
    # The one right and the one wrong image are the same picture; neither may win by refinement.
    gallery = np.vstack([at(0.8), at(0.8), at(0.1)])
    found = refine(at(1.0), at(0.9)[None], gallery, ["a", "b", "c"], m=2)
    assert found[0, 0] == found[0, 1] > found[0, 2]


def test_a_null_identity_is_a_subject_of_its_own(references):
    *rows, names, _ = scene(7)
    names[::3] = [None] * len(names[::3])
    own = [name or f"nobody {n}" for n, name in enumerate(names)]
    for rule in module.RULES:
        found = refine(*rows, names, rule=rule)
        np.testing.assert_array_equal(found, refine(*rows, own, rule=rule))
    as_nan = np.array([np.nan if name is None else int(name[1:]) for name in names])
    np.testing.assert_array_equal(refine(*rows, as_nan), refine(*rows, names))


def test_junk_has_no_vote_and_names_no_subject():
    # The nearest image is of the query's identity from its camera, the next of b.
    gallery = at(1.0, 0.9, 0.5)
    arguments = at(1.0), at(1.0)[None], gallery, ["a", "b", "a"]
    labels = {"query_identity": ["a"], "query_camera": [1], "gallery_camera": [1, 1, 2]}
    assert ranked(refine(*arguments, m=1)).tolist() == [[0, 2, 1]]
    np.testing.assert_allclose(refine(*arguments, m=1, **labels)[0], [1, 3.9, 0.5], atol=1e-6)
    # Null labels make no junk.
    labels["query_camera"] = labels["gallery_camera"] = [None]
    labels["gallery_camera"] = [None] * 3
    np.testing.assert_array_equal(refine(*arguments, m=1, **labels), refine(*arguments, m=1))
    labels |= {"query_camera": [1], "gallery_camera": [1] * 3}
    all_junk = refine(*arguments[:3], ["a"] * 3, **labels)
    np.testing.assert_allclose(all_junk[0], [1, 0.9, 0.5], atol=1e-6)


def test_a_list_without_a_positive_cosine_adds_nothing():
    # The variant looks away from everything; dividing by its largest would reward the farthest.
    gallery = at(1.0, 0.9)
    arguments = at(1.0), gallery, ["a", "b"]
    away = refine(arguments[0], -at(0.95)[None], *arguments[1:])
    np.testing.assert_array_equal(away, refine(arguments[0], np.zeros((1, 1, 2)), *arguments[1:]))
    # Nor does a query's own: then its order stays.
    found = refine(-at(1.0), -at(1.0)[None], *arguments[1:])
    np.testing.assert_allclose(found[0], [-1 + 3, -0.9 + 6], atol=1e-5)


def test_refinement_raises_map_where_clothes_mislead(references):
    query, variants, gallery, names, wanted = scene(8, noise=1.5)
    numbers = [np.array([int(name[1:]) for name in side]) for side in (wanted, names)]
    cosine = references.unit(query) @ references.unit(gallery).T
    before = references.mean_average_precision(-cosine, *numbers)
    for rule in module.RULES:
        found = refine(query, variants, gallery, names, rule=rule)
        assert references.mean_average_precision(-found, *numbers) > before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rule": "best"}, r"unknown rule 'best'; choose from \['paper', 'released'\]"),
        ({"m": 0}, "m 0 is too small; choose at least 1"),
        ({"query": np.ones(3)}, r"query embeddings must be \(N, D\).*\(3,\)"),
        ({"gallery": np.eye(3)[:, :2]}, "3 dimensions but gallery embeddings 2"),
        ({"variants": np.ones((2, 3))}, r"variants must be \(Q, L, D\) with Q 3 and D 3.*\(2, 3\)"),
        ({"variants": np.ones((2, 1, 3))}, r"variants must be .* not \(2, 1, 3\)"),
        ({"query": np.diag([1, np.nan, 1])}, "query embedding 1 is not finite"),
        ({"gallery": np.diag([1, 1, np.inf])}, "gallery embedding 2 is not finite"),
        (
            {"variants": np.where(np.arange(18).reshape(3, 2, 3) == 16, np.nan, 1.0)},
            "variant embedding 5 is not finite",
        ),
        ({"gallery_identity": [1, 2]}, "gallery has 3 embeddings but 2 values of gallery_identity"),
        ({"query_camera": [1] * 3}, "query_identity and gallery_camera must be given too"),
        (
            {"query_camera": [1], "gallery_camera": [1] * 3, "query_identity": [1] * 3},
            "query has 3 embeddings but 1 values of query_camera",
        ),
    ],
)
def test_bad_input_gets_one_sentence(change, sentence):
    good = {"query": np.eye(3), "variants": np.ones((3, 2, 3)), "gallery": np.eye(3)}
    with pytest.raises(ValueError, match=sentence):
        refine(**{**good, "gallery_identity": ["a", "b", "c"], **change})
