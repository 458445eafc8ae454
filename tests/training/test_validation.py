"""Validation while training: whom it holds out, that it disturbs nothing, and what it keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_reid import schema, storage
from ray_reid.experiments import in_process
from ray_reid.miniature import street_observations
from ray_reid.models import package
from ray_reid.recipe import recipes
from ray_reid.recipe.evaluate import Evaluate
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import figures
from ray_reid.runtime.job import Work
from ray_reid.training import loader, train, validation, worker
from ray_reid.training.fit import Fit
from ray_reid.training.loader import TrainingRows
from ray_reid.training.validation import DECIDING, Validation
from ray_reid.training.worker import train_worker

SMALL = (
    "train.backbone=resnet10t",
    "train.image_size=[32, 32]",
    "train.sampler={num_identities: 4, num_instances: 2}",
    "train.epochs=2",
    "train.batches_per_epoch=2",
    "train.precision=fp32",
)
CPU = torch.device("cpu")


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("baseline", None, [*SMALL, *overrides])


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "observations"
    rows = street_observations(
        "vehicle",
        num_train=8,
        num_test=6,
        images_per_camera=2,
        cameras_per_identity=2,
        size=(32, 32),
        seed=0,
    )
    storage.write(path, schema.observations(list(rows)))
    return path


def test_validation_changes_no_training_and_sees_no_test_image(table: Path) -> None:
    recipe = _recipe()
    kept = validation.held_out(table, 0.25)
    seen: list[tuple[int, Mapping[str, float]]] = []
    first = in_process.run_trial(
        recipe, [table], CPU, held_out=kept, validate=lambda *told: seen.append(told)
    )
    assert [epoch for epoch, _ in seen] == [0, 1]
    assert all(0 < found[name] <= 1 for _, found in seen for name in in_process.METRICS)
    assert in_process.run_trial(recipe, [table], CPU, held_out=kept) == first
    chosen = loader.labels([table], recipe.train, kept)
    whole = loader.labels([table], recipe.train)
    assert set(whole.identities) - set(chosen.identities) == kept
    rows = storage.read(table, [schema.IDENTITY, schema.SPLIT]).to_pylist()
    tested = {row[schema.IDENTITY] for row in rows if row[schema.SPLIT] != "train"}
    assert not kept & tested


def test_a_held_out_identity_asks_from_every_other_camera(tmp_path: Path) -> None:
    seen = {"one": "aabb", "two": "abc", "alone": "a", "left in": "ab"}
    rows = [
        {
            schema.OBSERVATION_ID: f"{number:02}",
            schema.IMAGE: b"",
            schema.IDENTITY: name,
            schema.CAMERA: camera,
            schema.SPLIT: "train",
            schema.SOURCE: "x",
        }
        for number, (name, camera) in enumerate(
            (name, camera) for name, cameras in seen.items() for camera in cameras
        )
    ]
    storage.write(tmp_path / "observations", schema.observations(rows))
    spec = Evaluate(protocol="vehicleid")
    held = validation.Validation(tmp_path / "observations", {"one", "two", "alone"}, spec)
    split = dict(
        zip(
            held._rows[schema.OBSERVATION_ID].to_pylist(),
            held._rows[schema.SPLIT].to_pylist(),
            strict=True,
        )
    )
    asking = {name for name, one in split.items() if one == "query"}
    # one: camera a; two: cameras a and c; alone asks what nobody answers.
    assert asking == {"00", "04", "06", "07"}
    assert len(split) == 8
    with pytest.raises(ValueError, match="nothing to evaluate"):
        validation.Validation(tmp_path / "observations", {"alone"}, spec)


def test_a_search_leaves_a_training_as_it_was(table: Path) -> None:
    # A dropout that the random numbers of a batch decide about.
    recipe = _recipe("train.backbone_params={drop_path_rate: 0.5}")
    held_out = validation.held_out(table, 0.25)
    search = Validation(table, held_out, recipe.evaluate)
    assert search.counts() == {"identities": 2, "images": 8}
    plain, followed = (
        Fit(recipe, TrainingRows([table], recipe.train, held_out), device=CPU) for _ in range(2)
    )
    list(plain.run())
    found = [search.follow(followed) for progress in followed.run() if progress.batch == 0]
    assert followed.network.training
    history = followed.progress.history
    assert [entry[DECIDING] for entry in history] == [one["mAP"] for one in found]
    assert [
        {name: value for name, value in entry.items() if not name.startswith(validation.PREFIX)}
        for entry in history
    ] == plain.progress.history
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(tensor, followed.network.state_dict()[name]), name


@pytest.mark.parametrize(
    ("found", "keep", "place"),
    [
        ([0.5, 0.7, 0.6], "best", 1),
        ([0.5, 0.7, 0.7], "best", 1),
        ([0.5, 0.7, 0.6], "last", 2),
        ([None, None], "best", 1),
    ],
)
def test_the_earliest_of_the_best_epochs_is_kept(
    found: list[float | None], keep: str, place: int
) -> None:
    history = [{} if value is None else {DECIDING: value} for value in found]
    assert validation.kept(history, keep) == place


@pytest.mark.parametrize(("keep", "epoch"), [("best", 1), ("last", 2)])
def test_a_trial_keeps_the_weights_that_its_recipe_says(
    table: Path, monkeypatch: pytest.MonkeyPatch, keep: str, epoch: int
) -> None:
    recipe = _recipe("train.epochs=3", "train.validation=0.25", f"train.keep={keep}")

    def follow(_: Validation, fit: Fit) -> dict[str, float]:
        found = dict.fromkeys(in_process.METRICS, [0.1, 0.3, 0.2][fit.progress.epoch - 1])
        fit.progress.history[-1][DECIDING] = found["mAP"]
        return found

    monkeypatch.setattr(Validation, "follow", follow)
    held_out = validation.left_out(recipe, [table])
    fit = Fit(recipe, TrainingRows([table], recipe.train, held_out), device=CPU)
    by_epoch = [fit.weights() for progress in fit.run() if progress.batch == 0]
    _, identities, weights = in_process._trained(recipe, [table], CPU, lambda _: None, (), None)
    assert len(identities) == 6
    for name, tensor in weights.items():
        assert torch.equal(tensor, by_epoch[epoch][name]), name


def test_the_curves_of_a_validated_training_show_its_figures() -> None:
    history = [{"epoch": n, "loss": 1.0, DECIDING: n / 2} for n in range(2)]
    _, found = figures.training_curve(history).axes
    assert found.get_title(loc="left") == "validation mAP"
    assert found.lines[0].get_ydata().tolist() == [0, 0.5]  # type: ignore[union-attr]


FIGURES = (0.2, 0.9, 0.5)


def _stumbling_worker(arguments: Mapping[str, Any]) -> None:
    """Finds these figures instead of its own, and dies once, in the middle of the last epoch."""
    died = Path(arguments["tables"][0]).parent / "died"
    really = Validation.follow

    def follow(search: Validation, fit: Fit) -> dict[str, float]:
        found = really(search, fit)
        fit.progress.history[-1][DECIDING] = FIGURES[fit.progress.epoch - 1]
        return found

    def step(fit: Fit, *batch: Any) -> torch.Tensor:
        if not died.exists() and (fit.progress.epoch, fit.progress.batch) == (2, 1):
            died.touch()
            raise ValueError("out of luck")
        return steps(fit, *batch)

    steps, Fit._step, Validation.follow = Fit._step, step, follow  # type: ignore[method-assign]
    train_worker(arguments)


@pytest.mark.drill
def test_a_killed_training_knows_its_best_epoch_and_its_last(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    inputs = {"ingest": tmp_path / "ingest"}
    inputs["ingest"].mkdir()
    (inputs["ingest"] / "observations").symlink_to(table)
    (tmp_path / "out").mkdir()
    changes = ("epochs=3", "validation=0.25", "checkpoint_batches=1", "max_failures=0")
    recipe = train.JOB.view(_recipe(*(f"train.{change}" for change in changes)))
    work = Work(recipe, tmp_path / "out", inputs, {})
    monkeypatch.setattr(worker, "train_worker", _stumbling_worker)
    with pytest.raises(ValueError, match="train: ValueError: out of luck"):
        train.train_job(work)
    facts = train.train_job(work)
    history, found = facts.history, facts.validation
    assert [entry[DECIDING] for entry in history] == list(FIGURES)
    assert all(0 < entry["validation_rank-1"] <= 1 for entry in history)
    rank_1 = history[1]["validation_rank-1"]
    assert (found.identities, found.images, found.epoch) == (2, 8, 1)
    assert found.figures == {"mAP": 0.9, "rank-1": rank_1}
    files = (work.out / train.RAY_RUN / "0").glob(f"*/{worker.STATE}")
    states = [worker.load_state(file.parent) for file in files]
    best, last = sorted(states, key=lambda state: state["progress"]["epoch"])
    assert (best["progress"]["epoch"], last["progress"]["epoch"]) == (2, 3)
    weights = package.load(work.out / "model", "cpu").network.state_dict()
    assert all(torch.equal(tensor, best["network"][name]) for name, tensor in weights.items())
    assert not torch.equal(weights["head.weight"], last["network"]["head.weight"])
    # What is done is not done again.
    monkeypatch.setattr(train, "_run", None)
    assert train.train_job(work) == facts
