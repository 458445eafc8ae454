"""The command line: instant help, and one sentence for each mistake, nothing half-written."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_reid import cli
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ui", "--port", "abc"], "argument --port: invalid int value: 'abc'; see ray-reid ui"),
        (["search", "r", "x.jpg", "-k", "x"], "argument -k: invalid int value: 'x'; see ray-reid"),
        (["run", "baseline"], "arguments are required: --run; see ray-reid run"),
        (["run", "baseline", "--run", "r", "--no"], "arguments: --no; see ray-reid run"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "arguments are required: COMMAND; see ray-reid"),
    ],
)
def test_options_typed_wrong_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == cli.MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("ray-reid: ")
    assert error.endswith(" --help\n")
    assert error.count("\n") == 1
    assert said in error


def test_a_job_alone_needs_what_it_needs_in_the_pipeline_of_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_reid import pipelines
    from ray_reid.runtime.job import Job

    def needs(recipe: str) -> tuple[str, ...]:
        with pytest.raises(SystemExit):
            cli.job_main("train", ["--run", str(tmp_path), "--recipe", recipe])
        return performed.pop().needs

    performed: list[Job] = []
    monkeypatch.setattr(pipelines, "perform", lambda _, __, jobs, *more: performed.extend(jobs))
    assert needs("baseline") == ("ingest",)
    assert needs("vehicle_diff") == ("ingest", "generate")


def test_a_job_alone_takes_the_recipe_of_its_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    publish_job: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray_reid import pipelines

    own = recipes.load("dlcr", "miniature", ["seed=5"])
    publish_job(tmp_path, "ingest", recipe=own)
    asked: list[Recipe] = []
    monkeypatch.setattr(pipelines, "run_job", lambda _, recipe, *__: asked.append(recipe))
    for more, code in (
        (["--set", "train.epochs=7"], 0),
        (["--recipe", "baseline"], 0),
        (["--profile", "paper"], cli.MISTAKE),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.job_main("train", ["--run", str(tmp_path), *more])
        assert ended.value.code == code
    assert asked[0] == recipes.override(own, {"train.epochs": 7})
    assert asked[1].name == "baseline"
    assert "has the profile 'miniature', not 'paper'" in capsys.readouterr().err


def test_a_port_is_proved_before_mlflow_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("MLflow was started"))
    (tmp_path / "mlflow.db").touch()
    ui = ("ui", "--runs", str(tmp_path), "--port")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is in use" in _fails(capsys, *ui, str(port))
    assert "port 70000 is not from 1 to 65535" in _fails(capsys, *ui, "70000")


def test_a_profile_without_a_data_set_is_refused_and_leaves_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    assert cli.main(["run", "baseline", "--profile", "photographs", "--run", str(path)]) == 2
    assert "has no data set; give a folder of images with --data" in capsys.readouterr().err
    assert not path.exists()
