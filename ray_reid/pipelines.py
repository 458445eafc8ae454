"""Which jobs make up each recipe, in order, and how they are run.

Every job is declared beside the function that does its work; `jobs/` tells what each is for.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace

from ray_reid.datasets import ingest, sources
from ray_reid.evaluation import embed, evaluate, report
from ray_reid.experiments import compare, sweep_table, trials, tune
from ray_reid.gallery import gallery, index, live, searcher
from ray_reid.generation import adapt, describe, generate, inpaint, review, variants
from ray_reid.places import Place
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.cluster import Cluster
from ray_reid.runtime.facts import parse
from ray_reid.runtime.job import Job
from ray_reid.runtime.results import POINTER, RunState
from ray_reid.runtime.run import open_run
from ray_reid.runtime.sections import Section, aligned
from ray_reid.training import train

log = logging.getLogger(__name__)

SUPERVISED = (ingest.JOB, train.JOB, embed.JOB, evaluate.JOB, index.JOB)
PIPELINES: dict[str, tuple[Job, ...]] = {
    "baseline": SUPERVISED,
    "vehiclenet": (*SUPERVISED, replace(compare.JOB, needs=("ingest",))),
    "clip_senet": (*SUPERVISED, replace(compare.JOB, needs=("ingest",))),
    "vehicle_diff": (
        ingest.JOB,
        adapt.JOB,
        generate.JOB,
        review.JOB,
        replace(train.JOB, needs=("ingest", "generate")),
        embed.JOB,
        evaluate.JOB,
        index.JOB,
        replace(compare.JOB, needs=("ingest", "generate")),
    ),
    "dlcr": (
        ingest.JOB,
        describe.JOB,
        inpaint.JOB,
        replace(review.JOB, needs=("ingest", "inpaint")),
        variants.JOB,
        replace(train.JOB, needs=("ingest", "inpaint")),
        replace(embed.JOB, needs=(*embed.JOB.needs, "variants")),
        replace(evaluate.JOB, needs=(*evaluate.JOB.needs, "variants")),
        index.JOB,
        replace(compare.JOB, needs=("ingest", "inpaint", "variants")),
    ),
}
"""Jobs by the name of the recipe; what a job needs may depend on the pipeline that it is in."""
JOBS = {job.name: job for jobs in PIPELINES.values() for job in jobs}


def of_recipe(recipe: Recipe) -> tuple[Job, ...]:
    """Return the jobs of a recipe, in order.

    Raises:
        ValueError: If no pipeline has the recipe's name.
    """
    if recipe.name not in PIPELINES:
        raise ValueError(f"no pipeline {recipe.name!r}; choose from {sorted(PIPELINES)}")
    return PIPELINES[recipe.name]


def run(
    recipe: Recipe, path: Place, address: str | None = None, replace_data: bool = False
) -> None:
    """Perform every job of a recipe, then write the report and print its table.

    Raises:
        ValueError: If no pipeline has the recipe's name, or a job refuses its input.
    """
    jobs = of_recipe(recipe)
    gallery.check_faiss()
    perform(recipe, path, jobs, address, replace_data)


def run_job(
    name: str,
    recipe: Recipe,
    path: Place,
    address: str | None = None,
    replace_data: bool = False,
) -> None:
    """Perform one job of a recipe; its inputs are published in the run already.

    Raises:
        ValueError: If the recipe has no such job, or the job refuses its input.
    """
    jobs = of_recipe(recipe)
    chosen = [job for job in jobs if job.name == name]
    if not chosen:
        names = [job.name for job in jobs]
        raise ValueError(f"recipe {recipe.name!r} has no job {name!r}; choose from {names}")
    perform(recipe, path, chosen, address, replace_data)


def perform(
    recipe: Recipe,
    path: Place,
    jobs: Sequence[Job],
    address: str | None = None,
    replace_data: bool = False,
) -> None:
    """Perform some jobs in a run directory; bring its report and its live gallery up to date.

    Args:
        recipe: Of the run from now on.
        path: The run directory.
        jobs: Some of those of the recipe.
        address: Of a Ray cluster; a local one is started without.
        replace_data: Whether the results of a run may be superseded by those of other sources.

    Raises:
        ValueError: If the recipe, its data or the run is refused; nothing is changed then.
    """
    _check(recipe, jobs)
    if not replace_data:
        _check_sources(recipe, path)
    _check_data(recipe, jobs, path)
    if any(job.name == index.JOB.name for job in jobs):
        live.of_recipe(recipe, path)
    with (
        Cluster(recipe.resources, address) as cluster,
        open_run(path, recipe, cluster.start, PIPELINES.get(recipe.name, ())) as held,
    ):
        for job in jobs:
            held.perform(job)
        # Where every job was done before, a changed recipe is yet to be told.
        held.point({})
        printed = write_report(held.state)
        held.tracker.artifact(path / report.PAGE)
        held.tracker.metrics(report.headline(held.state))
        log.info("%s\nreport: %s", printed, path / report.PAGE)
        if any(job.name == index.JOB.name for job in jobs):
            searcher.seed(path)


def write_report(state: RunState) -> str:
    """Write the report of a run; returns its tables for the console."""
    shown, drawn = [], False
    for manifest in state.manifests():
        if manifest.job in JOBS:
            job = JOBS[manifest.job]
            facts = parse(job.name, manifest.facts, job.facts)
            section = Section() if job.report is None else job.report(facts)
            shown.append(report.Contribution(job.name, section, facts.pictures))
            drawn |= isinstance(facts, ingest.IngestFacts) and facts.drawn
    shown += [report.Contribution("sweep", section) for section in sweep_table.sections(state)]
    report.write_report(state, shown, drawn)
    return report.console(shown, drawn)


def run_sweep(
    file: str,
    path: Place,
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
    # `--set` takes JSON: the overrides of the file are applied as those of the command line are.
    common = [f"{key}={json.dumps(value)}" for key, value in sweep.overrides.items()]
    recipe = recipes.load(sweep.recipe, profile or sweep.profile, [*common, *overrides])
    jobs = of_recipe(recipe)
    resolved = trials.resolve(sweep, recipe, jobs)
    with (
        Cluster(recipe.resources, address) as cluster,
        open_run(path, recipe, cluster.start, jobs, guest=True) as held,
    ):
        result = tune.sweep_run(held, sweep, resolved, jobs, cluster.start)
        # The sweep is a guest: the run keeps its recipe.
        write_report(RunState.read(path))
        folder = path / f"tune-{sweep.name}"
        held.tracker.artifact(folder / sweeps.TABLE)
        table = aligned(sweep_table.table(result))
        log.info("%s\nsweep: %s\nreport: %s", table, folder, path / report.PAGE)
        failures = result["failures"]
        if failures:
            raise ValueError(
                f"sweep {sweep.name!r}: {len(failures)} of its trials failed, and the same "
                f"command tries them again; the first is {failures[0]}"
            )


def _check_sources(recipe: Recipe, path: Place) -> None:
    """Keep the data of a run: its results would be superseded by those of other sources.

    Raises:
        ValueError: If the run has results of other sources than the recipe's.
    """
    if not (path / POINTER).exists():
        return
    known = RunState.read(path)
    before, now = (sources.told(one.ingest.sources) for one in (known.recipe, recipe))
    if ingest.JOB.name in known and before != now:
        raise ValueError(
            f"run {str(path)!r} was made from {'; '.join(before)}, and this recipe reads "
            f"{'; '.join(now)}, which would take its place; give the same data (--data), another "
            "--run, or --replace"
        )


def _check_data(recipe: Recipe, jobs: Sequence[Job], path: Place) -> None:
    """Hold the data of a run against its recipe, before anything is computed or written.

    Raises:
        ValueError: If its images do not fill a batch of the training, or cannot be evaluated.
    """
    names = {job.name for job in jobs}
    if not names >= {ingest.JOB.name, train.JOB.name}:
        return
    if (path / POINTER).exists():
        known = RunState.read(path)
        if train.JOB.name in known and known.recipe.ingest == recipe.ingest:
            return
    for warning in ingest.check_rows(recipe):
        log.warning("%s", warning)


def _check(recipe: Recipe, jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.check is not None:
            job.check(recipe)
    made = any(job.name == "variants" for job in PIPELINES.get(recipe.name, ()))
    if recipe.refine is not None and not made:
        raise ValueError(
            f"the pipeline {recipe.name!r} makes no variants of queries: refine goes with 'dlcr'"
        )
