"""The personalise job on a real local Ray: one stream over identities, whole, failing, killed."""

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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_reid import cli, images, pipelines, schema, storage
from ray_reid.datasets import ingest
from ray_reid.generation import personalise
from ray_reid.generation.identity_plan import COLUMNS
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.results import Manifest, RunState

IDENTITIES = 6
# References, sizes and resources; everything else is what the paper's profile says.
SMALL = (
    f"ingest.sources=[{{reader: miniature, num_train: {IDENTITIES}, num_test: 4}}]",
    "personalise.steps=3",
    "personalise.learning_rate=1e-3",
    "personalise.references=3",
    "personalise.clusters=2",
    "personalise.balance={target: 14, least: 2}",
    "personalise.output_size=[24, 12]",
    "personalise.gradient_checkpointing=false",
    "personalise.stage={actors: 2, num_cpus: 0.4, batch_size: 4}",
    "personalise.reference_stage={num_cpus: 0.4, batch_size: 4, block_rows: 4}",
    "generate.steps=2",
    "generate.guidance_scale=3",
    "generate.image_size=[16, 16]",
    "filters=[{name: colour, stage: {num_cpus: 0.2, batch_size: 2}}]",
    "train.backbone=resnet10t",
    "train.pretrained=false",
    "train.use_gpu=false",
)


@pytest.fixture(scope="module")
def home(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("personalise")
    tiny_models.stable_diffusion(home / "sd")
    tiny_models.image_text(home / "clip")
    return home


def _overrides(home: Path, *more: str) -> list[str]:
    return [
        f"models.text_to_image={home / 'sd'}",
        f"models.image_text={home / 'clip'}",
        f"personalise.prompts={home / 'prompts.parquet'}",
        *SMALL,
        *more,
    ]


def _recipe(home: Path, *more: str) -> Recipe:
    return recipes.load("diffusion_reid", "paper", _overrides(home, *more))


@pytest.fixture(scope="module")
def prompted(home: Path, ray_local: None) -> Path:
    """A run with ingested images and a prompt for each identity, one of whose images are lost."""
    path = home / "prompted"
    recipe = _recipe(home)
    pipelines.perform(recipe, path, [ingest.JOB])
    _write_prompts(path, home / "prompts.parquet")
    return path


def _write_prompts(path: Path, file: Path) -> None:
    """Write a table of prompts by hand, in place of the enhance job's."""
    state = RunState.read(path)
    table = state.folder("ingest") / "observations"
    rows = storage.read(table, (schema.IDENTITY, schema.OBSERVATION_ID), storage.TRAINABLE)
    own: dict[str, list[str]] = {}
    for row in rows.to_pylist():
        own.setdefault(row[schema.IDENTITY], []).append(row[schema.OBSERVATION_ID])
    colours = ("red", "blue", "white")
    made = []
    for place, (name, ids) in enumerate(sorted(own.items())):
        colour = colours[place % len(colours)]
        made.append({
            "identity": name,
            "source": "miniature",
            "images": ["lost"] if place == 1 else ids[:3],
            "prompt": f"a qz {colour} car",
            "class_prompt": f"a {colour} car",
            "drop_reason": "no camera has two images" if place == 0 else None,
        })  # fmt: skip
    types = [pa.string(), pa.string(), pa.list_(pa.string()), *[pa.string()] * 3]
    kind = pa.schema(list(zip(COLUMNS, types, strict=True)))
    pq.write_table(pa.Table.from_pylist(made, schema=kind), file)


@pytest.fixture(scope="module")
def run(prompted: Path, home: Path, copy_run: Callable[..., Path]) -> Path:
    """An undisturbed job."""
    path = copy_run(prompted, home / "whole", "ingest")
    pipelines.perform(_recipe(home), path, [personalise.JOB])
    return path


def _facts(run: Path) -> dict[str, Any]:
    return Manifest.read(RunState.read(run).folder("personalise")).facts


def _rows(run: Path) -> list[dict[str, Any]]:
    place = RunState.read(run).folder("personalise") / "observations"
    found: list[dict[str, Any]] = storage.read(
        place, schema.OBSERVATION.names, kept_only=False
    ).to_pylist()
    return found


@pytest.mark.slow
def test_every_identity_has_its_images_and_the_poisoned_one_its_reason(run: Path) -> None:
    rows, facts = _rows(run), _facts(run)
    by_identity = Counter(row["identity"] for row in rows)
    assert len(by_identity) == facts["identities"] == IDENTITIES - 1
    first, *_ = facts["without_prompt"]
    assert facts["without_prompt"] == {first: "no camera has two images"}
    assert first not in by_identity
    (failed,) = facts["failures"]
    assert facts["failures"] == {failed: "none of its 0 images can be used"}
    for row in rows:
        assert images.decode(row["image"]).shape == (24, 12, 3)
        assert (row["identity"] == failed) == (row["parent"] is None)
        if row["identity"] == failed:
            assert row["drop_reason"].startswith("personalise: ")
        else:
            assert row["scores"]
            assert not (row["drop_reason"] or "").startswith("personalise")
    assert facts["references"] == 3 * facts["reference_prompts"] == 6
    assert facts["seconds"].keys() == {"tuning", "generating", "restoring"}
    assert facts["identities_per_hour"] > 0
    assert facts["made"] == len(rows)


@pytest.mark.slow
def test_an_identity_is_a_block_and_blocks_are_written_as_they_are_done(run: Path) -> None:
    out = RunState.read(run).folder("personalise") / "observations"
    for file in storage.files(out) or []:
        table = pq.read_table(file, columns=[schema.IDENTITY])
        assert len(set(table[schema.IDENTITY].to_pylist())) == 1


@pytest.mark.slow
def test_references_are_made_once_for_all_recipes_that_need_the_same(
    run: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = list((run / "trials" / "references").iterdir())
    before = {file: file.stat().st_mtime_ns for file in places[0].rglob("*.parquet")}
    recipe = _recipe(home, "personalise.prior_weight=0.5", "personalise.mode=lora")
    with caplog.at_level("INFO"):
        pipelines.perform(recipe, run, [personalise.JOB])
    assert list((run / "trials" / "references").iterdir()) == places
    assert {file: file.stat().st_mtime_ns for file in places[0].rglob("*.parquet")} == before
    told = next(text for text in caplog.messages if "by what the references took" in text)
    assert "of fine-tuning" in told
    assert "GPU-hours" in told
    pipelines.perform(_recipe(home), run, [personalise.JOB])


@pytest.mark.slow
def test_where_every_identity_fails_the_job_says_why(
    prompted: Path, home: Path, copy_run: Callable[..., Path]
) -> None:
    path, file = copy_run(prompted, home / "lost", "ingest"), home / "lost.parquet"
    rows = pq.read_table(home / "prompts.parquet")
    lost = pa.array([["lost"]] * rows.num_rows, pa.list_(pa.string()))
    place = rows.schema.get_field_index("images")
    pq.write_table(rows.set_column(place, "images", lost), file)
    with pytest.raises(ValueError, match=r"none of the 5 identities could be personalised, 'mini"):
        pipelines.perform(_recipe(home, f"personalise.prompts={file}"), path, [personalise.JOB])


def test_a_table_of_prompts_that_cannot_be_used_is_one_sentence(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.parquet"
    with pytest.raises(ValueError, match=r"^there is no table of prompts '.*prompts\.parquet'$"):
        personalise.check(_recipe(home, f"personalise.prompts={file}"))
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in COLUMNS}), file)
    with pytest.raises(ValueError, match=r"^none of the 0 identities .* the table is empty; "):
        personalise.check(_recipe(home, f"personalise.prompts={file}"))
    pq.write_table(pa.table({"identity": ["a"]}), file)
    with pytest.raises(ValueError, match=r"has no column 'class_prompt'; it must have \['ident"):
        personalise.check(_recipe(home, f"personalise.prompts={file}"))


