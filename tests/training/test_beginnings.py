"""Trainings that start from a run, a package or the run's own pre-training."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_reid import images, pipelines, schema, storage
from ray_reid.experiments import in_process, trials
from ray_reid.miniature import street_observations
from ray_reid.models import package
from ray_reid.models.networks import ReidNetwork
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.sweeps import Sweep
from ray_reid.runtime.job import Work
from ray_reid.runtime.results import RunState
from ray_reid.training import beginnings, checks, train
from ray_reid.training.fit import Fit
from ray_reid.training.loader import TrainingRows

SMALL = {
    "backbone": "resnet10t",
    "image_size": [32, 32],
    "sampler": {"num_identities": 4, "num_instances": 2},
    "epochs": 1,
    "batches_per_epoch": 1,
    "precision": "fp32",
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Real and generated images of six people; the generated ones are of the same identities."""
    rng = np.random.default_rng(0)
    for job, origin in (("ingest", "real"), ("personalise", "synthetic")):
        rows = [
            {
                schema.OBSERVATION_ID: schema.observation_id(origin, person, number),
                schema.IMAGE: images.encode(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)),
                schema.IDENTITY: f"s:{person}",
                schema.SOURCE: "s",
                schema.SPLIT: "train",
                schema.ORIGIN: origin,
            }
            for person in range(6)
            for number in range(3)
        ]
        storage.write(tmp_path / job / "observations", schema.observations(rows))
    return {job: tmp_path / job for job in ("ingest", "personalise")}


def _recipe(train: dict[str, Any], **sections: Any) -> Recipe:
    return recipes.validate({"name": "baseline", "train": {**SMALL, **train}, **sections})


def _package(path: Path, names: str = "abc", seed: int = 0, **train: Any) -> Path:
    recipe = _recipe(train)
    torch.manual_seed(seed)
    weights = ReidNetwork(recipe.train, len(names)).state_dict()
    package.save(path, recipe, list(names), weights)
    return path


