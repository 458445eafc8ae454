"""A plan is checked for what it promises, over many random label sets."""

import hashlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid.training.samplers import (
    Plan,
    balanced,
    class_balanced,
    identity_balanced,
    naive,
    progressive_pairs,
    source_balanced,
)


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


# Plans that any machine must agree on. Whoever changes one changes every training's batches.
PINNED = {
    "identity": "f19836270520e47c",
    "balanced": "dc477c68d32fb035",
    "naive": "8062e0ee3f663239",
    "class": "6ee9bb440ea4e0c1",
    "source": "496f93e969604e95",
    "pairs": "365152e967807500",
}


def _digest(plan: Plan) -> str:
    return hashlib.blake2b(plan.astype("<i8").tobytes(), digest_size=8).hexdigest()


@pytest.mark.parametrize("name", PINNED)
def test_any_machine_makes_the_same_plan(name: str) -> None:
    labels = np.repeat(np.arange(40), 1 + np.arange(40) % 7)
    third = np.arange(len(labels)) % 3
    parents = np.where(third == 1, np.arange(len(labels)) - 1, -1)
    same = np.where(third == 1, np.roll(labels, 1), labels)
    place: dict[str, int] = {"epoch": 1, "seed": 7, "world_size": 2}
    p_x_k = place | {"num_identities": 12, "num_instances": 3}
    plans = {
        "identity": lambda: identity_balanced(labels, **p_x_k),
        "balanced": lambda: balanced(labels, labels % 2 == 1, **p_x_k),
        "naive": lambda: naive(len(labels), batch_size=12, **place),
        "class": lambda: class_balanced(labels, batch_size=12, **place),
        "source": lambda: source_balanced(third, batch_size=12, **place),
        "pairs": lambda: progressive_pairs(same, third == 1, parents, widen_every=2, **p_x_k),
    }
    assert _digest(plans[name]()) == PINNED[name]


