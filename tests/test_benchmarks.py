"""Every benchmark runs, and prints what it measured in the form that its readers expect."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
KEYS = ["case", "measured", "unit", "reference", "ratio", "bar", "holds"]
TRAINING = ["--num-images", "64", "--seconds", "0.1", "--threads", "1"]
TRAINING += ["--backbone", "resnet10t", "--size", "64", "32"]
SMALL = {
    "drawing": ["--num-images", "32"],
    "metrics": ["--share", "0.02", "--runs", "1"],
    "refine": ["--share", "0.02", "--runs", "1"],
    "rerank": [
        "--share",
        "0.02",
        "--reference-share",
        "0.02",
        "--galleries",
        "300",
        "600",
        "--runs",
        "1",
    ],
    "storage": ["--rows", "256"],
}
# What starts processes of its own, or trains models, takes longer.
SLOW = {
    "gallery": ["--rows", "2000", "--runs", "1", "--kinds", "ivf", "hnsw"],
    "loader": ["--num-images", "64", "--seconds", "0.1", "--size", "64", "32"],
    "cloud_storage": ["--rows", "256"],
    "diffusion": ["--size", "miniature", "--runs", "1", "--batches", "2"],
    "personalise": ["--size", "miniature", "--steps", "2", "--batch", "2", "--runs", "1"],
    "progressive": ["--people", "8", "--outfits", "2"],
    "training": [*TRAINING, "--only", "loop", "augment", "peer"],
}
# Starts a dozen processes that import torch.
LONG = {"training": [*TRAINING, "--only", "start", "workers"]}
# Measures Ray Data or Ray Train itself, so it starts Ray.
ON_RAY = {
    "personalise": ["--ray", "--identities", "3", "--actors", "1"],
    "streaming": ["--only", "sleepers", "--sleeper-rows", "32"],
    "training": [*TRAINING, "--ray", "--ray-batches", "3", "--only"],
}
# Replays a finished run; it imports Ray with the jobs, and does not start it.
REPLAY = {"runs": ["--run", "run"]}


def test_every_benchmark_is_tried_here() -> None:
    assert {file.stem for file in BENCHMARKS.glob("*.py")} == set(SMALL) | set(SLOW) | set(
        ON_RAY
    ) | set(REPLAY)


@pytest.mark.parametrize(
    ("name", "asked", "on_ray"),
    [
        *(pytest.param(name, SMALL[name], False, id=name) for name in sorted(SMALL)),
        *(
            pytest.param(name, asked, on_ray, marks=mark, id=f"{name}-{kind}")
            for kind, tried, on_ray, mark in (
                ("slow", SLOW, False, pytest.mark.slow),
                ("ray", ON_RAY, True, pytest.mark.slow),
                ("run", REPLAY, True, pytest.mark.slow),
                ("drill", LONG, False, pytest.mark.drill),
            )
            for name, asked in tried.items()
        ),
    ],
)
def test_a_benchmark_prints_one_object_per_case_whatever_its_bars_say(
    name: str, asked: list[str], on_ray: bool, tmp_path: Path, publish_job: Callable[..., Path]
) -> None:
    if name == "cloud_storage":
        pytest.importorskip("moto", reason="moto is the S3 double; the extra `dev` has it")
    if not on_ray:
        # No other may need Ray: its start would be measured too.
        (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('a benchmark imports ray')")
    if name in REPLAY:
        asked = ["--run", str(_finished(tmp_path / "run", publish_job))]
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--json", *asked],
        cwd=BENCHMARKS.parent,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            # This tree, whatever is installed.
            "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, BENCHMARKS.parent))),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    cases = [line["case"] for line in lines]
    assert lines
    assert len(set(cases)) == len(cases)
    for line in lines:
        assert list(line) == KEYS
        assert line["measured"] > 0 or line["unit"] == "rows"
        if line["reference"] is None:
            assert line["ratio"] is None
        else:
            assert line["ratio"] == pytest.approx(line["measured"] / line["reference"], rel=2e-3)
        assert (line["holds"] is None) == (line["bar"] is None)


def test_a_bar_limits_the_ratio_in_the_direction_of_its_unit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from support.reporting import Figure

    assert Figure("a", 8.0, "s", reference=2.0, bar=4.0).line()["holds"] is True
    assert Figure("a", 8.2, "s", reference=2.0, bar=4.0).line()["holds"] is False
    assert Figure("a", 80.0, "images/s", reference=100.0, bar=0.8).line()["holds"] is True
    assert Figure("a", 79.0, "images/s", reference=100.0, bar=0.8).line()["holds"] is False
    assert Figure("a", 149.0, "images/s", bar=150.0).line()["holds"] is False
    assert Figure("a", 149.0, "images/s").line()["holds"] is None


def _finished(run: Path, publish_job: Callable[..., Path]) -> Path:
    """A run of two jobs, which say nothing of themselves."""
    publish_job(run, "ingest", "a" * 12)
    publish_job(run, "train", "b" * 12, inputs={"ingest": "a" * 12})
    return run
