"""DLCR from drawn people to a refined search, cut down, with the miniature models."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_reid import cli, images, pipelines, schema, storage
from ray_reid.generation import inpaint
from ray_reid.generation.generators import descriptions
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.results import Manifest, RunState

# The whole path takes minutes: `make slow` runs it.
pytestmark = pytest.mark.slow

JOBS = [job.name for job in pipelines.PIPELINES["dlcr"]]
PEOPLE = (
    "{reader: miniature, kind: pedestrian, num_train: 6, num_test: 6, images_per_camera: 2, "
    "cameras_per_identity: 3, image_size: [96, 48]}"
)
SMALL = (
    f"ingest.sources=[{PEOPLE}]",
    "outfits.num_outfits=3",
    "generate.steps=3",
    "generate.stage={actors: 1, num_cpus: 0.4, batch_size: 12, block_rows: 12}",
    "train.sampler={kind: progressive, num_identities: 4, num_instances: 2, widen_every: 1}",
    "train.epochs=3",
    "train.batches_per_epoch=3",
    "train.clothes.start_epoch=1",
    "train.cpus_per_worker=1",
    "refine={num_variants: 2, steps: 2, gate: {share: 0.5}}",
    "compare.arms={}",
    "evaluate.max_tsne=0",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """An undisturbed run of the whole pipeline."""
    path = tmp_path_factory.mktemp("dlcr") / "whole"
    pipelines.run(_recipe(), path)
    return path


def _recipe(*more: str) -> Recipe:
    return recipes.load("dlcr", "miniature", [*SMALL, *more])


def _at(run: Path, job: str) -> Path:
    return RunState.read(run).folder(job)


def _facts(run: Path, job: str) -> dict[str, Any]:
    return Manifest.read(_at(run, job)).facts


def _rows(table: Path) -> list[dict[str, Any]]:
    rows = storage.read(table, schema.OBSERVATION.names, kept_only=False)
    return list(rows.to_pylist(maps_as_pydicts="strict"))


def test_every_job_publishes_and_the_report_shows_the_outfits(run: Path) -> None:
    assert {*JOBS, "report.html", "metrics.json"} <= {path.name for path in run.iterdir()}
    assert set(RunState.read(run).keys) == set(JOBS)
    page = (run / "report.html").read_text()
    assert "People in other clothes" in page
    assert 0 < json.loads((run / "metrics.json").read_text())["metrics"]["mAP"] <= 1


def test_people_keep_all_that_is_not_clothes_to_the_bit(run: Path) -> None:
    sources = {row["observation_id"]: row for row in _rows(_at(run, "ingest") / "observations")}
    made = _rows(_at(run, "inpaint") / "observations")
    train = [row for row in sources.values() if row["split"] == "train"]
    assert len(made) == 3 * len(train)
    assert set(Counter(row["parent"] for row in made).values()) == {3}
    shares = []
    for row in made:
        source = sources[row["parent"]]
        assert (row["identity"], row["camera"]) == (source["identity"], source["camera"])
        assert row["clothes"] != source["clothes"]
        assert row["licence"] == source["licence"]
        before, after = images.decode(source["image"]), images.decode(row["image"])
        same = (before == after).all(axis=2)
        shares.append(same.mean())
        # What was painted is where people wear clothes: the borders of the picture are none.
        assert same[:4].all()
        assert same[:, 0].all()
    assert 0.5 < np.mean(shares) < 0.98


def test_most_clothes_are_described_as_they_were_drawn(run: Path) -> None:
    rows = [row for row in _rows(_at(run, "ingest") / "observations") if row["split"] == "train"]
    drawn = {row["clothes"]: row["attributes"] for row in rows}
    found = descriptions.read(_at(run, "describe") / descriptions.FILE)
    assert len(found) >= 0.8 * len(drawn)
    right = [
        one.upper.startswith(drawn[one.clothes]["upper_colour"])
        + one.lower.startswith(drawn[one.clothes]["lower_colour"])
        for one in found
    ]
    assert np.mean(right) > 1.4
    answers = _facts(run, "describe")["answers"]
    assert answers["images"] == len(rows)
    assert 0 <= answers["unparsable"] < 0.2 * len(rows)


def test_generated_images_are_trained_on_and_queries_have_variants(run: Path) -> None:
    counts = _facts(run, "train")["counts"]["by_origin"]
    assert counts["synthetic"]["images"] == _facts(run, "inpaint")["kept"]
    variants = _rows(_at(run, "variants") / "observations")
    queries = {
        row["observation_id"]
        for row in _rows(_at(run, "ingest") / "observations")
        if row["split"] == "query"
    }
    assert {row["parent"] for row in variants} <= queries
    assert set(Counter(row["parent"] for row in variants).values()) == {2}


def test_a_second_run_skips_every_job(run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.glob("*/*/manifest.json")}
    assert len(before) == len(JOBS)
    pipelines.run(_recipe("generate.stage.actors=2", "outfits.parse_stage.batch_size=5"), run)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_guided_generation_keeps_its_unguided_sample(
    run: Path, tmp_path: Path, copy_run: Callable[..., Path]
) -> None:
    path = copy_run(run, tmp_path / "guided", "ingest", "describe")
    more = (
        "outfits.num_outfits=1",
        "guidance={weight: 1.0, num_images: 12, steps: 30, channels: [8, 8], batch_size: 8}",
    )
    pipelines.perform(_recipe(*more), path, [inpaint.JOB])
    guided = {row["parent"]: row for row in _rows(_at(path, "inpaint") / "observations")}
    unguided = _rows(_at(path, "inpaint") / inpaint.UNGUIDED)
    assert len(unguided) == 12
    assert "guided=1@" in _facts(path, "inpaint")["generator"]
    assert any(row["image"] != guided[row["parent"]]["image"] for row in unguided)
    assert all(row["seed"] == guided[row["parent"]]["seed"] for row in unguided)


# Killed while it paints

LONG = (
    "generate.steps=24",
    "generate.stage.batch_size=6",
    "generate.stage.block_rows=6",
    # Small batches to the end, so that it can be killed in the middle.
    "outfits.parse_stage.batch_size=6",
    "filters.0.stage.batch_size=6",
)


def _fingerprint(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    capsys.readouterr()
    assert cli.main(["fingerprint", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.drill
def test_a_driver_killed_while_it_paints_ends_with_the_same_images(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    copy_run: Callable[..., Path],
) -> None:
    whole, path = (
        copy_run(run, tmp_path / name, "ingest", "describe") for name in ("undisturbed", "killed")
    )
    pipelines.perform(_recipe(*LONG), whole, [inpaint.JOB])
    options = [part for override in (*SMALL, *LONG) for part in ("--set", override)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "jobs/inpaint.py", "--recipe", "dlcr", "--profile", "miniature",
             "--run", str(path), *options],
            stdout=log, stderr=log, cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    total = _facts(whole, "inpaint")["made"]
    pattern = "inpaint/*/observations/attempt-*/*.parquet"
    deadline = time.monotonic() + 240
    while len(list(path.glob(pattern))) < 2:
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "inpaint" not in RunState.read(path)
    written = set(path.glob(pattern))
    assert 0 < 6 * len(written) < total
    pipelines.perform(_recipe(*LONG), path, [inpaint.JOB])
    assert written & set(storage.files(_at(path, "inpaint") / "observations") or [])
    assert _fingerprint(capsys, path) == _fingerprint(capsys, whole)