def test_the_order_of_a_partition_does_not_reach_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors partition equally but leave each part in an order of their own."""
    labels, partition = _labels(5), np.argpartition

    def reversed_parts(values: NDArray[np.float64], place: int) -> NDArray[np.int64]:
        found = partition(values, place)
        return np.concatenate([found[:place][::-1], found[place:][::-1]])

    plan = _plan(labels)
    monkeypatch.setattr(np, "argpartition", reversed_parts)
    assert np.array_equal(_plan(labels), plan)


# Naive


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [12, 13, 59, 60, 71])
def test_naive_plans_every_row_once_and_completes_the_last_batch(
    num_rows: int, world_size: int
) -> None:
    for seed in range(10):
        plan = naive(num_rows, batch_size=12, epoch=3, seed=seed, world_size=world_size)
        assert plan.shape == (-(-num_rows // 12), world_size, 12 // world_size)
        uses = np.bincount(plan.ravel(), minlength=num_rows)
        assert uses.min() == 1
        assert (uses - 1).sum() == plan.size - num_rows < 12
        assert uses.max() <= 2
        # Disjoint workers, and no image twice in a batch.
        assert all(len(set(batch.ravel().tolist())) == 12 for batch in plan)


def test_naive_passes_repeat_and_are_cut_to_the_number_of_batches() -> None:
    arguments = {"batch_size": 10, "epoch": 0, "seed": 1}
    one, three = naive(40, **arguments), naive(40, repeats=3, **arguments)
    assert np.array_equal(three[:4], one)
    for first in (0, 4, 8):
        assert sorted(three[first : first + 4].ravel().tolist()) == list(range(40))
    assert not np.array_equal(three[4:8], one)
    assert np.array_equal(naive(40, num_batches=11, **arguments), three[:11])
    assert np.array_equal(naive(40, num_batches=3, repeats=3, **arguments), one[:3])


# Classes


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_batches", [None, 1, 7])
def test_class_balanced_epochs_have_every_class_equally_often_to_within_one(
    num_batches: int | None, world_size: int
) -> None:
    for seed in range(10):
        labels = _labels(seed, identities=31, most=40)
        plan = class_balanced(
            labels,
            batch_size=20,
            epoch=2,
            seed=seed,
            world_size=world_size,
            num_batches=num_batches,
        )
        assert plan.shape == (num_batches or -(-len(labels) // 20), world_size, 20 // world_size)
        drawn = np.bincount(labels[plan.ravel()], minlength=31)
        assert drawn.max() - drawn.min() <= 1
        # Within a class, no image waits while another is drawn twice more.
        uses = np.bincount(plan.ravel(), minlength=len(labels))
        for label in range(31):
            of_label = uses[labels == label]
            assert of_label.max() - of_label.min() <= 1
        for batch in plan:
            assert np.bincount(labels[batch.ravel()]).max() <= 2


def test_class_balanced_takes_labels_with_gaps_and_repeats() -> None:
    labels = np.array([4, 4, 4, 9, 2, 2])
    plan = class_balanced(labels, batch_size=3, epoch=0, seed=0, repeats=4)
    assert plan.shape == (8, 1, 3)
    assert Counter(labels[plan.ravel()].tolist()) == {2: 8, 4: 8, 9: 8}
    assert all(sorted(labels[batch[0]].tolist()) == [2, 4, 9] for batch in plan)


# Sources


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_source_contributes_equally_to_every_batch_of_every_worker(world_size: int) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sources = rng.permutation(np.repeat([1, 4, 5], [11, 97, 30]))
        plan = source_balanced(sources, batch_size=12, epoch=0, seed=seed, world_size=world_size)
        # 97 images of the largest source, four in a batch.
        assert plan.shape == (25, world_size, 12 // world_size)
        for batch in plan:
            assert len(set(batch.ravel().tolist())) == 12
            for rows in batch:
                assert sources[rows].tolist() == np.repeat([1, 4, 5], 4 // world_size).tolist()
        uses = np.bincount(plan.ravel(), minlength=len(sources))
        assert uses.min() >= 1
        assert uses[sources == 4].max() <= 2
        # The smaller ones go round and round: 25 batches of 4 are 8 passes of 3 batches of 11.
        assert set(uses[sources == 1].tolist()) <= set(range(8, 19))


def test_one_source_alone_is_naive() -> None:
    arguments = {"batch_size": 6, "epoch": 3, "seed": 2, "world_size": 2, "repeats": 2}
    found = source_balanced(np.full(20, 3), **arguments)
    assert np.array_equal(found, naive(20, **arguments))


# Progressive pairs


def _family(seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Real rows of 12 identities with 0 to 11 versions each, and one synthetic orphan."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(12), 5)
    parents = np.repeat(np.arange(60), rng.integers(0, 12, size=60))
    parents = np.concatenate([np.full(60, -1), rng.permutation(parents), [-1]])
    synthetic = np.arange(len(parents)) >= 60
    return (
        np.where(parents < 0, np.resize(labels, len(parents)), labels[parents]),
        synthetic,
        parents,
    )


def _pairs(
    family: tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]], **changes: int
) -> Plan:
    arguments = {"num_identities": 6, "num_instances": 3, "epoch": 0, "seed": 0, "widen_every": 5}
    return progressive_pairs(*family, **(arguments | changes))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_every_real_row_is_paired_with_a_version_of_its_own(seed: int, world_size: int) -> None:
    labels, synthetic, parents = family = _family(seed)
    plan = _pairs(family, seed=seed, epoch=17, world_size=world_size)
    real, partners = np.split(plan, 2, axis=2)
    alone = identity_balanced(
        labels[:60],
        num_identities=6,
        num_instances=3,
        epoch=17,
        seed=seed,
        world_size=world_size,
    )
    assert np.array_equal(real, alone)
    has = np.bincount(parents[parents >= 0], minlength=60)[real] > 0
    assert 0 < has.sum() < has.size
    assert np.array_equal(parents[partners][has], real[has])
    assert synthetic[partners][has].all()
    # Without versions a row is its own partner.
    assert np.array_equal(partners[~has], real[~has])
    assert np.array_equal(labels[partners], labels[real])


@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_the_versions_are_opened_part_by_part_every_few_epochs(partitions: int) -> None:
    _, _, parents = family = _family(1)
    versions = [np.flatnonzero(parents == row) for row in range(60)]
    for epoch in (0, 4, 5, 9, 10, 14, 15, 99):
        part = min(epoch // 5 + 1, partitions)
        plan = _pairs(family, epoch=epoch, num_batches=600, partitions=partitions)
        real, partners = np.split(plan.reshape(600, -1), 2, axis=1)
        for row in range(60):
            if len(versions[row]):
                opened = versions[row][: max(1, len(versions[row]) * part // partitions)]
                assert set(partners[real == row].tolist()) == set(opened.tolist())


def test_versions_are_drawn_uniformly() -> None:
    parents = np.concatenate([np.full(4, -1), np.repeat(np.arange(4), 8)])
    labels = np.concatenate([[0, 0, 1, 1], np.repeat([0, 0, 1, 1], 8)])
    family = (labels, parents >= 0, parents)
    plan = _pairs(family, num_identities=2, num_instances=2, epoch=99, num_batches=2000)
    uses = np.bincount(plan.ravel())
    assert uses[:4].tolist() == [2000] * 4
    # 250 expected; five standard deviations of a binomial of 2,000 draws.
    assert np.abs(uses[4:] - 250).max() < 75


def test_pairs_that_cannot_be_are_refused() -> None:
    labels, synthetic, parents = _family(2)
    with pytest.raises(ValueError, match=r"none of the \d+ synthetic .* one of the 60 real ones"):
        _pairs((labels, synthetic, np.full_like(parents, -1)))
    strange = np.where(np.arange(len(labels)) == 60, labels + 1, labels)
    with pytest.raises(ValueError, match=r"1 of \d+ generated versions have another identity"):
        _pairs((strange, synthetic, parents))
    with pytest.raises(ValueError, match="num_identities is 14 but only 12 identities"):
        _pairs((labels, synthetic, parents), num_identities=14)


# All of them


def _any(name: str, epoch: int, seed: int, world_size: int) -> Plan:
    place = {"epoch": epoch, "seed": seed, "world_size": world_size}
    labels = _labels(0)
    if name == "naive":
        return naive(len(labels), batch_size=12, **place)
    if name == "class_balanced":
        return class_balanced(labels, batch_size=12, **place)
    if name == "source_balanced":
        return source_balanced(labels % 2, batch_size=12, **place)
    return _pairs(_family(0), **place)


@pytest.mark.parametrize(
    "name", ["naive", "class_balanced", "source_balanced", "progressive_pairs"]
)
def test_a_plan_is_made_by_seed_and_epoch_and_shared_among_the_workers(name: str) -> None:
    first = _any(name, 4, 9, 1)
    assert first.dtype == np.int64
    assert np.array_equal(first, _any(name, 4, 9, 1))
    assert not np.array_equal(first, _any(name, 5, 9, 1))
    assert not np.array_equal(first, _any(name, 4, 8, 1))
    shared = _any(name, 4, 9, 2)
    assert shared.shape[1] == 2
    for alone, batch in zip(first, shared, strict=True):
        assert sorted(alone.ravel().tolist()) == sorted(batch.ravel().tolist())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: naive(40, batch_size=9, epoch=0, seed=0, world_size=2), "9 must be a multiple"),
        (lambda: naive(8, batch_size=9, epoch=0, seed=0), "9 but only 8 images can be trained on"),
        (
            lambda: class_balanced(np.arange(4), batch_size=9, epoch=0, seed=0, world_size=2),
            "batch_size 9 must be a multiple of the 2 workers",
        ),
        (
            lambda: source_balanced(np.arange(4) % 2, batch_size=6, epoch=0, seed=0, world_size=2),
            "batch_size 6 must be a multiple of the 2 sources times the 2 workers",
        ),
        (
            lambda: source_balanced(np.array([0, 0, 1]), batch_size=4, epoch=0, seed=0),
            "each of the 2 sources gives 2 images, but one has only 1; choose at most 2",
        ),
    ],
)
def test_batches_of_images_that_cannot_be_filled_or_shared_are_refused(
    make: Callable[[], Plan], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
