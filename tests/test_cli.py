"""The command line: instant help, and one sentence for each mistake, nothing half-written."""

import subprocess
import sys
from pathlib import Path

import pytest

from ray_reid import cli


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == cli.MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("ray-reid: ")
    assert error.count("\n") == 1
    return error


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys\n"
        "from ray_reid import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'numpy', 'numba', 'faiss'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fingerprint" in done.stdout


def test_a_mistake_in_a_recipe_is_one_sentence_and_makes_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--run", str(tmp_path / "r"))
    assert "unknown recipe 'bassline'" in _fails(capsys, "run", "bassline", *run)
    assert "unknown profile 'big'" in _fails(capsys, "run", "baseline", "--profile", "big", *run)
    said = _fails(capsys, "run", "baseline", *run, "--set", "train.epcohs=3")
    assert "unknown recipe key 'train.epcohs'" in said
    assert "--data" in _fails(capsys, "run", "baseline", *run, "--pattern", "(?P<identity>.)")
    assert not (tmp_path / "r").exists()


def test_a_folder_takes_the_place_of_the_sources(tmp_path: Path) -> None:
    options = cli._parser().parse_args(
        [
            *("run", "baseline", "--run", "r", "--data", "photos: 1"),
            *("--pattern", r"(?P<identity>\d)"),
            *("--set", "ingest.sources.0.test_fraction=0.25"),
        ]
    )
    (source,) = cli._recipe(options).ingest.sources
    assert source.model_dump()["root"] == "photos: 1"
    assert source.model_dump()["pattern"] == r"(?P<identity>\d)"
    assert source.model_dump()["test_fraction"] == 0.25


def test_directories_that_are_no_runs_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "x.jpg"
    image.write_bytes(b"")
    assert "no tables under" in _fails(capsys, "fingerprint", str(tmp_path))
    assert "is not a run directory" in _fails(capsys, "serve", str(tmp_path / "none"))
    assert str(tmp_path) in _fails(capsys, "search", str(tmp_path), str(image))
    assert "no MLflow store" in _fails(capsys, "ui", "--runs", str(tmp_path))
