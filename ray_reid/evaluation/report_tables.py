"""Tables of the report and of the console: what jobs and sweeps say of themselves, laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_reid.evaluation.evaluate import RANKS

HEADLINE = ("mAP", *(f"rank-{k}" for k in RANKS), "mINP")
STAGES = {
    "raw": "raw: no adaptation, no filter",
    "adapted": "adapted, no filter",
    "filtered": "adapted and filtered",
    "unguided": "without the guidance of a discriminator",
    "kept": "kept by the filters",
}


@dataclass(frozen=True)
class Table:
    """A table of the report and of the console; every cell is text."""

    title: str
    header: tuple[str, ...]
    """Of the columns; the first is text, the others are numbers."""
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """A sentence below it."""


def aligned(table: Table) -> str:
    """A table as text: the first column to the left, numbers to the right."""
    lines = [table.header, *table.rows]
    wide = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    texts = [
        "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])]).rstrip()
        for line in lines
    ]
    return "\n".join([*texts, *([table.note] if table.note else [])])


def swept(result: Mapping[str, Any], drawn: str = "") -> Table:
    """What a sweep found, as its `table.json` holds it."""
    names = [name for name in HEADLINE if name in result["rows"][0]]
    measured = [*names, *(["validation"] if result["validated"] else [])]
    rows = tuple(
        (
            row["setting"],
            str(len(row["seeds"])),
            *(_spread(row[name]) for name in measured),
            _unfinished(row),
        )
        for row in result["rows"]
    )
    metric = result["metric"]
    by = f"validation {metric}" if result["validated"] else f"{metric} of the test images"
    best = f" Highest {by}: {result['best']}." if result["best"] else ""
    if not result["comparable"]:
        best = " The settings are tested on unlike images: their figures do not compare."
    note = f"Mean over the seeds, and their standard deviation where there are several.{best}"
    title = f"Sweep {result['sweep']}"
    return Table(title, ("setting", "seeds", *measured, ""), rows, note + drawn)


def candidates(candidates: Sequence[Mapping[str, Any]], taken: str | None) -> Table | None:
    """The adapt job's `candidates`: mappings of name, fid, agreement and score."""
    if not candidates:
        return None
    rows = tuple(
        (
            str(found.get("name")),
            _number(found.get("fid"), 3),
            _number(found.get("agreement"), 3),
            _number(found.get("score"), 3),
            "taken" if found.get("name") == taken else "",
        )
        for found in candidates
    )
    header = ("candidate", "Frechet distance", "prompt agreement", "score", "")
    note = "Fine-tunings of the text-to-image model; of distances, lower is nearer to the target."
    return Table("Adaptation", header, rows, note)


def stages(stages: Sequence[Mapping[str, Any]], drawn: str) -> Table | None:
    """The review job's `stages`, as Table VI of Vehicle-Diff lays them out."""
    if not stages:
        return None
    rows = tuple(
        (
            STAGES.get(stage["stage"], stage["stage"]),
            str(stage["identities"]) if stage["images"] else "-",
            str(stage["images"]) if stage["images"] else "-",
            _number(stage["fid"], 3),
        )
        for stage in stages
    )
    measured = [stage for stage in stages if stage["fid"] is not None]
    note = "Frechet distances need at least 2 real and 2 generated images."
    if measured:
        # After a colon comes the file of the weights.
        extractor = measured[0]["extractor"].partition(":")[0]
        size = measured[0]["num_images"]
        note = (
            f"Frechet distance to the real training images: {size} images of either, features of "
            f"{extractor}; lower is nearer. Only distances of the same features and number of "
            "images compare."
        )
    header = ("generated images", "identities", "images", "Frechet distance")
    return Table("Generated images", header, rows, note + drawn)


def reasons(counts: Mapping[str, Any]) -> Table | None:
    """The review job's `counts`: made, kept, and how many were dropped for each reason."""
    made = counts.get("made")
    if not made:
        return None
    dropped = sorted(counts["dropped"].items(), key=lambda pair: (-pair[1], pair[0]))
    named = [("kept", counts["kept"]), *((f"dropped: {why}", count) for why, count in dropped)]
    rows = tuple((name, str(count), f"{100 * count / made:.1f} %") for name, count in named)
    return Table("Filters", ("verdict", "images", "share"), rows)


def compared(arms: Sequence[Mapping[str, Any]], drawn: str) -> Table | None:
    """The compare job's `table`: metrics of each arm as mean and deviation over its seeds."""
    names = [name for name in HEADLINE if any(name in arm for arm in arms)]
    if not names:
        return None
    rows = tuple(
        (
            str(arm.get("arm")),
            str(arm.get("real_images", "-")),
            str(arm.get("synthetic_images", "-")),
            str(_count(arm.get("seeds"))),
            *(_spread(arm.get(name)) for name in names),
        )
        for arm in arms
    )
    header = ("training", "real", "synthetic", "seeds", *names)
    note = "Mean over the seeds, and their standard deviation where there are several."
    return Table("Comparison", header, rows, note + drawn)


def refined(found: Mapping[str, Any] | None, drawn: str) -> Table | None:
    """The evaluate job's `refinement`: what a share of the queries gains and costs."""
    if not found or not found["curve"]:
        return None
    rows = tuple(
        (
            f"{100 * point['refined']:.0f} %",
            f"{100 * point['rank1']:.1f} %",
            f"{100 * point['mAP']:.1f} %",
            _number(point["variants_per_query"], 1),
            _number(point["seconds_per_query"], 2),
        )
        for point in found["curve"]
    )
    header = ("queries refined", "rank-1", "mAP", "variants a query", "seconds a query")
    note = (
        "The least sure first: thresholds of one half of the identities, figures of the other; "
        "seconds of one actor."
    )
    return Table("Prediction refinement", header, rows, note + drawn)


def _count(seeds: Any) -> Any:
    return "-" if seeds is None else seeds if isinstance(seeds, int) else len(seeds)


def _spread(metric: Mapping[str, Any] | None) -> str:
    if not metric or metric.get("mean") is None:
        return "-"
    mean = f"{100 * metric['mean']:.1f}"
    several = len(metric.get("values", [])) > 1 and metric.get("std") is not None
    return f"{mean} +- {100 * metric['std']:.1f} %" if several else f"{mean} %"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _unfinished(row: Mapping[str, Any]) -> str:
    counts = {name: len(row[name]) for name in ("stopped", "failed")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
