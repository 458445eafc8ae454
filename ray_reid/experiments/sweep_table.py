"""What a sweep found: means and deviations over the seeds, as JSON, as CSV and as a picture."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray_reid import places
from ray_reid.evaluation.headline import HEADLINE
from ray_reid.experiments import figures_returns, figures_tune, returns_table
from ray_reid.experiments.in_process import METRICS
from ray_reid.experiments.returns_table import RETURNS
from ray_reid.experiments.trials import HISTORY, VALIDATION, ResolvedSetting, Trial
from ray_reid.places import Place
from ray_reid.recipe import sweeps
from ray_reid.recipe.sweeps import Setting, Sweep
from ray_reid.runtime import figures
from ray_reid.runtime.results import RunState
from ray_reid.runtime.run import Run
from ray_reid.runtime.sections import ReportPicture, Section, Table, spread

EPOCHS = "epochs"
"""Entry of a setting's line: the validation after each epoch, the mean over the seeds."""


def result(
    held: Run,
    sweep: Sweep,
    found: Sequence[ResolvedSetting],
    trials: Mapping[tuple[str, int], Trial],
    failed: Mapping[tuple[str, int], str],
) -> dict[str, Any]:
    """The table of a sweep: a row for each setting, and what it stands on.

    Args:
        failed: Why trials failed, by setting and seed.
    """
    rows = []
    for resolved in found:
        name = resolved.setting.name
        left_out = [seed for seed in sweep.seeds if (name, seed) in failed]
        done = {seed: trials[name, seed].read() for seed in sweep.seeds if seed not in left_out}
        rows.append(setting_row(sweep, resolved.setting, done, left_out))
    made = {pair for trial in trials.values() for pair in trial.inputs.keys.items()}
    return {
        "sweep": sweep.name,
        "recipe": held.recipe.name,
        "profile": held.recipe.profile,
        "metric": sweep.metric,
        "parameters": list(sweep.parameters),
        "validated": sweep.validation > 0,
        "comparable": comparable(list(trials.values())),
        "best": _best(sweep, rows),
        "rows": rows,
        "failures": [f"{trials[place].name}: {reason}" for place, reason in failed.items()],
        # Of the tables that the run shares with the sweep; those of the sweep alone are not current
        # and cannot be replaced.
        "inputs": dict(pair for pair in held.state.keys.items() if pair in made),
    }


def comparable(trials: Sequence[Trial]) -> bool:
    """Whether all settings had the same test images with each seed, which may draw its own."""
    found = {(trial.seed, trial.inputs.test_set) for trial in trials}
    return len(found) == len({trial.seed for trial in trials})


def write(folder: Place, found: Mapping[str, Any]) -> None:
    """Write `table.json`, `table.csv` and the pictures, in place of what is there."""
    scored = [row for row in found["rows"] if row[found["metric"]] is not None]
    picture, curves = folder / sweeps.PICTURE, folder / sweeps.CURVES
    curves.unlink(missing_ok=True)
    by_epoch = {row["setting"]: row[EPOCHS] for row in scored if row[EPOCHS]}
    if 0 < len(by_epoch) <= figures_tune.MOST_CURVES:
        figures.save(figures_tune.curves(by_epoch, f"{VALIDATION} {found['metric']}"), curves)
    if RETURNS in found and found[RETURNS]["points"]:
        figures.save(figures_returns.curves(found[RETURNS]), picture)
    elif scored:
        drawn = figures_tune.sweep(scored, found["parameters"], found["metric"])
        figures.save(drawn, picture)
    else:
        picture.unlink(missing_ok=True)
    places.write_text(folder / sweeps.CSV, _csv(found))
    # Last: a reader that finds it finds the others.
    places.write_text(folder / sweeps.TABLE, json.dumps(found, indent=2) + "\n")


