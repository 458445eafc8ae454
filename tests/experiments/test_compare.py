"""A comparison: what it refuses, what it measures, and that a killed one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_reid import schema, storage
from ray_reid.experiments import compare, figures_compare, in_process, query_ap, trials
from ray_reid.miniature import street_observations
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.sweeps import Sweep
from ray_reid.runtime import figures
from ray_reid.runtime.job import Work
from ray_reid.runtime.run import TRAININGS, TRIALS
from ray_reid.training import train

SMALL = (
    "train.backbone=resnet10t",
    "train.image_size=[32, 32]",
    "train.sampler={num_identities: 4, num_instances: 2}",
    "train.epochs=1",
    "train.batches_per_epoch=2",
    "train.precision=fp32",
    "compare.seeds=[0, 7]",
    "compare.num_cpus=1",
    "compare.arms={half: {train.real_fraction: 0.5}, both: {train.mixing: balanced}}",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ingested drawings with test images, and drawings that stand for generated ones."""
    home = tmp_path_factory.mktemp("published")
    shared: dict[str, Any] = {"images_per_camera": 2, "cameras_per_identity": 2, "size": (32, 32)}
    real = street_observations("vehicle", num_train=8, num_test=6, seed=0, **shared)
    storage.write(home / "ingest" / "observations", schema.observations(list(real)))
    drawn = list(street_observations("vehicle", num_train=5, num_test=0, seed=1, **shared))
    synthetic = [
        row | {schema.ORIGIN: "synthetic", schema.IDENTITY: f"vehicle_diff:{row[schema.IDENTITY]}"}
        for row in drawn
    ]
    storage.write(home / "generate" / "observations", schema.observations(synthetic))
    return {name: home / name for name in ("ingest", "generate")}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("baseline", None, [*SMALL, *overrides])


def _work(inputs: dict[str, Path], out: Path, *overrides: str) -> Work:
    out.mkdir(exist_ok=True)
    recipe = compare.JOB.view(_recipe(*overrides))
    return Work(recipe=recipe, out=out, inputs=inputs, facts={})


