"""Intervals over queries and seeds, and where to stop."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid.ranking import bootstrap


def _ap(values: list[list[list[float]]]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def test_the_mean_is_over_queries_and_seeds() -> None:
    found = bootstrap.resample(_ap([[[0.0, 0.5], [0.1, 0.2]], [[0.5, 1.0], [0.5, 0.8]]]), 100)
    assert found.means.tolist() == pytest.approx(np.array([[0.25, 0.15], [0.75, 0.65]]))
    assert found.gain(1, 0).mean == pytest.approx(0.5)
    assert found.gain(1).mean == pytest.approx(0.7)


def test_a_gain_that_is_the_same_for_every_query_and_seed_has_no_doubt() -> None:
    ap = np.random.default_rng(0).uniform(0, 0.5, (1, 3, 20))
    found = bootstrap.resample(np.concatenate([ap, ap + 0.25]), 500)
    gain = found.gain(1, 0)
    assert (gain.low, gain.high) == pytest.approx((0.25, 0.25))
    assert found.gain(0, 0) == bootstrap.Interval(0.0, 0.0, 0.0)
    # What differs from seed to seed, but equally in both, is none of the gain's doubt.
    shifted = ap + np.array([0.0, 0.1, 0.3])[None, :, None]
    found = bootstrap.resample(np.concatenate([shifted, shifted + 0.25]), 500)
    assert found.gain(1, 0).high == pytest.approx(0.25)


def test_resampled_queries_are_those_of_a_loop() -> None:
    ap = np.random.default_rng(1).uniform(0, 1, (2, 2, 7))
    found = bootstrap.resample(ap, 5, seed=3)
    counts = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), 5)
    for number, count in enumerate(counts):
        asked = [query for query, times in enumerate(count) for _ in range(times)]
        for arm in range(2):
            for seed in range(2):
                mean = np.mean([ap[arm, seed, query] for query in asked])
                assert found.resampled[number, arm, seed] == pytest.approx(mean)


def test_blocks_of_resamples_have_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "BLOCK", 50)
    found = bootstrap.resample(np.random.default_rng(1).uniform(0, 1, (1, 2, 20)), 33)
    assert found.resampled.shape == (33, 1, 2)
    assert np.isfinite(found.resampled).all()


def test_one_seed_has_the_interval_of_its_queries_alone() -> None:
    rng = np.random.default_rng(2)
    ap = rng.normal(0.3, 0.2, (1, 1, 400))
    gain = bootstrap.resample(ap).gain(0)
    error = ap.std() / np.sqrt(400)
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * error, rel=0.05)


@pytest.mark.parametrize(("of_seeds", "of_queries"), [(0.03, 0.0), (0.03, 0.3), (0.0, 0.3)])
def test_the_interval_of_three_seeds_covers_the_truth_as_it_says(
    of_seeds: float, of_queries: float
) -> None:
    """A synthetic test: the gain of a seed and that of a query are drawn about a known mean."""
    rng, covered, draws = np.random.default_rng(4), 0, 300
    for number in range(draws):
        seeds = rng.normal(0, of_seeds, (1, 3, 1))
        queries = rng.normal(0, of_queries, (1, 1, 100)) + rng.normal(0, 0.05, (1, 3, 100))
        gain = bootstrap.resample(0.1 + seeds + queries, 800, seed=number).gain(0)
        covered += gain.low <= 0.1 <= gain.high
    # Nominally 95 %, of which 300 draws show 92 to 98 %.
    assert covered / draws > 0.915


def test_a_resample_of_three_seeds_would_cover_far_less() -> None:
    """Why seeds are not resampled."""
    rng = np.random.default_rng(5)
    seeds = rng.normal(0, 1, (500, 3))
    picked = rng.integers(0, 3, (500, 1000, 3))
    means = np.take_along_axis(seeds[:, None, :], picked, axis=2).mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.8


def test_queries_without_a_match_and_failed_trainings_are_left_out() -> None:
    nan = np.nan
    ap = _ap([[[0.1, nan, 0.3], [0.2, nan, 0.4]], [[0.2, nan, 0.4], [nan, nan, nan]]])
    found = bootstrap.resample(ap, 200)
    assert found.gain(1, 0).mean == pytest.approx(0.1)
    assert found.gain(0).mean == pytest.approx(0.25)
    assert (found.gain(1, 0).low, found.gain(1, 0).high) == pytest.approx((0.1, 0.1))
    other = _ap([[[0.1], [nan]], [[nan], [0.2]]])
    with pytest.raises(ValueError, match="no seed in common"):
        bootstrap.resample(other, 10).gain(1, 0)


@pytest.mark.parametrize(
    ("ap", "rule"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\); it must be \(arms, seeds, queries\)"),
        (np.zeros((1, 2, 0)), "must be"),
        (np.full((1, 1, 3), np.nan), "must score the same queries"),
        (np.array([[[0.1, np.nan], [0.1, 0.2]]]), "must score the same queries"),
    ],
)
def test_what_cannot_be_resampled_is_refused(ap: NDArray[np.float64], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        bootstrap.resample(ap)


def _bounds(**gains: float) -> NDArray[np.float64]:
    """Lower bounds of four amounts, the first being none; below zero but where named `_ROW_COL`."""
    low = np.full((4, 4), -0.01)
    for name, value in gains.items():
        _, row, column = name.split("_")
        low[int(row), int(column)] = value
    return low


@pytest.mark.parametrize(
    ("low", "amount"),
    [
        # No amount is above none: do not use them.
        (_bounds(), 0),
        (_bounds(_1_2=0.1, _2_3=0.1), 0),
        # A bound of exactly zero is not above it.
        (_bounds(_0_1=0.0), 0),
        # One that is enough, and no step after it is above zero.
        (_bounds(_0_1=0.02), 1),
        (_bounds(_0_1=0.02, _0_2=0.03, _0_3=0.03), 1),
        # Steps that gain are taken.
        (_bounds(_0_1=0.02, _0_2=0.03, _1_2=0.01), 2),
        (_bounds(_0_1=0.02, _0_2=0.03, _0_3=0.05, _1_2=0.01, _1_3=0.02, _2_3=0.01), 3),
        # Two small steps may gain together what neither does alone.
        (_bounds(_0_1=0.02, _0_2=0.03, _0_3=0.05, _1_3=0.01), 2),
        # Too few images may show nothing yet.
        (_bounds(_0_3=0.02), 3),
        # A larger amount that beats this one, but not none, is no reason to go on.
        (_bounds(_0_1=0.02, _1_3=0.01), 1),
    ],
)
def test_it_stops_at_the_smallest_amount_that_none_larger_beats(
    low: NDArray[np.float64], amount: int
) -> None:
    assert bootstrap.stop_at(low) == amount


def test_bounds_are_those_of_every_pair_of_amounts() -> None:
    ap = np.random.default_rng(6).uniform(0, 1, (3, 3, 30))
    found = bootstrap.resample(ap, 200)
    low = found.lower_bounds([0, 2, 1])
    assert low[0, 1] == found.gain(2, 0).low
    assert low[1, 2] == found.gain(1, 2).low
    assert np.isneginf(low[np.tril_indices(3)]).all()
