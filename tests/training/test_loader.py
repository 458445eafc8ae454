"""A plan is executed: the same batches wherever the images are decoded."""

import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_reid import images, schema, storage
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Train
from ray_reid.training import loader, remote_loader
from ray_reid.training.fit import Fit
from ray_reid.training.loader import TrainingRows
from ray_reid.training.remote_loader import RemoteRows

SIZE = (24, 20)
EACH = 6


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of four identities with six images, and three versions of every second one."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(8 * EACH):
        identity = number // EACH
        rows.append(_row(rng, f"r{number}", f"s:{identity}", "st"[identity // 4]))
        if number % 2 == 0:
            made = {schema.ORIGIN: "synthetic", schema.PARENT: rows[-1][schema.OBSERVATION_ID]}
            versions = [
                _row(rng, f"v{number}-{version}", f"s:{identity}", "made") | made
                for version in range(3)
            ]
            rows = [*versions, *rows]
    path = tmp_path_factory.mktemp("table") / "observations"
    storage.write(path, schema.observations(rows))
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


def _row(rng: np.random.Generator, name: str, identity: str, source: str) -> dict[str, Any]:
    pixels = rng.integers(0, 255, (32, 28, 3), dtype=np.uint8)
    return {
        schema.OBSERVATION_ID: schema.observation_id("s", name),
        schema.IMAGE: images.encode(pixels),
        schema.IDENTITY: identity,
        schema.SOURCE: source,
        schema.SPLIT: "train",
    }


def _recipe(*overrides: str) -> Recipe:
    small = [
        "train.backbone=resnet10t",
        f"train.image_size={list(SIZE)}",
        "train.sampler={num_identities: 4, num_instances: 2}",
        "train.precision=fp32",
    ]
    return recipes.load("baseline", None, [*small, *overrides])


def _same(found: list[tuple[Tensor, Tensor]], wanted: list[tuple[Tensor, Tensor]]) -> bool:
    """Equal to the last bit, and laid out alike, because kernels are chosen by the layout."""
    return len(found) == len(wanted) and all(
        torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
        for one, other in zip(found, wanted, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("batches_per_task", "held_out"), [(1, ()), (3, ("s:1",)), (100, ())])
def test_the_cluster_decodes_the_very_batches_that_the_worker_would(
    ray_local: None,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    batches_per_task: int,
    held_out: tuple[str, ...],
) -> None:
    spec = Train(image_size=SIZE, mixing="shuffled")
    here, there = (kind([table], spec, held_out) for kind in (TrainingRows, RemoteRows))
    assert there.chosen.identities == [f"s:{n}" for n in range(8) if f"s:{n}" not in held_out]
    plan = np.random.default_rng(0).integers(len(here), size=(7, 2, 5))
    per_batch = 5 * 3 * SIZE[0] * SIZE[1]
    monkeypatch.setattr(remote_loader, "TASK_BYTES", batches_per_task * per_batch)
    with warnings.catch_warnings():
        # PyTorch warns of memory that must not be written to.
        warnings.simplefilter("error", UserWarning)
        for worker, start in ((0, 0), (1, 2), (1, 6)):
            wanted = list(here.batches(plan, worker, start))
            assert len(wanted) == 7 - start
            assert _same(list(there.batches(plan, worker, start)), wanted)
    assert list(there.batches(plan, 0, 7)) == []


def test_a_training_goes_on_with_the_other_loader_as_if_nothing_had_changed(
    ray_local: None, table: Path
) -> None:
    recipe = _recipe("train.epochs=2", "train.batches_per_epoch=3")
    whole, first, second = (
        Fit(recipe, kind([table], recipe.train), device=torch.device("cpu"))
        for kind in (TrainingRows, RemoteRows, TrainingRows)
    )
    list(whole.run())
    list(islice(first.run(), 2))
    second.restore(first.state())
    list(second.run())
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_a_cluster_without_a_cpu_beside_the_workers_is_refused(ray_local: None) -> None:
    remote_loader.check_free(Train(loader="ray_data", cpus_per_worker=0.5, num_workers=2))
    with pytest.raises(ValueError, match=r"num_workers 2 of 1 CPUs each leave .* 2 CPUs .*'local'"):
        remote_loader.check_free(Train(loader="ray_data", num_workers=2))


def test_an_unreadable_image_stops_either_loader_with_its_reason(
    ray_local: None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = [_row(rng, f"{n}", f"s:{n % 2}", "s") for n in range(4)]
    rows[2][schema.IMAGE] = b"no image"
    storage.write(tmp_path / "table", schema.observations(rows))
    spec = Train(image_size=SIZE)
    for kind in (TrainingRows, RemoteRows):
        opened = kind([tmp_path / "table"], spec)
        with pytest.raises(Exception, match="not a readable image"):
            list(opened.batches(np.arange(4).reshape(1, 1, 4), 0))


# What a plan is made of


def test_each_row_knows_its_source_and_the_real_row_it_was_made_from(table: Path) -> None:
    chosen = loader.labels([table], Train(mixing="shuffled"))
    ids, parents = (
        storage.read(table, [name], storage.TRAINABLE)[name].to_pylist()
        for name in (schema.OBSERVATION_ID, schema.PARENT)
    )
    place = {ids[row]: number for number, (_, row) in enumerate(chosen.places.tolist())}
    wanted = [place.get(parents[row], -1) for _, row in chosen.places.tolist()]
    assert chosen.parents.tolist() == wanted
    assert (chosen.parents >= 0).sum() == chosen.synthetic.sum() == 72
    # By name: made, s, t.
    assert np.bincount(chosen.sources).tolist() == [72, 24, 24]
    assert chosen.synthetic.tolist() == (chosen.sources == 0).tolist()


def test_versions_of_images_that_are_not_trained_on_have_no_parent(table: Path) -> None:
    half = loader.labels([table], Train(mixing="shuffled", real_fraction=0.5))
    assert (half.parents >= 0).sum() == 36
    assert (half.parents < 24).all()
    alone = loader.labels([table], Train(mixing="synthetic"))
    assert set(alone.parents.tolist()) == {-1}


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        (["train.sampler={kind: naive, batch_size: 10}"], 10),
        (["train.sampler={kind: class_balanced, batch_size: 10}"], 10),
        (["train.sampler={kind: source_balanced, batch_size: 8}"], 8),
        (["train.sampler.kind=progressive", "train.mixing=shuffled"], 16),
        (["train.sampler={kind: naive, batch_size: 8}", "train.mixing=balanced"], 8),
    ],
)
def test_every_kind_of_sampler_trains(table: Path, overrides: list[str], rows: int) -> None:
    recipe = _recipe(*overrides, "train.batches_per_epoch=2", "train.epochs=1")
    fit = Fit(recipe, TrainingRows([table], recipe.train), device=torch.device("cpu"))
    plan, chosen = fit.plan(0), fit.rows.chosen
    assert plan.shape == (2, 1, rows)
    if recipe.train.sampler.kind == "source_balanced":
        assert np.bincount(chosen.sources[plan[0, 0]]).tolist() == [4, 4]
    if recipe.train.mixing != "real":
        assert chosen.synthetic[plan].sum(axis=2).max() in range(1, rows // 2 + 1)
    (last,) = list(fit.run())[-1:]
    assert np.isfinite(last.history[0]["loss"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.sampler.kind=naive"], "kind 'naive' needs a batch_size, such as 64"),
        (["train.sampler.batch_size=64"], "batch_size 64 has no meaning for kind 'identity', .*"),
        (
            ["train.sampler={kind: naive, batch_size: 63}", "train.num_workers=2"],
            "sampler.batch_size 63 must be a multiple of num_workers 2",
        ),
        (["train.sampler.kind=progressive"], "so mixing must be 'shuffled', not 'real'"),
        (
            ["train.sampler={kind: class_balanced, batch_size: 8}", "train.mixing=balanced"],
            "mixing 'balanced' halves the batches of .*, not of 'class_balanced'",
        ),
        (["train.sampler.kind=random"], "'train.sampler.kind' is 'random': .*'class_balanced'"),
        (["train.loader=remote"], "'train.loader' is 'remote': .*'local' or 'ray_data'"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused_in_one_sentence(
    overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        _recipe(*overrides)
    assert "\n" not in str(caught.value)
