"""Every job of the baseline on a real local Ray, cut down; and the same after being killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import ray_reid
from ray_reid import cli, pipelines, places, schema, storage
from ray_reid.evaluation import runs
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.gallery.searcher import Searcher
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import tracking
from ray_reid.runtime.holding import driver
from ray_reid.runtime.results import Manifest, RunState, current_keys
from tests import buckets

# A whole run takes a minute, and what is done to it more.
pytestmark = pytest.mark.slow

SMALL = (
    "ingest.sources=[{reader: miniature, num_train: 10, num_test: 8, cameras_per_identity: 3}]",
    "train.backbone=resnet10t",
    "train.image_size=[32, 32]",
    "train.sampler={num_identities: 4, num_instances: 3}",
    "train.epochs=3",
    "train.cpus_per_worker=1",
    "train.checkpoint_batches=1",
    "embed.stage={batch_size: 4, block_rows: 4}",
    "evaluate.max_tsne=30",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(home: Path, ray_local: None) -> Path:
    """An undisturbed run of the whole pipeline."""
    path = home / "whole"
    pipelines.run(_recipe(), path)
    return path


def _at(run: Place, job: str) -> Place:
    return RunState.read(run).folder(job)


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("baseline", "miniature", [*SMALL, *overrides])


def _prints(path: Place) -> list[dict[str, Any]]:
    return [
        asdict(storage.fingerprint(at, name)) for name, at in RunState.read(path).tables().items()
    ]


def test_a_package_scored_on_the_set_of_its_run_has_the_figures_of_the_run(
    home: Path, run: Path
) -> None:
    figures = ray_reid.evaluate(run, run=home / "scored", recipe=run / "recipe.yaml")
    assert figures == json.loads((run / "metrics.json").read_text())["metrics"]
    found = runs.difference(run, home / "scored")
    assert found.comparable
    assert found.recipe.keys() == {"package"}
    # What it was trained on is known from its card.
    folders = [RunState.read(path).folder("evaluate") / "model" for path in (run, home / "scored")]
    first, second = ((folder / "README.md").read_text() for folder in folders)
    assert first == second


def test_a_run_leaves_what_was_promised(run: Path) -> None:
    jobs = {"ingest", "train", "embed", "evaluate", "index"}
    names = {*jobs, "gallery", "report.html", "metrics.json"}
    assert names <= {path.name for path in run.iterdir()}
    assert set(RunState.read(run).keys) == {"ingest", "train", "embed", "evaluate", "index"}
    result = json.loads((run / "metrics.json").read_text())
    assert 0 < result["metrics"]["mAP"] <= 1
    assert result["stamp"]["protocol"] == "market"
    assert "data:image/png;base64" in (run / "report.html").read_text()
    assert {entry["table"] for entry in _prints(run)} >= {
        "ingest/observations",
        "embed/embeddings",
        "index/gallery",
    }


def test_a_second_run_skips_every_job(run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.glob("*/*/manifest.json")}
    pipelines.run(_recipe(), run)
    assert len(before) == 5
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_another_index_keeps_what_was_enrolled_and_deleted(run: Path, home: Path) -> None:
    path = home / "enrolled"
    shutil.copytree(run, path)
    image = _gallery_images(path)[0]
    with Searcher.writing(path) as writing:
        (first,) = writing.search(image, 1)
        writing.enrol([{"observation_id": "new", "source": "door", "image": image}])
    with Writer(path / "gallery") as writer:
        writer.delete([first.observation_id])
    pipelines.run(_recipe("index.splits=[gallery, query]"), path)
    found = Searcher.open(path)
    indexed = [
        Manifest.read(_at(at, "index")).facts["metrics"]["gallery_images"] for at in (run, path)
    ]
    assert indexed[0] < indexed[1] == len(found.gallery)
    (hit,) = found.search(image, 1)
    assert hit.observation_id == "new"
    assert hit.similarity == pytest.approx(1, abs=1e-2)


def test_two_workers_train_the_same_number_of_batches(
    run: Path, home: Path, copy_run: Callable[..., Path]
) -> None:
    path = home / "two"
    copy_run(run, path, "ingest")
    shared = ("train.num_workers=2", "train.cpus_per_worker=0.5", "train.loader=ray_data")
    recipe = _recipe(*shared, "train.epochs=1")
    pipelines.perform(recipe, path, pipelines.PIPELINES["baseline"][:2])
    one, two = (Manifest.read(_at(at, "train")).facts for at in (run, path))
    assert len(two["history"]) == 1
    assert one["counts"] == two["counts"]
    assert np.isfinite(two["history"][0]["loss"])
    embeddings = ray_reid.load(_at(path, "train") / "model").embed(_gallery_images(path))
    assert np.isfinite(embeddings).all()


def test_the_package_embeds_as_the_embed_job_did(run: Path) -> None:
    columns = [schema.OBSERVATION_ID, schema.EMBEDDING]
    stored = storage.read(_at(run, "embed") / "embeddings", columns)
    rows = storage.read(_at(run, "ingest") / "observations", [schema.OBSERVATION_ID, schema.IMAGE])
    image = dict(zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True))
    ids = stored[schema.OBSERVATION_ID].to_pylist()[:6]
    embeddings = ray_reid.load(run).embed([image[name] for name in ids])
    expected = storage.embeddings(stored, schema.EMBEDDING)[:6]
    # Batches of other sizes round otherwise in bf16.
    assert (embeddings * expected).sum(axis=1).min() > 0.999


def test_the_command_line_finds_a_gallery_image_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "query.jpg").write_bytes(_gallery_images(run)[0])
    assert cli.main(["search", str(run), str(tmp_path / "query.jpg"), "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    wanted = storage.read(_at(run, "index") / "gallery", [schema.OBSERVATION_ID, schema.IMAGE])
    row = wanted[schema.IMAGE].to_pylist().index(_gallery_images(run)[0])
    assert wanted[schema.OBSERVATION_ID][row].as_py() in lines[1]


def test_fingerprints_are_one_json_line_per_table(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fingerprint", str(run)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == _prints(run)
    assert all(list(line) == ["table", "rows", "ids", "images"] for line in lines)


def _gallery_images(run: Path) -> list[bytes]:
    rows = storage.read(
        _at(run, "ingest") / "observations", [schema.SPLIT, schema.IMAGE]
    ).to_pylist()
    return [row[schema.IMAGE] for row in rows if row[schema.SPLIT] == "gallery"][:4]


def _start(path: Place, *command: str, log: Path | None = None) -> "subprocess.Popen[bytes]":
    options = [part for override in SMALL for part in ("--set", override)]
    arguments = command or ("run", "baseline", "--run", str(path), *options)
    file = Path(f"{path}.log") if log is None else log
    with file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ray_reid.cli", *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _wait(
    process: "subprocess.Popen[bytes]", ready: Callable[[], bool], log: Path, every: float = 0.05
) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(every)


@pytest.mark.drill
def test_a_run_killed_in_train_and_in_embed_ends_like_an_undisturbed_one(
    run: Path, home: Path, copy_run: Callable[..., Path]
) -> None:
    path = home / "killed"
    log = home / "killed.log"
    # Ingest is killed in test_stage.py; here its result stands for the first job.
    copy_run(run, path, "ingest")
    process = _start(path)
    _wait(process, lambda: bool(list(path.glob("train/*/ray/0/checkpoint_*/state.pt"))), log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "train" not in RunState.read(path)
    process = _start(path)
    _wait(process, lambda: bool(list(path.glob("embed/*/embeddings/attempt-*/*.parquet"))), log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "embed" not in RunState.read(path)
    assert 0 < len(list(path.glob("embed/*/embeddings/attempt-*/*.parquet"))) < 12
    pipelines.run(_recipe(), path)
    assert _prints(path) == _prints(run)
    _check_same_training(path, run)
    whole, killed = (json.loads((at / "metrics.json").read_text()) for at in (run, path))
    assert whole == killed


@pytest.mark.drill
def test_a_killed_training_worker_is_replaced_and_the_weights_are_the_same_to_the_bit(
    run: Path, home: Path, copy_run: Callable[..., Path]
) -> None:
    path, log = home / "bereft", home / "bereft.log"
    copy_run(run, path, "ingest")
    process = _start(path)
    _wait(process, lambda: bool(list(path.glob("train/*/ray/0/checkpoint_*/state.pt"))), log)
    (worker,) = _descendants(process.pid, "ray::RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    _wait(process, lambda: "train" in RunState.read(path), log)
    process.terminate()
    process.wait()
    assert f"Worker PID: {worker}" in log.read_text()
    _check_same_training(path, run)


def test_the_newest_registered_model_is_that_of_the_evaluation(run: Path) -> None:
    newest = tracking.download_model("models:/ray-reid-baseline@newest", run.parent)
    own = _at(run, "evaluate") / "model" / "model.safetensors"
    assert (newest / "model.safetensors").read_bytes() == own.read_bytes()


def test_a_run_in_a_bucket_killed_in_train_and_in_embed_ends_like_one_on_a_disk(
    run: Path, home: Path
) -> None:
    pytest.importorskip("moto", reason="moto is the S3 double; the extra `dev` has it")
    with buckets.served():
        path = buckets.new_bucket() / "runs" / "killed"
        log, gallery = home / "bucket.log", home / "live"
        options = [part for override in SMALL for part in ("--set", override)]
        command = ["run", "baseline", "--run", str(path), *options]
        command += ["--set", f"gallery.path={gallery}"]

        def kill(pattern: str, job: str) -> None:
            process = _start(path, *command, log=log)
            _wait(process, lambda: any(path.glob(pattern)), log, every=0.5)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert job not in current_keys(path)

        kill("train/*/ray/0/checkpoint_*/state.pt", "train")
        kill("embed/*/embeddings/attempt-*/*.parquet", "embed")
        # Workers that outlive their driver write what it had asked for; now, and when all is done.
        late = next(iter(path.glob("embed/*/embeddings/attempt-*/*.parquet")))
        zombie = late.parent.with_name("attempt-zombie1") / late.name
        zombie.write_bytes(late.read_bytes())
        process = _start(path, *command, log=log)
        assert process.wait(timeout=240) == 0, log.read_text()[-3000:]
        zombie.with_name("late.parquet").write_bytes(late.read_bytes())
        assert _prints(path) == _prints(run)
        _check_same_training(path, run)
        assert json.loads((path / "metrics.json").read_text()) == json.loads(
            (run / "metrics.json").read_text()
        )
        assert driver(path) is None
        image = _gallery_images(run)[0]
        (hit,) = Searcher.open(path).search(image, 1)
        assert hit.similarity == pytest.approx(1, abs=1e-2)
        assert (
            ray_reid.load(str(path)).embed([image]).shape == ray_reid.load(run).embed([image]).shape
        )


def _check_same_training(path: Place, other: Place) -> None:
    assert Manifest.read(_at(path, "train")).facts == Manifest.read(_at(other, "train")).facts
    files = (_at(at, "train") / "model" / "model.safetensors" for at in (path, other))
    found, expected = map(safetensors.numpy.load_file, map(places.fetched, files))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def _descendants(parent: int, name: str) -> list[int]:
    """Processes below a process whose command begins with a name; Ray names its workers so."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    family = {parent}
    while found := {int(pid) for pid, above, _ in rows if int(above) in family} - family:
        family |= found
    return [int(pid) for pid, _, command in rows if int(pid) in family and command.startswith(name)]


def test_serve_answers_over_http(run: Path, home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = home / "serve.log"
    process = _start(home / "serve", "serve", str(run), "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, lambda: _answers(f"{url}/health"), log)
        image = _gallery_images(run)[0]
        boundary = "----boundary"
        body = (
            (
                f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
                f'filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
            ).encode()
            + image
            + f"\r\n--{boundary}--\r\n".encode()
        )
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"{url}/v1/search", body, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.loads(response.read())
        assert answer["hits"][0]["similarity"] == pytest.approx(1, abs=1e-2)
        assert answer["gallery_size"] > len(answer["hits"]) > 1
    finally:
        process.terminate()
        # Stopped while it still announces itself, it ends like any other command.
        assert process.wait(timeout=60) in (0, cli.TERMINATED), log.read_text()[-3000:]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
