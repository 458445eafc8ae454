"""Pseudo-labels: what is grouped, what the memory learns; a resumed training is the same."""

import io
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from ray_reid import images, schema, storage
from ray_reid.datasets import rules
from ray_reid.experiments import in_process
from ray_reid.models import package
from ray_reid.recipe import recipes
from ray_reid.recipe.clusters import Clusters
from ray_reid.recipe.recipe import Recipe
from ray_reid.training import checks, clusters, loader
from ray_reid.training.fit import Fit
from ray_reid.training.loader import TrainingRows
from ray_reid.training.memory import ClusterMemory
from ray_reid.training.optimizers import build
from ray_reid.training.train import num_batches

IDENTITIES, IMAGES = 6, 8


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


def _rows(source: str, seed: int, labelled: bool = True) -> list[dict[str, Any]]:
    """Noisy images of a colour for each identity, and two of the first identity to search."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for identity in range(IDENTITIES):
        colour = rng.uniform(20, 235, 3)
        for index in range(IMAGES + 2):
            pixels = (colour + rng.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            split = ["train" if labelled else "unlabelled", "query", "gallery"][
                max(0, index - IMAGES + 1)
            ]
            known = labelled or split != "unlabelled"
            rows.append(
                {
                    schema.OBSERVATION_ID: schema.observation_id(source, f"{identity}-{index}"),
                    schema.IMAGE: images.encode(pixels),
                    schema.IDENTITY: f"{source}:{identity}" if known else None,
                    schema.CAMERA: str(index % 3),
                    schema.SOURCE: source,
                    schema.SPLIT: split,
                }
            )
    return rows


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a table of sources."""

    def written(*sources: tuple[str, int, bool]) -> Path:
        path = tmp_path_factory.mktemp("table") / "observations"
        rows = [row for source in sources for row in _rows(*source)]
        storage.write(path, schema.observations(rows))
        return path

    return written


@pytest.fixture(scope="module")
def table(write: Callable[..., Path]) -> Path:
    """One source without labels."""
    return write(("target", 0, False))


def _recipe(*overrides: str) -> Recipe:
    small = [
        "train.labels=clusters",
        "train.clusters={eps: 0.6, min_samples: 3, k1: 5, k2: 2}",
        "train.backbone=resnet10t",
        "train.image_size=[32, 32]",
        "train.sampler={num_identities: 4, num_instances: 3}",
        "train.epochs=3",
        "train.batches_per_epoch=2",
        "train.precision=fp32",
        "train.learning_rate=1e-3",
    ]
    return recipes.load("baseline", None, [*small, *overrides])


def _fit(table: Path, recipe: Recipe) -> Fit:
    return Fit(recipe, TrainingRows([table], recipe.train), device=torch.device("cpu"))


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    loaded: dict[str, Any] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return loaded


# The memory


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def test_the_memory_compares_and_learns_as_a_loop_does() -> None:
    chance = torch.Generator().manual_seed(0)
    vectors, batch = torch.randn(5, 7, generator=chance), torch.randn(12, 7, generator=chance)
    labels = torch.tensor([3, 0, 3, 3, 1, 0, 4, 3, 1, 1, 0, 3])
    memory = ClusterMemory(_unit(vectors), temperature=0.05, momentum=0.2)
    loss, logits = memory.compare(batch.requires_grad_(), labels)
    expected = []
    centres = _unit(vectors)
    for row, label in zip(_unit(batch), labels.tolist(), strict=True):
        similar = torch.stack([(row * centre).sum() / 0.05 for centre in centres])
        expected.append(similar.exp().sum().log() - similar[label])
    assert torch.allclose(loss, torch.stack(expected).mean(), rtol=1e-5)
    assert logits.shape == (12, 5)
    memory.update(batch, labels)
    # The loss of the batch still knows the vectors that it was computed with.
    loss.backward()
    slow = centres.clone()
    for row, label in zip(_unit(batch.detach()), labels.tolist(), strict=True):
        slow[label] = _unit(0.2 * slow[label] + 0.8 * row)
    assert torch.allclose(memory.vectors, slow, atol=1e-6)
    assert torch.equal(memory.vectors[2], _unit(vectors)[2])
    assert not memory.vectors.requires_grad


