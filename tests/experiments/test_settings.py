"""The six settings of Diffusion-ReID: what each arm of the sweep trains on, cut down to seconds."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from ray_reid import pipelines, schema, storage
from ray_reid.datasets import loading, planning, sources
from ray_reid.experiments import in_process, trials
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import Recipe
from ray_reid.training import loader

SETTINGS = (
    "supervised",
    "few_shot",
    "small_scale",
    "unsupervised",
    "domain_adaptation",
    "domain_generalisation",
)
SMALL = {
    "num_train": 8,
    "num_test": 4,
    "cameras_per_identity": 3,
    "images_per_camera": 2,
    "image_size": [32, 16],
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


def _arms() -> dict[str, Recipe]:
    sweep = sweeps.load("six_settings")
    recipe = recipes.override(recipes.load(sweep.recipe, sweep.profile), sweep.overrides)
    small: dict[str, Any] = {
        f"ingest.sources.{place}.{key}": value
        for place in range(len(recipe.ingest.sources))
        for key, value in SMALL.items()
    }
    small |= {
        "train.batches_per_epoch": 2,
        "train.epochs": 2,
        "train.image_size": [32, 16],
        "train.sampler": {"num_identities": 2, "num_instances": 2},
        "train.clusters": {"eps": 0.7, "min_samples": 2, "k1": 5, "k2": 2},
    }
    made = {}
    for setting in sweeps.settings(sweep):
        changes = {**small, **setting.changes}
        for stage in changes.get("train.stages", ()):
            stage["changes"]["epochs"] = 2
        made[setting.name] = recipes.override(recipe, changes)
    return made


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The ingested table of every arm, drawn without Ray; arms that read alike share one."""
    made: dict[str, Path] = {}
    found = {}
    drawn: dict[str, dict[str, Any]] = {}
    for name, recipe in _arms().items():
        key = recipe.ingest.model_dump_json()
        if key not in made:
            spec = recipe.ingest
            plan = planning.plan(sources.resolve(spec.sources), spec.use)
            rows = []
            for row in plan.to_pylist():
                locator = row.pop("locator")
                if locator not in drawn:
                    drawn[locator] = loading.load(locator)
                rows.append(row | drawn[locator])
            made[key] = tmp_path_factory.mktemp("table") / "observations"
            storage.write(made[key], schema.observations(rows))
        found[name] = made[key]
    return found


def test_the_sweep_has_the_six_settings_and_each_can_be_trained() -> None:
    sweep = sweeps.load("six_settings")
    recipe = recipes.override(recipes.load(sweep.recipe, sweep.profile), sweep.overrides)
    found = trials.resolve(sweep, recipe, pipelines.of_recipe(recipe))
    assert tuple(one.setting.name for one in found) == SETTINGS
    steps = {
        sum(own.epochs * (own.batches_per_epoch or 0) for _, own in one.recipe.train.trainings())
        for one in found
    }
    assert steps == {480}


def test_a_validation_that_needs_labels_is_refused_where_there_are_none() -> None:
    sweep = sweeps.load("six_settings").model_copy(update={"validation": 0.1})
    recipe = recipes.override(recipes.load(sweep.recipe, sweep.profile), sweep.overrides)
    with pytest.raises(ValueError, match=r"'unsupervised': .* 'clusters' does not know; set it"):
        trials.resolve(sweep, recipe, pipelines.of_recipe(recipe))


def test_what_each_setting_knows(tables: dict[str, Path]) -> None:
    counted = {}
    for name, recipe in _arms().items():
        counted[name] = []
        for _, spec in recipe.train.trainings():
            chosen = loader.labels([tables[name]], spec)
            counted[name].append((len(chosen.labels), chosen.counts()["real"]["identities"]))
    assert counted == {
        "supervised": [(48, 8)],
        # Two tenths of six images are one.
        "few_shot": [(8, 8)],
        "small_scale": [(12, 2)],
        "unsupervised": [(48, 0)],
        "domain_adaptation": [(48, 8), (48, 0)],
        "domain_generalisation": [(144, 24)],
    }
    train = storage.read(tables["unsupervised"], [schema.SOURCE, schema.IDENTITY, schema.SPLIT])
    known = pa.compute.is_valid(train[schema.IDENTITY]).to_pylist()
    for source, split, named in zip(
        train[schema.SOURCE].to_pylist(), train[schema.SPLIT].to_pylist(), known, strict=True
    ):
        assert named == (split != "unlabelled")
        assert (split == "unlabelled") == (source == "target" and split not in ("query", "gallery"))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_ends_in_figures_of_the_same_test(tables: dict[str, Path], name: str) -> None:
    torch.set_num_threads(1)
    recipe = _arms()[name]
    found = in_process.run_trial(
        recipe, [tables[name]], torch.device("cpu"), source="target"
    ).metrics
    assert set(found) == set(in_process.METRICS)
    assert 0 < found["mAP"] <= 1
