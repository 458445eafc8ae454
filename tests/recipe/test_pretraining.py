"""The pre-training of Diffusion-ReID as docs/networks.md gives it, and stages with other heads."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.training import optimizers

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
BLOCKS: list[dict[str, Any]] = [
    yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
]
PAPER = next(block for block in BLOCKS if "pretrain" in block)
SWINS = next(block for block in BLOCKS if "swin_tiny" in block)


def _recipe(values: dict[str, Any]) -> Recipe:
    return recipes.validate({"name": "baseline", **values})


def test_the_pre_training_of_the_page_is_the_papers() -> None:
    spec = _recipe(PAPER).pretrain
    assert spec is not None
    assert (spec.epochs, spec.optimizer, spec.learning_rate) == (300, "adamw", 4e-3)
    assert (spec.weight_decay, spec.warmup_epochs, spec.schedule) == (0.05, 20, "cosine")
    assert (spec.sampler.batch_size, spec.mixing) == (512, "synthetic")
    augment = spec.augment
    assert min(augment.mixup, augment.cutmix, augment.rand_augment, augment.erase) > 0
    # Linear to the twentieth epoch, then a cosine to nothing.
    shares = [optimizers.schedule(spec, epoch) for epoch in (0, 10, 20, 160, 300)]
    assert shares == pytest.approx([0.01, 0.505, 1, 0.5, 0], abs=1e-6)


def test_the_fine_tuning_of_the_page_starts_from_it() -> None:
    recipe = _recipe(PAPER)
    assert recipe.train.start == "pretrain"
    assert recipe.pretrain is not None
    assert recipe.train.backbone == recipe.pretrain.backbone


@pytest.mark.parametrize("profile", SWINS)
def test_the_swin_transformers_of_the_page_are_timms(profile: str) -> None:
    recipe = recipes.override(_recipe(PAPER), SWINS[profile])
    assert recipe.pretrain is not None
    assert recipe.train.backbone == recipe.pretrain.backbone
    assert recipe.pretrain.epochs == 300
    assert timm.is_model(recipe.train.backbone)


def test_stages_of_the_page_change_the_head() -> None:
    staged = next(block for block in BLOCKS if "stages" in block.get("train", {}))
    (_, first), (_, second) = _recipe(staged).train.trainings()
    assert (first.head, second.head) == ("bnneck", "agw")
    assert second.loss.metric == "weighted_triplet"


def test_a_later_stage_starts_from_the_one_before_it_alone() -> None:
    stages = [{"name": "I"}, {"name": "II"}]
    recipe = _recipe({"train": {"start": "runs/a", "stages": stages}})
    (_, first), (_, second) = recipe.train.trainings()
    assert (first.start, second.start) == ("runs/a", None)
