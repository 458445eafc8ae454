"""What a sweep trains: its settings resolved to recipes, their tables made, and its trials.

All that can be refused is refused here: the recipes before anything runs, and what depends on the
tables before anything is trained.
"""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_reid import schema, storage
from ray_reid.evaluation import embed
from ray_reid.experiments import in_process, trial_checks
from ray_reid.experiments.trial_checks import has_workers
from ray_reid.places import Place
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.recipe.sweeps import Setting, Sweep
from ray_reid.recipe.view import restrict
from ray_reid.runtime.facts import VARIANTS
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import Manifest
from ray_reid.runtime.run import MODELS, TRAININGS, Run, content_key
from ray_reid.storage import Fingerprint
from ray_reid.training import validation
from ray_reid.training.beginnings import outside as begins_with
from ray_reid.training.checks import check, check_network
from ray_reid.training.train import num_batches, pretrained_package, training_tables

SCORED = ("train", "embed", "evaluate")
"""Jobs of a pipeline whose work a trial does itself; what they need is made before."""
FORMAT = 3
"""Of a trial's result: raised when it changes though the recipe and the tables do not."""
VALIDATION, HISTORY, AP = "validation", "history", "ap"
"""Entries of a trial's result: begins the names of what was validated; one mapping per epoch; the
average precision of each query, packed."""


@dataclass(frozen=True)
class ResolvedSetting:
    """A setting and the recipe that it makes."""

    setting: Setting
    recipe: Recipe


@dataclass(frozen=True)
class Inputs:
    """Tables that the prerequisite jobs have published for some variants."""

    tables: tuple[Place, ...]
    keys: Mapping[str, str]
    """Key of each published job."""
    fingerprints: tuple[Fingerprint, ...]
    """Of the tables."""
    held_out: frozenset[str]
    """Identities that validate and are not trained on."""
    test_set: str
    """Hash of the ids of the test images."""
    variants: Place | None = None
    """Table of the queries in other clothes, if the pipeline makes them."""
    variants_key: str = ""
    """Key of the job that made it."""
    pretrained: Place | None = None
    """Package of the pre-training, if one has been made."""


@dataclass(frozen=True)
class Task:
    """All that a worker needs for a trial."""

    name: str
    recipe: Recipe
    tables: tuple[str, ...]
    held_out: tuple[str, ...]
    source: str | None
    shared: str | None
    """Where trials whose trainings are equal keep the model."""
    num_cpus: float
    num_gpus: float
    variants: str | None = None
    """Table of the queries in other clothes, if there is one."""
    folder: str | None = None
    """For the checkpoints of several workers, if its training has them."""
    pretrained: str | None = None
    """Package that its training starts from, if that is the pre-training's."""


@dataclass(frozen=True)
class Trial:
    """One training: a resolved setting and a seed."""

    resolved: ResolvedSetting
    seed: int
    inputs: Inputs
    batches: int
    file: Place
    """Holds its result once it is done."""
    stopped: Place
    """Says how far it came when the scheduler stopped it."""
    shared: Place | None
    """Where it and others whose trainings are equal keep the model; null if there are none."""

    @property
    def key(self) -> str:
        """Hash of what its result is made from."""
        return self.file.stem

    @property
    def folder(self) -> Place:
        """Where several workers keep the checkpoints of its training until it has a result."""
        return self.file.parent / TRAININGS / self.key

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.resolved.setting.name!r} with seed {self.seed}"

    @property
    def is_over(self) -> bool:
        """Whether it was trained to the end, or stopped, before."""
        return self.file.exists() or self.stopped.exists()

    def read(self) -> dict[str, Any]:
        """What its file holds."""
        file = self.file if self.file.exists() else self.stopped
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def resolve(sweep: Sweep, recipe: Recipe, jobs: Sequence[Job]) -> list[ResolvedSetting]:
    """Resolve every setting against the sweep's recipe, refusing what could not be trained.

    Raises:
        ValueError: Names the setting and the rule that it breaks.
    """
    found = []
    for setting in sweeps.settings(sweep):
        try:
            changed = recipes.override(recipe, setting.changes)
            seeds = sweep.seeds if sweep.seeded else ()
            seeded = [recipes.override(changed, dict.fromkeys(sweep.seeded, s)) for s in seeds]
            # A setting may do without a job that the sweep's own recipe needs, and the other way.
            needed = {one.name: one for of in (recipe, changed) for one in prerequisites(jobs, of)}
            allowed = _sections(jobs, list(needed.values()))
            trial_checks.keys([*setting.changes, *sweep.seeded], allowed)
            for one in [changed, *seeded]:
                for job in prerequisites(jobs, one):
                    if job.check is not None:
                        job.check(one)
            check(changed)
            check_network(changed.train)
            trial_checks.pretraining(sweep, changed, jobs)
            embed.check(changed)
            trial_checks.epochs(sweep, changed)
            trial_checks.validation(sweep, changed)
            trial_checks.workers(sweep, changed)
        except ValueError as error:
            raise ValueError(f"sweep {sweep.name!r}: {setting.name!r}: {error}") from error
        found.append(ResolvedSetting(setting, changed))
    return found


