"""Which parameters learn and how fast: rates by layer, frozen norms and frozen parts."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ray_reid import images, schema, storage
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Train
from ray_reid.training import checks, optimizers
from ray_reid.training.fit import Fit
from ray_reid.training.loader import TrainingRows

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four identities of three images of noise."""
    rng = np.random.default_rng(0)
    rows = [
        {
            schema.OBSERVATION_ID: schema.observation_id("s", identity, number),
            schema.IMAGE: images.encode(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)),
            schema.IDENTITY: f"s:{identity}",
            schema.SOURCE: "s",
            schema.SPLIT: "train",
        }
        for identity in range(4)
        for number in range(3)
    ]
    path = tmp_path_factory.mktemp("table") / "observations"
    storage.write(path, schema.observations(rows))
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


def _fit(table: Path, *overrides: str) -> Fit:
    small = [
        "train.backbone=resnet10t",
        "train.image_size=[32, 32]",
        "train.sampler={num_identities: 4, num_instances: 2}",
        "train.epochs=2",
        "train.batches_per_epoch=2",
        "train.warmup_epochs=0",
        "train.precision=fp32",
    ]
    recipe: Recipe = recipes.load("baseline", None, [*small, *overrides])
    return Fit(recipe, TrainingRows([table], recipe.train), device=torch.device("cpu"))


def _state(fit: Fit) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in fit.network.state_dict().items()}


def _moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_batch_norms_keep_the_statistics_that_the_backbone_brought(table: Path) -> None:
    affine = {
        f"backbone.{name}.{part}"
        for name, layer in _fit(table).network.backbone.named_modules()
        if isinstance(layer, torch.nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    for norms, learned in (("train", True), ("statistics", True), ("fixed", False)):
        fit = _fit(table, f"train.finetune.norms={norms}")
        before = _state(fit)
        for _ in fit.run():
            pass
        moved = _moved(before, _state(fit))
        statistics = {name for name in moved if name.endswith(STATISTICS)}
        in_backbone = {name for name in statistics if name.startswith("backbone.")}
        # The neck is new, and needs statistics of its own.
        assert {"neck.running_mean", "neck.running_var"} <= statistics
        assert bool(in_backbone) == (norms == "train")
        assert bool(affine & moved) == learned
        assert any(name.endswith("conv1.weight") for name in moved)


def test_a_network_without_batch_norms_has_none_to_keep() -> None:
    spec = recipes.load(
        "baseline",
        None,
        [
            "train.backbone=vit_tiny_patch16_224",
            "train.backbone_params={}",
            "train.finetune.norms=fixed",
            "train.pooling=token",
        ],
    ).train
    with pytest.raises(ValueError, match="network of 'vit_tiny_patch16_224' has no batch norms"):
        checks.check_network(spec)


def test_the_head_learns_alone_at_first(table: Path) -> None:
    fit = _fit(table, "train.finetune.head_epochs=1")
    before = _state(fit)
    seen, gathered = [], []
    for progress in fit.run():
        if progress.batch == 0:
            seen.append(_moved(before, _state(fit)))
            gathered.append(
                any(one in fit.optimizer.state for one in fit.network.backbone.parameters())
            )
    assert seen[0]
    assert not any(name.startswith("backbone.") for name in seen[0])
    # Neither momentum nor a share of the norm that is clipped.
    assert gathered == [False, True]
    assert {"backbone.bn1.weight", "backbone.bn1.running_mean", "head.weight"} <= seen[1]
    rates = [entry["learning_rate"] for entry in fit.progress.history]
    assert rates[0] > rates[1] > 0
    with pytest.raises(ValueError, match=r"head_epochs 2 must be less than epochs 2"):
        _fit(table, "train.finetune.head_epochs=2")


def _shares(fit: Fit) -> dict[str, float]:
    share = {
        id(part): group["share"] for group in fit.optimizer.param_groups for part in group["params"]
    }
    return {
        name: share[id(part)] for name, part in fit.network.named_parameters() if id(part) in share
    }


def test_layers_nearer_to_the_input_learn_more_slowly(table: Path) -> None:
    shares = _shares(_fit(table, "train.finetune.layer_decay=0.5", "train.backbone_rate=0.4"))
    assert shares["head.weight"] == shares["neck.weight"] == 1
    # A block is a layer: four of them after the stem.
    for place in range(1, 5):
        expected = 0.4 * 0.5 ** (4 - place)
        for part in ("conv1.weight", "bn2.bias"):
            assert shares[f"backbone.layer{place}.0.{part}"] == pytest.approx(expected)
    assert shares["backbone.conv1.0.weight"] == pytest.approx(0.4 * 0.5**4)
    assert set(_shares(_fit(table)).values()) == {1.0}


def test_a_backbone_without_layers_is_refused_before_any_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = ["train.backbone=resnet10t", "train.image_size=[32, 32]"]
    recipe = recipes.load("baseline", None, [*small, "train.finetune.layer_decay=0.5"])
    checks.check(recipe)
    monkeypatch.setattr(optimizers, "group_parameters", lambda *_, **__: {"stem": 0})
    with pytest.raises(ValueError, match=r"layer_decay is 0\.5, .* 'resnet10t' into no layers"):
        checks.check(recipe)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        Train(finetune={"layer_decay": 1.5})


def test_a_backbone_with_a_rate_of_zero_gets_no_gradients(table: Path) -> None:
    fit = _fit(table, "train.backbone_rate=0", "train.finetune.norms=fixed")
    before = _state(fit)
    next(iter(fit.run()))
    assert not any(name.startswith("backbone.") for name in _moved(before, _state(fit)))
    assert all(part.grad is None for part in fit.network.backbone.parameters())


def test_the_semantic_encoder_has_a_rate_of_its_own(
    table: Path, tiny_models: ModuleType, tmp_path: Path
) -> None:
    encoder = tiny_models.image_text(tmp_path / "image_text")
    semantic: Any = {"encoder": str(encoder), "width": 24, "groups": 4}
    for rate in (0.0, 0.01):
        fit = _fit(table, f"train.semantic={semantic}", f"train.semantic_rate={rate}")
        before = _state(fit)
        next(iter(fit.run()))
        moved = {name for name in _moved(before, _state(fit)) if "semantic.encoder" in name}
        assert bool(moved) == bool(rate)
        assert {"semantic.fuse.weight", "backbone.conv1.0.weight"} <= _moved(before, _state(fit))
        trained = {share for name, share in _shares(fit).items() if "encoder" in name}
        assert trained == ({0.01} if rate else set())


def test_norms_of_a_network_from_nothing_are_not_kept() -> None:
    kept = ["train.finetune.norms=fixed"]
    with pytest.raises(ValueError, match=r"^train\.finetune\.norms is 'fixed', but .* nothing"):
        checks.check(recipes.load("baseline", None, kept))
    # The later stages of a training begin with the weights of the first.
    stages = "train.stages=[{name: a}, {name: b, changes: {finetune: {norms: fixed}}}]"
    checks.check(recipes.load("baseline", None, [stages]))
