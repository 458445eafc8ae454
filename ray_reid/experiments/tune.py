"""Sweeps: the settings of a sweep file times its seeds, on the engine of experiments."""

from collections.abc import Callable, Sequence
from typing import Any

from ray_reid.datasets import ingest, rules
from ray_reid.datasets.reading import Row
from ray_reid.experiments import engine, returns_table, sweep_table, trials
from ray_reid.experiments.engine import Train
from ray_reid.experiments.returns import Plan
from ray_reid.experiments.trials import ResolvedSetting
from ray_reid.recipe.sweeps import Sweep
from ray_reid.runtime.cluster import check_capacity
from ray_reid.runtime.job import Job
from ray_reid.runtime.run import TRIALS, Run


def sweep_run(
    held: Run,
    sweep: Sweep,
    found: Sequence[ResolvedSetting],
    jobs: Sequence[Job],
    prepare: Callable[[], None],
    train: Train | None = None,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Make the tables, train what has no result yet, and write the table and the picture.

    Args:
        held: The run directory; what the sweep makes lies in it, and what is current stays current.
        prepare: Starts Ray.
        train: Does a trial; null trains, embeds and scores.
        plan: Of the synthetic-return report, if the sweep is one.

    Returns:
        What `table.json` holds; `failures` says of each failed trial why.

    Raises:
        ValueError: If a resolved setting cannot be trained on its tables; nothing is trained then.
    """
    folder = held.path / f"tune-{sweep.name}"
    made = trials.make_inputs(held, sweep, found, jobs)
    prepare()
    check_capacity("num_cpus and num_gpus of the sweep:", 1, sweep.num_cpus, sweep.num_gpus)
    every = trials.expand(sweep, found, made, held.path / TRIALS)
    folder.mkdir(exist_ok=True)
    failed = engine.perform(f"tune {sweep.name}", sweep, every, folder, train, held.tracker)
    table = sweep_table.result(held, sweep, found, every, failed)
    if plan is not None:
        table[returns_table.RETURNS] = returns_table.result(plan, every, failed)
    sweep_table.write(folder, table)
    return table


def check_data(sweep: Sweep, found: Sequence[ResolvedSetting]) -> list[str]:
    """Hold the data of every setting against its recipe, before anything is computed.

    Returns:
        Warnings, each once.

    Raises:
        ValueError: If a source cannot be used, or the images do not fill the batches of a setting
            or cannot be evaluated; names the setting.
    """
    rows: dict[str, Sequence[Row]] = {}
    warnings: dict[str, None] = {}
    for resolved in found:
        data = resolved.recipe.ingest.model_dump_json()
        try:
            if data not in rows:
                rows[data] = ingest.listed(resolved.recipe)
            warnings |= dict.fromkeys(rules.check(rows[data], resolved.recipe))
        except ValueError as error:
            raise ValueError(f"sweep {sweep.name!r}: {resolved.setting.name!r}: {error}") from error
    return list(warnings)
