"""A sweep in a run directory: its tables, its trials, its table and picture, and the report."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from jobs.pipeline import PIPELINES
from ray_reid.evaluation import report, report_tables
from ray_reid.experiments import trials, tune
from ray_reid.recipe import recipes, sweeps
from ray_reid.runtime.cluster import Cluster
from ray_reid.runtime.run import open_run, read_recipe

log = logging.getLogger(__name__)


def run(
    file: str,
    path: Path,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    address: str | None = None,
) -> None:
    """Perform a sweep file; `profile` and `overrides` are applied before its settings.

    Raises:
        ValueError: If the file, the recipe or a setting breaks a rule, or trials failed: the others
            are finished first.
    """
    sweep = sweeps.load(file)
    # JSON is YAML: those of the file are set as those of the command line are.
    common = [f"{key}={json.dumps(value)}" for key, value in sweep.overrides.items()]
    recipe = recipes.load(sweep.recipe, profile or sweep.profile, [*common, *overrides])
    if recipe.name not in PIPELINES:
        raise ValueError(f"no pipeline {recipe.name!r}; choose from {sorted(PIPELINES)}")
    jobs = PIPELINES[recipe.name]
    found = trials.variants(sweep, recipe, jobs)
    with (
        Cluster(recipe.resources, address) as cluster,
        open_run(path, recipe, prepare=cluster.start) as held,
    ):
        result = tune.sweep_run(held, sweep, found, jobs, cluster.start)
        # A run of its own keeps its recipe: the sweep is a guest there.
        if not (path / "recipe.yaml").exists():
            held.save_recipe()
        report.write_report(path, read_recipe(path), held.manifests())
        folder = path / f"tune-{sweep.name}"
        held.tracker.artifact(folder / sweeps.TABLE)
        table = report_tables.aligned(report_tables.swept(result))
        log.info("%s\nsweep: %s\nreport: %s", table, folder, path / "report.html")
        failures = result["failures"]
        if failures:
            raise ValueError(
                f"sweep {sweep.name!r}: {len(failures)} of its trials failed, and the same "
                f"command tries them again; the first is {failures[0]}"
            )
