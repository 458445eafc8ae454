"""Each protocol on a small test set whose right answer is known by construction."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from ray_reid.ranking import metrics, protocol_scores, protocols
from ray_reid.recipe.evaluate import Evaluate


def labels_of(rows: Sequence[dict[str, Any]]) -> protocols.TestLabels:
    def column(name: str) -> list[Any]:
        return [row.get(name) for row in rows]

    asks = np.array([row["split"] == "query" for row in rows])
    names = ("identity", "camera", "clothes", "track")
    return protocols.TestLabels(asks, **{name: column(name) for name in names})


def random_embeddings(labels: protocols.TestLabels, seed: int = 0, noise: float = 0.9) -> Any:
    """Near their identity's centre."""
    chance = np.random.default_rng(seed)
    centre = {name: chance.standard_normal(8) for name in dict.fromkeys(labels.identity)}
    rows = [centre[name] for name in labels.identity]
    return np.array(rows) + noise * chance.standard_normal((len(rows), 8))


def prcc() -> protocols.TestLabels:
    """Six people: three images under A, two under B in the same clothes, two under C."""
    rows = []
    for person in range(6):
        for camera, count in (("A", 3), ("B", 2), ("C", 2)):
            outfit = f"{person}C" if camera == "C" else str(person)
            split = "gallery" if camera == "A" else "query"
            row = {"identity": person, "camera": camera, "clothes": outfit, "split": split}
            rows += [row] * count
    return labels_of(rows)


def test_the_recipe_knows_every_protocol() -> None:
    choices = get_args(Evaluate.model_fields["protocol"].annotation)
    assert list(choices) == list(protocols.PROTOCOLS)


def test_market_is_the_plain_metric() -> None:
    rows = [
        {"identity": n % 5, "camera": n % 3, "split": "query" if n < 9 else "gallery"}
        for n in range(40)
    ]
    labels = labels_of(rows)
    embedding = random_embeddings(labels)
    (found,) = protocol_scores.run("market", labels, embedding)["standard"]
    expected = metrics.evaluate(
        embedding[:9],
        embedding[9:],
        query_identity=labels.identity[:9],
        gallery_identity=labels.identity[9:],
        query_camera=labels.camera[:9],
        gallery_camera=labels.camera[9:],
    )
    np.testing.assert_array_equal(found.ap, expected.ap)
    assert protocol_scores.figures({"standard": [found]})["mAP"] == expected.mAP


def test_prcc_asks_in_changed_and_in_same_clothes() -> None:
    labels = prcc()
    found = protocols.cases("prcc", labels)
    assert list(found) == ["cc", "sc"]
    for name, camera in (("cc", "C"), ("sc", "B")):
        (case,) = found[name]
        assert set(labels.take("camera", case.query)) == {camera}
        assert len(case.query) == 12
        assert set(labels.take("camera", case.gallery)) == {"A"}
        assert len(case.gallery) == 18
    figures = protocol_scores.figures(
        protocol_scores.run("prcc", labels, random_embeddings(labels))
    )
    assert {"mAP", "rank-1", "sc_mAP", "sc_rank-1"} <= figures.keys()
    assert not any(name.endswith("_std") for name in figures)


def test_single_shot_draws_one_gallery_image_of_each_person_ten_times() -> None:
    labels = prcc()
    found = protocols.cases("prcc_single_shot", labels)
    drawn = [tuple(case.gallery) for case in found["cc"]]
    assert drawn == [tuple(case.gallery) for case in found["sc"]]
    assert len(drawn) == 10
    assert len(set(drawn)) > 1
    for gallery in drawn:
        assert sorted(labels.take("identity", np.array(gallery))) == list(range(6))
    again = protocols.cases("prcc_single_shot", labels)["cc"]
    assert drawn == [tuple(case.gallery) for case in again]
    found_metrics = protocol_scores.run("prcc_single_shot", labels, random_embeddings(labels))
    figures = protocol_scores.figures(found_metrics)
    spread = [one.mAP for one in found_metrics["cc"]]
    assert figures["mAP"] == pytest.approx(np.mean(spread))
    assert figures["mAP_std"] == pytest.approx(np.std(spread)) != 0


