"""What jobs contribute to the report and to the console: tables, notes and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table; every cell is text."""

    title: str
    header: tuple[str, ...]
    """Of the columns; the first is text, the others are numbers."""
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """A sentence below it."""
    measured: bool = False
    """Whether its figures rest on the images, so that drawn ones are named below it."""


@dataclass(frozen=True)
class ReportPicture:
    """A picture that is made for the report alone."""

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """What one job shows."""

    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences without their full stop."""
    warnings: tuple[str, ...] = ()
    drawings: tuple[ReportPicture, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    """Name to value, folded away under the tables."""
    printed: bool = True
    """Whether the console shows the tables too."""


def aligned(table: Table) -> str:
    """Lay a table out as text: the first column to the left, numbers to the right."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    texts = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    return "\n".join([*texts, *([table.note] if table.note else [])])


def number(value: float | None, digits: int) -> str:
    """Write a figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def spread(figure: Mapping[str, Any] | None) -> str:
    """Write the `mean` of a share over several seeds, and the `std` of its `values`."""
    if not figure or figure.get("mean") is None:
        return "-"
    mean = f"{100 * figure['mean']:.1f}"
    several = len(figure.get("values", [])) > 1 and figure.get("std") is not None
    return f"{mean} +- {100 * figure['std']:.1f} %" if several else f"{mean} %"


def share(count: int, total: int) -> str:
    """Write a count as a percentage of a total."""
    return f"{100 * count / total:.1f} %"


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Spell nested entries as `outer, inner`, for a table of two columns."""
    spelled: dict[str, str] = {}
    for name, value in values.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            spelled |= flat(value, f"{label}, ") if value else {label: "none"}
        elif isinstance(value, bool):
            spelled[label] = "yes" if value else "no"
        elif isinstance(value, Sequence) and not isinstance(value, str):
            items = ("none" if item is None else str(item) for item in value)
            spelled[label] = ", ".join(items) or "none"
        else:
            spelled[label] = "none" if value is None else str(value)
    return spelled
