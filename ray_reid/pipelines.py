"""Which jobs make up each recipe, in order, and how they are run.

Every job is declared beside the function that does its work; `jobs/` tells what each is for.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray_reid.datasets import ingest, sources
from ray_reid.evaluation import embed, evaluate, floors, given, report
from ray_reid.experiments import compare, returns, sweep_table, trials, tune
from ray_reid.gallery import gallery, index, live, searcher
from ray_reid.generation import (
    adapt,
    describe,
    enhance,
    generate,
    inpaint,
    judges,
    personalise,
    review,
    teachers,
    variants,
)
from ray_reid.places import Place, place
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
    "diffusion_reid": (
        ingest.JOB,
        enhance.JOB,
        teachers.JOB,
        # Before what takes longest, so that what judges refuse is said first.
        judges.JOB,
        personalise.JOB,
        replace(review.JOB, needs=("ingest", "personalise", "judges")),
        replace(train.JOB, needs=("ingest", "personalise")),
        embed.JOB,
        evaluate.JOB,
        index.JOB,
        replace(compare.JOB, needs=("ingest", "personalise")),
    ),
}
"""Jobs by the name of the recipe; what a job needs may depend on the pipeline that it is in."""
GIVEN = (ingest.JOB, given.JOB, embed.JOB, evaluate.JOB, index.JOB)
"""Jobs of a recipe that names a model package, whatever its own name."""
FLOOR = (ingest.JOB, floors.JOB, embed.JOB, evaluate.JOB, index.JOB)
"""Jobs of one that names a backbone whose pretrained features are scored as they are."""
JOBS = {job.name: job for jobs in (*PIPELINES.values(), (train.PRETRAIN_JOB,)) for job in jobs}


def of_recipe(recipe: Recipe) -> tuple[Job, ...]:
    """Return the jobs of a recipe, in order.

    Raises:
        ValueError: If no pipeline has the recipe's name.
    """
    jobs = _known(recipe)
    if not jobs:
        raise ValueError(f"no pipeline {recipe.name!r}; choose from {sorted(PIPELINES)}")
    return jobs


def with_pretraining(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Put a pre-training before the training of a pipeline, on the same tables."""
    found: list[Job] = []
    for job in jobs:
        if job.name == train.JOB.name:
            found.append(replace(train.PRETRAIN_JOB, needs=job.needs))
        trains = job.name in (train.JOB.name, compare.JOB.name)
        needs = (*job.needs, train.PRETRAIN_JOB.name) if trains else job.needs
        found.append(replace(job, needs=needs))
    return tuple(found)


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
        open_run(path, recipe, cluster.start, _known(recipe)) as held,
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


