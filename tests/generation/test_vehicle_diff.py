"""Vehicle-Diff from sources to a comparison, in the paper's profile on tiny untrained models."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

from ray_reid import cli, images, pipelines, schema, storage
from ray_reid.generation import adapt, generate
from ray_reid.models.pretrained import references
from ray_reid.models.pretrained.text_to_image import ADAPTER
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.results import Manifest, RunState

# The paper's whole path takes minutes: `make slow` runs it.
pytestmark = pytest.mark.slow

JOBS = [job.name for job in pipelines.PIPELINES["vehicle_diff"]]
# Of these colours the untrained image-text model sees the first in nearly every image.
LIBRARY = """brand,model,body_style,years,colours
Orvella,Pim,hatchback,2004;2011,orange
Velmar,Zuno,sedan,2004;2011,orange
Nimbrosa,Regal,van,2004;2011,blue
"""
# References, sizes and resources; everything else is what the paper's profile says.
SMALL = (
    "ingest.sources=[{reader: miniature, num_train: 10, num_test: 8, cameras_per_identity: 3}]",
    "prompts.num_identities=6",
    "prompts.images_per_identity=4",
    "adapt.fraction=0.2",
    "adapt.num_gpus=0",
    "adapt.num_prompts=3",
    "adapt.images_per_prompt=2",
    "adapt.trainings=[{rank: 2, epochs: 4, warmup_epochs: 1, keep_epochs: [2]}]",
    "adapt.caption_stage={batch_size: 4}",
    # Of untrained models, that without an adapter may well be the best.
    "generate.candidate=rank2-epoch4",
    "generate.steps=2",
    "generate.image_size=[16, 16]",
    "generate.stage={batch_size: 4, block_rows: 4, num_cpus: 0.5}",
    "generate.raw_images=6",
    # The confidence of five classes among which nothing is known.
    "filters.0.params={threshold: 0.2, min_side: 0.05}",
    "filters.0.stage={num_cpus: 0.2}",
    "filters.1.stage={num_cpus: 0.2}",
    "frechet={num_images: 12}",
    "train.backbone=resnet10t",
    "train.pretrained=false",
    "train.synthetic_fraction=1",
    "train.image_size=[32, 32]",
    "train.sampler={num_identities: 4, num_instances: 3}",
    "train.epochs=2",
    "train.batches_per_epoch=3",
    "train.use_gpu=false",
    "train.cpus_per_worker=1",
    "train.loader_processes=0",
    "embed.stage={batch_size: 16}",
    "evaluate.max_tsne=30",
    "compare={seeds: [0], arms: {real: {train.mixing: real}, D: {train.mixing: shuffled}}}",
)


@pytest.fixture(scope="module")
def home(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("vehicle_diff")
    tiny_models.stable_diffusion_xl(home / "sdxl")
    tiny_models.blip2(home / "blip2")
    tiny_models.yolos(home / "yolos")
    tiny_models.image_text(home / "clip")
    (home / "own.csv").write_text(LIBRARY)
    return home


@pytest.fixture(scope="module")
def run(home: Path, ray_local: None) -> Path:
    """An undisturbed run of the whole pipeline."""
    path = home / "whole"
    pipelines.run(_recipe(home), path)
    return path


def _overrides(home: Path, *more: str) -> list[str]:
    return [
        f"models.text_to_image={home / 'sdxl'}",
        f"models.captioner={home / 'blip2'}",
        f"models.detector={home / 'yolos'}",
        f"models.image_text={home / 'clip'}",
        f"prompts.library={home / 'own.csv'}",
        *SMALL,
        *more,
    ]


def _recipe(home: Path, *more: str) -> Recipe:
    return recipes.load("vehicle_diff", "paper", _overrides(home, *more))


def _at(run: Path, job: str) -> Path:
    return RunState.read(run).folder(job)


def _facts(run: Path, job: str) -> dict[str, Any]:
    return Manifest.read(_at(run, job)).facts


def _generated(run: Path, table: str = "observations") -> list[dict[str, Any]]:
    place = _at(run, "generate") / table
    rows = storage.read(place, schema.OBSERVATION.names, kept_only=False)
    return list(rows.to_pylist(maps_as_pydicts="strict"))


def test_every_job_publishes_and_the_report_shows_generation(run: Path) -> None:
    names = {*JOBS, "report.html", "metrics.json", "recipe.yaml"}
    assert names <= {path.name for path in run.iterdir()}
    assert set(RunState.read(run).keys) == set(JOBS)
    assert 0 < json.loads((run / "metrics.json").read_text())["metrics"]["mAP"] <= 1
    page = (run / "report.html").read_text()
    for title in ("Adaptation", "Generated images", "Filters", "Comparison"):
        assert title in page
    assert page.count("data:image/png;base64") >= 6


def test_every_generated_image_knows_where_it_comes_from(run: Path, home: Path) -> None:
    rows = _generated(run)
    assert len(rows) == 24
    assert Counter(Counter(row["identity"] for row in rows).values()) == {4: 6}
    (licence,) = set(
        storage.read(_at(run, "ingest") / "observations", [schema.LICENCE])["licence"].to_pylist()
    )
    model = references.fingerprint(str(home / "sdxl"))
    adapted = _at(run, "adapt") / "candidates" / "rank2-epoch4" / ADAPTER
    adapter = references.fingerprint(str(adapted))
    for row in rows:
        assert row["generator"].startswith(f"{home / 'sdxl'}@{model} adapter@{adapter} ")
        own = ("", row["prompt"], row["seed"], row["generator"])
        assert row["observation_id"] == schema.observation_id(*own)
        assert (row["licence"], row["source"]) == (licence, "vehicle_diff")
        assert (row["split"], row["origin"]) == ("train", "synthetic")
        attributes = row["attributes"]
        assert set(attributes) == {"colour", "year", "brand", "model", "body_style"}
        assert row["prompt"] == (
            "a {colour} {year} {brand} {model} {body_style} driving down the road"
        ).format(**attributes)
        assert row["scores"]["detection"] >= 0
        assert images.decode(row["image"]).shape[2] == 3
    assert licence is not None
    assert _facts(run, "generate")["licence"] == licence


def test_rejects_are_kept_with_a_reason_and_whole_and_hidden_from_readers(run: Path) -> None:
    rows = _generated(run)
    dropped = [row for row in rows if row["drop_reason"] is not None]
    kept = [row for row in rows if row["drop_reason"] is None]
    assert dropped
    assert kept
    kinds = Counter(row["drop_reason"].partition(":")[0] for row in dropped)
    assert set(kinds) <= {"detection", "size", "colour"}
    assert kinds["colour"] > 0
    for row in dropped:
        if not row["drop_reason"].startswith("colour"):
            assert images.decode(row["image"]).shape == (16, 16, 3)
    for row in kept:
        height, width = images.decode(row["image"]).shape[:2]
        scores = row["scores"]
        assert (height, width) == pytest.approx((scores["box_height"], scores["box_width"]), abs=1)
        assert scores["colour"] == scores["best_colour"]
    seen = storage.read(_at(run, "generate") / "observations", [schema.OBSERVATION_ID])
    assert seen.num_rows == len(kept)
    said = _facts(run, "review")
    assert (said["made"], said["kept"], said["dropped"]) == (24, len(kept), dict(kinds))


def test_raw_images_come_from_the_model_as_it_was(run: Path, home: Path) -> None:
    raw, made = _generated(run, "raw"), _generated(run)
    assert len(raw) == 6
    assert not {row["observation_id"] for row in raw} & {row["observation_id"] for row in made}
    own = {(row["prompt"], row["seed"]): row["image"] for row in made}
    for row in raw:
        assert "adapter@" not in row["generator"]
        assert (row["drop_reason"], row["scores"]) == (None, None)
        assert own[row["prompt"], row["seed"]] != row["image"]
    assert all(row["licence"] is None for row in raw)


def test_the_facts_of_the_review_are_the_rows_of_table_six(run: Path) -> None:
    stages = {stage["stage"]: stage for stage in _facts(run, "review")["stages"]}
    kept = _facts(run, "review")["kept"]
    assert {name: stage["images"] for name, stage in stages.items()} == {
        "raw": 6, "adapted": 24, "filtered": kept,
    }  # fmt: skip
    assert stages["adapted"]["identities"] == 6
    assert {stage["extractor"] for stage in stages.values()} == {"image_text"}
    assert {stage["num_images"] for stage in stages.values()} == {min(6, kept)}
    assert all(stage["fid"] >= 0 for stage in stages.values())


def test_every_candidate_is_kept_and_scored_and_the_chosen_one_is_the_adapter(run: Path) -> None:
    candidates = {one["name"]: one for one in _facts(run, "adapt")["candidates"]}
    assert list(candidates) == ["none", "rank2-epoch2", "rank2-epoch4"]
    best = max(candidates.values(), key=lambda one: one["score"])["name"]
    assert _facts(run, "adapt")["best"] == best
    assert _facts(run, "generate")["candidate"] == "rank2-epoch4"
    base = candidates["none"]["fid"]
    for one in candidates.values():
        assert one["score"] == pytest.approx(one["agreement"] - one["fid"] / base, abs=1e-4)
    weights = [
        (_at(run, "adapt") / "candidates" / name / ADAPTER).read_bytes()
        for name in ("rank2-epoch2", "rank2-epoch4")
    ]
    assert weights[0] != weights[1]
    captions = storage.read(_at(run, "adapt") / "captions", [schema.CAPTION])
    assert captions.num_rows == _facts(run, "adapt")["captioned"] == 12


def test_another_candidate_is_taken_without_training_anything_again(
    run: Path, home: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    path = copy_run(run, tmp_path / "run", "ingest", "adapt")
    before = (_at(path, "adapt") / "manifest.json").stat().st_mtime_ns
    recipe = _recipe(home, "generate.candidate=none", "generate.raw_images=0")
    pipelines.perform(recipe, path, [adapt.JOB, generate.JOB])
    assert (_at(path, "adapt") / "manifest.json").stat().st_mtime_ns == before
    facts = _facts(path, "generate")
    # The licence of the street images does not bind a model that has not seen them.
    assert (facts["candidate"], facts["licence"]) == ("none", None)
    assert "adapter" not in facts["generator"]


def test_generated_images_reach_the_training(run: Path) -> None:
    counts = _facts(run, "train")["counts"]["by_origin"]
    kept = _facts(run, "review")["kept"]
    assert counts["synthetic"]["images"] == kept
    assert counts["synthetic"]["identities"] >= 2
    assert counts["real"]["identities"] == 10
    arms = {row["setting"]: row for row in _facts(run, "compare")["table"]}
    assert (arms["real"]["synthetic_images"], arms["D"]["synthetic_images"]) == (0, kept)
    # What is searched stays real.
    tested = storage.read(_at(run, "embed") / "embeddings", [schema.OBSERVATION_ID])
    made = {row["observation_id"] for row in _generated(run)}
    assert not made & set(tested["observation_id"].to_pylist())


def test_a_second_run_skips_every_job(run: Path, home: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.glob("*/*/manifest.json")}
    assert len(before) == len(JOBS)
    faster = ("generate.stage.actors=3", "filters.1.stage.batch_size=5", "adapt.num_cpus=0.5")
    pipelines.run(_recipe(home, *faster), run)
    assert {file: file.stat().st_mtime_ns for file in before} == before


# Bad input that only workers find


def test_an_adapter_of_another_model_is_one_sentence_and_publishes_nothing(
    run: Path,
    home: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    copy_run: Callable[..., Path],
) -> None:
    from diffusers import StableDiffusionXLPipeline

    path = copy_run(run, tmp_path / "run", "ingest", "adapt")
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    layers = {
        f"{layer}.lora.down.weight": torch.zeros(2, 99),
        f"{layer}.lora.up.weight": torch.zeros(77, 2),
    }
    place = _at(path, "adapt") / "candidates" / "rank2-epoch4"
    StableDiffusionXLPipeline.save_lora_weights(
        str(place), unet_lora_layers=layers, weight_name=ADAPTER
    )
    error = _fails(capfd, home, path)
    assert "ray-reid: generate observations: adapter " in error
    assert "does not fit the UNet2DConditionModel of models.text_to_image" in error
    assert "generate" not in RunState.read(path)


def test_a_hub_id_without_a_network_is_one_sentence_and_publishes_nothing(
    run: Path,
    home: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    copy_run: Callable[..., Path],
) -> None:
    path = copy_run(run, tmp_path / "run", "ingest")
    error = _fails(capfd, home, path, "models.captioner=nobody/nothing")
    assert "ray-reid: models.captioner 'nobody/nothing': it is n" in error
    assert "without a network, give a local folder" in error
    assert "adapt" not in RunState.read(path)


def _fails(capfd: pytest.CaptureFixture[str], home: Path, path: Path, *more: str) -> str:
    """What the command says, bars and news of jobs aside: one line, no traceback."""
    capfd.readouterr()
    assert cli.main(["run", "vehicle_diff", *_options(home, path, *more)]) == cli.MISTAKE
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("ray-reid: ")]
    return line


def _options(home: Path, path: Path, *more: str) -> list[str]:
    options = [part for override in _overrides(home, *more) for part in ("--set", override)]
    return ["--profile", "paper", "--run", str(path), *options]


# Killed while it generates

# Longer and in small batches to the end, so that it can be killed in the middle.
LONG = (
    "generate.steps=300",
    "prompts.images_per_identity=8",
    "generate.raw_images=0",
    "filters.0.stage.batch_size=4",
    "filters.1.stage.batch_size=4",
)


@pytest.fixture(scope="module")
def whole(run: Path, home: Path, copy_run: Callable[..., Path]) -> Path:
    """An undisturbed generation that takes a while."""
    path = copy_run(run, home / "long", "ingest")
    pipelines.perform(_recipe(home, *LONG), path, [adapt.JOB, generate.JOB])
    return path


def _start(home: Path, path: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "jobs/generate.py", "--recipe", "vehicle_diff"]
    with (path.parent / f"{path.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, *_options(home, path, *LONG)],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _wait_for_rows(process: "subprocess.Popen[bytes]", path: Path) -> int:
    """Wait until some blocks are written, and return how many."""
    log = path.parent / f"{path.name}.log"
    deadline = time.monotonic() + 240
    while True:
        blocks = len(list(path.glob("generate/*/observations/attempt-*/*.parquet")))
        if blocks >= 2:
            return blocks
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def _print(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    capsys.readouterr()
    assert cli.main(["fingerprint", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.drill
def test_a_driver_killed_while_it_generates_ends_with_the_same_images(
    whole: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    copy_run: Callable[..., Path],
) -> None:
    path = copy_run(whole, home / "driver", "ingest", "adapt")
    process = _start(home, path)
    assert _wait_for_rows(process, path) < 12
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "generate" not in RunState.read(path)
    before = set(path.glob("generate/*/observations/attempt-*/*.parquet"))
    assert 0 < len(before) < 12
    pipelines.perform(_recipe(home, *LONG), path, [generate.JOB])
    assert before & set(storage.files(_at(path, "generate") / "observations") or [])
    assert _print(capsys, path) == _print(capsys, whole)


@pytest.mark.drill
def test_a_killed_generator_actor_changes_no_image(
    whole: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    copy_run: Callable[..., Path],
) -> None:
    path = copy_run(whole, home / "actor", "ingest", "adapt")
    process = _start(home, path)
    assert _wait_for_rows(process, path) < 12
    # The pools of a stream look alike, so those of the filters lose theirs too.
    _kill_actors(process.pid)
    assert process.wait(timeout=300) == 0, (home / "actor.log").read_text()[-3000:]
    assert _print(capsys, path) == _print(capsys, whole)


def _kill_actors(driver: int) -> None:
    """Kill every actor of a stream without a warning; the driver, Ray and its tasks live on."""
    found = [
        child
        for child in psutil.Process(driver).children(recursive=True)
        if " ".join(child.cmdline()).startswith("ray::MapWorker")
    ]
    assert found
    for child in found:
        child.send_signal(signal.SIGKILL)
