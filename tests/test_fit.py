"""The training loop: it learns, and an interrupted training is the same training."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_reid import config, images, loader, schema, storage
from ray_reid.config import Recipe
from ray_reid.fit import Fit, schedule
from ray_reid.loader import TrainingRows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six identities of six noisy images, each a colour of its own, and one image to ignore."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for identity in range(6):
        colour = rng.uniform(40, 215, 3)
        for index in range(6):
            pixels = (colour + rng.normal(0, 25, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            rows.append(_row(f"{identity}-{index}", images.encode(pixels), f"s:{identity}"))
    rows.append(_row("broken", b"?", "s:0") | {schema.DROP_REASON: "corrupt image: ?"})
    rows.append(_row("query", b"?", "s:9") | {schema.SPLIT: "query"})
    path = tmp_path_factory.mktemp("table") / "observations"
    storage.write(path, schema.observations(rows))
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


def _row(name: str, image: bytes, identity: str) -> dict[str, Any]:
    return {
        schema.OBSERVATION_ID: schema.observation_id("s", name),
        schema.IMAGE: image,
        schema.IDENTITY: identity,
        schema.SOURCE: "s",
        schema.SPLIT: "train",
    }


def _recipe(*overrides: str) -> Recipe:
    small = [
        "train.backbone=resnet10t",
        "train.image_size=[32, 32]",
        "train.sampler={num_identities: 4, num_instances: 3}",
        "train.epochs=3",
        "train.precision=fp32",
    ]
    return config.load("baseline", None, [*small, *overrides])


def _fit(table: Path, recipe: Recipe) -> Fit:
    rows = TrainingRows(table, recipe.train.image_size)
    return Fit(recipe, rows, device=torch.device("cpu"))


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    loaded: dict[str, Any] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return loaded


def test_labels_are_the_sorted_identities_of_the_trainable_rows(table: Path) -> None:
    names, labels = loader.labels(table)
    assert names == [f"s:{identity}" for identity in range(6)]
    assert np.bincount(labels).tolist() == [6] * 6


def test_the_loader_gives_the_planned_rows_with_their_labels(table: Path) -> None:
    rows = TrainingRows(table, (32, 32))
    plan = np.array([[[3, 1], [5, 0]], [[2, 2], [7, 8]]])
    stored = storage.read(table, [schema.IMAGE, schema.IDENTITY], storage.TRAINABLE)
    encoded = stored[schema.IMAGE].to_pylist()
    for worker in range(2):
        batches = list(loader.execute(rows, plan, worker))
        for (pixels, labels), wanted in zip(batches, plan[:, worker], strict=True):
            expected = np.stack([images.decode(encoded[row]) for row in wanted])
            assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), expected)
            assert labels.tolist() == rows.labels[wanted].tolist()
    resumed = list(loader.execute(rows, plan, 0, start=1))
    assert len(resumed) == 1
    assert torch.equal(resumed[0][0], list(loader.execute(rows, plan, 0))[1][0])


def test_decoding_processes_give_the_same_batches(table: Path) -> None:
    rows = TrainingRows(table, (32, 32))
    plan = np.arange(24).reshape(4, 1, 6)
    here = list(loader.execute(rows, plan, 0))
    beside = list(loader.execute(rows, plan, 0, processes=2))
    for (a, b), (c, d) in zip(here, beside, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_training_learns_to_tell_colours_apart(table: Path) -> None:
    fit = _fit(table, _recipe("train.epochs=12"))
    history = list(fit.run())[-1].history
    assert len(history) == 12
    assert history[-1]["cross_entropy"] < 0.7 * history[0]["cross_entropy"]
    assert history[-1]["accuracy"] > 2 * history[0]["accuracy"]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_training_resumed_at_any_batch_ends_with_the_same_weights(table: Path, stop: int) -> None:
    recipe = _recipe()
    whole = _fit(table, recipe)
    for _ in whole.run():
        pass
    first = _fit(table, recipe)
    for done, _ in enumerate(first.run(), start=1):
        if done == stop:
            break
    second = _fit(table, recipe)
    second.restore(_through_a_file(first.state()))
    for _ in second.run():
        pass
    assert second.progress.history == whole.progress.history
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_a_finished_training_has_nothing_left_to_do(table: Path) -> None:
    fit = _fit(table, _recipe("train.epochs=1"))
    steps = sum(1 for _ in fit.run())
    assert steps == fit.batches_per_epoch == fit.batches_done
    assert list(fit.run()) == []


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    spec = config.Train(epochs=10, warmup_epochs=2)
    rates = [schedule(spec, epochs) for epochs in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.01, 0.505, 1, 0.5, 0])


def test_images_too_few_for_a_batch_are_refused(table: Path) -> None:
    with pytest.raises(ValueError, match="num_identities is 8 but only 6 identities"):
        _fit(table, _recipe("train.sampler.num_identities=8"))


def test_a_table_with_one_identity_is_refused(tmp_path: Path) -> None:
    one = schema.observations([_row("a", b"", "s:1"), _row("b", b"", "s:1")])
    assert isinstance(one, pa.Table)
    storage.write(tmp_path / "one", one)
    with pytest.raises(ValueError, match="needs at least 2 identities; the table has 1"):
        loader.labels(tmp_path / "one")


def test_a_training_that_diverges_stops_with_its_cause(table: Path) -> None:
    fit = _fit(table, _recipe("train.learning_rate=1e20", "train.warmup_epochs=0"))
    with pytest.raises(ValueError, match="diverged in epoch 0: its mean loss is nan"):
        list(fit.run())


def test_a_training_keeps_the_arithmetic_it_began_with(table: Path) -> None:
    first = _fit(table, _recipe("train.precision=bf16"))
    next(iter(first.run()))
    second = _fit(table, _recipe("train.precision=fp32"))
    second.restore(_through_a_file(first.state()))
    assert second.bf16