@pytest.mark.parametrize(
    ("protocol", "one_side"), [("vehicleid", "gallery"), ("vehicleid_inverse", "query")]
)
def test_vehicleid_redraws_whatever_the_stored_split_was(protocol: str, one_side: str) -> None:
    rows = [{"identity": n % 7, "split": "gallery" if n < 7 else "query"} for n in range(30)]
    labels = labels_of(rows)
    draws = protocols.cases(protocol, labels)["standard"]
    assert len({tuple(case.query) for case in draws}) == 10
    for case in draws:
        ones = getattr(case, one_side)
        assert sorted(labels.take("identity", ones)) == list(range(7))
        assert sorted([*case.query, *case.gallery]) == list(range(30))
    # No cameras: the Market rule removes nothing, so nothing is skipped.
    assert all(
        one.num_skipped == 0
        for one in protocol_scores.run(protocol, labels, random_embeddings(labels))["standard"]
    )


def test_a_draw_does_not_depend_on_the_order_of_identities() -> None:
    rows = [{"identity": name, "split": "query"} for name in "aabbccdd"]
    turned = rows[4:] + rows[:4]
    first = protocols._one_each(labels_of(rows), np.arange(8), 3)
    second = protocols._one_each(labels_of(turned), np.arange(8), 3)
    assert first.tolist() == sorted((row + 4) % 8 for row in second.tolist())


def test_clothes_rules_match_a_loop() -> None:
    chance = np.random.default_rng(1)
    rows = []
    for n in range(90):
        person = int(chance.integers(6))
        outfit = f"{person}_{chance.integers(3)}"
        split = "query" if n < 30 else "gallery"
        rows.append(
            {
                "identity": person,
                "camera": int(chance.integers(3)),
                "clothes": outfit,
                "split": split,
            }
        )
    labels, q, g = labels_of(rows), rows[:30], rows[30:]
    embedding = random_embeddings(labels)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    found = protocol_scores.run("clothes", labels, embedding)
    assert list(found) == ["standard", "sc", "cc"]
    changing = protocol_scores.run("clothes_changing", labels, embedding)
    assert list(changing) == ["cc", "standard", "sc"]
    assert all(changing[name][0].mAP == found[name][0].mAP for name in found)
    for name, (result,) in found.items():
        aps = []
        for i, one in enumerate(q):
            ranking = []
            for j, other in enumerate(g):
                person = one["identity"] == other["identity"]
                camera, outfit = (
                    one["camera"] == other["camera"],
                    one["clothes"] == other["clothes"],
                )
                junk = camera or (name == "sc" and not outfit) or (name == "cc" and outfit)
                if not (person and junk):
                    ranking.append((-unit[i] @ unit[30 + j], person))
            hits = [at for at, (_, person) in enumerate(sorted(ranking), start=1) if person]
            if hits:
                aps.append(np.mean([k / at for k, at in enumerate(hits, start=1)]))
        assert result.mAP == pytest.approx(np.mean(aps), abs=1e-9)
        assert result.num_queries == len(aps)


def test_ccvid_ranks_means_of_tracklets() -> None:
    # Every person asks once, and answers once in the same clothes and once in others.
    rows = [
        {"identity": person, "camera": kind, "clothes": f"{person}-{kind == 2}",
         "track": f"{person}-{kind}", "split": "query" if kind == 0 else "gallery"}
        for kind in range(3)
        for person in range(4)
        for _ in range(3)
    ]  # fmt: skip
    labels = labels_of(rows)
    # Long vectors must not weigh more than short ones.
    embedding = random_embeddings(labels, noise=0.3) * np.arange(1, 37)[:, None]
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    means, kept = protocol_scores._mean_of_tracks(embedding, np.arange(36), labels)
    np.testing.assert_allclose(means, unit.reshape(12, 3, 8).mean(axis=1))
    assert kept.tolist() == list(range(0, 36, 3))
    found = protocol_scores.run("ccvid", labels, embedding)
    asked, answers = {"market": 8, "sc": 4, "cc": 4}, means / np.linalg.norm(means, axis=1)[:, None]
    assert [one.num_queries for (one,) in found.values()] == [4, 4, 4]
    assert len(found["standard"][0].cmc) == asked["market"]
    nearest = (answers[:4] @ answers[8:].T).argmax(axis=1)
    # Clothes-changing: the four tracklets in other clothes and the wrong people of the rest.
    wrong = [(answers[p] @ np.delete(answers[4:8], p, axis=0).T).max() for p in range(4)]
    right = [float(answers[p] @ answers[8 + p]) for p in range(4)]
    first = [nearest[p] == p and right[p] > wrong[p] for p in range(4)]
    assert found["cc"][0].rank(1) == pytest.approx(np.mean(first))
    changing = protocol_scores.run("ccvid_changing", labels, embedding)
    assert list(changing) == ["cc", "standard", "sc"]
    assert protocol_scores.figures(changing)["mAP"] == found["cc"][0].mAP