# Killed in the middle

LONG = ("personalise.steps=60", "generate.steps=40")


@pytest.fixture(scope="module")
def whole(prompted: Path, home: Path, copy_run: Callable[..., Path]) -> Path:
    """An undisturbed job that takes a while."""
    path = copy_run(prompted, home / "long", "ingest")
    pipelines.perform(_recipe(home, *LONG), path, [personalise.JOB])
    return path


def _start(home: Path, path: Path) -> "subprocess.Popen[bytes]":
    options = [part for override in _overrides(home, *LONG) for part in ("--set", override)]
    command = [sys.executable, "jobs/personalise.py", "--recipe", "diffusion_reid"]
    with (path.parent / f"{path.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--profile", "paper", "--run", str(path), *options],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _wait_for_identities(process: "subprocess.Popen[bytes]", path: Path) -> int:
    """Wait until some identities are written, and return how many."""
    log = path.parent / f"{path.name}.log"
    deadline = time.monotonic() + 240
    while True:
        blocks = len(list(path.glob("personalise/*/observations/attempt-*/*.parquet")))
        if blocks:
            return blocks
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)


def _print(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    capsys.readouterr()
    assert cli.main(["fingerprint", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.drill
def test_a_driver_killed_between_identities_ends_with_the_same_images(
    whole: Path, home: Path, capsys: pytest.CaptureFixture[str], copy_run: Callable[..., Path]
) -> None:
    path = copy_run(whole, home / "driver", "ingest")
    process = _start(home, path)
    assert _wait_for_identities(process, path) < IDENTITIES - 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "personalise" not in RunState.read(path)
    before = set(path.glob("personalise/*/observations/attempt-*/*.parquet"))
    assert 0 < len(before) < IDENTITIES - 1
    pipelines.perform(_recipe(home, *LONG), path, [personalise.JOB])
    out = RunState.read(path).folder("personalise") / "observations"
    assert before & set(storage.files(out) or [])
    ids = [row["observation_id"] for row in _rows(path)]
    assert len(ids) == len(set(ids)) == len(_rows(whole))
    assert _print(capsys, path) == _print(capsys, whole)


@pytest.mark.drill
def test_a_killed_actor_changes_no_image(
    whole: Path, home: Path, capsys: pytest.CaptureFixture[str], copy_run: Callable[..., Path]
) -> None:
    path = copy_run(whole, home / "actor", "ingest")
    process = _start(home, path)
    assert _wait_for_identities(process, path) < IDENTITIES - 1
    found = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if " ".join(child.cmdline()).startswith("ray::MapWorker")
    ]
    assert found
    for child in found:
        child.send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) == 0, (home / "actor.log").read_text()[-3000:]
    assert _print(capsys, path) == _print(capsys, whole)
