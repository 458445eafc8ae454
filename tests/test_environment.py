"""The builder of `.venv`: when it is ready, when it starts over, and how it reports a failure."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parent.parent / "cluster" / "environment.py"
INSTALL = ["installing pip", "installing packages", "compiling packages"]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "requirements.lock").write_text("a==1\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.x]\ny = 1\n')
    for name, path in {
        "ROOT": tmp_path,
        "LOCK": tmp_path / "requirements.lock",
        "VENV": tmp_path / ".venv",
        "PYTHON": tmp_path / ".venv" / "bin" / "python",
        "STAMP": tmp_path / ".venv" / ".ready",
        "LOG": tmp_path / ".venv" / "environment.log",
    }.items():
        monkeypatch.setattr(module, name, path)
    monkeypatch.setenv("PIP_RETRIES", "2")
    return module


@pytest.fixture
def installed(environment: ModuleType, tmp_path: Path) -> ModuleType:
    """A builder whose environment has a Python but no stamp."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    environment.PYTHON.symlink_to(sys.executable)
    return environment


def record_steps(module: ModuleType, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> list[str]:
    """Replace the steps of a build by entries in the returned list."""
    steps: list[str] = []

    def run(what: str, command: list[str]) -> int:
        steps.append(what)
        return status

    monkeypatch.setattr(module, "create_venv", lambda: steps.append("creating"))
    monkeypatch.setattr(module, "run", run)
    return steps


def test_a_failure_names_its_reason(installed: ModuleType) -> None:
    installed.LOG.write_text("a\nERROR: no a==1\n      ERROR: no hatchling\nnote: see above\n\n")
    assert installed.reason() == "no hatchling"
    installed.LOG.write_text("WARNING: after connection broken by 'x'\nERROR: no a==1\n")
    assert installed.reason().startswith("no a==1 (the registry did not answer; see pip's ")
    installed.LOG.write_text("Killed\n")
    assert installed.reason() == "Killed"
    installed.LOG.write_text("")
    assert installed.reason() == "no output"


def test_a_failed_installation_is_not_stamped(
    installed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_steps(installed, monkeypatch, status=1)
    monkeypatch.setattr(installed, "reason", lambda: "no a==1")
    with pytest.raises(SystemExit, match=r"install pip: no a==1; the output is in .*\.log$"):
        installed.build()
    assert installed.stamp() == ""


def test_the_stamp_follows_lock_project_and_place_only(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = environment.wanted_stamp()
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("y = 1", "y = 2"))
    assert environment.wanted_stamp() == stamp
    project.write_text(project.read_text().replace('"x"', '"z"'))
    renamed = environment.wanted_stamp()
    (tmp_path / "requirements.lock").write_text("a==2\n")
    relocked = environment.wanted_stamp()
    monkeypatch.setattr(environment, "ROOT", tmp_path / "copy")
    (tmp_path / "copy").mkdir()
    shutil.copy(project, tmp_path / "copy")
    assert len({stamp, renamed, relocked, environment.wanted_stamp()}) == 4


def test_only_a_stamped_environment_with_its_python_is_ready(
    installed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = record_steps(installed, monkeypatch)
    installed.build_alone()
    assert steps == ["creating", *INSTALL]
    installed.build_alone()
    assert len(steps) == 4
    installed.PYTHON.unlink()
    installed.build_alone()
    assert steps[4:] == ["creating", *INSTALL]


def test_a_new_lock_is_installed_into_the_environment_that_is_there(
    installed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = record_steps(installed, monkeypatch)
    installed.STAMP.write_text(installed.wanted_stamp())
    installed.LOCK.write_text("a==2\n")
    installed.build_alone()
    assert steps == INSTALL
    assert installed.stamp() == installed.wanted_stamp()


def test_a_copied_or_interrupted_environment_is_made_anew(
    installed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = record_steps(installed, monkeypatch)
    elsewhere = installed.wanted_stamp().replace(" in /", " in /backup/")
    for text in (elsewhere, ""):
        steps.clear()
        installed.STAMP.write_text(text)
        installed.build_alone()
        assert steps == ["creating", *INSTALL]


def test_the_output_of_a_step_goes_to_the_log(
    installed: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert installed.run("showing", ["no_such_module"]) == 1
    assert "no_such_module" in installed.LOG.read_text()
    assert capsys.readouterr().out == "environment: showing, 0 s\n"


def test_without_a_supported_python_the_message_lists_the_versions(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.use_supported_python()
    monkeypatch.setattr(environment, "VERSION", "3.9")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"3\.9 and none of 3\.11, 3\.12, 3\.13 is on PATH"):
        environment.use_supported_python()


def test_a_python_that_cannot_create_environments_names_the_package(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"install the package python3\.\d+-venv$"):
        environment.create_venv()


def test_an_interrupted_build_ends_with_130(tmp_path: Path) -> None:
    code = f"import runpy\nb = runpy.run_path({str(FILE)!r})\n"
    code += "def stop(): raise KeyboardInterrupt\n"
    code += "b['main'].__globals__['build_alone'] = stop\nb['main']()\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "environment: interrupted; the same command builds it"
