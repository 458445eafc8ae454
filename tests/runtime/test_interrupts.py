"""Ctrl-C and SIGTERM: an interrupt, whoever holds the handlers, and said as one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ray_reid import cli
from ray_reid.recipe import recipes
from ray_reid.runtime import interrupts
from ray_reid.runtime.tracking import Tracker


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    # A shell may have told this process to ignore SIGINT, and Ray of other tests handles SIGTERM.
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler or signal.SIG_DFL)


def _press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    # Only a signal ends it.
    time.sleep(20)


def _swallowing(*_: object) -> None:
    pass


def _waiting(*_: object) -> None:
    time.sleep(20)


def _taken_by(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    _press()


def _converted() -> None:
    try:
        _press()
    except KeyboardInterrupt:
        raise RuntimeError("the library's own") from None


def _left() -> None:
    try:
        _press()
    except KeyboardInterrupt:
        sys.exit(0)


def _missed() -> None:
    try:
        _press()
    except KeyboardInterrupt:
        interrupts.check()


@pytest.mark.parametrize(
    "work",
    [
        _press,
        lambda: _taken_by(_swallowing),
        lambda: _taken_by(_waiting),
        lambda: _taken_by(signal.default_int_handler),
        _converted,
        _left,
        _missed,
    ],
    ids=["plain", "swallowed", "waited for", "python's", "converted", "left", "missed"],
)
def test_a_command_is_interrupted_whoever_holds_the_handler(
    work: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    started = time.monotonic()
    assert cli._guarded(work, False) == cli.INTERRUPTED
    assert time.monotonic() - started < 5
    said = "ray-reid: interrupted; the same command goes on from here\n"
    assert capsys.readouterr().err == said
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    # The next command of this process has not been interrupted.
    assert cli._guarded(interrupts.check, False) == 0


def test_sigterm_interrupts_too_although_ray_has_a_handler(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        interrupts.take()
        _press(signal.SIGTERM)

    assert cli._guarded(work, False) == cli.TERMINATED
    assert "terminated; the same command goes on" in capsys.readouterr().err


def test_signals_that_come_together_are_one() -> None:
    cleaned = []

    def work() -> None:
        try:
            _press()
        finally:
            # As launchers do, which pass on what the terminal has sent to all.
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            cleaned.append(True)

    assert cli._guarded(work, False) == cli.INTERRUPTED
    assert cleaned


def test_an_urge_that_comes_after_the_command_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_STATE", interrupts._State(signal.SIGINT))
    interrupts._urged(signal.SIGURG, None)


def test_what_a_shell_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        assert interrupts.came() is None


FORKED = """
import os, signal, time
from ray_reid.runtime import interrupts
with interrupts.interruptible():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""


def test_a_command_ends_though_a_process_that_it_forked_lives_on() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=30)


def test_a_signal_to_a_forked_process_is_not_one_to_the_command() -> None:
    def work() -> None:
        child = os.fork()
        if child == 0:
            try:
                time.sleep(20)
            finally:
                os._exit(0)
        signal.signal(signal.SIGTERM, _swallowing)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        # It ends as if it had never been in the block.
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.3)
        assert interrupts.came() is None

    assert cli._guarded(work, False) == 0


def test_mlflow_knows_an_interrupt_by_whatever_error_it_ends(tmp_path: Path, uri: str) -> None:
    recipe = recipes.load("baseline")
    (tmp_path / "r").mkdir()

    def work() -> None:
        with Tracker.open(tmp_path / "r", recipe) as tracker, tracker.job("train", "a", []):
            _converted()

    assert cli._guarded(work, False) == cli.INTERRUPTED
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("baseline").experiment_id])
    assert [run.info.status for run in found] == ["KILLED", "KILLED"]


SCRIPT = """
import sys
from ray_reid import cli
def work():
    for number in range(int(sys.argv[1])):
        print(number)
sys.exit(cli._guarded(work, False))
"""


@pytest.mark.parametrize("lines", [5, 100_000])
def test_a_reader_who_has_seen_enough_ends_a_command_quietly(lines: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(lines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == cli.UNREAD


def test_a_broken_pipe_of_somebody_else_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert cli._guarded(work, False) == cli.MISTAKE
    assert "Broken pipe" in capfd.readouterr().err


SMALL = (
    "ingest.sources=[{reader: miniature, num_train: 8, num_test: 6}]",
    "train.backbone=resnet10t",
    "train.image_size=[32, 32]",
    "train.sampler={num_identities: 4, num_instances: 2}",
    "train.epochs=400",
    "train.precision=fp32",
)
RUN = "import signal, sys; from ray_reid import cli\n"
RUN += (
    "signal.signal(signal.SIGINT, signal.default_int_handler)\nsys.exit(cli.main(sys.argv[1:]))\n"
)


@pytest.mark.drill
def test_a_training_that_a_scheduler_ends_is_terminated(tmp_path: Path, uri: str) -> None:
    path, log = tmp_path / "runs" / "r", tmp_path / "log"
    changes = [word for change in SMALL for word in ("--set", change)]
    command = [sys.executable, "-c", RUN, "run", "baseline", "--run", str(path), *changes]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, process_group=0)
    deadline = time.monotonic() + 240
    while not list(path.glob("train/*/ray/0/checkpoint_*")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    ended = time.monotonic()
    process.terminate()
    assert process.wait(timeout=60) == cli.TERMINATED, log.read_text()
    assert time.monotonic() - ended < 20
    last = log.read_text().splitlines()[-1]
    assert last.startswith("ray-reid: terminated"), log.read_text()
    assert "Traceback" not in log.read_text()
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("baseline").experiment_id])
    statuses = {run.info.run_name: run.info.status for run in found}
    assert statuses == {"r": "KILLED", "ingest": "FINISHED", "train": "KILLED"}