def test_vc_clothes_takes_pairs_of_cameras_on_both_sides() -> None:
    rows = [
        {"identity": n % 4, "camera": f"{n % 4 + 1:02d}", "clothes": "x", "split": split}
        for split in ("query", "gallery")
        for n in range(16)
    ]
    labels = labels_of([row | {"identity": k % 3} for k, row in enumerate(rows)])
    found = protocols.cases("vc_clothes", labels)
    for name, cameras in (("sc", {"02", "03"}), ("cc", {"03", "04"})):
        (case,) = found[name]
        assert set(labels.take("camera", case.query)) == cameras
        assert set(labels.take("camera", case.gallery)) == cameras
    assert len(found["all"][0].query) == 16
    changing = protocols.cases("vc_clothes_changing", labels)
    assert list(changing) == ["cc", "all", "sc"]
    np.testing.assert_array_equal(changing["cc"][0].query, found["cc"][0].query)


def test_by_track_a_match_under_the_same_camera_counts() -> None:
    rows = [{"identity": n % 2, "camera": 0, "track": f"q{n}", "split": "query"} for n in range(4)]
    rows += [row | {"split": "gallery"} for row in rows]
    rows += [{"identity": 0, "camera": 0, "track": "other", "split": "gallery"}]
    labels = labels_of(rows)
    (found,) = protocol_scores.run("track", labels, random_embeddings(labels))["standard"]
    # Its own image is junk, the other images of the identity are matches.
    assert found.num_queries == 4
    with pytest.raises(ValueError, match="no query has a true match in the gallery"):
        protocol_scores.run("market", labels, random_embeddings(labels))


def test_image_to_track_has_a_gallery_of_tracks() -> None:
    rows = [{"identity": n % 3, "camera": 0, "split": "query"} for n in range(6)]
    rows += [
        {"identity": n % 3, "camera": 1, "track": f"t{n}", "split": "gallery"}
        for n in range(9)
        for _ in range(4)
    ]
    labels = labels_of(rows)
    (found,) = protocol_scores.run("image_to_track", labels, random_embeddings(labels))["standard"]
    assert len(found.cmc) == 9


def test_a_protocol_says_what_it_lacks() -> None:
    rows = [{"identity": n % 2, "split": "query" if n < 2 else "gallery"} for n in range(6)]
    labels = labels_of(rows)
    for protocol, column in (("prcc", "clothes"), ("ccvid", "track"), ("image_to_track", "track")):
        with pytest.raises(ValueError, match=f"protocol '{protocol}' needs the column '{column}'"):
            protocols.cases(protocol, labels)
    with pytest.raises(ValueError, match="case 'sc' has 0 queries and 0 gallery images; is this"):
        protocols.cases("vc_clothes", labels)
    with pytest.raises(ValueError, match=r"unknown protocol 'veri'; choose from \['market'"):
        protocols.cases("veri", labels)


def _videos(seed: int = 0) -> protocols.TestLabels:
    """Crops of three videos of two sources, in which people come and go; and two distractors."""
    chance = np.random.default_rng(seed)
    rows = [
        (f"{source}{camera}:{person}", camera, float(frame), source)
        for source, camera in (("one", "a"), ("one", "b"), ("two", "a"))
        for frame in range(0, 241, 10)
        for person in range(7)
        if chance.random() < 0.7
    ]
    rows += [(None, "a", 30.0, "one"), (None, "a", 60.0, "one")]
    identity, camera, time, source = zip(*rows, strict=True)
    none = [None] * len(rows)
    asks = chance.random(len(rows)) < 0.5
    return protocols.TestLabels(asks, identity, camera, none, none, time, source)


