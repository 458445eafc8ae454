"""The builder of `.venv`: what it tells uv, what it tells a person, and when it starts over."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parent.parent / "cluster" / "environment.py"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for _, variables, _ in module.PIP_TO_UV:
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("UV_INDEX_STRATEGY", raising=False)
    (tmp_path / "requirements.lock").write_text("a==1\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.x]\ny = 1\n')
    for name, path in {
        "ROOT": tmp_path,
        "LOCK": tmp_path / "requirements.lock",
        "VENV": tmp_path / ".venv",
        "PYTHON": tmp_path / ".venv" / "bin" / "python",
        "STAMP": tmp_path / ".venv" / ".ready",
    }.items():
        monkeypatch.setattr(module, name, path)
    return module


def test_settings_of_pip_reach_uv_under_its_names(environment: ModuleType, tmp_path: Path) -> None:
    settings = {
        "index-url": ["https://one/simple"],
        "extra-index-url": ["https://two/simple", "https://three/simple"],
        "find-links": [str(tmp_path), "/no/such/folder", "https://wheels/"],
        "timeout": ["7"],
        "unknown": ["x"],
    }
    made = environment.uv_environment(settings)
    assert made["UV_DEFAULT_INDEX"] == "https://one/simple"
    assert made["UV_INDEX"] == "https://two/simple https://three/simple"
    assert made["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert made["UV_FIND_LINKS"] == f"{tmp_path},https://wheels/"
    assert made["UV_HTTP_TIMEOUT"] == "7"
    assert "UV_INSECURE_HOST" not in made


def test_what_is_set_for_uv_by_hand_wins(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_INDEX_URL", "https://mine/simple")
    made = environment.uv_environment({"index-url": ["https://pip/simple"]})
    assert made["UV_INDEX_URL"] == "https://mine/simple"
    assert "UV_DEFAULT_INDEX" not in made
    assert "UV_INDEX_STRATEGY" not in made


def test_a_failure_names_its_cause_and_the_way_out(environment: ModuleType) -> None:
    full = environment.failure("it", "x\nNo space left on device (os error 28)\n")
    assert full.startswith("the disk is full")
    lost = environment.failure("it", "error: Failed to fetch: `https://a`\n  cause: refused\n\n")
    assert lost.startswith("cannot reach the package registry: refused; set PIP_INDEX_URL")
    other = environment.failure("the installer", "a\nERROR: no such version\n")
    assert other.startswith("cannot install the installer: no such version; the output is in ")
    assert "no output" in environment.failure("it", "")


def test_the_stamp_follows_lock_project_and_place_only(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = environment.wanted()
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("y = 1", "y = 2"))
    assert environment.wanted() == stamp
    project.write_text(project.read_text().replace('"x"', '"z"'))
    renamed = environment.wanted()
    (tmp_path / "requirements.lock").write_text("a==2\n")
    relocked = environment.wanted()
    monkeypatch.setattr(environment, "ROOT", tmp_path / "." / "copy")
    (tmp_path / "copy").mkdir()
    shutil.copy(project, tmp_path / "copy")
    assert len({stamp, renamed, relocked, environment.wanted()}) == 4


def test_only_a_stamped_environment_with_its_python_is_ready(
    environment: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    assert not environment.is_ready()
    (tmp_path / ".venv" / ".ready").write_text(environment.wanted())
    assert not environment.is_ready()
    (tmp_path / ".venv" / "bin" / "python").touch()
    assert environment.is_ready()
    (tmp_path / ".venv" / ".ready").write_text("other")
    assert not environment.is_ready()


@pytest.mark.parametrize(
    ("start", "home"),
    [
        ("#!{}/bin/python3\n", True),
        ("#!/bin/sh\n'''exec' {}/bin/python3 \"$0\" \"$@\"\n", True),
        ('#!/bin/sh\n\'\'\'exec\' "{}/bin/python3" "$0" "$@"\n', True),
        ("#!/elsewhere/.venv/bin/python3\n", False),
        ("#!/backup{}/bin/python3\n", False),
        ("#!/bin/sh\n'''exec' /backup{}/bin/python3 \"$0\" \"$@\"\n", False),
        ("", False),
    ],
)
def test_scripts_of_a_copied_environment_give_it_away(
    environment: ModuleType, tmp_path: Path, start: str, home: bool
) -> None:
    venv = tmp_path / ".venv"
    assert not environment.at_home(venv)
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "pip").write_text(start.format(venv) + f"import sys  # {venv}/bin/python\n")
    assert environment.at_home(venv) is home


def test_a_copied_environment_is_made_anew(environment: ModuleType, tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "bin" / "pip").write_text("#!/elsewhere/.venv/bin/python3\n")
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    environment.subprocess = type("Fake", (), {"run": staticmethod(run)})
    environment.version_of = lambda _: environment.this_version()
    environment.make_venv()
    assert commands[0][1:] == ["-m", "venv", "--clear", str(venv)]
    (venv / "bin" / "pip").write_text(f"#!{venv}/bin/python3\n")
    environment.make_venv()
    assert len(commands) == 1
