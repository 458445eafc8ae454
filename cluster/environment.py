"""Builds `.venv` from `requirements.lock`; needs nothing but a Python and its standard library.

Any Python 3 may start it: it looks for a supported version itself, so annotations that older
ones cannot evaluate are quoted. A stamp makes the second time instant; without a stamp the
installation was interrupted and is taken up again.
"""

import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
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
MINORS = (11, 12, 13)
NEEDED_GB = 9
UV = "uv>=0.9,<1"

# uv does not read pip's configuration: pip's option, what uv calls it (any of these set by hand
# wins), and how uv separates several values.
PIP_TO_UV = (
    ("index-url", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
    ("extra-index-url", ("UV_INDEX", "UV_EXTRA_INDEX_URL"), " "),
    ("find-links", ("UV_FIND_LINKS",), ","),
    ("no-index", ("UV_NO_INDEX",), " "),
    ("trusted-host", ("UV_INSECURE_HOST",), " "),
    ("timeout", ("UV_HTTP_TIMEOUT",), " "),
    ("default-timeout", ("UV_HTTP_TIMEOUT",), " "),
    ("cert", ("SSL_CERT_FILE",), " "),
    ("proxy", ("ALL_PROXY", "HTTPS_PROXY", "https_proxy", "all_proxy"), " "),
)
UNREACHABLE = (
    "error sending request",
    "Failed to fetch",
    "Failed to establish a new connection",
    "ConnectTimeoutError",
    "ProxyError",
    "SSLError",
    "No matching distribution found for uv",
)


class CannotBuildError(Exception):
    """The one sentence that tells a person what is in the way."""


def main() -> None:
    """Build the environment, or do nothing if it is ready."""
    try:
        use_supported_python()
        if not is_ready():
            build_alone()
    except CannotBuildError as error:
        sys.exit(f"environment: {error}")
    except OSError as error:
        sys.exit(f"environment: cannot build {VENV}: {error}")
    except KeyboardInterrupt:
        print("\nenvironment: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def use_supported_python() -> None:
    """Start over in a supported Python if this one is not."""
    if sys.version_info[0] == 3 and sys.version_info[1] in MINORS:
        return
    for minor in MINORS:
        found = shutil.which(f"python3.{minor}")
        # A version manager's stand-in may be on PATH without a Python behind it.
        if found and version_of(found) == f"3.{minor}":
            os.execv(found, [found, __file__])
    raise CannotBuildError(
        f"Python 3.{MINORS[0]} to 3.{MINORS[-1]} is needed, but python3 is "
        f"{sys.version.split()[0]} and none of these is on PATH; install one, "
        f"or name it: make PYTHON=/path/to/python3.{MINORS[0]}"
    )


def version_of(python: str) -> str:
    """Major and minor version of another Python; empty if it does not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        )
    except OSError:
        return ""
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def is_ready() -> bool:
    """Tell whether a whole installation of this very lock file, project and Python is here."""
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted()


def wanted() -> str:
    """What the stamp of a ready environment holds."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Scripts in `.venv/bin` name their folder, so a copy of the tree elsewhere is not ready.
    parts = [LOCK.read_text(), project, list(sys.version_info[:2]), str(ROOT)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build_alone() -> None:
    """Build while no other process does; one that waited finds it ready."""
    import fcntl

    with LOCK.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("environment: another process is building it; waiting", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready():
            build()


def build() -> None:
    """Make `.venv`, install the locked packages and this project, and stamp it."""
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    check_disk()
    make_venv()
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--retries", "2", UV]
    uv = [str(PYTHON), "-m", "uv", "pip", "install", "--python", str(PYTHON)]
    settings = pip_settings()
    LOG.unlink(missing_ok=True)
    install("the installer uv", pip, pip_environment(settings))
    environment = uv_environment(settings)
    # Every actor imports them afresh; compiled once, they start in half the time.
    packages = [*uv, "--compile-bytecode", "-r", str(LOCK)]
    install("the packages of requirements.lock", packages, environment)
    install("ray-reid itself", [*uv, "--no-deps", "-e", str(ROOT)], environment)
    STAMP.write_text(wanted())
    print(f"environment: ready in {time.monotonic() - started:.0f} s", flush=True)


def check_disk() -> None:
    """Refuse to start what would fill the disk; what an earlier attempt installed counts."""
    here = sum(file.lstat().st_size for file in VENV.rglob("*") if file.is_file())
    free = (shutil.disk_usage(ROOT).free + here) / 1e9
    if free < NEEDED_GB:
        raise CannotBuildError(
            f"about {NEEDED_GB} GB of disk are needed in {ROOT}, but only {free:.1f} GB are free"
        )


def make_venv() -> None:
    """Create `.venv` unless it is there and at home, works, and has this Python's version."""
    if at_home(VENV) and version_of(str(PYTHON)) == this_version():
        return
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise CannotBuildError(
            f"{sys.executable} cannot create virtual environments; on Debian and Ubuntu install "
            f"the package python{this_version()}-venv"
        )
    print(f"environment: creating {VENV} with Python {sys.version.split()[0]}", flush=True)
    # Inside an activated environment, its own Python must not delete itself.
    base = getattr(sys, "_base_executable", sys.executable)
    command = [base, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = last_line(done.stdout + done.stderr)
        raise CannotBuildError(f"cannot create {VENV}: {reason}")


def at_home(venv: Path) -> bool:
    """Tell whether the scripts of an environment name its own folder: not if it was copied."""
    pip = venv / "bin" / "pip"
    if not pip.exists():
        return False
    # A path too long for the first line, or with a space, is called by way of a shell.
    called = rb"#!(/bin/sh\n'''exec' \"?)?" + re.escape(os.fsencode(venv / "bin")) + b"/python"
    return re.match(called, pip.read_bytes()) is not None


def this_version() -> str:
    """Major and minor version of the running Python."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def pip_settings() -> "dict[str, list[str]]":
    """Options of `pip install` from its files and variables, each split at white space."""
    command = [str(PYTHON), "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    settings: dict[str, list[str]] = {}
    # From weak to strong, as pip reads them.
    for section in ("global", "install", ":env:"):
        for line in done.stdout.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(f"{section}."):
                settings[key[len(section) + 1 :]] = str(ast.literal_eval(value)).split()
    return settings


def pip_environment(settings: "dict[str, list[str]]") -> "dict[str, str]":
    """The variables for pip: an index that is set only for uv serves pip too."""
    environment = dict(os.environ)
    if "index-url" not in settings and "UV_DEFAULT_INDEX" in environment:
        environment["PIP_INDEX_URL"] = environment["UV_DEFAULT_INDEX"]
    return environment


def uv_environment(settings: "dict[str, list[str]]") -> "dict[str, str]":
    """The variables for uv: pip's settings under uv's names."""
    environment = dict(os.environ)
    for option, variables, separator in PIP_TO_UV:
        values = settings.get(option, [])
        if option == "find-links":
            # pip only warns of a folder that is not there; uv stops.
            values = [value for value in values if "://" in value or Path(value).exists()]
        if values and not any(variable in environment for variable in variables):
            environment[variables[0]] = separator.join(values)
            if option == "extra-index-url":
                # pip takes the best version of all its indexes; uv by default the first index.
                environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return environment


def install(what: str, command: "list[str]", environment: "dict[str, str]") -> None:
    """Run an installer with its output in the log; on a terminal show its last line."""
    print(f"environment: installing {what}", flush=True)
    before = LOG.stat().st_size if LOG.exists() else 0
    with LOG.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=str(ROOT))
        try:
            follow(process, before)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise CannotBuildError(failure(what, logged(before)))


def logged(start: int) -> str:
    """What the log holds from byte `start` on."""
    return LOG.read_bytes()[start:].decode(errors="replace")


def follow(process: "subprocess.Popen[bytes]", start: int) -> None:
    """Wait for an installer; on a terminal keep one line with the seconds and its last words.

    Args:
        start: Byte of the log from which on this installer writes.
    """
    started = time.monotonic()
    shown = sys.stdout.isatty()
    while True:
        try:
            process.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            if shown:
                seconds = time.monotonic() - started
                words = last_line(logged(start))[:68]
                print(f"\r\033[K{seconds:6.0f} s  {words}", end="", flush=True)
    if shown:
        print("\r\033[K", end="", flush=True)


def failure(what: str, text: str) -> str:
    """The sentence for an installer that failed, from what it wrote."""
    if "No space left on device" in text:
        return f"the disk is full (about {NEEDED_GB} GB are needed); the output is in {LOG}"
    reason = last_line(text)
    if any(sign in text for sign in UNREACHABLE):
        return (
            f"cannot reach the package registry: {reason}; set PIP_INDEX_URL or UV_DEFAULT_INDEX "
            f"to one that answers, or HTTPS_PROXY to a proxy; the output is in {LOG}"
        )
    return f"cannot install {what}: {reason}; the output is in {LOG}"


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].replace("cause: ", "").replace("ERROR: ", "") if lines else "no output"


if __name__ == "__main__":
    main()
