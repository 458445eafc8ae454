"""A run with a pre-training on a real local Ray, and the same after being killed in it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ray_reid import pipelines
from ray_reid.recipe import recipes
from ray_reid.runtime.results import RunState

pytestmark = pytest.mark.slow

SMALL = (
    "ingest.sources=[{reader: miniature, num_train: 8, num_test: 6, cameras_per_identity: 3}]",
    "train.backbone=resnet10t",
    "train.backbone_params={}",
    "train.image_size=[32, 32]",
    "train.sampler={num_identities: 4, num_instances: 2}",
    "train.epochs=1",
    "train.head=agw",
    "train.loss.metric=weighted_triplet",
    "train.start=pretrain",
    "pretrain={backbone: resnet10t, image_size: [32, 32], epochs: 3, checkpoint_batches: 1}",
    "pretrain.sampler={num_identities: 4, num_instances: 2}",
    "evaluate.max_tsne=30",
)


def _weights(run: Path, job: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(RunState.read(run).folder(job) / "model/model.safetensors")


def test_a_run_killed_in_its_pre_training_ends_like_an_undisturbed_one(
    tmp_path: Path, ray_local: None
) -> None:
    path, log = tmp_path / "killed", tmp_path / "killed.log"
    options = [part for override in SMALL for part in ("--set", override)]
    command = [sys.executable, "-m", "ray_reid.cli", "run", "baseline", "--profile", "miniature"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--run", str(path), *options],
            stdout=out,
            stderr=out,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    deadline = time.monotonic() + 240
    while not list(path.glob("pretrain/*/ray/0/checkpoint_*/state.pt")):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "pretrain" not in RunState.read(path)
    recipe = recipes.load("baseline", "miniature", list(SMALL))
    for run in (path, tmp_path / "whole"):
        pipelines.run(recipe, run)
        assert {"pretrain", "train"} <= set(RunState.read(run).keys)
    for job in ("pretrain", "train"):
        killed, whole = (_weights(run, job) for run in (path, tmp_path / "whole"))
        assert killed.keys() == whole.keys()
        assert all(np.array_equal(killed[name], whole[name]) for name in whole)
    (started,) = RunState.read(path).manifest("train").facts["started"]
    assert set(started["new"]) == {"pool", "neck", "head", "non_local"}
    assert "Pre-training" in (path / "report.html").read_text()
    facts = RunState.read(path).manifest("train").facts
    assert facts["begun_on"] == RunState.read(path).manifest("pretrain").facts["counts"]
    page = (RunState.read(path).folder("evaluate") / "model" / "README.md").read_text()
    assert "The network began with the weights of a pre-training on images of this table." in page
    # Another run begins with what this one has trained.
    other = recipes.load("baseline", "miniature", [*SMALL, f"train.start={path}", "pretrain=null"])
    pipelines.perform(other, tmp_path / "more", pipelines.of_recipe(other)[:2])
    (started,) = RunState.read(tmp_path / "more").manifest("train").facts["started"]
    assert started["new"] == {}