def prerequisites(jobs: Sequence[Job], recipe: Recipe | None = None) -> list[Job]:
    """The jobs of a pipeline that trials rest on, in their order: those of a recipe, or of any."""
    needed = {
        other.name for job in jobs if job.name in SCORED for other in _before(jobs, job, recipe)
    }.difference(SCORED)
    return [job for job in jobs if job.name in needed]


def make_inputs(
    held: Run, sweep: Sweep, found: Sequence[ResolvedSetting], jobs: Sequence[Job]
) -> dict[tuple[str, int], Inputs]:
    """Perform the prerequisites of all settings, each distinct one once.

    A sweep is a guest in a run: what is current there stays current. A run that had nothing takes
    what was made as the sweep's own recipe says.

    Returns:
        The inputs by setting and seed, which differ by the seed where the sweep is `seeded`.
    """
    inputs: dict[tuple[str, ...], Inputs] = {}
    by_trial = {}
    for resolved, seed in itertools.product(found, sweep.seeds):
        recipe = recipes.override(resolved.recipe, dict.fromkeys(sweep.seeded, seed))
        made: dict[str, Manifest] = {}
        for job in prerequisites(jobs, recipe):
            keys = {name: manifest.key for name, manifest in made.items()}
            made[job.name] = held.make(job, recipe, keys)
        whole = tuple(manifest.key for manifest in made.values())
        if whole not in inputs:
            inputs[whole] = _inputs(held, recipe, made, sweep, jobs)
        by_trial[resolved.setting.name, seed] = inputs[whole]
    if not held.state.keys:
        held.point({})
        for job in itertools.takewhile(
            lambda job: held.is_made(job, held.recipe, held.state.keys),
            prerequisites(jobs, held.recipe),
        ):
            held.perform(job)
    return by_trial


def expand(
    sweep: Sweep,
    found: Sequence[ResolvedSetting],
    made: Mapping[tuple[str, int], Inputs],
    store: Place,
) -> dict[tuple[str, int], Trial]:
    """Every trial by setting and seed; checks each resolved setting against its tables.

    Results are named by their content and lie in the `store`, which the experiments of a run share.

    Raises:
        ValueError: If the rows of a resolved setting cannot fill its batches; the setting is named.
    """
    store.mkdir(parents=True, exist_ok=True)
    trials = {}
    trainings: dict[tuple[str, int], str] = {}
    judged = f"{sweep.scheduler!r} {sweep.metric}"
    # By seed first: all settings are seen early.
    for seed in sweep.seeds:
        for resolved in found:
            inputs = made[resolved.setting.name, seed]
            seeded = recipes.override(resolved.recipe, dict.fromkeys(["seed", *sweep.seeded], seed))
            batches = _batches(sweep, resolved, seeded, inputs)
            judged_on = {"validation": sorted(inputs.held_out), "tested": sweep.tested}
            parts = {**_begun_from(seeded, inputs), "judged_on": json.dumps(judged_on)}
            parts["begins_with"] = begins_with(seeded)
            training = content_key("training", FORMAT, seeded, ("seed", "train"), parts)
            beside = embed.outside(seeded)
            if beside != embed.NOTHING:
                parts["outside"] = beside
            if inputs.variants_key:
                parts[VARIANTS] = inputs.variants_key
            key = content_key("trial", FORMAT, seeded, _reads(seeded), parts)
            # Against which others a trial was stopped, a sweep alone knows.
            judged_by = {"scheduler": judged, "key": key, "sweep": sweep.name}
            rule = content_key("stop", FORMAT, seeded, (), judged_by)
            stopped = store / f"{rule}.stopped.json"
            place = resolved.setting.name, seed
            trainings[place] = training
            trials[place] = Trial(
                ResolvedSetting(resolved.setting, seeded),
                seed,
                inputs,
                batches,
                store / f"{key}.json",
                stopped,
                None,
            )
    return _sharing(trials, trainings, store / MODELS)