@pytest.mark.slow
def test_a_comparison_measures_every_arm_with_every_seed_and_resumes(
    inputs: dict[str, Path], tmp_path: Path, ray_local: None
) -> None:
    out = tmp_path / "out"
    facts = compare.compare_job(_work(inputs, out))
    table = facts.table
    assert [row["setting"] for row in table] == ["half", "both"]
    assert [(row["real_images"], row["synthetic_images"]) for row in table] == [
        (16, 0),
        (32, 20),
    ]
    assert [row["real_identities"] for row in table] == [4, 8]
    for row in table:
        assert row["seeds"] == [0, 7]
        for name in in_process.METRICS:
            values = row[name]["values"]
            assert all(0 < value <= 1 for value in values)
            assert row[name]["mean"] == pytest.approx(np.mean(values))
            assert row[name]["std"] == pytest.approx(np.std(values, ddof=1))
        assert facts.metrics[f"{row['setting']} mAP"] == row["mAP"]["mean"]
    assert (out / compare.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert "2 seeds" in facts.pictures[compare.PICTURE]
    files = sorted((out / TRIALS).glob("*.json"))
    assert len(files) == 4
    # The missing trial is done again and gives the same figures; the others are left alone.
    files[2].unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    assert compare.compare_job(_work(inputs, out)) == facts
    assert {file: file.stat().st_mtime_ns for file in times} == times


@pytest.mark.slow
def test_a_trial_of_several_workers_is_trained_by_ray_train(
    inputs: dict[str, Path], tmp_path: Path, ray_local: None
) -> None:
    arms = "{two: {train.num_workers: 2, train.cpus_per_worker: 0.5, train.validation: 0.25}}"
    work = _work(
        inputs,
        tmp_path / "out",
        f"compare.arms={arms}",
        "compare.seeds=[3]",
        "compare.num_cpus=0.5",
    )
    work = replace(work, trials=tmp_path / "shared")
    (row,) = compare.compare_job(work).table
    assert 0 < row["mAP"]["mean"] <= 1
    (file,) = work.trials.glob("*.json")
    # Another comparison of the run takes it.
    before = file.stat().st_mtime_ns
    (tmp_path / "again").mkdir()
    (again,) = compare.compare_job(replace(work, out=tmp_path / "again")).table
    assert again == row
    assert file.stat().st_mtime_ns == before
    assert not list((work.trials / TRAININGS).glob("*"))


def test_a_comparison_and_a_sweep_know_a_trial_by_the_same_key(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    work = _work(inputs, tmp_path / "out")
    made = compare._inputs(work)
    recipe = _recipe()

    def keys(sweep: Sweep, own: Recipe) -> list[str]:
        found = [
            trials.ResolvedSetting(one, recipes.override(own, one.changes))
            for one in sweeps.settings(sweep)
        ]
        each = {(one.setting.name, seed): made for one in found for seed in sweep.seeds}
        return [one.key for one in trials.expand(sweep, found, each, tmp_path / "t").values()]

    arms = {"both": {"train.mixing": "balanced"}, "half": {"train.real_fraction": 0.5}}
    sweep = Sweep(name="mine", recipe="baseline", arms=arms, seeds=(0, 7))
    assert sorted(keys(sweep, recipe)) == sorted(keys(compare.as_sweep(recipe), work.recipe))


def test_a_trial_is_post_processed_as_its_recipe_says(inputs: dict[str, Path]) -> None:
    tables = [inputs["ingest"] / "observations"]
    steps = "[{name: query_expansion, kind: aqe, k: 1}, {name: rerank, k1: 4, k2: 2}]"
    found = [
        in_process.run_trial(_recipe(f"evaluate.postprocess={one}"), tables, torch.device("cpu"))
        for one in ("[]", steps, "[{name: camera_verification, kind: label}]")
    ]
    assert found[1] != found[0]
    # Wrong images of the query's camera are gone; its true ones were junk.
    assert found[2].metrics["mAP"] > found[0].metrics["mAP"]


def test_a_trial_that_fails_is_named_and_the_finished_ones_are_kept(
    inputs: dict[str, Path], tmp_path: Path, ray_local: None
) -> None:
    good, bad = "good: {}", "bad: {train.learning_rate: 1.0e+20, train.warmup_epochs: 0}"
    out, seeds = tmp_path / "out", "compare.seeds=[3]"
    compare.compare_job(_work(inputs, out, f"compare.arms={{{good}}}", seeds))
    (finished,) = (out / TRIALS).glob("*.json")
    before = finished.stat().st_mtime_ns
    with pytest.raises(
        ValueError, match=r"1 of 2 trials failed; arm 'bad' with seed 3: .* diverged"
    ):
        compare.compare_job(_work(inputs, out, f"compare.arms={{{good}, {bad}}}", seeds))
    assert list((out / TRIALS).glob("*.json")) == [finished]
    assert finished.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arms", "rule"),
    [
        ("{good: {}, bad: {train.epoch: 3}}", r"arm 'bad': unknown recipe key 'train\.epoch'"),
        ("{bad: {train.epochs: 0}}", r"arm 'bad': recipe key 'train\.epochs' is 0"),
        ("{bad: {ingest.sources: []}}", r"arm 'bad': 'ingest\.sources' is not of a section"),
        ("{bad: {seed: 3}}", r"arm 'bad': 'seed' is not of a section"),
        ("{bad: {train.backbone: resnet19}}", "arm 'bad': timm has no model 'resnet19'"),
        ("{bad: {train.sampler.num_identities: 10}}", "arm 'bad': train.sampler: num_identities"),
        (
            "{bad: {train.mixing: balanced, train.sampler.num_identities: 5}}",
            "arm 'bad': .* num_identities 5 must be even",
        ),
        ("{a/b: {}}", "arm 'a/b': its name may hold letters"),
    ],
)
def test_an_impossible_arm_is_named_before_anything_starts(
    inputs: dict[str, Path], tmp_path: Path, arms: str, rule: str
) -> None:
    work = _work(inputs, tmp_path / "out", f"compare.arms={arms}")
    with pytest.raises(ValueError, match=rule):
        compare.compare_job(work)
    assert list(work.out.iterdir()) == []


def test_without_arms_nothing_is_compared(inputs: dict[str, Path], tmp_path: Path) -> None:
    work = _work(inputs, tmp_path / "out", "compare.arms={}")
    assert compare.compare_job(work).table == ()
    assert list(work.out.iterdir()) == []


def test_images_without_a_query_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    swapped = {"ingest": inputs["generate"], "generate": inputs["ingest"]}
    with pytest.raises(ValueError, match="nothing to evaluate: 0 query and 0 gallery"):
        compare.compare_job(_work(swapped, tmp_path / "out"))


def test_the_same_trial_gives_the_same_figures_and_counts_its_batches(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    recipe = _recipe("train.mixing=shuffled", "evaluate.both_directions=true")
    tables = [inputs[name] / "observations" for name in ("ingest", "generate")]
    done: list[int] = []
    device = torch.device("cpu")
    first = in_process.run_trial(recipe, tables, device, done.append)
    assert done == [1, 2]
    assert set(first.metrics) == set(in_process.METRICS)
    # Both directions have queries; the mean is that of the directions, however many each has.
    ap = query_ap.unpack(first.ap)
    assert float(np.nanmean(ap)) == pytest.approx(first.metrics["mAP"], abs=1e-6)
    assert in_process.run_trial(recipe, tables, device) == first
    # An equal training leaves its model, and takes it.
    shared = tmp_path / "shared"
    assert in_process.run_trial(recipe, tables, device, shared=shared) == first
    again: list[int] = []
    assert in_process.run_trial(recipe, tables, device, again.append, shared=shared) == first
    assert again == [done[-1]]
    assert [path.name for path in tmp_path.iterdir() if "shared" in path.name] == ["shared"]


def test_a_trial_trains_all_stages(inputs: dict[str, Path]) -> None:
    stages = "train.stages=[{name: I}, {name: II, changes: {mixing: real}}]"
    recipe = _recipe("train.mixing=shuffled", stages)
    tables = [inputs[name] / "observations" for name in ("ingest", "generate")]
    done: list[int] = []
    found = in_process.run_trial(recipe, tables, torch.device("cpu"), done.append)
    assert done == list(range(1, train.num_batches(recipe, tables) + 1))
    alone = _recipe("train.mixing=shuffled")
    assert len(done) > train.num_batches(alone, tables)
    assert found != in_process.run_trial(alone, tables, torch.device("cpu"))


def test_the_picture_shows_every_arm_and_seed() -> None:
    values = {"real": {"mAP": [0.5, 0.52], "rank-1": [0.4, 0.45]}}
    values["both"] = {"mAP": [0.6, 0.7], "rank-1": [0.5, 0.55]}
    figure = figures_compare.arms(values)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["real", "both"]
    bars: list[Any] = list(axes.patches)
    assert sorted(bar.get_width() for bar in bars) == pytest.approx([42.5, 51, 52.5, 65])
    lines: list[Any] = [line for line in axes.lines if line.get_marker() == "o"]
    dots = [x for line in lines for x in line.get_xdata()]
    assert sorted(dots) == pytest.approx([40, 45, 50, 50, 52, 55, 60, 70])
    assert figures.png(figure).startswith(b"\x89PNG")


KILLED = """
import sys
from pathlib import Path
import ray
from ray_reid.experiments import compare
from tests.experiments.test_compare import _work
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
home = Path(sys.argv[1])
inputs = {name: home / name for name in ("ingest", "generate")}
compare.compare_job(_work(inputs, Path(sys.argv[2]), "compare.seeds=[0, 1, 2, 3]"))
"""


@pytest.mark.drill
def test_a_killed_comparison_keeps_its_finished_trials(
    inputs: dict[str, Path], tmp_path: Path, ray_local: None
) -> None:
    out = tmp_path / "out"
    known = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(inputs["ingest"].parent), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": known},
    )
    deadline = time.monotonic() + 240
    while not list(out.glob(f"{TRIALS}/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.read_text() for file in out.glob(f"{TRIALS}/*.json")}
    assert 0 < len(kept) < 8
    facts = compare.compare_job(_work(inputs, out, "compare.seeds=[0, 1, 2, 3]"))
    assert {file: file.read_text() for file in kept} == kept
    assert len(list(out.glob(f"{TRIALS}/*.json"))) == 8
    for file, text in kept.items():
        found = json.loads(text)
        row = next(row for row in facts.table if row["setting"] == found["setting"])
        assert found["metrics"]["mAP"] in row["mAP"]["values"], file
