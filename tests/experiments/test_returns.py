"""The synthetic-return report: what it trains, what it refuses, and what it advises."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid import pipelines, schema, storage
from ray_reid.datasets import ingest, sources
from ray_reid.datasets.readers.miniature import MiniatureSource
from ray_reid.evaluation import embed, evaluate
from ray_reid.experiments import (
    figures_returns,
    query_ap,
    returns,
    returns_table,
    sweep_table,
    trials,
    tune,
)
from ray_reid.experiments.in_process import METRICS, TrialScores
from ray_reid.experiments.returns import Plan, ReturnPoint
from ray_reid.generation import generate
from ray_reid.miniature import street_observations
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.returns import Returns
from ray_reid.recipe.sweeps import Sweep
from ray_reid.runtime import figures
from ray_reid.runtime.facts import Cost
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import RunState
from ray_reid.runtime.run import TRIALS, open_run
from ray_reid.runtime.sections import aligned
from ray_reid.training import train

SMALL = (
    "ingest.sources=[{reader: miniature, num_train: 16, num_test: 6}]",
    "train.backbone=resnet10t",
    "train.image_size=[32, 32]",
    "train.sampler={num_identities: 4, num_instances: 2}",
    "train.epochs=2",
    "train.batches_per_epoch=5",
    "train.mixing=shuffled",
    "train.real_fraction=0.5",
    "train.precision=fp32",
)
MADE, DROPPED = 32, 12
COST = Cost(rows=MADE, seconds=36.0, device="CPU", devices=2)
SIZES: dict[str, Any] = {"images_per_camera": 2, "cameras_per_identity": 2, "size": (32, 32)}


def _ingest(work: Work) -> ingest.IngestFacts:
    """Stands for the ingest job: draws the street without Ray."""
    (source,) = sources.resolve(work.recipe.ingest.sources)
    assert isinstance(source, MiniatureSource)
    drawn = street_observations(
        "vehicle", num_train=source.num_train, num_test=source.num_test, seed=0, **SIZES
    )
    storage.write(work.out / "observations", schema.observations(list(drawn)))
    return ingest.IngestFacts()


def _generate(work: Work) -> generate.GenerateFacts:
    """Stands for the generate job: other drawings, of which filters have dropped some."""
    drawn = list(street_observations("vehicle", num_train=8, num_test=0, seed=1, **SIZES))
    made = [
        row | {schema.ORIGIN: "synthetic", schema.IDENTITY: f"made:{row[schema.IDENTITY]}"}
        for row in drawn
    ]
    assert len(made) == MADE
    for row in made[:DROPPED]:
        row[schema.DROP_REASON] = "colour: blue"
    storage.write(work.out / "observations", schema.observations(made))
    return generate.GenerateFacts(cost=COST)


JOBS = (
    Job(
        "ingest",
        _ingest,
        sections=("ingest",),
        check=ingest.check,
        uses_ray=False,
        facts=ingest.IngestFacts,
    ),
    Job("generate", _generate, uses_ray=False, facts=generate.GenerateFacts),
    replace(train.JOB, needs=("ingest", "generate")),
    embed.JOB,
    evaluate.JOB,
)


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # One MLflow store for the module: creating its schema takes seconds.
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("RAY_REID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("baseline", None, [*SMALL, *overrides])


def _sweep(seeds: tuple[int, ...] = (0, 1, 2), **values: Any) -> Sweep:
    return Sweep(name="worth", recipe=None, seeds=seeds, returns=Returns(**values))


def _planned(
    path: Path, sweep: Sweep, recipe: Recipe
) -> tuple[Plan, dict[tuple[str, int], trials.Trial]]:
    with open_run(path, recipe, prepare=lambda: None) as held:
        plan = returns.planned(held, sweep, recipe, JOBS)
        found = trials.resolve(plan.sweep, recipe, JOBS)
        made = trials.make_inputs(held, plan.sweep, found, JOBS)
    return plan, trials.expand(plan.sweep, found, made, path / TRIALS)


@pytest.fixture(scope="module")
def planned(
    tmp_path_factory: pytest.TempPathFactory, _store: None
) -> tuple[Plan, dict[tuple[str, int], trials.Trial]]:
    """All arms with two amounts and both budgets, drawn up on a run of its own."""
    path = tmp_path_factory.mktemp("run") / "r"
    return _planned(path, _sweep(amounts=(0.5, 1.0)), _recipe())


def test_every_arm_amount_and_budget_is_a_setting(planned: Any) -> None:
    plan, every = planned
    assert len(plan.points) == 4 * 2 * 2
    assert len(every) == 3 * (1 + 16)
    assert next(iter(plan.sweep.arms)) == returns.REAL_ONLY
    assert {point.drawn for point in plan.points.values()} == {16, 32}
    assert (plan.generator, plan.cost) == ("generate", COST)


def test_arms_have_the_images_that_they_say(planned: Any) -> None:
    plan, every = planned
    for (name, _), trial in every.items():
        counts = returns.num_images(trial.resolved.recipe, trial.inputs.tables)
        point = plan.points.get(name)
        if point is None:
            assert counts == {"real": 32, "synthetic": 0}
        elif point.arm == "real":
            # Whole vehicles of four images: about as many as the filters kept of those drawn.
            assert counts["synthetic"] == 0
            assert abs(counts["real"] - 32 - point.drawn * 20 / 32) <= 4
        else:
            assert counts["real"] == 32
            kept = 20 if point.drawn == MADE else counts["synthetic"]
            wanted = {"kept": kept, "all": point.drawn, "random": kept}
            assert counts["synthetic"] == wanted[point.arm]


def test_each_seed_draws_images_of_its_own(planned: Any) -> None:
    plan, every = planned
    name = ReturnPoint("all", "steps", 16).name
    assert name in plan.points
    specs = [every[name, seed].resolved.recipe.train for seed in (0, 1, 2)]
    assert [spec.synthetic_draw for spec in specs] == [0, 1, 2]


def test_equal_steps_are_equal_and_equal_epochs_grow_with_the_images(planned: Any) -> None:
    plan, every = planned
    steps = {name: trial.batches for (name, _), trial in every.items()}
    # A pass over 32 real images takes four batches of eight; five an epoch are rounded to it.
    assert steps[returns.REAL_ONLY] == 2 * 4
    for name, point in plan.points.items():
        if point.budget == "steps":
            assert steps[name] == 8
        else:
            assert steps[name] > 8
    longest = max(steps[name] for name, point in plan.points.items() if point.arm == "all")
    assert longest == 2 * (32 + 32) // 8


@pytest.mark.parametrize(
    ("jobs", "override", "rule"),
    [
        ((JOBS[0], train.JOB), "seed=0", "'baseline' trains on no generated images; give one"),
        (JOBS, "train.mixing=real", "train.mixing is 'real', but generated images are added"),
        (JOBS, "train.sampler.kind=progressive", "makes pairs, which real images alone cannot"),
        (JOBS, "train.stages=[{name: I}]", "train.stages trains in a row"),
        (JOBS, "train.start=pretrain", "real only has begun with generated images"),
    ],
)
def test_a_recipe_without_such_a_report_is_refused(
    jobs: tuple[Job, ...], override: str, rule: str
) -> None:
    with pytest.raises(ValueError, match=rf"^sweep 'worth': returns: .*{rule}"):
        returns.check(_sweep(), _recipe(override), jobs)


def test_without_held_back_images_there_is_no_arm_of_real_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="ray_reid"):
        sweep = _sweep(seeds=(0,), amounts=(0.5, 1.0))
        plan, _ = _planned(tmp_path / "r", sweep, _recipe("train.real_fraction=1"))
    assert {point.arm for point in plan.points.values()} == {"kept", "all", "random"}
    assert "no real images are held back (train.real_fraction 1): none can be added" in caplog.text


def test_a_sweep_without_a_recipe_takes_that_of_the_run(tmp_path: Path) -> None:
    sweep = sweeps.load("synthetic_return")
    assert sweep.recipe is None
    with pytest.raises(ValueError, match="takes the recipe of the run, and there is no run"):
        pipelines._recipe_of_sweep(sweep, tmp_path / "r", None, [])
    with open_run(tmp_path / "r", _recipe(), prepare=lambda: None) as held:
        held.point({})
    found = pipelines._recipe_of_sweep(sweep, tmp_path / "r", None, ["train.epochs=7"])
    assert found == _recipe("train.epochs=7")
    with pytest.raises(ValueError, match=r"whose profile is '\w+', not 'paper'"):
        pipelines._recipe_of_sweep(sweep, tmp_path / "r", "paper", [])


def test_precisions_are_packed_and_read_again() -> None:
    values = np.array([0.25, np.nan, 1.0], dtype=np.float32)
    assert np.array_equal(query_ap.unpack(query_ap.pack(values)), values, equal_nan=True)
    for text in ("AAA", "AAAA", "?"):
        with pytest.raises(ValueError, match="no packed average precision"):
            query_ap.unpack(text)


BASE = np.linspace(0.1, 0.6, 40)
"""Average precisions of real images only."""


def _result(
    monkeypatch: pytest.MonkeyPatch,
    gains: Mapping[str, float],
    cost: Cost | None = COST,
    failed: tuple[tuple[str, int], ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> dict[str, Any]:
    """A report of trainings that gain so much over real images only, query by query."""
    points = [ReturnPoint(arm, "steps", n) for arm in ("kept", "real") for n in (100, 200)]
    named = {point.name: point for point in points}
    arms: dict[str, Any] = {name: {} for name in (returns.REAL_ONLY, *named)}
    sweep = Sweep(name="worth", recipe="baseline", arms=arms, seeds=seeds)
    plan = Plan(sweep, named, "generate", cost)
    made: dict[Any, Any] = {}
    for name in arms:
        for seed in seeds:
            ap = BASE + gains.get(name, 0.0) + 0.001 * (seed - 1) + 0.001 * np.sin(BASE * seed)
            made[name, seed] = _trial(name, ap)
    monkeypatch.setattr(returns_table, "num_images", lambda name, _: _counts(named, name))
    return returns_table.result(plan, made, dict.fromkeys(failed, "it diverged"))


def _trial(name: str, ap: NDArray[np.float64]) -> Any:
    """Stands for a finished trial; its recipe is its name."""
    packed = query_ap.pack(ap.astype(np.float32))
    return SimpleNamespace(
        resolved=SimpleNamespace(recipe=name),
        inputs=SimpleNamespace(tables=()),
        batches=60,
        read=lambda: {"ap": packed},
    )


def _counts(named: Mapping[str, ReturnPoint], name: str) -> dict[str, int]:
    if name not in named:
        return {"real": 400, "synthetic": 0}
    added = named[name].drawn * 3 // 4
    real = named[name].arm == "real"
    return {"real": 400 + added * real, "synthetic": added * (not real)}


KEPT_100, KEPT_200 = (ReturnPoint("kept", "steps", n).name for n in (100, 200))


def test_a_gain_is_told_by_image_and_by_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _result(monkeypatch, {KEPT_100: 0.03, KEPT_200: 0.09})
    first, second, real, _ = found["points"]
    assert (first["images"], second["images"]) == (75, 150)
    assert first["gain"]["mean"] == pytest.approx(0.03, abs=1e-6)
    assert first["per_1000"]["mean"] == pytest.approx(0.03 * 1000 / 75, abs=1e-5)
    # A hundred were made: what was dropped is paid for.
    assert first["hours"] == pytest.approx(100 * 36 * 2 / 32 / 3600)
    assert first["per_hour"]["mean"] == pytest.approx(0.03 / first["hours"], abs=1e-4)
    # Nobody knows what a photograph took.
    assert real["hours"] is None
    assert real["per_hour"] is None
    assert real["per_1000"] is not None
    assert json.loads(json.dumps(found)) == found


def test_it_says_where_to_stop_and_when_not_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**gains: float) -> list[str]:
        amounts = {KEPT_100: gains["few"], KEPT_200: gains["many"]}
        return list(returns_table.notes(_result(monkeypatch, amounts)))

    kept, real = said(few=0.03, many=0.09)
    assert kept.startswith("Equal steps, filtered: stop at 150 images of 200 made: +9.0 [")
    assert kept.endswith("it is the largest amount tried")
    assert real == "Equal steps, as many real: do not use them: no amount is shown to raise mAP"
    kept, _ = said(few=0.05, many=0.05)
    assert kept.startswith("Equal steps, filtered: stop at 75 images of 100 made: ")
    assert kept.endswith("no larger amount is shown to be better")
    kept, _ = said(few=-0.05, many=-0.04)
    assert kept == "Equal steps, filtered: do not use them: every amount costs mAP"


def test_the_table_has_every_figure_and_what_it_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _result(monkeypatch, {KEPT_100: 0.03})
    (table,) = returns_table.tables(found)
    text = aligned(table)
    assert "per CPU-hour" in text
    assert "equal steps: filtered of 100" in text
    assert "400 real images in every training" in table.note
    assert "95 % interval over the queries and the seeds (3)" in table.note
    assert "2.2 CPU-seconds" in table.note
    (table,) = returns_table.tables(_result(monkeypatch, {}, cost=None, seeds=(0,)))
    assert "over the queries of one seed (1)" in table.note
    assert "does not say what an image took" in table.note


def test_failed_trainings_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = tuple((KEPT_200, seed) for seed in (0, 1, 2))
    found = _result(monkeypatch, {KEPT_100: 0.03}, failed=(*lost, (KEPT_100, 1)))
    assert found["points"][0]["setting"] == KEPT_100
    assert KEPT_200 not in [point["setting"] for point in found["points"]]
    alone = tuple((returns.REAL_ONLY, seed) for seed in (0, 1, 2))
    found = _result(monkeypatch, {}, failed=alone)
    assert found["points"] == []
    assert returns_table.tables(found) == ()


def test_the_picture_has_a_curve_for_each_arm_and_a_ring_where_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = _result(monkeypatch, {KEPT_100: 0.03, KEPT_200: 0.09})
    figure = figures_returns.curves(found)
    (axes,) = figure.axes
    lines: list[Any] = [line for line in axes.lines if len(line.get_xdata()) == 2]
    curves = [line for line in lines if line.get_marker() in "oD"]
    assert curves[0].get_ydata().tolist() == pytest.approx([3, 9], abs=1e-4)
    rings: list[Any] = [line for line in axes.lines if line.get_markersize() == 12]
    assert [ring.get_ydata()[0] for ring in rings] == pytest.approx([9], abs=1e-4)
    assert figures.png(figure).startswith(b"\x89PNG")


def _quick() -> tune.Train:
    """Stands for a training: generated images raise what is found, filtered ones most."""

    # Inside a function, so that workers need not import this module and torch with it.
    def train(task: Any, report: Any, validate: Any) -> TrialScores:
        report(1)
        spec = task.recipe.train
        worth = {"kept": 0.1, "all": 0.0, "random": 0.05}[spec.synthetic_of]
        gain = worth * (spec.synthetic_images or 0) / 32
        ap = np.linspace(0.1, 0.6, 24) + gain + 0.001 * task.recipe.seed
        figures = dict.fromkeys(names, float(ap.mean()))
        return TrialScores(figures, query_ap.pack(ap.astype(np.float32)))

    names = METRICS
    return train


@pytest.mark.slow
def test_a_report_is_trained_written_and_shown(tmp_path: Path, ray_local: None) -> None:
    path, recipe = tmp_path / "runs" / "r", _recipe()
    sweep = _sweep(amounts=(0.25, 0.5, 0.75, 1.0), budgets=("steps",))
    with open_run(path, recipe, prepare=lambda: None) as held:
        plan = returns.planned(held, sweep, recipe, JOBS)
        found = trials.resolve(plan.sweep, recipe, JOBS)
        table = tune.sweep_run(held, plan.sweep, found, JOBS, lambda: None, _quick(), plan)
    folder = path / "tune-worth"
    assert json.loads((folder / "table.json").read_text()) == table
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    stops = {one["arm"]: one["stop"] for one in table["returns"]["advice"]}
    assert stops["kept"] == ReturnPoint("kept", "steps", 32).name
    assert stops["all"] is None
    state = RunState.read(path)
    pipelines.write_report(state)
    page = (path / "report.html").read_text()
    assert "Synthetic return" in page
    assert "unfiltered: do not use them: no amount is shown to raise mAP." in page
    (section,) = sweep_table.sections(state)
    assert "A ring is where to stop" in section.drawings[0].caption
