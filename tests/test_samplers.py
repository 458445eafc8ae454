"""A plan is checked for what it promises, over many random label sets."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid.samplers import Plan, balanced, identity_balanced


def _labels(seed: int, identities: int = 23, most: int = 11) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most, size=identities)
    return rng.permutation(np.repeat(np.arange(identities), counts))


def _plan(labels: NDArray[np.int64], **changes: int) -> Plan:
    arguments = {"num_identities": 6, "num_instances": 3, "epoch": 0, "seed": 0} | changes
    return identity_balanced(labels, **arguments)


@pytest.mark.parametrize("seed", range(8))
def test_every_batch_holds_p_identities_with_k_images(seed: int) -> None:
    labels = _labels(seed)
    plan = _plan(labels, seed=seed)
    assert len(plan)
    for batch in plan[:, 0]:
        assert Counter(Counter(labels[batch].tolist()).values()) == {3: 6}


@pytest.mark.parametrize("seed", range(8))
def test_rows_repeat_only_for_identities_with_fewer_than_k_images(seed: int) -> None:
    labels = _labels(seed)
    uses = Counter(_plan(labels, seed=seed).ravel().tolist())
    size = Counter(labels.tolist())
    for row, count in uses.items():
        assert count == 1 or size[int(labels[row])] < 3


def test_workers_share_the_batch_without_sharing_identities() -> None:
    labels = _labels(1)
    plan = _plan(labels, world_size=3)
    assert plan.shape[1:] == (3, 6)
    for batch in plan:
        identities = [set(labels[rows].tolist()) for rows in batch]
        assert [len(names) for names in identities] == [2, 2, 2]
        assert len(set.union(*identities)) == 6


def test_the_number_of_workers_does_not_change_the_batches() -> None:
    labels = _labels(2)
    alone, shared = _plan(labels), _plan(labels, world_size=2)
    assert np.array_equal(alone.reshape(-1), shared.reshape(-1))


def test_the_same_seed_and_epoch_give_the_same_plan_and_others_do_not() -> None:
    labels = _labels(3)
    first = _plan(labels, epoch=4, seed=9)
    assert np.array_equal(first, _plan(labels, epoch=4, seed=9))
    assert not np.array_equal(first, _plan(labels, epoch=5, seed=9))
    assert not np.array_equal(first, _plan(labels, epoch=4, seed=8))


def test_equal_identities_are_dealt_completely() -> None:
    labels = np.repeat(np.arange(12), 6)
    plan = _plan(labels)
    assert sorted(plan.ravel().tolist()) == list(range(72))


def test_one_frequent_identity_does_not_starve_the_batches() -> None:
    labels = np.concatenate([np.zeros(30, np.int64), np.repeat(np.arange(1, 11), 3)])
    # 10 groups of identity 0 and one of each other: two batches of six, identity 0 in both.
    assert len(_plan(labels)) == 2


def test_repeats_pass_over_the_images_again() -> None:
    labels = np.repeat(np.arange(12), 6)
    uses = Counter(_plan(labels, repeats=3).ravel().tolist())
    assert set(uses.values()) == {3}


def test_too_few_identities_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="num_identities is 6 but only 2 identities"):
        _plan(np.array([0, 0, 1, 1]))


def test_identities_that_workers_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="6 must be a multiple of the 4 workers"):
        _plan(_labels(0), world_size=4)


def test_a_number_of_batches_goes_on_with_fresh_passes_and_is_then_cut() -> None:
    labels = np.repeat(np.arange(12), 6)
    one = _plan(labels)
    assert len(one) == 4
    many = _plan(labels, num_batches=10)
    assert len(many) == 10
    assert np.array_equal(many[:4], one)
    for first in (0, 4):
        assert sorted(many[first : first + 4].ravel().tolist()) == list(range(72))
    assert not np.array_equal(many[4:8], one)
    assert np.array_equal(_plan(labels, num_batches=3), one[:3])


def _mixed(
    seed: int, real: int = 9, synthetic: int = 17
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Labels of as many identities, in random order, and which of the rows are synthetic."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, size=real + synthetic)
    labels = rng.permutation(np.repeat(np.arange(real + synthetic), counts))
    return labels, labels >= real


def _balanced(labels: NDArray[np.int64], synthetic: NDArray[np.bool_], **changes: int) -> Plan:
    arguments = {"num_identities": 8, "num_instances": 3, "epoch": 0, "seed": 0} | changes
    return balanced(labels, synthetic, **arguments)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_half_of_every_balanced_batch_is_synthetic_on_every_worker(
    seed: int, world_size: int
) -> None:
    labels, synthetic = _mixed(seed)
    plan = _balanced(labels, synthetic, seed=seed, world_size=world_size)
    assert len(plan)
    assert plan.shape[1:] == (world_size, 24 // world_size)
    half = 12 // world_size
    for batch in plan:
        for rows in batch:
            assert not synthetic[rows[:half]].any()
            assert synthetic[rows[half:]].all()
        uses = Counter(labels[batch.ravel()].tolist())
        assert sorted(uses.values()) == [3] * 8
        workers = [set(labels[rows].tolist()) for rows in batch]
        assert sum(map(len, workers)) == len(uses)


def test_a_balanced_epoch_passes_once_over_the_larger_side_and_repeats_the_smaller() -> None:
    # 8 real identities of 6 images, 20 synthetic ones: 4 batches and 10 at 4 identities of 3.
    labels = np.repeat(np.arange(28), 6)
    plan = _balanced(labels, labels >= 8)
    assert len(plan) == 10
    uses = Counter(plan.ravel().tolist())
    assert all(uses[row] == 1 for row in range(48, 168))
    # Two whole passes over the real images, and half of a third.
    assert {uses[row] for row in range(48)} == {2, 3}
    # The larger side may be the real one.
    uses = Counter(_balanced(labels, labels < 8).ravel().tolist())
    assert all(uses[row] == 1 for row in range(48, 168))


def test_balanced_passes_repeat_and_are_cut_to_the_number_of_batches() -> None:
    labels = np.repeat(np.arange(28), 6)
    synthetic = labels >= 8
    assert len(_balanced(labels, synthetic, repeats=2)) == 20
    one = _balanced(labels, synthetic)
    assert np.array_equal(_balanced(labels, synthetic, num_batches=7), one[:7])
    longer = _balanced(labels, synthetic, num_batches=25)
    assert len(longer) == 25
    assert np.array_equal(longer[:10], one)


def test_a_balanced_plan_depends_on_seed_and_epoch_and_not_on_the_workers() -> None:
    labels, synthetic = _mixed(3)
    first = _balanced(labels, synthetic, epoch=2, seed=5)
    assert np.array_equal(first, _balanced(labels, synthetic, epoch=2, seed=5))
    assert not np.array_equal(first, _balanced(labels, synthetic, epoch=3, seed=5))
    shared = _balanced(labels, synthetic, epoch=2, seed=5, world_size=2)
    assert np.array_equal(np.sort(first.reshape(len(first), -1)), np.sort(shared.reshape(-1, 24)))


def test_an_identity_of_both_origins_counts_on_either_side() -> None:
    labels = np.repeat(np.arange(6), 8)
    synthetic = np.arange(48) % 2 == 1
    plan = _balanced(labels, synthetic, num_instances=2)
    for batch in plan[:, 0]:
        assert len(set(labels[batch[:8]].tolist())) == 4
        assert synthetic[batch].tolist() == [False] * 8 + [True] * 8


def test_balanced_batches_that_cannot_be_halved_are_refused() -> None:
    labels, synthetic = _mixed(0)
    with pytest.raises(ValueError, match="num_identities 7 must be even"):
        _balanced(labels, synthetic, num_identities=7)
    with pytest.raises(ValueError, match="num_identities 6 must be a multiple of twice the 2 wor"):
        _balanced(labels, synthetic, num_identities=6, world_size=2)
    with pytest.raises(ValueError, match=r"needs 10 real identities, but only 9 can .* at most 18"):
        _balanced(labels, synthetic, num_identities=20)
    with pytest.raises(ValueError, match="needs 4 synthetic identities, but only 0 can"):
        _balanced(labels, np.zeros(len(labels), bool))