def setting_row(
    sweep: Sweep,
    setting: Setting,
    done: Mapping[int, Mapping[str, Any]],
    failed: Sequence[int] = (),
) -> dict[str, Any]:
    """A setting's line of a table: figures of the trials that were trained to the end.

    Args:
        done: Results of its trials, by seed.
        failed: Seeds of those that have none.
    """
    whole = {seed: one for seed, one in done.items() if one["metrics"]}
    line: dict[str, Any] = {
        "setting": setting.name,
        "changes": dict(setting.changes),
        "seeds": list(whole),
        "stopped": {str(seed): one["stopped"] for seed, one in done.items() if seed not in whole},
        "failed": list(failed),
    }
    for name in METRICS:
        line[name] = _spread([one["metrics"][name] for one in whole.values()])
    last = f"{VALIDATION} {sweep.metric}"
    if sweep.validation:
        line[VALIDATION] = _spread([one[HISTORY][-1][last] for one in whole.values()])
    # A recipe's own validation searches after every epoch too; trials of old have not kept it.
    curves = [[entry[last] for entry in one[HISTORY] if last in entry] for one in whole.values()]
    searched = [curve for curve in curves if curve]
    line[EPOCHS] = [statistics.fmean(found) for found in zip(*searched, strict=False)]
    return line


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean and deviation of a sample, which is null of one value."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


def _best(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> str | None:
    by = VALIDATION if sweep.validation else sweep.metric
    scored = [row for row in rows if row[by] is not None]
    return max(scored, key=lambda row: row[by]["mean"])["setting"] if scored else None


def _csv(result: Mapping[str, Any]) -> str:
    """The table for a spreadsheet: a line for each setting, shares between 0 and 1."""
    measured = [*METRICS, *([VALIDATION] if result["validated"] else [])]
    keys = list(dict.fromkeys(key for row in result["rows"] for key in row["changes"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    spreads = [f"{name} {part}" for name in measured for part in ("mean", "std")]
    writer.writerow(["setting", *keys, "seeds", "stopped", "failed", *spreads])
    for row in result["rows"]:
        values = [
            sweeps.spell(row["changes"][key]) if key in row["changes"] else "" for key in keys
        ]
        counts = [len(row[name]) for name in ("seeds", "stopped", "failed")]
        found = [(row[name] or {}).get(part) for name in measured for part in ("mean", "std")]
        writer.writerow([row["setting"], *values, *counts, *found])
    return text.getvalue()


def section(result: Mapping[str, Any]) -> Section:
    """Show what a sweep found, as its `table.json` holds it."""
    if RETURNS not in result:
        return Section((table(result),))
    found = result[RETURNS]
    return Section(returns_table.tables(found), returns_table.notes(found))


def table(result: Mapping[str, Any]) -> Table:
    """Lay out what a sweep found, as its `table.json` holds it."""
    names = [name for name in HEADLINE if name in result["rows"][0]]
    measured = [*names, *(["validation"] if result["validated"] else [])]
    rows = tuple(
        (
            row["setting"],
            str(len(row["seeds"])),
            *(spread(row[name]) for name in measured),
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
    return Table(title, ("setting", "seeds", *measured, ""), rows, note, measured=True)


def sections(state: RunState) -> list[Section]:
    """Show what the sweeps of a run found; not those of tables that were replaced since."""
    shown = []
    for file in places.matching(state.path, f"tune-*/{sweeps.TABLE}"):
        result = json.loads(file.read_text())
        if result["inputs"].items() <= state.keys.items():
            shown.append(replace(section(result), drawings=_drawings(file.parent, result)))
    return shown


def _drawings(folder: Place, result: Mapping[str, Any]) -> tuple[ReportPicture, ...]:
    metric, title = result["metric"], f"Sweep {result['sweep']}"
    caption = f"{metric} of each setting; lines are deviations over the seeds."
    if RETURNS in result:
        caption = returns_table.caption(result[RETURNS])
    captions = {
        sweeps.PICTURE: caption,
        sweeps.CURVES: f"{metric} of the identities held out after each epoch; means over seeds.",
    }
    return tuple(
        ReportPicture(title, said, (folder / name).read_bytes())
        for name, said in captions.items()
        if (folder / name).is_file()
    )


def _unfinished(row: Mapping[str, Any]) -> str:
    counts = {name: len(row[name]) for name in ("stopped", "failed")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
