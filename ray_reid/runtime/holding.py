"""One driver of a run at a time: a lock on a file system, a lease in a bucket.

It keeps two drivers from doing the same work, and gives the second one a sentence. What keeps a run
whole is something else: a result is complete with its manifest, and the pointer is one write.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_reid import places
from ray_reid.places import Place
from ray_reid.runtime import leases
from ray_reid.runtime.results import check_layout

LOCK = ".lock"
# `driver` holds the lock for an instant, to see whether somebody does.
LOCK_SECONDS = 1.0

Check = Callable[[], None]
"""Raises `ValueError` where the run is no longer held."""


@contextmanager
def hold(path: Place) -> Iterator[Check]:
    """Be the one driver of a run, whose directory is created if needed.

    Raises:
        ValueError: If the place cannot be written, holds a run of an older release, or another
            process holds it.
    """
    places.check(path)
    check_layout(path)
    if isinstance(path, Path):
        with _locked(path):
            yield lambda: None
    else:
        with leases.leased(path) as check:
            yield check


def driver(path: Place) -> str | None:
    """Return who holds a run, if somebody does: `process 7`, with its host if it has a lease."""
    if not isinstance(path, Path):
        return leases.owner(path)
    try:
        lock = os.open(path / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"process {os.read(lock, 32).decode() or 'unknown'}"
    finally:
        os.close(lock)
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        if path.exists() and not path.stat().st_mode & 0o222:
            raise PermissionError("it is marked read-only")
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot write to run directory {str(path)!r}: {reason}") from error
    try:
        _lock(lock, path)
        yield
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(lock: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while not _taken(lock):
        if time.monotonic() > deadline:
            holder = os.read(lock, 32).decode() or "unknown"
            raise ValueError(f"process {holder} is already working on run {str(path)!r}")
        time.sleep(0.05)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
