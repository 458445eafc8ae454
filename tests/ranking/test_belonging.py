"""Similarities to identities against the slowest loops, and what a false-match curve promises."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid.ranking.belonging import Against, FalseMatches, Identities

KINDS: tuple[Against, ...] = ("centroid", "nearest")


def crowd(
    num: int = 12, each: int = 9, spread: float = 0.8, seed: int = 0
) -> tuple[NDArray[np.float32], list[str]]:
    """Unit vectors around a centre for each identity, in no order; the first one is alone."""
    chance = np.random.default_rng(seed)
    names = ["p:0"] + [f"p:{number}" for number in range(1, num) for _ in range(each)]
    centres = {name: chance.normal(size=16) for name in names}
    rows = np.stack([centres[name] + spread * chance.normal(size=16) for name in names])
    order = chance.permutation(len(names))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[order].astype(np.float32), [names[place] for place in order]


def slow(vector: NDArray[np.float32], images: NDArray[np.float32], against: Against) -> float:
    """The similarity of one image to those of one identity."""
    if against == "nearest":
        return float(max(vector @ image for image in images))
    centre = sum(images) / len(images)
    return float(vector @ centre / np.linalg.norm(centre))


@pytest.mark.parametrize("against", KINDS)
def test_similarities_to_identities_match_a_loop(against: Against) -> None:
    rows, names = crowd()
    asked, _ = crowd(num=3, each=2, seed=5)
    found = Identities(rows, names)
    of = {name: rows[[row for row, own in enumerate(names) if own == name]] for name in found.names}
    expected = [[slow(vector, of[name], against) for name in found.names] for vector in asked]
    np.testing.assert_allclose(found.similarity(asked, against), expected, atol=1e-5)
    wanted = [found.names[number % len(found.names)] for number in range(len(asked))]
    own = found.own_similarity(asked, wanted, against)
    loop = [slow(vector, of[name], against) for vector, name in zip(asked, wanted, strict=True)]
    np.testing.assert_allclose(own, loop, atol=1e-5)


@pytest.mark.parametrize("against", KINDS)
def test_a_threshold_lets_at_most_its_share_of_impostors_pass(against: Against) -> None:
    rows, names = crowd(num=40, spread=1.5)
    found = Identities(rows, names)
    impostors, genuine = [], []
    for row, name in enumerate(names):
        for other in found.names:
            images = [n for n, own in enumerate(names) if own == other and n != row]
            if other != name:
                impostors.append(slow(rows[row], rows[images], against))
            elif images:
                genuine.append(slow(rows[row], rows[images], against))
    curve = found.curve(against)
    assert (curve.genuine, curve.impostors) == (len(genuine), len(impostors))
    assert len(curve.points) > 8
    for point in curve.points:
        passing = np.mean(np.array(impostors) >= point.threshold - 1e-6)
        assert passing <= point.far + 2 / len(impostors)
        assert point.tar == pytest.approx(np.mean(np.array(genuine) >= point.threshold), abs=0.01)
    # A higher rate lets more pass.
    assert np.all(np.diff([point.threshold for point in curve.points]) <= 0)


def test_a_rate_between_two_takes_the_stricter_one() -> None:
    curve = Identities(*crowd(num=40)).curve("centroid")
    by_rate = {point.far: point.threshold for point in curve.points}
    assert curve.threshold(0.012) == by_rate[0.01]
    assert curve.threshold(0.01) == by_rate[0.01]


def test_a_rate_that_the_pairs_are_too_few_for_is_one_sentence() -> None:
    curve = Identities(*crowd()).curve("nearest")
    with pytest.raises(
        ValueError, match=r"far 1e-05 needs 1,000,000 impostor pairs, but there are "
    ):
        curve.threshold(1e-5)
    with pytest.raises(ValueError, match="the lowest rate is no rate at all"):
        FalseMatches((), 0, 3).threshold(0.1)


def test_identities_of_one_image_have_no_genuine_pair() -> None:
    rows, _ = crowd(num=2, each=3)
    curve = Identities(rows, ["a", "b", "c", "d"]).curve("centroid")
    assert (curve.genuine, curve.points) == (0, ())
