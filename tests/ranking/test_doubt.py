"""Margins, gates and refined figures of a test, against loops and against `refine` by hand."""

from dataclasses import replace

import numpy as np
import pytest

from ray_reid import schema
from ray_reid.ranking import doubt, metrics, scoring
from ray_reid.ranking.refine import refine
from ray_reid.ranking.scoring import Side
from ray_reid.recipe import recipes
from ray_reid.recipe.evaluate import Evaluate
from ray_reid.recipe.refine import Refine

PEOPLE, CAMERAS, VARIANTS, D = 16, 3, 4, 12


def sides(noise=0.9, people=PEOPLE, seed=0):
    """A query of each person under camera 0 and images under the others, one of them junk."""
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((people, D))
    rows = [(p, c) for p in range(people) for c in (0, *range(CAMERAS))]
    seen = [centres[p] + noise * chance.standard_normal(D) for p, _ in rows]
    asks = [n % (CAMERAS + 1) == 0 for n in range(len(rows))]

    def side(query):
        chosen = [n for n in range(len(rows)) if asks[n] == query]
        vectors = np.array([seen[n] for n in chosen], dtype=np.float32)
        names = [f"w:{rows[n][0]}" for n in chosen]
        worn = [f"{rows[n][0]}-{rows[n][1] % 2}" for n in chosen]
        return Side(
            [schema.observation_id("w", n) for n in chosen],
            names,
            [f"c{rows[n][1]}" for n in chosen],
            worn,
            [None] * len(chosen),
            vectors,
            vectors,
        )

    return side(True), side(False), centres


def variants_of(query, centres, without=(), count=VARIANTS, noise=0.7):
    chance = np.random.default_rng(1)
    parents, rows = [], []
    for number, parent in enumerate(query.observation_id):
        if number not in without:
            parents += [parent] * count
            rows.append(centres[number] + noise * chance.standard_normal((count, D)))
    ids = [schema.observation_id(parent, n) for n, parent in enumerate(parents)]
    batch = {
        schema.OBSERVATION_ID: np.array(ids, dtype=object),
        schema.PARENT: np.array(parents, dtype=object),
        schema.NUMBER: np.tile(np.arange(count), len(rows)),
        schema.EMBEDDING: np.concatenate(rows).astype(np.float32),
    }
    return schema.to_table(batch)


def junk_of(query, gallery):
    same = np.array(query.identity)[:, None] == np.array(gallery.identity)
    return same & (np.array(query.camera)[:, None] == np.array(gallery.camera))


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_a_refined_score_is_that_of_refine_by_hand(rule):
    query, gallery, centres = sides()
    table = variants_of(query, centres)
    spec = Evaluate()
    judged = scoring.judge(query, gallery, spec, Refine(num_variants=3, m=4, rule=rule), table)
    stacked = scoring.stacked(table, query.observation_id, 3)
    assert stacked.shape == (PEOPLE, 3, D)
    labels = {
        "query_identity": query.identity,
        "query_camera": query.camera,
        "gallery_camera": gallery.camera,
    }
    similarity = refine(
        query.embedding, stacked, gallery.embedding, gallery.identity, 4, rule, **labels
    )
    expected = metrics.evaluate_similarity(similarity, gallery_identity=gallery.identity, **labels)
    (found,) = judged.found["standard"]
    for name in ("mAP", "mINP", "num_queries"):
        assert getattr(found, name) == getattr(expected, name)
    np.testing.assert_array_equal(found.cmc, expected.cmc)
    alone = scoring.score(query, gallery, schema.EMBEDDING, spec)
    assert judged.figures()["unrefined_mAP"] == alone["standard"][0].mAP
    assert judged.figures()["mAP"] == expected.mAP > alone["standard"][0].mAP


def test_without_the_section_nothing_is_refined():
    query, gallery, _ = sides()
    judged = scoring.judge(query, gallery, Evaluate())
    alone = scoring.score(query, gallery, schema.EMBEDDING, Evaluate())
    assert judged.figures() == scoring.flatten(alone)
    assert (judged.unrefined, judged.gate, judged.curve) == (None, None, ())


def test_a_query_without_variants_keeps_its_ranking():
    query, gallery, centres = sides()
    spec = Refine(num_variants=VARIANTS)
    table = variants_of(query, centres, without=(2, 5))
    judged = scoring.judge(query, gallery, Evaluate(), spec, table)
    whole = scoring.judge(
        query, gallery, Evaluate(), spec, variants_of(query, centres, without=(5,))
    )
    assert judged.found["standard"][0].ap[2] == judged.unrefined["standard"][0].ap[2]
    moved = judged.found["standard"][0].ap != judged.unrefined["standard"][0].ap
    assert moved.any()
    assert not moved[[2, 5]].any()
    assert whole.found["standard"][0].ap[5] == judged.found["standard"][0].ap[5]


