"""Raise KeyboardInterrupt at Ctrl-C and SIGTERM, even if a library has replaced the handlers.

Ray Train, for example, replaces the handler of SIGINT, waits in its own, and may ignore the signal.
Python writes every signal to the wakeup descriptor as well (`signal.set_wakeup_fd`), whichever
handler is set: a thread reads it there.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Wakes the main thread. Its default is to do nothing, and no library that we use handles it.
URGE = signal.SIGURG
URGE_SECONDS = 0.1
PAUSE_SECONDS = 1.0
"""Signals within this time are one: launchers such as `uv run` repeat that of the terminal."""


@dataclass
class _State:
    """The signal that has arrived in this process, and when (`time.monotonic`)."""

    came: signal.Signals | None = None
    at: float = float("-inf")
    listening: bool = False
    """Whether a block of `interruptible` is open."""
    before: dict[signal.Signals, Any] = field(default_factory=dict)
    """The handlers before the block."""


_STATE = _State()


def interrupt(number: int, _: FrameType | None) -> None:
    """Raise KeyboardInterrupt: the handler of a signal; signals that come together raise one."""
    if time.monotonic() - _STATE.at >= PAUSE_SECONDS:
        _note(number)
        raise KeyboardInterrupt


def came() -> signal.Signals | None:
    """Return the signal that has interrupted the command, or None.

    A library may have turned the KeyboardInterrupt into another error, or have ignored it.
    """
    return _STATE.came if _STATE.listening else None


def check() -> None:
    """Raise KeyboardInterrupt if the command was interrupted but a library ignored it."""
    if came() is not None:
        raise KeyboardInterrupt


def take() -> None:
    """Set the handlers again after a library has replaced them; for use in `interruptible`."""
    if _STATE.listening and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # A shell makes commands in the background ignore SIGINT; that stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, interrupt)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the block.

    Only the main thread can: in other threads, and inside another such block, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or _STATE.listening:
        yield
        return
    _watch_forks()
    _STATE.came, _STATE.at, _STATE.listening = None, float("-inf"), True
    _STATE.before = {number: signal.getsignal(number) for number in (*SIGNALS, URGE)}
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    wakeup = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(ours,), daemon=True)
    thread.start()
    try:
        signal.signal(URGE, _urged)
        take()
        yield
    finally:
        _STATE.listening = False
        for number, handler in _STATE.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(wakeup)
        # Closing is not enough: a forked process may have a copy.
        pythons.shutdown(socket.SHUT_RDWR)
        pythons.close()
        thread.join()
        ours.close()


@cache
def _watch_forks() -> None:
    """Let signals of forked processes be their own: the wakeup descriptor is shared with them."""
    os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    if not _STATE.listening:
        return
    _STATE.listening = False
    signal.set_wakeup_fd(-1)
    for number, handler in _STATE.before.items():
        if signal.getsignal(number) in (interrupt, _urged):
            signal.signal(number, handler or signal.SIG_DFL)


def _listen(signals: socket.socket) -> None:
    """Interrupt the main thread at signals whose handler is not ours."""
    while numbers := signals.recv(16):
        for number in set(numbers).intersection(SIGNALS):
            handler = signal.getsignal(number)
            if handler is signal.default_int_handler:
                _note(number)
            elif handler is not interrupt and time.monotonic() - _STATE.at >= PAUSE_SECONDS:
                _STATE.came = signal.Signals(number)
                _urge()


def _urge() -> None:
    """Wake the main thread until it is interrupted: a signal just before a wait does not end it."""
    began = time.monotonic()
    while _STATE.listening and _STATE.at < began:
        signal.pthread_kill(threading.main_thread().ident or 0, URGE)
        time.sleep(URGE_SECONDS)


def _urged(_: int, frame: FrameType | None) -> None:
    # The last urge may come when the block of `interruptible` is being left.
    number = came()
    if number is not None:
        interrupt(number, frame)


def _note(number: int) -> None:
    _STATE.came, _STATE.at = signal.Signals(number), time.monotonic()