def _update(rank: int, folder: str) -> None:
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", limit, 2, rank)
    chance = torch.Generator().manual_seed(0)
    vectors, batch = torch.randn(3, 4, generator=chance), torch.randn(8, 4, generator=chance)
    labels = torch.tensor([0, 1, 0, 1, 1, 2, 2, 0])
    vectors, share = _unit(vectors), slice(4 * rank, 4 * rank + 4)
    memory = ClusterMemory(vectors, 0.1, 0.3)
    memory.update(batch[share], labels[share])
    torch.save(memory.vectors, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    if rank == 0:
        whole = ClusterMemory(vectors, 0.1, 0.3)
        whole.update(batch, labels)
        torch.save(whole.vectors, f"{folder}/whole.pt")


@pytest.mark.slow
def test_workers_keep_one_memory(tmp_path: Path) -> None:
    other = torch.multiprocessing.get_context("spawn").Process(
        target=_update, args=(1, str(tmp_path))
    )
    other.start()
    _update(0, str(tmp_path))
    other.join()
    one, two, whole = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in (0, 1, "whole")
    )
    assert torch.equal(one, two)
    assert torch.equal(one, whole)


# Groups


def test_groups_are_those_of_the_points_and_a_stray_is_in_none() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((5, 16)) * 4
    rows = np.concatenate([
        np.repeat(centres, 12, axis=0) + 0.3 * rng.standard_normal((60, 16)),
        rng.standard_normal((1, 16)) * 4,
    ]).astype(np.float32)  # fmt: skip
    found = clusters.grouped(rows, Clusters(eps=0.5, min_samples=4, k1=10, k2=3))
    assert [len(set(found[12 * n : 12 * n + 12].tolist())) for n in range(5)] == [1] * 5
    assert set(found[:60].tolist()) == set(range(5))
    # All neighbours of the others are of their own twelve, so none of them is mutual.
    alone = clusters.grouped(rows, Clusters(eps=0.5, min_samples=4, k1=10, k2=1))
    assert alone[60] == clusters.NONE


