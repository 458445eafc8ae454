"""A plan is checked for what it promises, over many random label sets."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid.samplers import Plan, identity_balanced


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