def test_reassociation_matches_a_loop_over_the_frames() -> None:
    labels = _videos()
    embedding = random_embeddings(labels, noise=1.5)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    assert labels.time is not None
    assert labels.source is not None
    ranks = []
    everyone = range(len(labels.identity))
    for row in everyone:
        later = [
            other
            for other in everyone
            if (labels.source[other], labels.camera[other])
            == (labels.source[row], labels.camera[row])
            and labels.time[other] == labels.time[row] + 30
            and labels.identity[other] is not None
        ]
        true = [other for other in later if labels.identity[other] == labels.identity[row]]
        if labels.time[row] % 60 == 0 and len(later) >= 2 and true:
            similar = unit[later] @ unit[row]
            ranks.append(1 + int(np.sum(similar > similar[later.index(true[0])])))
    found = protocol_scores.run("reassociation", labels, embedding)
    figures = protocol_scores.figures(found)
    assert found["standard"][0].num_queries == len(ranks) > 20
    assert figures["mAP"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    for k in (1, 5):
        assert figures[f"rank-{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    assert 0 < figures["rank-1"] < 1


def test_reassociation_refuses_what_it_cannot_rank() -> None:
    labels = _videos()
    embedding = random_embeddings(labels)
    with pytest.raises(ValueError, match="needs the column 'time', which is null"):
        protocols.cases("reassociation", replace(labels, time=None))
    with pytest.raises(ValueError, match=r"number of the frame in 'time', not 0\.5"):
        protocols.cases("reassociation", replace(labels, time=[0.5] * len(embedding)))
    twice = replace(labels, identity=["one"] * len(embedding))
    with pytest.raises(ValueError, match="'one' is twice in frame 0"):
        protocols.cases("reassociation", twice)
    between = [60.0 * row + 7 for row in range(len(embedding))]
    with pytest.raises(ValueError, match="0 queries and 0 gallery images"):
        protocols.cases("reassociation", replace(labels, time=between))
    steps = Evaluate.model_validate({"postprocess": [{"name": "query_expansion"}]}).postprocess
    with pytest.raises(ValueError, match=r"evaluate\.postprocess has no place"):
        protocol_scores.run("reassociation", labels, embedding, steps=steps)


def test_drawn_halves_search_one_image_of_half_of_the_people_ten_times() -> None:
    rows = [
        {"identity": person, "camera": camera, "split": split}
        for person in range(9)
        for camera, split in (("a", "query"), ("b", "gallery"))
    ]
    rows += [{"identity": None, "camera": "b", "split": "gallery"}] * 4
    labels = labels_of(rows)
    draws = protocols.cases("drawn_halves", labels)["standard"]
    assert len(draws) == protocols.DRAWS
    for case in draws:
        asked = labels.take("identity", case.query)
        answering = labels.take("identity", case.gallery)
        assert len(asked) == len(set(asked)) == 5
        assert sorted(name for name in answering if name is not None) == sorted(asked)
        assert answering.count(None) == 4
        assert set(labels.take("camera", case.query)) == {"a"}
    assert len({tuple(case.query.tolist()) for case in draws}) > 5
    again = protocols.cases("drawn_halves", labels)["standard"]
    assert all(np.array_equal(a.query, b.query) for a, b in zip(draws, again, strict=True))


def test_without_cameras_any_two_images_of_a_person_search_each_other() -> None:
    rows = [
        {"identity": person, "camera": None, "split": "gallery" if number else "query"}
        for person in range(8)
        for number in range(4)
    ]
    labels = labels_of(rows)
    asked = set()
    for case in protocols.cases("drawn_halves", labels)["standard"]:
        assert len(case.query) == len(case.gallery) == 4
        assert not set(case.query.tolist()) & set(case.gallery.tolist())
        assert labels.take("identity", case.query) == labels.take("identity", case.gallery)
        asked |= {row % 4 for row in case.query.tolist()}
    assert len(asked) > 1
