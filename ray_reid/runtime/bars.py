"""Progress bars: one look for all, on standard error, and never a reason to stop."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm


def bar(
    name: str,
    unit: str,
    total: int | None = None,
    over: Iterable[Any] | None = None,
    interval: float = 0.1,
) -> Any:
    """Return a tqdm bar, of an iterable or to be updated by hand.

    Args:
        total: Units in all, if they are known.
        over: What to iterate over.
        interval: Seconds between two drawings at least.
    """
    return tqdm(
        over,
        desc=name,
        unit=unit,
        total=total,
        mininterval=interval,
        dynamic_ncols=True,
        file=_Stderr(),
    )


class _Stderr:
    """Standard error, or nothing once nobody reads it.

    What a write raises inside tqdm leaves its lock held, and every later bar would wait for ever:
    `ray-reid run ... 2>&1 | head` hung.
    """

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)
