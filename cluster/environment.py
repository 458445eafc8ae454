"""Build `.venv` from `requirements.lock` with venv and pip; any Python 3 may start this file.

A stamp, written last, makes the second time instant. A build that was interrupted has no stamp
and starts again with an empty environment; pip keeps in its cache what it has downloaded.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".ready"
LOG = VENV / "environment.log"
SUPPORTED = ("3.11", "3.12", "3.13")
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEEDED_GB = 9


def main() -> None:
    """Build the environment unless it is ready, and report what prevents it in one sentence."""
    try:
        use_supported_python()
        build_alone()
    except OSError as error:
        sys.exit(f"environment: cannot build {VENV}: {error}")
    except KeyboardInterrupt:
        print("\nenvironment: interrupted; the same command builds it", file=sys.stderr)
        sys.exit(130)


def use_supported_python() -> None:
    """Start this file again in a supported Python unless this one is supported."""
    if VERSION in SUPPORTED:
        return
    for found in filter(None, (shutil.which(f"python{version}") for version in SUPPORTED)):
        # A version manager puts commands on PATH that have no Python behind them.
        if subprocess.call([found, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            os.execv(found, [found, __file__])
    sys.exit(
        f"environment: python3 is {VERSION} and none of {', '.join(SUPPORTED)} is on PATH; install "
        f"one, or name it: make PYTHON=/path/to/python{SUPPORTED[0]}"
    )


def build_alone() -> None:
    """Build the environment unless it is ready; wait for a process that is building it."""
    import fcntl

    if stamp() == wanted_stamp():
        return
    with LOCK.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("environment: another process is building it; waiting", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp() != wanted_stamp():
            build()


def stamp() -> str:
    """Return the stamp of the environment, or an empty string if it is not complete."""
    return STAMP.read_text() if PYTHON.exists() and STAMP.exists() else ""


def wanted_stamp() -> str:
    """Return the stamp of an environment that is ready.

    The first line is what pip cannot change in an existing environment: its Python, and its
    folder, because the scripts in `.venv/bin` name it.
    """
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    content = json.dumps([LOCK.read_text(), project], sort_keys=True).encode()
    return f"Python {VERSION} in {ROOT}\n{hashlib.sha256(content).hexdigest()}"


def build() -> None:
    """Create the environment, install the locked packages and this project, and stamp it."""
    started = time.monotonic()
    wanted = wanted_stamp()
    if stamp().split("\n")[0] != wanted.split("\n")[0]:
        create_venv()
    STAMP.unlink(missing_ok=True)
    LOG.unlink(missing_ok=True)
    # As a variable it also reaches the pip that fetches the build backend: none retries for long.
    os.environ.setdefault("PIP_RETRIES", "2")
    packages = ["--no-deps", "--no-compile", "-r", str(LOCK), "-e", str(ROOT)]
    # The pip that comes with Python 3.11 or 3.12 takes twice the time.
    for what, arguments in (("pip", ["pip>=25"]), ("packages", packages)):
        if run(f"installing {what}", ["pip", "install", *arguments]):
            sys.exit(f"environment: cannot install {what}: {reason()}; the output is in {LOG}")
    # Every actor imports the packages; compiled, they start in half the time. pip would compile
    # on one core. The status says nothing: some files in packages need a newer Python.
    run("compiling packages", ["compileall", "-qq", "-j0", str(VENV / "lib")])
    STAMP.write_text(wanted)
    print(f"environment: ready in {time.monotonic() - started:.0f} s", flush=True)


def create_venv() -> None:
    """Create an empty environment; what was there is deleted."""
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        sys.exit(
            f"environment: {sys.executable} cannot create virtual environments; on Debian and "
            f"Ubuntu install the package python{VERSION}-venv"
        )
    print(f"environment: creating {VENV} with Python {VERSION}", flush=True)
    # The Python of an activated environment would delete itself.
    python = getattr(sys, "_base_executable", sys.executable)
    command = [python, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"environment: cannot create {VENV}: {(done.stderr or done.stdout).strip()}")
    free = shutil.disk_usage(VENV).free / 1e9
    if free < NEEDED_GB:
        sys.exit(f"environment: {NEEDED_GB} GB are needed in {VENV}, but {free:.1f} GB are free")


def run(what: str, command: "list[str]") -> int:
    """Run a module in the environment, output in the log; show the time and return the status."""
    started = time.monotonic()
    seconds, end = (1, "\r") if sys.stdout.isatty() else (30, "\n")
    with LOG.open("a") as log:
        process = subprocess.Popen([str(PYTHON), "-m", *command], stdout=log, stderr=log)
        try:
            while True:
                elapsed = time.monotonic() - started
                print(f"environment: {what}, {elapsed:.0f} s", end=end, flush=True)
                try:
                    return process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            # After Ctrl-C pip removes its temporary files; an ended process gets no signal.
            process.send_signal(signal.SIGINT)
            process.wait()
            print(end="\n" if end == "\r" else "")


def reason() -> str:
    """Return pip's last error from the log, with a hint if the registry did not answer."""
    output = LOG.read_text(errors="replace")
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    error = ([line for line in lines if line.startswith("ERROR: ")] or lines)[-1]
    silent = "connection broken by" in output
    hint = " (the registry did not answer; see pip's index-url and proxy)" if silent else ""
    return error.replace("ERROR: ", "") + hint


if __name__ == "__main__":
    main()
