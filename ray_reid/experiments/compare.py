"""The compare job: trainings that differ in the recipe only, over several seeds, as Ray tasks.

It answers what generated images are worth (Vehicle-Diff, Table II and Fig. 5): every arm and seed
is trained, embedded and scored like the run's own model, many at once, each in one process.
"""

import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.exceptions

from ray_reid import places, schema
from ray_reid.evaluation import embed
from ray_reid.evaluation.headline import HEADLINE
from ray_reid.experiments import figures_compare, in_process
from ray_reid.experiments.in_process import METRICS
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import figures, stage
from ray_reid.runtime.cluster import check_capacity
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.progress import beside_driver, watched
from ray_reid.runtime.sections import Section, Table, spread
from ray_reid.training import validation
from ray_reid.training.train import check_network, num_batches, stages_of, training_tables

log = logging.getLogger(__name__)

SECTIONS = ("train", "embed", "evaluate", "refine")
"""What an arm may change; the images and the seeds are the same for all."""
TRIALS = "trials"
PICTURE = "comparison.png"
# Times that a trial is begun again when its process dies, as one short of memory does.
RETRIES = 2


@dataclass(frozen=True)
class Arm:
    """A recipe to train by, and the images that it trains on."""

    name: str
    changes: Mapping[str, Any]
    """Dotted overrides that made the recipe."""
    recipe: Recipe
    counts: Mapping[str, Mapping[str, int]]
    """Images and identities by origin."""
    batches: int
    """In the whole training."""


@dataclass(frozen=True)
class ArmTrial:
    """One training: an arm and a seed."""

    arm: Arm
    seed: int
    file: Place
    """Holds its result once it is done."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"arm {self.arm.name!r} with seed {self.seed}"


class Tally:
    """How many batches all trials have done; they say it, and the driver's bar reads it."""

    def __init__(self, done: int, total: int) -> None:
        """Start with what an earlier attempt had `done`."""
        self._before, self._total = done, total
        self._done: dict[str, int] = {}

    def set(self, trial: str, done: int) -> None:
        """Say how much a trial has done."""
        self._done[trial] = done

    def get(self) -> tuple[int, int]:
        """What is done in all, and of how much."""
        return self._before + sum(self._done.values()), self._total


class CompareFacts(Facts):
    """What the compare job says."""

    table: tuple[dict[str, Any], ...] = ()
    """A row for each arm."""


def compare_job(work: Work) -> CompareFacts:
    """Train, embed and score every arm with every seed; resumes with the missing trials.

    Raises:
        ValueError: If an arm cannot be trained or a trial fails; the arm is named.
    """
    spec = work.recipe.compare
    if not spec.arms:
        log.info("compare.arms is empty: nothing to compare")
        return CompareFacts()
    tables = training_tables(work)
    # Refused here, before anything is trained.
    in_process.scored_sides(tables[0], lambda rows: np.zeros((rows, 1), np.float32))
    arms = [_arm(work.recipe, name, changes, tables) for name, changes in spec.arms.items()]
    check_capacity("compare.num_cpus and num_gpus:", 1, spec.num_cpus, spec.num_gpus)
    folder = work.out / TRIALS
    folder.mkdir(exist_ok=True)
    trials = [
        ArmTrial(arm, seed, folder / f"{arm.name}-seed{seed}.json")
        # By seed first: all arms are seen early.
        for seed in spec.seeds
        for arm in arms
    ]
    _perform(trials, tables, in_process.variants_table(work.inputs), spec.num_cpus, spec.num_gpus)
    table = [_row(arm, [trial for trial in trials if trial.arm is arm]) for arm in arms]
    figures.save(figures_compare.arms(_by_seed(table, ("mAP", "rank-1"))), work.out / PICTURE)
    return CompareFacts(
        table=tuple(table),
        metrics={f"{row['arm']} {name}": row[name]["mean"] for row in table for name in METRICS},
        pictures={PICTURE: _caption(spec.seeds)},
    )