def _sharing(
    trials: dict[tuple[str, int], Trial], trainings: Mapping[tuple[str, int], str], models: Place
) -> dict[tuple[str, int], Trial]:
    """Let trials share a model that are trained alike; what validates is trained each by itself."""
    # Two settings that come to the same recipe are one trial.
    by_key = {trials[place].key: training for place, training in trainings.items()}
    different = Counter(by_key.values())
    models.mkdir(exist_ok=True)
    shared = dict(trials)
    for place, trial in trials.items():
        validated = trial.inputs.held_out or trial.resolved.recipe.train.validation
        if different[trainings[place]] > 1 and not validated:
            shared[place] = replace(trial, shared=models / trainings[place])
    return shared


def task(sweep: Sweep, trial: Trial) -> Task:
    """A trial as workers get it."""
    return Task(
        name=trial.key,
        recipe=restrict(
            in_process.portable(trial.resolved.recipe, trial.seed),
            _reads(trial.resolved.recipe),
            f"trial {trial.name}",
        ),
        tables=tuple(map(str, trial.inputs.tables)),
        held_out=tuple(sorted(trial.inputs.held_out)),
        source=sweep.tested,
        shared=None if trial.shared is None else str(trial.shared.resolve()),
        num_cpus=sweep.num_cpus,
        num_gpus=sweep.num_gpus,
        variants=None if trial.inputs.variants is None else str(trial.inputs.variants),
        folder=str(trial.folder.resolve()) if has_workers(trial.resolved.recipe) else None,
        pretrained=None if trial.inputs.pretrained is None else str(trial.inputs.pretrained),
    )


def _begun_from(recipe: Recipe, inputs: Inputs) -> dict[str, str]:
    """Keys of the jobs that a trial depends on: on a pre-training only if it starts from it."""
    return {
        name: key
        for name, key in inputs.keys.items()
        if name != PRETRAIN or recipe.train.start == PRETRAIN
    }


def _reads(recipe: Recipe) -> tuple[str, ...]:
    """Return what a trial reads of its recipe."""
    return ("name", "seed", *SCORED, "refine", *embed.crops_with(recipe))


def _sections(jobs: Sequence[Job], needed: Sequence[Job]) -> list[str]:
    """Return the sections of a recipe that trials depend on, which need some jobs of a pipeline."""
    read = {part.split(".")[0] for job in needed for part in job.sections}
    refined = {"refine"} if any(job.name == VARIANTS for job in jobs) else set()
    return sorted((read | refined | set(SCORED)) - {"name", "profile", "seed"})


def _before(jobs: Sequence[Job], job: Job, recipe: Recipe | None) -> list[Job]:
    """What a job rests on, directly or through others."""

    def read(one: Job) -> set[str]:
        return set(one.needs if recipe is None else one.inputs(recipe))

    needed = read(job)
    for other in reversed(jobs):
        if other.name in needed:
            needed |= read(other)
    return [other for other in jobs if other.name in needed]


def _inputs(
    held: Run, recipe: Recipe, made: Mapping[str, Manifest], sweep: Sweep, jobs: Sequence[Job]
) -> Inputs:
    train = next(job for job in jobs if job.name == "train")
    folders = {name: held.path / name / manifest.key for name, manifest in made.items()}
    # Without its pre-training, where no training starts from it.
    there = {name: folders[name] for name in train.needs if name in folders}
    tables = tuple(training_tables(Work(recipe, held.path, there, {})))
    kept = frozenset[str]()
    # Refused here, before anything is trained.
    in_process.scored_sides(tables[0], lambda rows: np.zeros((rows, 1), np.float32), sweep.tested)
    if sweep.validation:
        kept = validation.held_out(
            tables[0], sweep.validation, [sweep.tested] if sweep.tested else ()
        )
        validation.Validation(tables[0], kept, recipe.evaluate)
    variants = in_process.variants_table(folders)
    dressed = made[VARIANTS].key if VARIANTS in made else ""
    keys = {name: made[name].key for name in there}
    prints = [made[name].fingerprint for name in there]
    fingerprints = tuple(fingerprint for fingerprint in prints if fingerprint is not None)
    found = storage.read(tables[0], [schema.OBSERVATION_ID], in_process.scored_rows(sweep.tested))
    test_set = schema.observation_id(*found[schema.OBSERVATION_ID].to_pylist())
    begun = pretrained_package(there)
    return Inputs(tables, keys, fingerprints, kept, test_set, variants, dressed, begun)


def _batches(sweep: Sweep, resolved: ResolvedSetting, recipe: Recipe, inputs: Inputs) -> int:
    try:
        # One of the two at most holds any out.
        held_out = inputs.held_out | validation.left_out(recipe, inputs.tables)
        return num_batches(recipe, inputs.tables, held_out)
    except ValueError as error:
        raise ValueError(f"sweep {sweep.name!r}: {resolved.setting.name!r}: {error}") from error