def score(
    package: str | Place | Sequence[str | Place],
    data: given.Data | None = None,
    *,
    run: str | Place | None = None,
    settings: Mapping[str, Any] | None = None,
    recipe: str | Place | None = None,
    profile: str | None = None,
    address: str | None = None,
    replace_data: bool = False,
) -> dict[str, float]:
    """Score a model package on a data set, in a run of its own: `ray_reid.evaluate`.

    Args:
        package: What `ray_reid.load` takes; several are an ensemble. Or the floor of a training,
            `pretrained:BACKBONE`.
        data: Folder of a layout that `ray-reid doctor` recognises; or a source, or several, as a
            recipe has them: `{"reader": "folder", "root": "crops", "pattern": "..."}`.
        run: Directory of the run, on a disk or in a bucket; by default `runs/PACKAGE-on-DATA`. It
            may not hold the package.
        settings: Values of the recipe by dotted keys, such as `{"evaluate.protocol": "track"}`.
        recipe: Name or file of a recipe whose data set and protocol are used, such as
            `runs/demo/recipe.yaml`. None takes the protocol of the data set and the package's own
            views of an image.
        profile: Of that recipe.
        address: Ray cluster; None is `RAY_ADDRESS`, else a local one.
        replace_data: Whether results of other data may be superseded, where the run has any.

    Returns:
        The figures of `metrics.json` by name, from 0 to 1.

    Raises:
        ValueError: If there is no package, or the data set cannot be scored.
    """
    packages = [package] if isinstance(package, (str, Place)) else package
    names, file = [str(one) for one in packages], None if recipe is None else str(recipe)
    composed = given.recipe_of(names, settings or {}, file, profile, data)
    path = given.run_of(names, composed) if run is None else place(run)
    if run is None:
        given.check_own(composed, path)
    for name in names:
        given.check_apart(name, path)
    gallery.check_faiss()
    perform(composed, path, of_recipe(composed), address, replace_data)
    return report.headline(RunState.read(path))


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
    recipe = _recipe_of_sweep(sweep, path, profile, overrides)
    if recipe.package is not None:
        raise ValueError(
            f"sweep {sweep.name!r} trains, but its recipe {recipe.name!r} scores the package "
            f"{recipe.package!r}; give a recipe that trains"
        )
    jobs, plan = of_recipe(recipe), None
    if sweep.returns is not None:
        returns.check(sweep, recipe, jobs)
        resolved = trials.resolve(returns.preview(sweep), recipe, jobs)
    else:
        resolved = trials.resolve(sweep, recipe, jobs)
    for warning in tune.check_data(sweep, resolved):
        log.warning("%s", warning)
    with (
        Cluster(recipe.resources, address) as cluster,
        open_run(path, recipe, cluster.start, jobs, guest=True) as held,
    ):
        if sweep.returns is not None:
            plan = returns.planned(held, sweep, recipe, jobs)
            sweep, resolved = plan.sweep, trials.resolve(plan.sweep, recipe, jobs)
        result = tune.sweep_run(held, sweep, resolved, jobs, cluster.start, plan=plan)
        # The sweep is a guest: the run keeps its recipe.
        write_report(RunState.read(path))
        folder = path / f"tune-{sweep.name}"
        held.tracker.artifact(folder / sweeps.TABLE)
        shown = sweep_table.section(result)
        told = "\n".join([*map(aligned, shown.tables), *(f"{note}." for note in shown.notes)])
        log.info("%s\nsweep: %s\nreport: %s", told, folder, path / report.PAGE)
        failures = result["failures"]
        if failures:
            raise ValueError(
                f"sweep {sweep.name!r}: {len(failures)} of its trials failed, and the same "
                f"command tries them again; the first is {failures[0]}"
            )


def _recipe_of_sweep(
    sweep: sweeps.Sweep, path: Place, profile: str | None, overrides: Sequence[str]
) -> Recipe:
    """The recipe that a sweep names, or that of the run, with what all its settings share."""
    # `--set` takes JSON: the overrides of the file are applied as those of the command line are.
    common = [f"{key}={json.dumps(value)}" for key, value in sweep.overrides.items()]
    profile, changes = profile or sweep.profile, [*common, *overrides]
    if sweep.recipe is not None:
        return recipes.load(sweep.recipe, profile, changes)
    if not (path / POINTER).exists():
        raise ValueError(
            f"sweep {sweep.name!r} takes the recipe of the run, and there is no run {str(path)!r}; "
            "make it first: ray-reid run RECIPE --run DIR"
        )
    own = RunState.read(path).recipe
    if profile not in (None, own.profile):
        raise ValueError(
            f"sweep {sweep.name!r} takes the recipe of the run, whose profile is {own.profile!r}, "
            f"not {profile!r}"
        )
    return recipes.change(own.model_dump(mode="json"), changes)


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
    made = any(job.name == "variants" for job in _known(recipe))
    if recipe.refine is not None and not made:
        raise ValueError(
            f"the pipeline {recipe.name!r} makes no variants of queries: refine goes with 'dlcr', "
            "and with no package that is given"
        )


def _known(recipe: Recipe) -> tuple[Job, ...]:
    """The whole pipeline of a recipe; none where its name is not known."""
    if recipe.package is None:
        jobs = PIPELINES.get(recipe.name, ())
        return jobs if recipe.pretrain is None else with_pretraining(jobs)
    return FLOOR if floors.is_floor(recipe.package) else GIVEN