def test_too_few_variants_of_a_query_are_refused():
    query, gallery, centres = sides()
    made = variants_of(query, centres)
    with pytest.raises(ValueError, match=r"have 4 variants, fewer than refine.num_variants 6"):
        scoring.judge(query, gallery, Evaluate(), Refine(), made)
    # One that lacks a single variant has none.
    found = scoring.stacked(made.slice(1), query.observation_id, VARIANTS)
    assert found.any(axis=(1, 2)).tolist() == [False] + [True] * (len(found) - 1)


def test_images_that_a_protocol_leaves_out_do_not_vote():
    query, gallery, centres = sides(noise=0.3)
    # Whoever is junk looks exactly like the query, and would win every vote.
    easy = query.embedding[[int(name[2:]) for name in gallery.identity]]
    same = np.array([int(worn.split("-")[1]) == 0 for worn in gallery.clothes])
    gallery = replace(gallery, embedding=np.where(same[:, None], easy, gallery.embedding))
    query = replace(query, camera=["c9"] * PEOPLE)
    table = variants_of(query, np.roll(centres, 1, axis=0), noise=0.01)
    spec = Evaluate(protocol="clothes")
    judged = scoring.judge(query, gallery, spec, Refine(num_variants=VARIANTS, m=2), table)
    # Clothes-changing: variants of somebody else mislead where the person's own list is short.
    cc = [protocol["cc"][0] for protocol in (judged.found, judged.unrefined)]
    rows = np.array(query.identity)[:, None] == np.array(gallery.identity)
    worn = np.array(query.clothes)[:, None] == np.array(gallery.clothes)
    hidden = doubt.junk(
        "cc",
        {"identity": query.identity, "camera": query.camera, "clothes": query.clothes},
        {"identity": gallery.identity, "camera": gallery.camera, "clothes": gallery.clothes},
    )
    np.testing.assert_array_equal(hidden, rows & worn)
    stacked = scoring.stacked(table, query.observation_id, VARIANTS)
    similarity = refine(
        query.embedding, stacked, gallery.embedding, gallery.identity, 2, hidden=hidden
    )
    first = np.where(hidden, -np.inf, similarity).argmax(axis=1)
    expected = [
        gallery.identity[at] == name for at, name in zip(first, query.identity, strict=True)
    ]
    np.testing.assert_array_equal(cc[0].first == 1, expected)


def test_junk_and_null_labels_follow_the_metrics():
    query = {"identity": ["a", None], "camera": [None, "c1"], "clothes": ["x", None]}
    gallery = {
        "identity": ["a", "a", None, "b"],
        "camera": [None, "c1", "c1", None],
        "clothes": ["x", None, None, "x"],
    }
    assert not doubt.junk("market", query, gallery).any()
    assert doubt.junk("cc", query, gallery).tolist() == [[True, False, False, False], [False] * 4]
    assert doubt.junk("sc", query, gallery).tolist() == [[False, True, False, False], [False] * 4]


def test_margins_match_a_loop():
    query, gallery, _ = sides()
    names = [None if row % 7 == 0 else name for row, name in enumerate(gallery.identity)]
    hidden = junk_of(query, gallery)
    found = doubt.margins(query.embedding, gallery.embedding, names, hidden)
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (query.embedding, gallery.embedding)
    ]
    for row, own in enumerate(unit[0] @ unit[1].T):
        seen = [at for at in np.argsort(-own) if not hidden[row, at]]
        first = names[seen[0]]
        others = [at for at in seen[1:] if names[at] is None or names[at] != first]
        assert found[row] == pytest.approx(own[seen[0]] - own[others[0]], abs=1e-6)


def test_a_gallery_of_one_identity_leaves_no_doubt():
    rows = np.eye(3)
    hidden = np.zeros((3, 3), bool)
    assert np.isinf(doubt.margins(rows, rows, ["a"] * 3, hidden)).all()
    assert np.isinf(doubt.margins(rows, rows, ["a"] * 3, ~hidden)).all()
    with pytest.raises(ValueError, match="their gallery holds one identity"):
        doubt.calibrate(np.full(40, np.inf), [f"p{n}" for n in range(40)], 0.3)