def check(recipe: Recipe) -> None:
    """Refuse an arm with a wrong name or entry, before anything runs.

    Raises:
        ValueError: Names the arm.
    """
    for name, changes in recipe.compare.arms.items():
        try:
            _check_changes(name, changes)
            changed = recipes.override(recipe, changes)
            embed.check(changed)
            _check_variants(recipe, changed)
        except ValueError as error:
            raise ValueError(f"compare.arms: arm {name!r}: {error}") from error


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models that the arms embed with beside their own."""
    arms = recipe.compare.arms.values()
    return schema.observation_id(
        *(embed.outside(recipes.override(recipe, changes)) for changes in arms)
    )


def _arm(recipe: Recipe, name: str, changes: Mapping[str, Any], tables: Sequence[Place]) -> Arm:
    """Resolve an arm, and find out here whatever would stop its training at the start."""
    from ray_reid.training import loader

    try:
        _check_changes(name, changes)
        changed = recipes.override(recipe, changes)
        check_network(changed.train)
        held_out = validation.left_out(changed, tables)
        batches = num_batches(changed, tables, held_out)
        # Of the first stage, which sees the most.
        _, first = stages_of(changed)[0]
        counts = loader.labels(tables, first.train, held_out).counts()
    except ValueError as error:
        raise ValueError(f"compare.arms: arm {name!r}: {error}") from error
    return Arm(name, changes, changed, counts, batches)


def _check_changes(name: str, changes: Mapping[str, Any]) -> None:
    if not name.replace("_", "").replace("-", "").replace(".", "").isalnum() or not name.isascii():
        raise ValueError("its name may hold letters, digits and any of '_-.' only")
    for key in changes:
        if key.split(".")[0] not in SECTIONS:
            raise ValueError(
                f"{key!r} is not of a section that trainings may differ in; choose from "
                f"{list(SECTIONS)}"
            )


def _check_variants(recipe: Recipe, changed: Recipe) -> None:
    """Refuse an arm that needs other variants than the run makes."""
    made, wanted = recipe.refine, changed.refine
    if wanted is None:
        return
    if made is None:
        raise ValueError("it refines, but the recipe does not: set refine there, and null in arms")
    if (made.steps, made.scale) != (wanted.steps, wanted.scale):
        raise ValueError("refine.steps and refine.scale must be those of the recipe")
    if wanted.num_variants > made.num_variants:
        raise ValueError(
            f"refine.num_variants {wanted.num_variants} is more than the {made.num_variants} of "
            "the recipe, which are made for all arms"
        )


def _perform(
    trials: Sequence[ArmTrial],
    tables: Sequence[Place],
    variants: Place | None,
    num_cpus: float,
    num_gpus: float,
) -> None:
    """Run the trials that have no result yet, as many at once as Ray has room for."""
    left = [trial for trial in trials if not trial.file.exists()]
    if len(left) < len(trials):
        log.info("%d of %d trials were done before", len(trials) - len(left), len(trials))
    if not left:
        return
    total = sum(trial.arm.batches for trial in trials)
    done = total - sum(trial.arm.batches for trial in left)
    tally = beside_driver(Tally, done, total)
    task: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=RETRIES)(_task)
    paths = [str(path) for path in tables]
    running = {
        task.remote(
            in_process.portable(trial.arm.recipe, trial.seed),
            paths,
            None if variants is None else str(variants),
            num_cpus,
            num_gpus > 0,
            trial.name,
            tally,
        ): trial
        for trial in left
    }
    # The bar's thread must not wait for an actor that has yet to start when all is over.
    ray.get(tally.get.remote())
    with watched("compare", "batch", lambda: ray.get(tally.get.remote())):
        try:
            while running:
                (finished,), _ = ray.wait(list(running), num_returns=1)
                _finish(finished, running.pop(finished))
        finally:
            for waiting in running:
                ray.cancel(waiting, force=True)


def _task(
    recipe: Recipe,
    tables: Sequence[str],
    variants: str | None,
    num_cpus: float,
    use_gpu: bool,
    name: str,
    tally: Any,
) -> dict[str, Any]:
    """A trial as a Ray task."""
    import torch

    # Trials side by side must not fight for the cores.
    torch.set_num_threads(max(1, int(num_cpus)))
    device = torch.device("cuda" if use_gpu else "cpu")
    started = time.monotonic()
    found = in_process.run_trial(
        recipe,
        [places.place(table) for table in tables],
        device,
        lambda batches: tally.set.remote(name, batches),
        variants=None if variants is None else places.place(variants),
    )
    return {"metrics": found, "seconds": round(time.monotonic() - started, 3)}


def _finish(finished: Any, trial: ArmTrial) -> None:
    """Write the result of a trial at once: a killed comparison does not lose it."""
    try:
        found = ray.get(finished)
    except ray.exceptions.RayError as error:
        raise ValueError(f"compare: {trial.name}: {stage.reason(error)}") from error
    arm = trial.arm
    values = {"arm": arm.name, "seed": trial.seed, "changes": arm.changes, "counts": arm.counts}
    places.write_text(trial.file, json.dumps({**values, **found}, indent=2) + "\n")


def _row(arm: Arm, trials: Sequence[ArmTrial]) -> dict[str, Any]:
    """An arm's line of the table; the deviation is that of a sample, and null of one seed."""
    results = [json.loads(trial.file.read_text())["metrics"] for trial in trials]
    row: dict[str, Any] = {"arm": arm.name, "changes": dict(arm.changes)}
    for kind in ("images", "identities"):
        row |= {f"{origin}_{kind}": counts[kind] for origin, counts in arm.counts.items()}
    row["seeds"] = [trial.seed for trial in trials]
    for name in METRICS:
        values = [result[name] for result in results]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        row[name] = {"mean": statistics.fmean(values), "std": deviation, "values": values}
    return row


def _by_seed(
    table: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    return {row["arm"]: {name: row[name]["values"] for name in names} for row in table}


def _caption(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"Trainings that differ in the recipe only, scored alike; one seed, {seeds[0]}."
    return (
        f"Trainings that differ in the recipe only, scored alike: bars are means over {len(seeds)} "
        "seeds, lines their standard deviation, dots the single seeds."
    )


def crops_of_arms(recipe: Recipe) -> tuple[str, ...]:
    """Return what decides, besides `embed`, how the images of any arm are cropped."""
    changed = {key for changes in recipe.compare.arms.values() for key in changes}
    if any(key == "embed" or key.startswith("embed.crop") for key in changed):
        return embed.CROPS
    return embed.crops_with(recipe)


def section(facts: CompareFacts) -> Section:
    """Show the figures of each arm as mean and deviation over its seeds."""
    names = [name for name in HEADLINE if any(name in row for row in facts.table)]
    if not names:
        return Section()
    rows = tuple(
        (
            str(row["arm"]),
            str(row["real_images"]),
            str(row["synthetic_images"]),
            str(len(row["seeds"])),
            *(spread(row.get(name)) for name in names),
        )
        for row in facts.table
    )
    header = ("training", "real", "synthetic", "seeds", *names)
    note = "Mean over the seeds, and their standard deviation where there are several."
    return Section((Table("Comparison", header, rows, note, measured=True),))


JOB = Job(
    "compare",
    compare_job,
    needs=("ingest", "generate"),
    sections=("name", "seed", "train", "embed", "evaluate", "refine", "compare"),
    also=crops_of_arms,
    check=check,
    outside=outside,
    facts=CompareFacts,
    report=section,
)
