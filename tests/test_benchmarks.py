"""Every benchmark runs, and prints what it measured in the form that its readers expect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
KEYS = ["case", "measured", "unit", "reference", "ratio", "bar", "holds"]
SMALL = {
    "cloud_storage": ["--rows", "256"],
    "drawing": ["--num-images", "32"],
    "gallery": ["--rows", "2000", "--runs", "1", "--kinds", "ivf", "hnsw"],
    "metrics": ["--share", "0.02", "--runs", "1"],
    "storage": ["--rows", "256"],
    "training": ["--num-images", "64", "--seconds", "0.1", "--threads", "1"],
}


# Measures Ray Data itself, so it starts Ray.
ON_RAY = {"streaming": ["--only", "sleepers", "--sleeper-rows", "32"]}


def test_every_benchmark_is_tried_here() -> None:
    assert {file.stem for file in BENCHMARKS.glob("*.py")} == set(SMALL) | set(ON_RAY)


@pytest.mark.parametrize(
    "name", [*sorted(SMALL), *(pytest.param(name, marks=pytest.mark.slow) for name in ON_RAY)]
)
def test_a_benchmark_prints_one_object_per_case_whatever_its_bars_say(
    name: str, tmp_path: Path
) -> None:
    if name == "cloud_storage":
        pytest.importorskip("moto", reason="moto is the S3 double; the extra `benchmarks` has it")
    if name not in ON_RAY:
        # No other may need Ray: its start would be measured too.
        (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('a benchmark imports ray')")
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--json", *{**SMALL, **ON_RAY}[name]],
        cwd=BENCHMARKS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
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
