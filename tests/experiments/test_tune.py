"""Sweeps: what they try and refuse, and what a rerun repeats."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from ray_reid import cli, pipelines, places, schema, storage
from ray_reid.datasets import ingest, sources
from ray_reid.datasets.readers.miniature import MiniatureSource
from ray_reid.evaluation import embed, evaluate
from ray_reid.experiments import engine, figures_tune, in_process, sweep_table, trials, tune
from ray_reid.experiments.in_process import TrialScores
from ray_reid.miniature import street_observations
from ray_reid.models import package
from ray_reid.models.networks import ReidNetwork
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.sweeps import Sweep
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import RunState
from ray_reid.runtime.run import TRIALS, Run, open_run
from ray_reid.runtime.sections import aligned
from ray_reid.training import train

SMALL = (
    "ingest.sources=[{reader: miniature, num_train: 8, num_test: 6}]",
    "train.backbone=resnet10t",
    "train.image_size=[32, 32]",
    "train.sampler={num_identities: 4, num_instances: 2}",
    "train.epochs=2",
    "train.batches_per_epoch=2",
    "train.precision=fp32",
)
RATE = "train.learning_rate"


def _ingest(work: Work) -> Facts:
    """Stands for the ingest job: draws the street without Ray, and counts its calls."""
    (source,) = sources.resolve(work.recipe.ingest.sources)
    assert isinstance(source, MiniatureSource)
    rows = street_observations(
        "vehicle",
        num_train=source.num_train,
        num_test=source.num_test,
        images_per_camera=2,
        cameras_per_identity=2,
        size=(32, 32),
        seed=0,
    )
    storage.write(work.out / "observations", schema.observations(list(rows)))
    made.append("ingest")
    return Facts()


def _generate(work: Work) -> Facts:
    """Stands for a job whose images every setting makes anew."""
    facts = _ingest(work)
    made[-1] = "generate"
    return facts


def _adapt(work: Work) -> Facts:
    """Stands for a costly job that most sweeps leave alone."""
    places.write_text(work.out / "adapter", str(work.recipe.adapt.fraction))
    made.append("adapt")
    return Facts()


made: list[str] = []
JOBS = (
    Job("ingest", _ingest, sections=("ingest",), check=ingest.check, uses_ray=False),
    train.JOB,
    embed.JOB,
    evaluate.JOB,
)


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # One MLflow store for the module: creating its schema takes seconds.
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))
    made.clear()


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("baseline", None, [*SMALL, *overrides])


def _sweep(**values: Any) -> Sweep:
    return Sweep.model_validate({"name": "s", "recipe": "baseline", "seeds": [0], **values})


@contextmanager
def _held(path: Path, recipe: Recipe) -> Iterator[Run]:
    with open_run(path, recipe, prepare=lambda: None) as held:
        yield held


def _file(tmp_path: Path, text: str) -> str:
    (tmp_path / "mine.yaml").write_text(text)
    return str(tmp_path / "mine.yaml")


def test_a_sweep_file_is_read_and_named_after_itself(tmp_path: Path) -> None:
    text = "recipe: baseline\nscheduler: asha\nvalidation: 0.2\nparameters: {train.epochs: [2, 3]}"
    sweep = sweeps.load(_file(tmp_path, text))
    assert sweep.name == "mine"
    assert sweep.scheduler.kind == "asha"
    assert [setting.name for setting in sweeps.settings(sweep)] == ["epochs=2", "epochs=3"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("parameters: {train.epochs: [1]}", "the key 'recipe' is missing"),
        ("recipe: baseline\nparams: {}", "unknown key 'params'; choose from .*'parameters'"),
        ("recipe: baseline", "either parameters or arms"),
        ("recipe: b\nreturns: {}\narms: {x: {}}", "either parameters or arms, or returns"),
        ("recipe: b\nreturns: {amounts: [0.5, 0.25]}", r"amounts \[0\.5, 0\.25\] must be .* grow"),
        ("recipe: b\nreturns: {arms: [kept, kept]}", "must be different ones"),
        ("recipe: b\nreturns: {arm: [kept]}", "unknown key 'returns.arm'; choose from .*'budgets'"),
        ("recipe: b\nreturns: {}\nvalidation: 0.1", "validation 0.1 holds identities out"),
        ("recipe: b\nreturns: {}\nseeded: [a]", "returns compares the same queries"),
        ("recipe: b\nreturns: {}\nmetric: rank-1", "metric is 'rank-1', but returns"),
        ("recipe: b\nparameters: {a: [1]}\narms: {x: {}}", "either parameters or arms"),
        ("recipe: b\nparameters: {a: []}", r"the values of 'a' must be one or more different"),
        ("recipe: b\nparameters: {a: [1, 1]}", r"must be one or more different ones: \[1, 1\]"),
        ("recipe: b\nparameters: {a: 3}", "'a' is 3; give a list of values, or one of"),
        ("recipe: b\nparameters: {a: {normal: [0, 1]}}", "'a': unknown key 'normal'; choose from"),
        ("recipe: b\nparameters: {a: {uniform: [2, 1]}}", "'a': uniform .* lower and a higher"),
        ("recipe: b\nparameters: {a: {loguniform: [0, 1]}}", "'a': loguniform .* above zero"),
        ("recipe: b\nparameters: {a: {}}", "'a': values are drawn from nothing; choose one of"),
        ("recipe: b\nparameters: {a: [1]}\nnum_samples: 4", "num_samples 4 needs a parameter that"),
        ("recipe: b\nparameters: {a: [1]}\nseeds: [1, 1]", r"seeds \[1, 1\] must be"),
        ("recipe: b\nparameters: {a: [1]}\nmetric: accuracy", "'metric' is 'accuracy'"),
        ("recipe: b\nparameters: {a: [1]}\nscheduler: asha", "never on the test images"),
        ("recipe: b\nparameters: {a: [1]}\nscheduler: {grac: 1}", "unknown key 'scheduler.grac'"),
        ("recipe: b\nparameters: {a: [1]}\nname: a/b", "'name' is 'a/b'"),
        ("[1]", "must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_mistake_in_a_sweep_file_is_one_sentence(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as raised:
        sweeps.load(_file(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert "mine.yaml" in str(raised.value)


def test_an_unknown_sweep_comes_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown sweep 'backbone'; choose from .*'backbones'"):
        sweeps.load("backbone")


def test_a_grid_is_tried_whole_and_names_tell_its_keys_apart() -> None:
    parameters = {"a.x": [1, 2], "b.x": ["u"], "c.y": [0.1]}
    found = sweeps.settings(_sweep(parameters=parameters))
    assert [setting.changes["a.x"] for setting in found] == [1, 2]
    assert found[0].name == "a.x=1, b.x=u, y=0.1"


def test_drawn_values_keep_their_bounds_and_more_of_them_change_none() -> None:
    parameters: dict[str, Any] = {
        "a": {"uniform": [0, 1]},
        "b": {"loguniform": [1e-5, 1e-1]},
        "c": {"integer": [3, 5]},
        "d": {"choice": ["x", "y"]},
    }
    few = sweeps.settings(_sweep(parameters=parameters, num_samples=5))
    many = sweeps.settings(_sweep(parameters=parameters, num_samples=60))
    assert many[:5] == few
    values = {key: [setting.changes[key] for setting in many] for key in parameters}
    assert 0 <= min(values["a"]) < 0.2
    assert 0.8 < max(values["a"]) <= 1
    assert 1e-5 <= min(values["b"]) < 1e-4
    assert sum(value < 1e-3 for value in values["b"]) == pytest.approx(30, abs=12)
    assert set(values["c"]) == {3, 4, 5}
    assert set(values["d"]) == {"x", "y"}
    # Another parameter beside it leaves a parameter's values alone.
    alone = sweeps.settings(_sweep(parameters={"a": parameters["a"]}, num_samples=5))
    assert [one.changes["a"] for one in alone] == values["a"][:5]
    other = sweeps.settings(_sweep(parameters=parameters, num_samples=5, search_seed=1))
    assert other != few


@pytest.mark.parametrize("name", [path.stem for path in sweeps.SWEEPS.glob("*.yaml")])
def test_the_sweeps_that_are_shipped_can_be_read(name: str) -> None:
    sweep = sweeps.load(name)
    assert sweep.name == name
    # What `returns` tries is known once the images are there.
    assert sweep.returns is not None or sweeps.settings(sweep)


@pytest.mark.parametrize(
    "name",
    ["data_scale", "diffusion_reid", "first_epochs", "identity_filters", "prompt_styles",
     "six_settings"],
)  # fmt: skip
def test_the_sweeps_on_drawn_people_can_be_trained(name: str) -> None:
    sweep = sweeps.load(name)
    recipe = pipelines._recipe_of_sweep(sweep, Path("none"), None, [])
    found = trials.resolve(sweep, recipe, pipelines.of_recipe(recipe))
    assert len(found) == len(sweep.arms)


def test_a_sweep_of_an_unknown_recipe_is_one_sentence_and_makes_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _file(tmp_path, "recipe: nothing_such\nparameters: {train.epochs: [1, 2]}")
    assert cli.main(["tune", file, "--run", str(tmp_path / "r")]) == cli.MISTAKE
    error = capsys.readouterr().err
    assert "unknown recipe 'nothing_such'; choose from ['baseline'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"train.epoch": 3}, r"'bad': unknown recipe key 'train\.epoch'"),
        ({"trian.epochs": 3}, r"'bad': unknown recipe key 'trian'"),
        ({"train.epochs": 0}, r"'bad': recipe key 'train\.epochs' is 0"),
        ({"train.backbone": "resnet19"}, "'bad': timm has no model 'resnet19'"),
        ({"seed": 3}, "'bad': 'seed' is not a parameter; list the sweep's seeds"),
        ({"serve.port": 1}, r"'bad': 'serve\.port' changes no trial; choose from .*'train'"),
    ],
)
def test_an_impossible_setting_is_named_before_anything_runs(
    changes: dict[str, Any], rule: str
) -> None:
    sweep = _sweep(arms={"good": {}, "bad": changes})
    with pytest.raises(ValueError, match=rule) as raised:
        trials.resolve(sweep, _recipe(), JOBS)
    assert str(raised.value).startswith("sweep 's': ")


def test_a_grace_that_no_training_outlives_is_refused() -> None:
    sweep = _sweep(
        arms={"a": {}, "b": {"train.epochs": 4}},
        scheduler={"kind": "asha", "grace": 2},
        validation=0.2,
    )
    with pytest.raises(ValueError, match=r"'a': scheduler.grace 2 must be less than train.epochs"):
        trials.resolve(sweep, _recipe(), JOBS)


def test_a_validated_sweep_takes_no_trainings_of_several_workers() -> None:
    arms = {"a": {}, "b": {"train.num_workers": 2}}
    trials.resolve(_sweep(arms=arms), _recipe(), JOBS)
    with pytest.raises(
        ValueError, match=r"'b': the sweep's validation 0\.2 .* train\.num_workers is 2"
    ):
        trials.resolve(_sweep(arms=arms, validation=0.2), _recipe(), JOBS)


def test_identities_are_held_out_by_the_sweep_or_by_the_recipe() -> None:
    arms = {"a": {}, "b": {"train.validation": 0.25}}
    trials.resolve(_sweep(arms=arms), _recipe(), JOBS)
    rule = r"'b': the sweep's validation 0.2 and train.validation 0.25 would each hold"
    with pytest.raises(ValueError, match=rule):
        trials.resolve(_sweep(arms=arms, validation=0.2), _recipe(), JOBS)


def _expanded(
    path: Path, sweep: Sweep, jobs: Sequence[Job] = JOBS
) -> dict[tuple[str, int], trials.Trial]:
    recipe = _recipe()
    found = trials.resolve(sweep, recipe, jobs)
    with _held(path, recipe) as held:
        inputs = trials.make_inputs(held, sweep, found, jobs)
    return trials.expand(sweep, found, inputs, path / TRIALS)


def test_the_key_of_a_trial_is_what_it_is_made_from(tmp_path: Path) -> None:
    def keys(**values: Any) -> dict[tuple[str, int], str]:
        sweep = _sweep(**values)
        return {place: one.key for place, one in _expanded(tmp_path / "r", sweep).items()}

    arms: dict[str, Any] = {"a": {RATE: 0.1}, "same": {RATE: 0.1}, "b": {RATE: 0.2}}
    first = keys(arms=arms, seeds=[0, 1])
    assert first["a", 0] == first["same", 0]
    assert len(set(first.values())) == 4
    # More settings, seeds or processes repeat nothing; other identities to train on do.
    faster = {"a": {RATE: 0.1, "train.loader_processes": 2}, "c": {RATE: 0.3}}
    grown = keys(arms=faster, seeds=[2, 1, 0], num_cpus=2)
    assert grown["a", 1] == first["a", 1]
    assert keys(arms=arms, validation=0.25)["a", 0] != first["a", 0]
    assert keys(arms=arms, tested="miniature-street-vehicle")["a", 0] != first["a", 0]
    assert made == ["ingest"]


def test_what_a_setting_changes_is_made_beside_the_run_and_the_rest_is_shared(
    tmp_path: Path,
) -> None:
    jobs = (
        JOBS[0],
        Job("adapt", _adapt, needs=("ingest",), sections=("adapt",), uses_ray=False),
        Job(
            "generate",
            _generate,
            needs=("adapt",),
            sections=("ingest", "generate"),
            uses_ray=False,
        ),
        Job("train", train.JOB.work, needs=("ingest", "generate"), sections=("seed", "train")),
        *JOBS[2:],
    )
    arms: dict[str, Any] = {
        "as it is": {"train.epochs": 3},
        "steps": {"generate.steps": 7},
        "fraction": {"adapt.fraction": 0.5},
    }
    found = _expanded(tmp_path / "r", _sweep(arms=arms), jobs)
    assert made == ["ingest", "adapt", "generate", "generate", "adapt", "generate"]
    state = RunState.read((tmp_path / "r").resolve())
    tables = {name: one.inputs.tables for (name, _), one in found.items()}
    own = tuple(state.folder(job) / "observations" for job in ("ingest", "generate"))
    assert tables["as it is"] == own
    assert {one[0] for one in tables.values()} == {own[0]}
    assert len({one[1] for one in tables.values()}) == 3
    assert len({one.key for one in found.values()}) == 3
    made.clear()
    again = _expanded(tmp_path / "r", _sweep(arms=arms), jobs)
    assert made == []
    assert {place: one.key for place, one in again.items()} == {
        place: one.key for place, one in found.items()
    }


def test_trials_that_are_trained_alike_share_the_model_and_come_after_it(tmp_path: Path) -> None:
    rerank = {"evaluate.postprocess": [{"name": "rerank"}]}
    arms: dict[str, Any] = {"plain": {}, "reranked": rerank, "other": {RATE: 0.1}}
    found = _expanded(tmp_path / "r", _sweep(arms=arms, seeds=[0, 1]))
    for seed in (0, 1):
        assert found["plain", seed].shared == found["reranked", seed].shared is not None
        assert found["other", seed].shared is None
    assert found["plain", 0].shared != found["plain", 1].shared
    order = [
        one.name for one in engine._trainings_first({t.key: t for t in found.values()}).values()
    ]
    assert [name.split("'")[1] for name in order[-2:]] == ["reranked", "reranked"]
    validated = _expanded(tmp_path / "r", _sweep(arms=arms, validation=0.25))
    assert {one.shared for one in validated.values()} == {None}


def test_models_beside_the_trained_one_reach_workers_and_make_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("second", "third"):
        weights = ReidNetwork(_recipe().train, 2).state_dict()
        package.save(tmp_path / name, _recipe(), ["a", "b"], weights)
    arms: dict[str, Any] = {"a": {"embed.ensemble": ["second"]}}
    trial = _expanded(tmp_path / "r", _sweep(arms=arms))["a", 0]
    task = trials.task(_sweep(arms=arms), trial)
    assert task.recipe.embed.ensemble == (str(tmp_path / "second"),)
    file = package.WEIGHTS
    (tmp_path / "second" / file).write_bytes((tmp_path / "third" / file).read_bytes())
    assert _expanded(tmp_path / "r", _sweep(arms=arms))["a", 0].key != trial.key


def test_a_seed_may_draw_a_split_of_its_own_which_all_settings_share(tmp_path: Path) -> None:
    arms: dict[str, Any] = {"a": {RATE: 0.1}, "b": {RATE: 0.2}}
    sweep = _sweep(arms=arms, seeds=[6, 7], seeded=["ingest.sources.0.num_test"])
    found = _expanded(tmp_path / "r", sweep)
    assert made == ["ingest", "ingest"]
    drawn = {seed: found["a", seed].resolved.recipe.ingest.sources[0] for seed in (6, 7)}
    assert {seed: one.model_dump()["num_test"] for seed, one in drawn.items()} == {6: 6, 7: 7}
    # Seed 6 draws what the sweep's own recipe says, which a run that had nothing takes.
    key = found["a", 6].inputs.keys["ingest"]
    assert RunState.read(tmp_path / "r").keys == {"ingest": key}
    assert found["a", 6].inputs.test_set == found["b", 6].inputs.test_set
    assert found["a", 6].inputs.test_set != found["a", 7].inputs.test_set
    assert sweep_table.comparable(list(found.values()))
    assert not sweep_table.comparable([found["a", 6], replace(found["b", 7], seed=6)])
    for key, rule in (("ingest.sources.0.split", "unknown recipe key"), ("serve.port", "no trial")):
        with pytest.raises(ValueError, match=rule):
            trials.resolve(sweep.model_copy(update={"seeded": (key,)}), _recipe(), JOBS)


def test_rows_that_cannot_fill_a_batch_are_named_with_their_setting(tmp_path: Path) -> None:
    arms: dict[str, Any] = {"few": {"train.sampler.num_identities": 9}}
    with pytest.raises(ValueError, match=r"sweep 's': 'few': train\.sampler: num_identities is 9"):
        _expanded(tmp_path / "r", _sweep(arms=arms))


def _quick() -> tune.Train:
    """Stands for a training: leaves a trace, and fails while a file says so."""

    # Inside a function, so that workers need not import this module and torch with it.
    def train(task: Any, report: Any, validate: Any) -> TrialScores:
        home = Path(task.tables[0]).parents[2]
        rate, seed = task.recipe.train.learning_rate, task.recipe.seed
        with (home / "calls").open("a") as calls:
            calls.write(f"{rate}\n")
        report(1)
        if rate == 0.5 and (home / "broken").exists():
            raise ValueError("the training diverged")
        for epoch in range(task.recipe.train.epochs if task.held_out else 0):
            validate(epoch, dict.fromkeys(names, rate))
        return TrialScores(dict.fromkeys(names, rate + seed / 100))

    names = in_process.METRICS
    return train


def _run(path: Path, sweep: Sweep) -> tuple[dict[str, Any], list[str]]:
    """A sweep of quick trials; returns its table and the learning rates that were trained."""
    recipe = _recipe()
    (path / "calls").unlink(missing_ok=True)
    found = trials.resolve(sweep, recipe, JOBS)
    with _held(path, recipe) as held:
        table = tune.sweep_run(held, sweep, found, JOBS, lambda: None, _quick())
    calls = path / "calls"
    return table, sorted(calls.read_text().split()) if calls.exists() else []


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_and_grows(tmp_path: Path, ray_local: None) -> None:
    path = tmp_path / "runs" / "r"
    path.mkdir(parents=True)
    (path / "broken").touch()
    table, calls = _run(path, _sweep(parameters={RATE: [0.25, 0.5]}))
    assert calls == ["0.25", "0.5"]
    assert table["failures"] == ["'learning_rate=0.5' with seed 0: the training diverged"]
    assert [row["failed"] for row in table["rows"]] == [[], [0]]
    assert table["rows"][1]["mAP"] is None
    # Mended, the failed one is tried again, and a new one beside it.
    (path / "broken").unlink()
    table, calls = _run(path, _sweep(parameters={RATE: [0.125, 0.25, 0.5]}))
    assert calls == ["0.125", "0.5"]
    assert [row["mAP"]["values"] for row in table["rows"]] == [[0.125], [0.25], [0.5]]
    assert table["best"] == "learning_rate=0.5"
    folder = path / "tune-s"
    assert json.loads((folder / "table.json").read_text()) == table
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [(line[RATE], line["mAP mean"]) for line in lines] == [
        ("0.125", "0.125"),
        ("0.25", "0.25"),
        ("0.5", "0.5"),
    ]
    assert not (folder / ".ray").exists()
    # What is whole is not trained again, nor is Ray Tune asked.
    again, calls = _run(path, _sweep(parameters={RATE: [0.125, 0.25, 0.5]}))
    assert (again, calls) == (table, [])
    _check_tracked(path)
    _check_reported(path)


@pytest.mark.slow
def test_two_sweeps_of_a_run_share_the_trials_that_they_have_in_common(
    tmp_path: Path, ray_local: None
) -> None:
    path = tmp_path / "runs" / "r"
    path.mkdir(parents=True)
    first, calls = _run(path, _sweep(parameters={RATE: [0.25]}))
    assert calls == ["0.25"]
    second, calls = _run(path, _sweep(name="t", parameters={RATE: [0.25, 0.5]}))
    assert calls == ["0.5"]
    assert second["rows"][0]["mAP"] == first["rows"][0]["mAP"]


def _check_tracked(path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    known = json.loads((path / ".mlflow.json").read_text())
    runs = [client.get_run(known[key]) for key in known if key.startswith("tune-s: ")]
    found = {run.data.params[RATE]: (run.info.status, run.data.metrics["mAP"]) for run in runs}
    # The run of the trial that failed went on in the attempt that mended it.
    assert found == {
        "0.125": ("FINISHED", 0.125),
        "0.25": ("FINISHED", 0.25),
        "0.5": ("FINISHED", 0.5),
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {known["pipeline"]}


def _check_reported(path: Path) -> None:
    state = RunState.read(path)
    pipelines.write_report(state)
    page = (path / "report.html").read_text()
    assert "Sweep s" in page
    assert "learning_rate=0.125" in page
    # Once the images are other ones, the figures are no longer those of this run.
    assert len(sweep_table.sections(state)) == 1
    assert sweep_table.sections(replace(state, keys={"ingest": "another"})) == []


@pytest.mark.slow
def test_halving_stops_the_worse_trial_and_keeps_what_it_was(
    tmp_path: Path, ray_local: None
) -> None:
    path = tmp_path / "runs" / "r"
    path.mkdir(parents=True)
    values: dict[str, Any] = {
        "scheduler": {"kind": "asha", "reduction": 2},
        "validation": 0.25,
        # One after the other on two CPUs.
        "num_cpus": 2,
    }
    sweep = _sweep(parameters={RATE: [0.5, 0.25]}, **values)
    table, calls = _run(path, sweep)
    assert calls == ["0.25", "0.5"]
    whole, stopped = table["rows"]
    assert (whole["seeds"], whole["stopped"]) == ([0], {})
    assert whole["validation"]["values"] == [0.5]
    assert (stopped["seeds"], stopped["stopped"]) == ([], {"0": 1})
    assert stopped["mAP"] is None
    assert table["best"] == "learning_rate=0.5"
    assert "1 stopped" in aligned(sweep_table.table(table))
    assert _run(path, sweep)[1] == []
    # A later attempt knows how good the earlier trials were.
    left = {one.key: one for one in _expanded(path, sweep).values()}
    scheduler: Any = engine._scheduler(sweep, left)
    for rate, action in ((0.1, "STOP"), (0.9, "CONTINUE")):
        new = SimpleNamespace(trial_id=str(rate))
        scheduler.on_trial_add(None, new)
        seen = {engine.EPOCH: 1, trials.VALIDATION: rate}
        assert scheduler.on_trial_result(None, new, seen) == action
    # Without the scheduler nothing has been trained to the end.
    alone = _sweep(parameters={RATE: [0.25]}, validation=0.25)
    (trial,) = _expanded(path, alone).values()
    assert not trial.is_over


def _row(changes: dict[str, Any], *values: float) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    found = {"mean": float(np.mean(values)), "std": std, "values": list(values)}
    name = ", ".join(f"{key}={value}" for key, value in changes.items())
    return {"setting": name, "changes": changes, **dict.fromkeys(in_process.METRICS, found)}


def test_one_number_is_drawn_as_a_line_with_deviations() -> None:
    rows = [_row({"g": 32}, 0.6, 0.8), _row({"g": 4}, 0.5, 0.5), _row({"g": 128}, 0.6, 0.6)]
    (axes,) = figures_tune.sweep(rows, ["g"], "mAP").axes
    line: Any = axes.lines[0]
    assert line.get_xdata().tolist() == [4, 32, 128]
    assert line.get_ydata().tolist() == pytest.approx([50, 70, 60])
    bars: Any = axes.collections[0]
    spans = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    assert spans == pytest.approx([0, 2 * 100 * np.std([0.6, 0.8], ddof=1), 0], abs=1e-9)
    assert axes.get_xscale() == "log"


def test_names_and_arms_are_drawn_as_bars() -> None:
    rows = [_row({"b": "x"}, 0.5), _row({"b": "y"}, 0.25)]
    for parameters in (["b"], []):
        (axes,) = figures_tune.sweep(rows, parameters, "mAP").axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["b=x", "b=y"]
        assert {bar.get_width() for bar in axes.patches} == {50, 25}  # type: ignore[attr-defined]


def test_two_parameters_are_drawn_as_a_map_and_a_cloud_as_panels() -> None:
    rows = [_row({"p": p, "q": q}, 0.1 * p + 0.01 * len(q)) for p in (2, 1) for q in ("a", "bb")]
    heat: Any = figures_tune.sweep(rows[:3], ["p", "q"], "mAP").axes[0]
    grid = heat.images[0].get_array()
    # A setting that is missing leaves its cell empty.
    assert grid.filled(np.nan)[0].tolist() == pytest.approx([11, 21])
    assert np.isnan(grid.filled(np.nan)[1, 0]) or grid.mask[1, 0]
    cloud = [_row({"p": n / 7, "q": 2.0**n}, n / 10) for n in range(6)]
    panels = figures_tune.sweep(cloud, ["p", "q"], "mAP").axes
    assert [axes.get_xlabel() for axes in panels] == ["p", "q"]
    assert [len(axes.lines[0].get_xdata()) for axes in panels] == [6, 6]  # type: ignore[arg-type]


def test_the_epochs_of_a_validated_sweep_are_drawn_as_curves() -> None:
    (axes,) = figures_tune.curves({"a": [0.1, 0.2, 0.3], "b": [0.4]}, "validation mAP").axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    first: Any = axes.lines[0]
    assert first.get_xdata().tolist() == [1, 2, 3]
    assert list(first.get_ydata()) == pytest.approx([10, 20, 30])


def test_the_curve_of_a_setting_is_the_mean_of_the_seeds_that_have_one() -> None:
    def trial(*validated: float) -> dict[str, Any]:
        entries = [{"epoch": n, "validation mAP": share} for n, share in enumerate(validated)]
        return {"metrics": dict.fromkeys(in_process.METRICS, 0.5), "history": entries}

    setting = sweeps.Setting("a", {})
    done = {0: trial(0.2, 0.4), 1: trial(0.4, 0.6), 2: trial(), 3: {"metrics": {}, "stopped": 1}}
    row = sweep_table.setting_row(_sweep(arms={"a": {}}), setting, done)
    assert row["epochs"] == pytest.approx([0.3, 0.5])
    assert sweep_table.setting_row(_sweep(arms={"a": {}}), setting, {})["epochs"] == []


def test_settings_that_were_tested_on_unlike_images_are_not_ranked() -> None:
    row = {**_row({"a": 1}, 0.5), "seeds": [0], "stopped": {}, "failed": []}
    result = {
        "sweep": "s",
        "metric": "mAP",
        "validated": False,
        "best": "a=1",
        "rows": [row],
        "comparable": False,
    }
    assert "do not compare" in sweep_table.table(result).note
    assert "Highest" not in sweep_table.table(result).note
    assert "Highest mAP" in sweep_table.table({**result, "comparable": True}).note


def test_data_that_a_setting_cannot_use_are_refused_before_the_first_job(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        yaml.safe_dump({
            "recipe": "baseline",
            "overrides": {"ingest.sources": [{"reader": "miniature", "num_train": 8}]},
            "parameters": {"train.sampler.num_identities": [4, 32]},
            "seeds": [0],
        }),
    )  # fmt: skip
    path = tmp_path / "runs" / "r"
    rule = r"sweep 'mine': '.*32': train.sampler.num_identities is 32 but only 8 identities"
    with pytest.raises(ValueError, match=rule):
        pipelines.run_sweep(file, path)
    assert not path.exists()


def _small_file(tmp_path: Path, rates: list[float], **overrides: Any) -> str:
    common = dict(override.split("=", 1) for override in SMALL)
    values = {
        "recipe": "baseline",
        "overrides": {key: yaml.safe_load(text) for key, text in common.items()} | overrides,
        "parameters": {RATE: rates},
        "seeds": [0],
    }
    return _file(tmp_path, yaml.safe_dump(values))


@pytest.mark.slow
def test_a_real_sweep_ends_in_a_table_and_a_report(tmp_path: Path, ray_local: None) -> None:
    file, path = _small_file(tmp_path, [1e-3, 1e-2]), tmp_path / "runs" / "r"
    pipelines.run_sweep(file, path)
    table = json.loads((path / "tune-mine" / "table.json").read_text())
    assert [0 < row["mAP"]["mean"] <= 1 for row in table["rows"]] == [True, True]
    assert "Sweep mine" in (path / "report.html").read_text()
    times = {one: one.stat().st_mtime_ns for one in path.glob("trials/*.json")}
    assert len(times) == 2
    pipelines.run_sweep(file, path)
    assert {one: one.stat().st_mtime_ns for one in times} == times


INTERRUPTED = """
import signal, sys
from ray_reid.cli import main
# A process started in the background may have been told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["tune", sys.argv[1], "--run", sys.argv[2]]))
"""


@pytest.mark.drill
def test_an_interrupted_sweep_keeps_its_finished_trials_and_goes_on(
    tmp_path: Path, ray_local: None
) -> None:
    many = {"train.batches_per_epoch": 60}
    file, path = _small_file(tmp_path, [1e-2, 1e-3, 1e-4], **many), tmp_path / "runs" / "r"
    command = [sys.executable, "-c", INTERRUPTED, file, str(path)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while not list(path.glob("trials/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == cli.INTERRUPTED
    kept = {one: one.stat().st_mtime_ns for one in path.glob("trials/*.json")}
    assert 0 < len(kept) < 3
    assert not (path / "tune-mine" / "table.json").exists()
    pipelines.run_sweep(file, path)
    assert {one: one.stat().st_mtime_ns for one in kept} == kept
    table = json.loads((path / "tune-mine" / "table.json").read_text())
    assert [row["seeds"] for row in table["rows"]] == [[0], [0], [0]]
