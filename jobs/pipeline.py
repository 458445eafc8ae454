"""The whole path of a recipe, its jobs in order; `ray-reid run` and `ray job submit` end here."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs import (
    adapt,
    compare,
    describe,
    embed,
    evaluate,
    filter,
    generate,
    index,
    ingest,
    redress,
    train,
    variants,
)
from ray_reid.evaluation import report
from ray_reid.gallery.gallery import check_faiss
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.cluster import Cluster
from ray_reid.runtime.run import Job, open_run

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
        filter.JOB,
        replace(train.JOB, needs=("ingest", "generate")),
        embed.JOB,
        evaluate.JOB,
        index.JOB,
        compare.JOB,
    ),
    "dlcr": (
        ingest.JOB,
        describe.JOB,
        redress.JOB,
        replace(filter.JOB, needs=("ingest", "generate")),
        variants.JOB,
        replace(train.JOB, needs=("ingest", "generate")),
        replace(embed.JOB, needs=(*embed.JOB.needs, "variants")),
        replace(
            evaluate.JOB,
            needs=(*evaluate.JOB.needs, "variants"),
            sections=(*evaluate.JOB.sections, "refine"),
        ),
        index.JOB,
        replace(
            compare.JOB,
            needs=(*compare.JOB.needs, "variants"),
            sections=(*compare.JOB.sections, "refine"),
        ),
    ),
}


def run(recipe: Recipe, path: Path, address: str | None = None) -> None:
    """Perform every job of a recipe, then write the report and print its table.

    Raises:
        ValueError: If no pipeline has the recipe's name, or a job refuses its input.
    """
    if recipe.name not in PIPELINES:
        raise ValueError(f"no pipeline {recipe.name!r}; choose from {sorted(PIPELINES)}")
    check_faiss()
    perform(recipe, path, PIPELINES[recipe.name], address)


def perform(recipe: Recipe, path: Path, jobs: Sequence[Job], address: str | None = None) -> None:
    """Perform some jobs in a run directory and bring its report up to date."""
    _check(recipe, jobs)
    with (
        Cluster(recipe.resources, address) as cluster,
        open_run(path, recipe, prepare=cluster.start) as held,
    ):
        for job in jobs:
            held.perform(job)
        held.save_recipe()
        report.write_report(path, recipe, held.manifests())
        held.tracker.artifact(path / "report.html")
        held.tracker.metrics(report.headline(path))
        log.info("%s\nreport: %s", report.summary_table(path), path / "report.html")


def _check(recipe: Recipe, jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.check is not None:
            job.check(recipe)
    made = any(job.name == "variants" for job in PIPELINES.get(recipe.name, ()))
    if recipe.refine is not None and not made:
        raise ValueError(
            f"the pipeline {recipe.name!r} makes no variants of queries: refine goes with 'dlcr'"
        )


if __name__ == "__main__":
    import sys

    from ray_reid.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