def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """Train without Ray Train; what was trained is kept."""
    trained: list[Fit] = []

    def run(
        recipe: Recipe, tables: Any, held_out: Any, place: Any, name: str, before: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        from ray_reid.models.networks import starting
        from ray_reid.training import worker

        start = None if before is None else starting.parse(worker.load(before))
        fit = Fit(recipe, TrainingRows(tables, recipe.train, held_out), device=CPU, start=start)
        fit.begun = fit.weights()  # type: ignore[attr-defined]
        for _ in fit.run():
            pass
        trained.append(fit)
        return fit.state(), fit.weights()

    monkeypatch.setattr(train, "_run", run)
    monkeypatch.setattr(train, "check_capacity", lambda *_: None)
    return trained


def _work(job: Any, recipe: Recipe, out: Path, inputs: dict[str, Path]) -> Work:
    out.mkdir()
    return Work(job.view(recipe), out, inputs, {})


def test_a_training_starts_from_its_runs_own_pre_training(
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained = _in_this_process(monkeypatch)
    recipe = _recipe({"start": "pretrain"}, pretrain={**SMALL, "mixing": "synthetic"})
    first = _work(train.PRETRAIN_JOB, recipe, tmp_path / "first", inputs)
    facts = train.PRETRAIN_JOB.work(first)
    assert facts.counts.by_origin["real"]["images"] == 0
    assert facts.counts.images == 18
    assert facts.started == ()
    made = package.find(tmp_path / "first" / "model")
    assert package.recipe_of(made).train == recipe.pretrain
    pretrained = facts
    second = _work(train.JOB, recipe, tmp_path / "second", {**inputs, "pretrain": first.out})
    second = replace(second, facts={"pretrain": pretrained.model_dump(mode="json")})
    with caplog.at_level(logging.INFO):
        facts = train.JOB.work(second)
    assert facts.begun_on == pretrained.counts
    # Of the same identities, so its classifier is kept too.
    (started,) = facts.started
    assert (started.source, started.new, started.left_out) == ("pretrain", {}, {})
    assert "train: starts from pretrain: kept " in caplog.text
    begun = trained[1].begun
    assert all(torch.equal(begun[name], one) for name, one in trained[0].weights().items())
    title = train.PRETRAIN_JOB.report(facts).drawings[0].title
    assert title == "Pre-training"
    with pytest.raises(ValueError, match="'pretrain', but no job 'pretrain' has been done"):
        beginnings.start_of(recipe.train)


def test_a_stage_may_change_the_head_and_begins_it_anew(
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained = _in_this_process(monkeypatch)
    changes = {
        "head": "agw", "embedding_dim": 16, "loss.metric": "weighted_triplet", "epochs": 2,
    }  # fmt: skip
    stages = [{"name": "I"}, {"name": "II", "changes": changes}, {"name": "III"}]
    recipe = _recipe({"stages": stages})
    with caplog.at_level(logging.INFO):
        facts = train.train_job(_work(train.JOB, recipe, tmp_path / "out", inputs))
    assert [(one.stage, one.source) for one in facts.started] == [
        ("II", "stage 'I'"),
        ("III", "stage 'II'"),
    ]
    assert {"neck", "head", "non_local", "project", "pool"} == set(facts.started[0].new)
    assert "train II: starts from stage 'I': kept " in caplog.text
    begun = trained[1].begun
    for name, tensor in trained[0].weights().items():
        if name.startswith("backbone."):
            assert torch.equal(begun[name], tensor)
    # The package is the last stage's.
    assert package.recipe_of(tmp_path / "out" / "model").train.head == "bnneck"


def test_a_run_gives_the_package_of_its_training(
    tmp_path: Path, publish_job: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    recipe = _recipe({})
    with pytest.raises(ValueError, match=r"train\.start: no model package at "):
        beginnings.package_of(str(run))
    publish_job(run, "ingest", recipe=recipe)
    with pytest.raises(ValueError, match=r"train\.start: run .* has no current 'train'"):
        beginnings.package_of(str(run))
    folder = publish_job(run, "train", recipe=recipe)
    _package(folder / "model")
    assert beginnings.package_of(str(run)) == folder / "model"
    assert RunState.read(run).folder("train") == folder
    start = beginnings.start_of(_recipe({"start": str(run)}).train)
    assert start is not None
    assert start.identities == ["a", "b", "c"]


def test_the_content_of_what_is_started_from_is_part_of_the_key(tmp_path: Path) -> None:
    found = set()
    for seed, names in ((0, "abc"), (1, "abc"), (1, "abd"), (0, "abc")):
        path = _package(tmp_path / f"{seed}{names}", names, seed)
        # What an evaluation adds changes nothing.
        (path / "metrics.json").write_text(f"[{len(found)}]")
        found.add(train.JOB.outside(_recipe({"start": str(path)})))
    assert len(found) == 3
    assert train.JOB.outside(_recipe({})) == "none"


@pytest.mark.parametrize(
    ("own", "sections", "rule"),
    [
        ({"start": "pretrain"}, {}, "'pretrain', but the recipe has no section pretrain; add one"),
        (
            {"start": "pretrain", "backbone": "resnet18"},
            {"pretrain": SMALL},
            r"train\.backbone is 'resnet18' and pretrain\.backbone is 'resnet10t'; make them equal",
        ),
        (
            {"start": "pretrain", "validation": 0.2},
            {"pretrain": SMALL},
            r"train\.validation is 0\.2 and pretrain\.validation is 0\.0; .* trained on",
        ),
        ({"start": "nothing/here/at-all"}, {}, r"train\.start: no model package at "),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_any_job(
    own: dict[str, Any], sections: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule) as raised:
        checks.check(_recipe(own, **sections))
    assert "\n" not in str(raised.value)


def test_a_start_of_another_backbone_is_refused_before_any_job(tmp_path: Path) -> None:
    path = _package(tmp_path / "other")
    rule = r"train\.start '.*other' does not fit the backbone 'resnet18': \d+ are missing"
    with pytest.raises(ValueError, match=rule):
        checks.check(_recipe({"start": str(path), "backbone": "resnet18"}))
    checks.check(_recipe({"start": str(path), "head": "mgn", "image_size": [64, 64]}))


def test_a_pre_training_is_checked_as_a_training_and_starts_from_others_alone() -> None:
    with pytest.raises(ValueError, match=r"^pretrain\.start is 'pretrain', which is its own"):
        checks.check_pretraining(_recipe({}, pretrain={**SMALL, "start": "pretrain"}))
    broken = {**SMALL, "head": "pcb"}
    with pytest.raises(ValueError, match=r"^pretrain, as a training: train\.head 'pcb' divides"):
        checks.check_pretraining(_recipe({}, pretrain=broken))


@pytest.mark.parametrize("name", ["pretrained", "ibn_weights"])
def test_a_start_and_a_backbones_weights_are_never_both(name: str) -> None:
    more = {"ibn": "a"} if name == "ibn_weights" else {}
    rule = rf"start 'runs/a' brings the weights of the whole network, and {name} 'x\.pth' those of"
    with pytest.raises(ValueError, match=rule):
        _recipe({"start": "runs/a", name: "x.pth", **more})


def test_a_recipe_with_the_section_has_the_job_before_its_training() -> None:
    plain = recipes.load("vehicle_diff", "miniature")
    assert "pretrain" not in [job.name for job in pipelines.of_recipe(plain)]
    both = recipes.override(plain, {"pretrain": {"epochs": 2}})
    jobs = {job.name: job for job in pipelines.of_recipe(both)}
    names = list(jobs)
    assert names.index("pretrain") == names.index("train") - 1
    assert jobs["pretrain"].needs == ("ingest", "generate")
    assert jobs["train"].needs == jobs["compare"].needs == ("ingest", "generate", "pretrain")
    assert "pretrain" in pipelines.JOBS
    # What begins with nothing does not wait for it.
    assert jobs["train"].inputs(both) == jobs["compare"].inputs(both) == ("ingest", "generate")
    starts = recipes.override(both, {"train.start": "pretrain"})
    assert "pretrain" in jobs["train"].inputs(starts)
    arms = {"compare.arms": {"a": {"train.start": "pretrain"}, "b": {}}}
    assert "pretrain" in jobs["compare"].inputs(recipes.override(both, arms))


def test_trials_in_this_process_start_from_the_shared_pre_training(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"images_per_camera": 2, "cameras_per_identity": 2, "size": (32, 32)}
    drawn = street_observations("vehicle", num_train=6, num_test=4, seed=0, **shared)
    storage.write(tmp_path / "drawn", schema.observations(list(drawn)))
    # Nothing is learned, so what is found is what it began with.
    still = {"learning_rate": 1e-12, "finetune": {"norms": "fixed"}}
    found = []
    for seed in (0, 1):
        made = _package(tmp_path / f"made{seed}", seed=seed)
        recipe = _recipe({**still, "start": "pretrain"}, pretrain=SMALL)
        own = in_process.run_trial(recipe, [tmp_path / "drawn"], CPU, pretrained=made)
        named = _recipe({**still, "start": str(made)})
        assert in_process.run_trial(named, [tmp_path / "drawn"], CPU) == own
        found.append(own.metrics["mAP"])
    assert found[0] != found[1]


def test_trials_depend_on_the_pre_training_only_where_they_start_from_it(tmp_path: Path) -> None:
    plain = recipes.load("vehicle_diff", "miniature")
    section = plain.train.model_dump(mode="json") | {"epochs": 2}
    recipe = recipes.override(plain, {"pretrain": section})
    arms = {"from": {"train.start": "pretrain"}, "without": {}}
    sweep = Sweep(name="s", recipe="vehicle_diff", arms=arms, seeds=(0,))
    jobs = pipelines.of_recipe(recipe)
    assert "pretrain" in [job.name for job in trials.prerequisites(jobs)]
    found = {one.setting.name: one.recipe for one in trials.resolve(sweep, recipe, jobs)}
    made = trials.Inputs((), {"ingest": "a", "pretrain": "b"}, (), frozenset(), "t")
    assert trials._begun_from(found["from"], made) == {"ingest": "a", "pretrain": "b"}
    assert trials._begun_from(found["without"], made) == {"ingest": "a"}
    rule = r"'from': train\.start is 'pretrain', but the sweep's recipe has no section pretrain"
    others = [job for job in jobs if job.name != "pretrain"]
    with pytest.raises(ValueError, match=rule):
        trials.resolve(sweep, recipe, others)
    validated = sweep.model_copy(update={"validation": 0.2})
    with pytest.raises(ValueError, match=r"'from': the sweep's validation 0\.2 holds out ident"):
        trials.resolve(validated, recipe, jobs)
