"""How many images each identity gets, and what all of them cost: arithmetic."""

import numpy as np
import pytest

from ray_reid.generation.balance import (
    Rates,
    images_to_make,
    project,
    tuning_seconds,
)
from ray_reid.recipe.personalise import Balance, Personalise


def test_identities_with_few_images_get_more_until_all_have_the_target() -> None:
    real = [2, 40, 149, 150, 300]
    made = images_to_make(real, Balance(target=150, least=0))
    assert made == [148, 110, 1, 0, 0]
    assert {old + new for old, new in zip(real, made, strict=True) if new} == {150}


def test_least_and_most_bound_the_images_of_an_identity() -> None:
    real = [2, 40, 149, 150, 300]
    assert images_to_make(real, Balance(target=150, least=10)) == [148, 110, 10, 10, 10]
    assert images_to_make(real, Balance(target=150, least=10, most=100)) == [100, 100, 10, 10, 10]
    assert images_to_make([], Balance()) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("total", [0, 1, 7, 100, 999])
def test_a_total_fills_the_fewest_one_image_after_the_other(seed: int, total: int) -> None:
    """The slowest way: give each image to the identity that has the fewest, real and generated."""
    rng = np.random.default_rng(seed)
    real = rng.integers(0, 60, rng.integers(1, 30)).tolist()
    balance = Balance(target=None, total=max(1, total), least=0)
    made = images_to_make(real, balance)
    filled = list(real)
    for _ in range(max(1, total)):
        filled[filled.index(min(filled))] += 1
    assert sum(made) == max(1, total)
    assert [old + new for old, new in zip(real, made, strict=True)] == filled


def test_a_total_is_held_within_least_and_most() -> None:
    made = images_to_make([0, 10, 500], Balance(target=None, total=60, least=5, most=30))
    assert made == [30, 25, 5]
    # Where the bounds do not allow the total, they hold.
    assert images_to_make([0, 1], Balance(target=None, total=100, least=0, most=20)) == [20, 20]
    assert images_to_make([0, 1], Balance(target=None, total=2, least=5)) == [5, 5]


def test_a_balance_has_one_measure_and_a_range() -> None:
    with pytest.raises(ValueError, match=r"target 150 and total 10: give one of them"):
        Balance(total=10)
    with pytest.raises(ValueError, match=r"target None and total None: give one"):
        Balance(target=None)
    with pytest.raises(ValueError, match=r"least 10 is more than most 4; lower it"):
        Balance(most=4)


def test_a_projection_keeps_fine_tuning_and_generation_apart() -> None:
    # The paper's figures: 400 s an identity; 10 images in 15 s; 8 GPUs.
    rates = Rates(tuning=400, generating=1.5, image_bytes=20_000)
    found = project(5183, 777_130, rates, actors=8, num_gpus=1)
    assert found.tuning_hours == pytest.approx(72, abs=0.1)
    assert found.generating_hours == pytest.approx(40.5, abs=0.1)
    assert found.gpu_hours == pytest.approx(8 * (72 + 40.5), abs=1)
    assert found.gigabytes == pytest.approx(15.5, abs=0.1)
    assert found.identities_per_hour == pytest.approx(46, abs=0.1)
    assert found.told() == (
        "46 identities/h, 5,183 identities and 777,130 images to go: 72.0 h of fine-tuning + "
        "40.5 h of generation on 8 actors, 899.7 GPU-hours, 15.54 GB"
    )
    few = project(3, 30, rates, actors=8, num_gpus=0.5)
    assert (few.actors, few.gpu_hours) == (3, pytest.approx((1200 + 45) / 3600 / 2))
    assert project(0, 0, rates, 8, 1).identities_per_hour == 0


def test_seconds_of_a_fine_tuning_follow_from_those_of_an_image() -> None:
    spec = Personalise(steps=100, batch_size=2)
    # 50 steps with guidance are 100 forward passes of 10 ms.
    each = tuning_seconds(spec, 1.0, denoising_steps=50, guidance_scale=7.5)
    assert each == pytest.approx(100 * 4 * 3 * 0.01)
    alone = spec.model_copy(update={"prior_weight": 0.0, "gradient_checkpointing": True})
    assert tuning_seconds(alone, 1.0, 50, 1.0) == pytest.approx(100 * 2 * 4 * 0.02)
