"""A benchmark's figures: how they are timed, held against their bar and printed.

Every benchmark prints a Markdown table or, with `--json`, one object per case and line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOWER_IS_BETTER = ("s", "ms", "MB", "GETs", "draws")
TITLES = ("case", "measured", "unit", "reference", "ratio", "bar", "holds")
LAYOUT = "| {:<56} | {:>9} | {:<12} | {:>9} | {:>7} | {:>5} | {:>5} |\n"


@dataclass(frozen=True)
class Figure:
    """One measured case."""

    case: str
    measured: float
    unit: str
    reference: float | None = None
    """What limits the case, measured in the same run and unit."""
    bar: float | None = None
    """Limit on measured / reference, or on `measured` where there is no reference."""

    def line(self) -> dict[str, Any]:
        """The JSON object of this case; values without a meaning are null."""
        ratio = self.measured / self.reference if self.reference else None
        value, holds = self.measured if ratio is None else ratio, None
        if self.bar is not None:
            holds = value <= self.bar if self.unit in LOWER_IS_BETTER else value >= self.bar
        values = (self.case, self.measured, self.unit, self.reference, ratio, self.bar, holds)
        return {
            title: float(f"{value:.4g}") if isinstance(value, float) else value
            for title, value in zip(TITLES, values, strict=True)
        }

    def row(self) -> str:
        """The line of this case in a Markdown table."""
        line = self.line()
        numbers = {title: _text(line[title]) for title in ("measured", "reference", "ratio", "bar")}
        holds = {True: "yes", False: "NO", None: "-"}[line["holds"]]
        return LAYOUT.format(*({**line, **numbers, "holds": holds}[title] for title in TITLES))


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--json", action="store_true", help="one JSON object per case and line")
    return parser


def report(figures: Iterable[Figure], as_json: bool) -> None:
    """Print each figure as soon as it is there; a bar that does not hold is no error."""
    if not as_json:
        sys.stdout.write(f"{machine()}\n\n{LAYOUT.format(*TITLES)}")
        sys.stdout.write("|---|--:|---|--:|--:|--:|--:|\n")
    for figure in figures:
        sys.stdout.write(json.dumps(figure.line()) + "\n" if as_json else figure.row())
        sys.stdout.flush()


def machine() -> str:
    """Name the processor, its load, the memory, the Python and the commit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, "
        f"{memory:.0f} GiB; python {platform.python_version()}; "
        f"commit {git.stdout.strip() or 'unknown'}"
    )


def timed(work: Callable[[], object]) -> float:
    """Run once and return the seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(work: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest run: the one least disturbed by the machine's other work."""
    return min(timed(work) for _ in range(runs))


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