def test_a_gate_refines_its_share_and_no_other_query():
    query, gallery, centres = sides(people=60)
    table = variants_of(query, centres)
    spec = Refine(num_variants=VARIANTS, gate={"share": 0.4})
    judged = scoring.judge(query, gallery, Evaluate(), spec, table)
    hidden = junk_of(query, gallery)
    margin = doubt.margins(query.embedding, gallery.embedding, gallery.identity, hidden)
    asked = margin < judged.gate.margin
    half = np.array([doubt.open_set.half(f"identity {name}") for name in query.identity])
    assert judged.gate.calibrated == asked[half == 0].mean()
    assert judged.gate.calibrated == pytest.approx(0.4, abs=0.03)
    assert judged.gate.measured == asked[half == 1].mean()
    everybody = scoring.judge(query, gallery, Evaluate(), Refine(num_variants=VARIANTS), table)
    ap = np.where(asked, everybody.found["standard"][0].ap, judged.unrefined["standard"][0].ap)
    np.testing.assert_array_equal(judged.found["standard"][0].ap, ap)
    assert judged.found["standard"][0].mAP == pytest.approx(ap.mean())
    assert doubt.parse(judged.gate.dump()) == judged.gate


def test_the_curve_goes_from_no_query_refined_to_all_of_one_half():
    query, gallery, centres = sides(people=60)
    spec = Refine(num_variants=VARIANTS)
    judged = scoring.judge(query, gallery, Evaluate(), spec, variants_of(query, centres))
    half = np.array([doubt.open_set.half(f"identity {name}") for name in query.identity])
    ends = judged.curve[0], judged.curve[-1]
    for point, found in zip(ends, (judged.unrefined, judged.found), strict=True):
        (one,) = found["standard"]
        assert point.mAP == one.ap[half == 1].mean()
        assert point.rank1 == (one.first[half == 1] == 1).mean()
    assert [point.share for point in judged.curve] == list(doubt.SHARES)
    refined = [point.refined for point in judged.curve]
    assert (refined[0], refined[-1]) == (0, 1)
    assert refined == sorted(refined)


def test_few_identities_give_figures_and_say_why_there_is_no_curve():
    query, gallery, centres = sides(people=1)
    rows = variants_of(query, centres)
    judged = scoring.judge(query, gallery, Evaluate(), Refine(num_variants=2), rows)
    assert judged.curve == ()
    assert "the halves of the test identities have" in judged.missing
    with pytest.raises(ValueError, match="both are needed"):
        scoring.judge(query, gallery, Evaluate(), Refine(num_variants=2, gate={}), rows)


@pytest.mark.parametrize("text", ["{}", "[]", "words", '{"margin": 1}'])
def test_what_is_no_gate_is_refused(text):
    with pytest.raises(ValueError, match="not the gate of a refinement"):
        doubt.parse(text)


def test_the_tracks_of_a_protocol_take_the_mean_of_their_variants():
    query, gallery, centres = sides()
    query = replace(
        query,
        track=[f"q{row // 2}" for row in range(PEOPLE)],
        identity=[f"w:{row // 2}" for row in range(PEOPLE)],
    )
    gallery = replace(gallery, track=[f"g{row // 2}" for row in range(len(gallery.identity))])
    gallery = replace(gallery, identity=[f"w:{row // 6}" for row in range(len(gallery.identity))])
    gallery = replace(gallery, camera=["c1"] * len(gallery.identity))
    table = variants_of(query, centres, without=(0, 1, 2))
    spec = Evaluate(protocol="ccvid")
    judged = scoring.judge(query, gallery, spec, Refine(num_variants=VARIANTS), table)
    found, alone = (one["standard"][0].ap for one in (judged.found, judged.unrefined))
    assert len(found) == PEOPLE // 2
    # The first track has no variant at all, the second those of one frame.
    assert found[0] == alone[0]
    assert (found[1:] != alone[1:]).any()


@pytest.mark.parametrize(
    ("evaluate", "rule"),
    [
        ({"both_directions": True}, "evaluate.both_directions asks with gallery images too"),
        ({"protocol": "vehicleid"}, "evaluate.protocol 'vehicleid' asks with gallery"),
        ({"postprocess": [{"name": "rerank"}]}, r"evaluate.postprocess must not hold \['rerank'\]"),
    ],
)
def test_what_cannot_be_refined_is_refused_with_the_recipe(evaluate, rule):
    with pytest.raises(ValueError, match=rule):
        recipes.validate({"name": "t", "refine": {}, "evaluate": evaluate})


def test_a_query_that_is_never_scored_is_in_no_half():
    query, gallery, _ = sides()
    # The first person is not in the gallery.
    gallery = replace(
        gallery, identity=[None if name == query.identity[0] else name for name in gallery.identity]
    )
    (plain,) = scoring.score(query, gallery, schema.EMBEDDING, Evaluate())["standard"]
    named = doubt.named(query.identity, plain)
    assert named == [None if name == query.identity[0] else name for name in query.identity]