def test_embeddings_come_in_the_order_of_the_rows_and_leave_the_training_as_it_was(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = _fit(table, _recipe())
    whole = clusters.embedded(fit)
    monkeypatch.setattr(clusters, "BATCH", 7)
    assert torch.allclose(clusters.embedded(fit), whole, atol=1e-5)
    assert whole.shape[0] == len(fit.rows.chosen.labels) == IDENTITIES * IMAGES
    assert fit.network.training
    (pixels, _) = next(iter(fit.rows.batches(np.array([[[5]]]), 0)))
    fit.network.eval()
    assert torch.allclose(fit.network.embed(pixels.float() / 255)[0], whole[5], atol=1e-5)


# Training


def test_clusters_follow_the_identities_that_nobody_has_named(table: Path) -> None:
    fit = _fit(table, _recipe())
    assert set(fit.rows.chosen.labels.tolist()) == {-1}
    (*_, progress) = fit.run()
    assert fit.clusters is not None
    # Ids are hashes, so the truth is read from the colours: images of a cluster are alike.
    stored = storage.read(table, [schema.IMAGE], storage.CLUSTERABLE)[schema.IMAGE].to_pylist()
    colours = np.array([images.decode(one).mean(axis=(0, 1)) for one in stored])
    labels = fit.clusters.labels
    spread = [colours[labels == label].std(axis=0).max() for label in range(labels.max() + 1)]
    assert len(spread) >= 3
    assert np.median(spread) < colours.std(axis=0).max() / 3
    for entry in progress.history:
        assert entry["labels"] >= 3
        assert 0 <= entry["unlabelled"] < 1
    assert progress.history[-1]["loss"] < progress.history[0]["loss"]


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_training_killed_in_the_middle_of_an_epoch_ends_with_the_same_weights(
    table: Path, stop: int
) -> None:
    recipe = _recipe()
    whole = _fit(table, recipe)
    for _ in whole.run():
        pass
    first = _fit(table, recipe)
    for done, _ in enumerate(first.run(), start=1):
        if done == stop:
            break
    state = _through_a_file(first.state())
    # Between epochs labels follow from the weights.
    assert (state["clusters"] is None) == (stop % 2 == 0)
    second = _fit(table, recipe)
    second.restore(state)
    for _ in second.run():
        pass
    assert second.progress.history == whole.progress.history
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_every_image_of_a_batch_has_a_label_and_few_clusters_make_smaller_batches(
    table: Path,
) -> None:
    fit = _fit(table, _recipe("train.sampler.num_identities=16", "train.batches_per_epoch=3"))
    assert fit.clusters is not None
    fit.clusters.begin(fit)
    plan, labels = fit.plan(0), fit.clusters.labels
    assert len(plan) == 3
    assert (labels[plan] >= 0).all()
    found = len(set(labels.tolist()) - {clusters.NONE})
    assert found < 16
    assert plan.shape == (3, 1, 3 * found)
    for batch in plan[:, 0]:
        assert len(set(labels[batch].tolist())) == found
    (*_,) = fit.run()
    assert fit.progress.epoch == 3


def test_a_source_with_labels_keeps_them_beside_the_clusters_of_another(
    write: Callable[..., Path],
) -> None:
    table = write(("known", 0, True), ("target", 1, False))
    fit = _fit(table, _recipe("train.clusters.sources=[target]"))
    chosen = fit.rows.chosen
    assert chosen.identities == [f"known:{n}" for n in range(IDENTITIES)]
    assert np.sum(chosen.labels < 0) == IDENTITIES * IMAGES
    (*_,) = fit.run()
    assert fit.clusters is not None
    given = chosen.labels >= 0
    assert np.array_equal(fit.clusters.labels[given], chosen.labels[given])
    assert fit.clusters.labels[~given].max() >= IDENTITIES
    assert not set(fit.clusters.labels[~given].tolist()) & set(range(IDENTITIES))


def _train_shared(rank: int, folder: str, table: str, cache: str) -> None:
    os.environ["RAY_REID_CACHE"] = cache
    torch.set_num_threads(1)
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", f"file://{folder}/store", limit, 2, rank)
    recipe = _recipe("train.num_workers=2")
    rows = TrainingRows([table], recipe.train)
    shared = {"worker": rank, "world_size": 2, "wrap": nn.parallel.DistributedDataParallel}
    fit = Fit(recipe, rows, device=torch.device("cpu"), **shared)
    for progress in fit.run():
        if progress.epoch == 1 and progress.batch == 1:
            torch.save(fit.state(), f"{folder}/middle-{rank}.pt")
    assert fit.clusters is not None
    found = {"clusters": fit.clusters.state(), "network": fit.weights()}
    again = Fit(recipe, rows, device=torch.device("cpu"), **shared)
    # As on Ray Train, all begin again with the first worker's checkpoint.
    dist.barrier()
    again.restore(torch.load(f"{folder}/middle-0.pt", weights_only=True))
    for _ in again.run():
        pass
    torch.save({**found, "resumed": again.weights()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_workers_share_the_embedding_and_have_the_same_clusters_and_resume(
    table: Path, tmp_path: Path
) -> None:
    arguments = (str(tmp_path), str(table), str(tmp_path / "cache"))
    other = torch.multiprocessing.get_context("spawn").Process(
        target=_train_shared, args=(1, *arguments)
    )
    other.start()
    _train_shared(0, *arguments)
    other.join()
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in ("labels", "vectors"):
        assert torch.equal(one["clusters"][name], two["clusters"][name])
    learned = {name for name in one["network"] if "running" not in name}
    assert all(torch.equal(one["network"][name], two["network"][name]) for name in learned)
    assert all(torch.equal(tensor, one["resumed"][name]) for name, tensor in one["network"].items())


def test_labels_that_are_there_are_not_looked_at(write: Callable[..., Path]) -> None:
    """The same images with labels and without give the same weights."""
    found = []
    for labelled in (True, False):
        fit = _fit(write(("target", 0, labelled)), _recipe())
        (*_,) = fit.run()
        assert fit.rows.chosen.identities == [loader.UNKNOWN]
        found.append(fit.network.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_classifier_learns_nothing_and_the_package_loads(table: Path, tmp_path: Path) -> None:
    recipe = _recipe()
    fit = _fit(table, recipe)
    head = fit.network.head.weight.clone()
    (*_,) = fit.run()
    assert torch.equal(fit.network.head.weight, head)
    groups = build(recipe.train, fit.network).param_groups
    learned = {id(parameter) for group in groups for parameter in group["params"]}
    assert id(fit.network.head.weight) not in learned
    package.save(tmp_path / "model", recipe, fit.rows.chosen.identities, fit.weights())
    model = package.load(tmp_path / "model")
    assert model.embed([_rows("x", 0)[0][schema.IMAGE]]).shape[0] == 1


def test_a_trial_adapts_from_a_labelled_source_to_a_target_in_two_stages(
    write: Callable[..., Path],
) -> None:
    table = write(("known", 0, True), ("target", 1, False))
    stages = [
        {"name": "source", "changes": {"labels": "given", "sources": ["known"], "epochs": 2}},
        {"name": "target", "changes": {"sources": ["target"], "epochs": 2}},
    ]
    recipe = recipes.override(_recipe(), {"train.stages": stages})
    told: list[int] = []
    found = in_process.run_trial(recipe, [table], torch.device("cpu"), told.append, source="target")
    assert 0 < found.metrics["mAP"] <= 1
    assert told[-1] == num_batches(recipe, [table]) == 8


# What is refused


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("train.clusters.eps=0.0001", r"epoch 0: DBSCAN found no cluster among 48 images with "
         r"train\.clusters\.eps 0\.0001 and min_samples 3: .* raise eps"),
        ("train.clusters={eps: 0.999, min_samples: 2, k1: 47, k2: 20}", r"epoch 0: DBSCAN put 48 "
         r"of 48 images in one cluster with train\.clusters\.eps 0\.999 .*; lower eps"),
    ],
)  # fmt: skip
def test_clusters_that_teach_nothing_stop_the_training(
    table: Path, change: str, sentence: str
) -> None:
    fit = _fit(table, _recipe(change))
    with pytest.raises(ValueError, match=sentence):
        next(iter(fit.run()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("train.batches_per_epoch=null", "needs batches_per_epoch, such as 200"),
        ("train.validation=0.1", "so validation must be 0, not 0.1"),
        ("train.mixing=shuffled", "so mixing must be 'real', not 'shuffled'"),
        ("train.sampler={kind: naive, batch_size: 8}", r"sampler\.kind must be 'identity'"),
        ("train.target=camera", "so target must be 'identity', not 'camera'"),
        ("train.real_fraction=0.5", "real_fraction_of must be 'images', not 'identities'"),
        ("train.clusters.eps=1.5", r"'train\.clusters\.eps' is 1\.5"),
        ("train.real_fraction=0", r"'train\.real_fraction' is 0: Input should be greater than 0"),
    ],
)
def test_what_needs_labels_is_refused_with_clusters(change: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _recipe(change)


def test_sources_to_cluster_must_be_trained_on(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"names 'z', which is not trained on; .* \['target'\]"):
        _recipe("train.sources=[target]", "train.clusters.sources=[z]")
    recipe = _recipe("train.clusters.sources=[z]")
    with pytest.raises(ValueError, match=r"train\.clusters\.sources names 'z', which has no train"):
        loader.labels([write(("target", 0, False))], recipe.train)


def test_an_unlabelled_source_in_a_supervised_training_is_one_sentence(
    write: Callable[..., Path],
) -> None:
    both = [("known", 0, True), ("target", 1, False)]
    recipe = _recipe("train.labels=given", "train.sources=[target]")
    sentence = (
        r"train\.sources names 'target', but none of its train images has an identity; set "
        r"train\.labels to 'clusters' .* \['known'\]"
    )
    with pytest.raises(ValueError, match=sentence):
        loader.labels([write(*both)], recipe.train)
    listed = [row | {"locator": "x.jpg"} for one in both for row in _rows(*one)]
    with pytest.raises(ValueError, match=sentence):
        rules.check(listed, recipe)
    assert rules.check(listed, _recipe("train.sources=[target]")) is not None


def test_images_too_few_for_a_cluster_are_refused_before_anything_is_trained(
    table: Path,
) -> None:
    recipe = _recipe("train.clusters.min_samples=50")
    sentence = r"has 48 images to cluster, fewer than train\.clusters\.min_samples 50"
    with pytest.raises(ValueError, match=sentence):
        checks.check_plan(recipe, loader.labels([table], recipe.train))
    with pytest.raises(ValueError, match=sentence):
        rules.check([row | {"locator": "x.jpg"} for row in _rows("target", 0, False)], recipe)
