"""The compare job: trainings that differ in the recipe only, over several seeds.

It answers what generated images are worth (Vehicle-Diff, Table II and Fig. 5): every arm and seed
is trained, embedded and scored like the run's own model, by the engine of all experiments.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_reid import schema, storage
from ray_reid.evaluation import embed
from ray_reid.evaluation.headline import HEADLINE
from ray_reid.experiments import engine, figures_compare, in_process, trials
from ray_reid.experiments.in_process import METRICS
from ray_reid.experiments.sweep_table import setting_row
from ray_reid.experiments.trials import Inputs, ResolvedSetting
from ray_reid.places import Place
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.recipe.sweeps import Setting, Sweep
from ray_reid.runtime import figures
from ray_reid.runtime.cluster import check_capacity
from ray_reid.runtime.facts import VARIANTS, Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.run import TRIALS
from ray_reid.runtime.sections import Section, Table, spread
from ray_reid.training import checks, validation
from ray_reid.training.beginnings import outside as begins_with
from ray_reid.training.train import (
    num_batches,
    pretrained_package,
    stages_of,
    training_tables,
)

log = logging.getLogger(__name__)

SECTIONS = ("train", "embed", "evaluate", "refine")
"""What an arm may change; the images and the seeds are the same for all."""
PICTURE = "comparison.png"


class CompareFacts(Facts):
    """What the compare job says."""

    table: tuple[dict[str, Any], ...] = ()
    """A row for each arm."""


def compare_job(work: Work) -> CompareFacts:
    """Train, embed and score every arm with every seed; resumes with the missing trials.

    Raises:
        ValueError: If an arm cannot be trained, or a trial fails after the others are done; the arm
            is named.
    """
    spec = work.recipe.compare
    if not spec.arms:
        log.info("compare.arms is empty: nothing to compare")
        return CompareFacts()
    sweep = as_sweep(work.recipe)
    inputs = _inputs(work)
    found = [
        ResolvedSetting(setting, _resolved(work.recipe, setting, inputs.tables))
        for setting in sweeps.settings(sweep)
    ]
    check_capacity("compare.num_cpus and num_gpus:", 1, spec.num_cpus, spec.num_gpus)
    made = {(one.setting.name, seed): inputs for one in found for seed in spec.seeds}
    every = trials.expand(sweep, found, made, work.trials or work.out / TRIALS)
    failed = engine.perform("compare", sweep, every, work.out)
    if failed:
        (name, seed), reason = next(iter(failed.items()))
        raise ValueError(
            f"compare: {len(failed)} of {len(every)} trials failed; arm {name!r} with seed {seed}: "
            f"{reason}"
        )
    table = [
        _counts(one.recipe, inputs.tables)
        | setting_row(
            sweep, one.setting, {seed: every[one.setting.name, seed].read() for seed in spec.seeds}
        )
        for one in found
    ]
    figures.save(figures_compare.arms(_by_seed(table, ("mAP", "rank-1"))), work.out / PICTURE)
    return CompareFacts(
        table=tuple(table),
        metrics={
            f"{one['setting']} {name}": one[name]["mean"] for one in table for name in METRICS
        },
        pictures={PICTURE: _caption(spec.seeds)},
    )


def as_sweep(recipe: Recipe) -> Sweep:
    """Return the comparison of a recipe as the engine takes it."""
    spec = recipe.compare
    return Sweep(
        name="compare",
        recipe=recipe.name,
        arms=spec.arms,
        seeds=spec.seeds,
        num_cpus=spec.num_cpus,
        num_gpus=spec.num_gpus,
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
            checks.check(changed)
            embed.check(changed)
            _check_variants(recipe, changed)
        except ValueError as error:
            raise ValueError(f"compare.arms: arm {name!r}: {error}") from error


def outside(recipe: Recipe) -> str:
    """Fingerprint of what the arms begin with, and embed with beside their own models."""
    arms = [recipes.override(recipe, changes) for changes in recipe.compare.arms.values()]
    return schema.observation_id(
        *(part(arm) for arm in arms for part in (begins_with, embed.outside))
    )


def unread(recipe: Recipe) -> frozenset[str]:
    """A pre-training, where no arm begins with it."""
    arms = [recipes.override(recipe, changes) for changes in recipe.compare.arms.values()]
    return frozenset({PRETRAIN} - {arm.train.start for arm in arms})


def _inputs(work: Work) -> Inputs:
    """The tables of the job as those of trials; the folder of a result is named by its key."""
    tables = tuple(training_tables(work))
    # Refused here, before anything is trained.
    in_process.scored_sides(tables[0], lambda rows: np.zeros((rows, 1), np.float32))
    keys = {name: place.name for name, place in work.inputs.items() if name != VARIANTS}
    tested = storage.read(tables[0], [schema.OBSERVATION_ID], in_process.scored_rows(None))
    return Inputs(
        tables,
        keys,
        (),
        frozenset(),
        schema.observation_id(*tested[schema.OBSERVATION_ID].to_pylist()),
        in_process.variants_table(work.inputs),
        work.inputs[VARIANTS].name if VARIANTS in work.inputs else "",
        pretrained_package(work.inputs),
    )


def _resolved(recipe: Recipe, setting: Setting, tables: Sequence[Place]) -> Recipe:
    """Resolve an arm, and find out here whatever would stop its training at the start."""
    try:
        _check_changes(setting.name, setting.changes)
        changed = recipes.override(recipe, setting.changes)
        checks.check_network(changed.train)
        num_batches(changed, tables, validation.left_out(changed, tables))
    except ValueError as error:
        raise ValueError(f"compare.arms: arm {setting.name!r}: {error}") from error
    return changed


def _counts(recipe: Recipe, tables: Sequence[Place]) -> dict[str, int]:
    """Images and identities that an arm trains on, by origin."""
    from ray_reid.training import loader

    # The first stage sees the most.
    _, first = stages_of(recipe)[0]
    found = loader.labels(tables, first.train, validation.left_out(recipe, tables)).counts()
    return {
        f"{origin}_{kind}": counts[kind]
        for kind in ("images", "identities")
        for origin, counts in found.items()
    }


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


def _by_seed(
    table: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    return {one["setting"]: {name: one[name]["values"] for name in names} for one in table}


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
    names = [name for name in HEADLINE if any(name in one for one in facts.table)]
    if not names:
        return Section()
    rows = tuple(
        (
            str(one["setting"]),
            str(one["real_images"]),
            str(one["synthetic_images"]),
            str(len(one["seeds"])),
            *(spread(one.get(name)) for name in names),
        )
        for one in facts.table
    )
    header = ("training", "real", "synthetic", "seeds", *names)
    note = "Mean over the seeds, and their standard deviation where there are several."
    return Section((Table("Comparison", header, rows, note, measured=True),))


JOB = Job(
    "compare",
    compare_job,
    needs=("ingest", "generate"),
    unread=unread,
    sections=("name", "seed", "train", "embed", "evaluate", "refine", "compare"),
    also=crops_of_arms,
    check=check,
    outside=outside,
    format=2,
    scratch=(".ray",),
    facts=CompareFacts,
    report=section,
)
