"""Thresholds for open-set answers, against pairs counted one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_reid
from ray_reid.models import package
from ray_reid.models.networks import ReidNetwork
from ray_reid.ranking import open_set
from ray_reid.ranking.open_set import LabelledEmbeddings, Level, Thresholds, calibrate, half, parse
from ray_reid.recipe import recipes


def sides(
    identities: int = 40, images: int = 6, noise: float = 1.0, distractors: int = 20, seed: int = 0
) -> tuple[LabelledEmbeddings, LabelledEmbeddings]:
    """Vehicles under two cameras; every third image asks."""
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((identities, 16))
    rows: dict[str, list[Any]] = {"query": [], "gallery": []}
    for number in range(identities):
        for image in range(images):
            vector = centres[number] + noise * chance.standard_normal(16)
            camera = None if image == 4 else f"s:c{image % 2}"
            row = (vector, f"v{number}", camera, f"{number}-{image}")
            rows["query" if image % 3 == 0 else "gallery"].append(row)
    for number in range(distractors):
        rows["gallery"].append((chance.standard_normal(16), None, "s:c0", f"d{number}"))
    query, gallery = (
        LabelledEmbeddings(
            np.array([row[0] for row in part]), *map(list, list(zip(*part, strict=True))[1:])
        )
        for part in rows.values()
    )
    return query, gallery


def pairs(
    query: LabelledEmbeddings, gallery: LabelledEmbeddings, part: int
) -> list[tuple[float, str, str, Any, Any]]:
    """Cosine, identity of each and cameras, of the pairs of a half that are not junk."""

    def name(side: LabelledEmbeddings, row: int) -> str:
        found = side.identity[row]
        return f"distractor {side.observation_id[row]}" if found is None else f"identity {found}"

    found = []
    for one, asked in enumerate(query.embedding):
        for other, image in enumerate(gallery.embedding):
            names = name(query, one), name(gallery, other)
            cameras = query.camera[one], gallery.camera[other]
            if {half(names[0]), half(names[1])} != {part}:
                continue
            if names[0] == names[1] and cameras[0] is not None and cameras[0] == cameras[1]:
                continue
            cosine = asked @ image / np.linalg.norm(asked) / np.linalg.norm(image)
            found.append((cosine, *names, *cameras))
    return found


def threshold(values: list[float], rate: float) -> float:
    """The largest value that at most this share lies above."""
    allowed = int(rate * len(values))
    return sorted(values, reverse=True)[allowed]


def test_thresholds_let_no_more_impostors_pass_than_asked_for() -> None:
    query, gallery = sides()
    found = calibrate(query, gallery, 0.02, 0.1)
    impostors = [one[0] for one in pairs(query, gallery, 0) if one[1] != one[2]]
    assert found.counts["calibration_impostors"] == len(impostors)
    for rate, value in ((0.02, found.match), (0.1, found.possible)):
        assert value == pytest.approx(threshold(impostors, rate), abs=1e-8)
        # The threshold itself is one of them, rounded.
        assert sum(one > value + 1e-8 for one in impostors) <= rate * len(impostors)
    assert found.match > found.possible


def test_rates_are_those_of_the_other_half() -> None:
    query, gallery = sides()
    found = calibrate(query, gallery, 0.02, 0.1)
    other = pairs(query, gallery, 1)
    passes = {
        "match": lambda one: found.decide(one[0], one[3], one[4]) == "match",
        "possible": lambda one: found.decide(one[0], one[3], one[4]) != "unknown",
    }
    genuine = [one for one in other if one[1] == one[2]]
    impostors = [one for one in other if one[1] != one[2]]
    assert (found.counts["genuine"], found.counts["impostors"]) == (len(genuine), len(impostors))
    for name, target in (("match", 0.02), ("possible", 0.1)):
        level = found.levels[name]
        assert level.target == target
        assert level.tar == pytest.approx(np.mean([passes[name](one) for one in genuine]))
        assert level.far == pytest.approx(np.mean([passes[name](one) for one in impostors]))
        assert 0 <= level.tar_low < level.tar < level.tar_high <= 1
        assert 0 <= level.far_low < level.far < level.far_high


def test_intervals_are_a_bootstrap_over_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_set, "DRAWS", 20)
    query, gallery = sides(identities=24, distractors=5)
    found = calibrate(query, gallery, 0.05, 0.2, seed=3)
    other = pairs(query, gallery, 1)
    # Identities are numbered as they come, those of the queries first.
    names = list(dict.fromkeys([one[1] for one in other] + [one[2] for one in other]))
    chance = np.random.default_rng(3)
    drawn = chance.multinomial(len(names), np.full(len(names), 1 / len(names)), 20)
    shares: dict[str, list[float]] = {"tar": [], "far": []}
    for weights in drawn:
        weight = dict(zip(names, weights, strict=True))
        total, passed = {"tar": 0, "far": 0}, {"tar": 0, "far": 0}
        for cosine, one, two, *cameras in other:
            kind = "tar" if one == two else "far"
            times = weight[one] if one == two else weight[one] * weight[two]
            total[kind] += times
            passed[kind] += times * (found.decide(cosine, *cameras) != "unknown")
        for kind in shares:
            shares[kind].append(passed[kind] / total[kind])
    level = found.levels["possible"]
    assert (level.tar_low, level.tar_high) == pytest.approx(
        tuple(np.quantile(shares["tar"], (0.025, 0.975)))
    )
    assert (level.far_low, level.far_high) == pytest.approx(
        tuple(np.quantile(shares["far"], (0.025, 0.975)))
    )


def test_a_camera_pair_with_impostors_enough_has_thresholds_of_its_own() -> None:
    query, gallery = sides(noise=0.8)
    found = calibrate(query, gallery, 0.02, 0.1)
    of: dict[Any, list[float]] = {}
    for cosine, one, two, *cameras in pairs(query, gallery, 0):
        if one != two and None not in cameras:
            of.setdefault(tuple(sorted(cameras)), []).append(cosine)
    enough = {pair for pair, values in of.items() if len(values) >= 500}
    assert set(found.cameras) == enough
    assert enough
    for pair in enough:
        expected = threshold(of[pair], 0.02), threshold(of[pair], 0.1)
        assert found.cameras[pair] == pytest.approx(expected, abs=1e-8)
        assert found.of(*pair) == found.of(*pair[::-1]) == found.cameras[pair]
    assert found.of("s:c0", None) == found.of("s:c0", "s:c9") == (found.match, found.possible)


def test_the_order_of_the_images_changes_no_threshold() -> None:
    query, gallery = sides()
    order = np.random.default_rng(0).permutation(len(gallery.identity))
    shuffled = LabelledEmbeddings(
        gallery.embedding[order],
        *(
            [values[n] for n in order]
            for values in vars(gallery).values()
            if isinstance(values, list)
        ),
    )
    one, other = (calibrate(query, side, 0.02, 0.1) for side in (gallery, shuffled))
    assert (one.match, one.possible) == pytest.approx((other.match, other.possible), abs=1e-8)
    assert {name: (level.tar, level.far) for name, level in one.levels.items()} == {
        name: (level.tar, level.far) for name, level in other.levels.items()
    }


def test_small_blocks_and_a_trimmed_list_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = sides()
    whole = calibrate(query, gallery, 0.02, 0.1)
    monkeypatch.setattr(open_set, "BLOCK", 64)
    assert calibrate(query, gallery, 0.02, 0.1) == whole


def test_images_without_a_camera_have_the_overall_thresholds_only() -> None:
    query, gallery = (
        LabelledEmbeddings(
            side.embedding, side.identity, [None] * len(side.identity), side.observation_id
        )
        for side in sides()
    )
    found = calibrate(query, gallery, 0.02, 0.1)
    assert not found.cameras
    # Nothing is junk: every image of an identity is a genuine pair.
    genuine = [one for one in pairs(query, gallery, 1) if one[1] == one[2]]
    assert found.counts["genuine"] == len(genuine)


def test_too_little_data_is_one_sentence() -> None:
    query, gallery = sides(identities=8, distractors=0)
    with pytest.raises(ValueError, match=r"rate of 0.001 needs 10,000 impostor pairs, but half"):
        calibrate(query, gallery)
    alone = LabelledEmbeddings(query.embedding[:1], query.identity[:1], query.camera[:1], ["one"])
    with pytest.raises(ValueError, match="half of the test identities has"):
        calibrate(alone, alone, 0.1, 0.2)
    with pytest.raises(ValueError, match=r"match_far 0\.1 must not be larger"):
        recipes.validate({"name": "one", "evaluate": {"open_set": {"match_far": 0.1}}})
    with pytest.raises(ValueError, match=r"choose from \['match_far', 'possible_far'\]"):
        recipes.validate({"name": "one", "evaluate": {"open_set": {"far": 0.1}}})


def test_a_decision_is_strict_and_thresholds_survive_a_file(tmp_path: Path) -> None:
    level = Level(0.1, 0.9, 0.8, 1.0, 0.1, 0.0, 0.2)
    found = Thresholds(
        0.7, 0.5, {("a:1", "b:1"): (0.9, 0.8)}, {"match": level}, {"genuine": 3}, {"recipe": "one"}
    )
    again = parse(found.dump())
    assert again == found
    assert [again.decide(value) for value in (0.71, 0.7, 0.5)] == ["match", "possible", "unknown"]
    assert again.decide(0.85, "b:1", "a:1") == "possible"
    assert again.decide(0.85, "b:1", None) == "match"
    for text in ("{", "[]", '{"match": 1}'):
        with pytest.raises(ValueError, match="these are not thresholds"):
            parse(text)


def test_a_package_knows_its_thresholds(tmp_path: Path) -> None:
    recipe = recipes.load("baseline", None, ["train.backbone=resnet10t"])
    network = ReidNetwork(recipe.train, 2)
    package.save(tmp_path, recipe, ["a", "b"], network.state_dict())
    assert ray_reid.load(tmp_path, "cpu").thresholds is None
    (tmp_path / open_set.FILE).write_text(Thresholds(0.7, 0.5).dump())
    found = ray_reid.load(tmp_path, "cpu").thresholds
    assert found is not None
    assert found.decide(0.6) == "possible"
