"""The synthetic-return report: which trainings it compares.

Beside real images only there is an arm for each kind of added images, amount and budget. Amounts
are counted in images that were made, so that a filter pays for what it drops.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_reid.experiments import trials
from ray_reid.experiments.trials import Inputs, ResolvedSetting
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.recipe.returns import Arm, Budget
from ray_reid.recipe.sweeps import Setting, Sweep
from ray_reid.runtime.facts import Cost
from ray_reid.runtime.job import Job
from ray_reid.runtime.results import Manifest
from ray_reid.runtime.run import Run
from ray_reid.training.train import GENERATING, num_batches

log = logging.getLogger(__name__)

REAL_ONLY = "real only"
ADDED: Mapping[Arm, str] = {
    "kept": "filtered",
    "all": "unfiltered",
    "random": "as many at random",
    "real": "as many real",
}
"""What tables and pictures call the images that an arm adds."""
ONLY = {"train.mixing": "real"}
DRAW = "train.synthetic_draw"


@dataclass(frozen=True)
class ReturnPoint:
    """An arm with an amount and a budget."""

    arm: Arm
    budget: Budget
    drawn: int
    """Generated images that were drawn, dropped ones among them."""

    @property
    def name(self) -> str:
        """What its setting is called."""
        return f"{ADDED[self.arm]}, {self.drawn} made, equal {self.budget}"


@dataclass(frozen=True)
class Plan:
    """The trainings of a report."""

    sweep: Sweep
    """Of arms, one a setting."""
    points: Mapping[str, ReturnPoint]
    """By the name of the setting; the first setting is real images only."""
    generator: str
    """The job that made the images."""
    cost: Cost | None
    """Of its images; null where it says nothing of it."""


@dataclass(frozen=True)
class Amounts:
    """Images that there are."""

    real: int
    """That are trained on in all arms."""
    held_back: int
    """Further real ones, which `train.real_fraction` leaves out."""
    made: int
    """Generated, dropped ones among them."""
    kept: Mapping[int, float]
    """Of a number that is drawn, as many as the filters kept; the mean over the seeds."""
    batches: int
    """Of one pass over the real ones."""


def preview(sweep: Sweep) -> Sweep:
    """Return a sweep of each kind of arm, by which a recipe is checked before tables are made."""
    assert sweep.returns is not None
    kinds = {ADDED[arm]: _added(arm) for arm in sweep.returns.arms}
    return _of_arms(sweep, {REAL_ONLY: ONLY, **kinds})


def check(sweep: Sweep, recipe: Recipe, jobs: Sequence[Job]) -> None:
    """Refuse a recipe for which there is no such report, before anything runs.

    Raises:
        ValueError: Names the value and the rule.
    """
    told = f"sweep {sweep.name!r}: returns:"
    if not _generators(jobs):
        raise ValueError(
            f"{told} the recipe {recipe.name!r} trains on no generated images; give one whose "
            f"pipeline has a job of {list(GENERATING)}"
        )
    if recipe.train.mixing not in ("shuffled", "balanced"):
        raise ValueError(
            f"{told} train.mixing is {recipe.train.mixing!r}, but generated images are added to "
            "real ones; choose from ['shuffled', 'balanced']"
        )
    if recipe.train.start == PRETRAIN:
        raise ValueError(
            f"{told} train.start is {PRETRAIN!r}, so what is called real only has begun with "
            "generated images; set it to null"
        )
    if recipe.train.sampler.kind == "progressive":
        raise ValueError(
            f"{told} train.sampler.kind 'progressive' makes pairs, which real images alone cannot; "
            "set it to 'identity'"
        )
    if recipe.train.stages:
        raise ValueError(f"{told} train.stages trains in a row, and one training is compared")


def planned(held: Run, sweep: Sweep, recipe: Recipe, jobs: Sequence[Job]) -> Plan:
    """Make the tables and draw up the trainings.

    Raises:
        ValueError: If a table cannot be made or trained on.
    """
    spec, plain = sweep.returns, [ResolvedSetting(Setting(REAL_ONLY, ONLY), recipe)]
    assert spec is not None
    inputs = next(iter(trials.make_inputs(held, sweep, plain, jobs).values()))
    found = _amounts(sweep, recipe, inputs)
    arms = [arm for arm in spec.arms if arm != "real" or found.held_back]
    if len(arms) < len(spec.arms):
        log.info("no real images are held back (train.real_fraction 1): none can be added")
    points = [
        ReturnPoint(arm, budget, number)
        for budget in spec.budgets
        for arm in arms
        for number in _numbers(spec.amounts, found.made)
    ]
    changes = {REAL_ONLY: {**ONLY, **_lasts("steps", recipe, found)}}
    for point in points:
        changes[point.name] = _changes(point, recipe, found)
    generator = _generators(jobs)[0]
    manifest = Manifest.read(held.path / generator / inputs.keys[generator])
    told = manifest.facts.get("cost")
    return Plan(
        _of_arms(sweep, changes, (DRAW,)),
        {point.name: point for point in points},
        generator,
        None if told is None else Cost.model_validate(told),
    )


def num_images(recipe: Recipe, tables: Sequence[Place]) -> dict[str, int]:
    """Images that a training sees, by origin."""
    from ray_reid.training import loader, validation

    found = loader.labels(tables, recipe.train, validation.left_out(recipe, tables)).counts()
    return {origin: counts["images"] for origin, counts in found.items()}


def _amounts(sweep: Sweep, recipe: Recipe, inputs: Inputs) -> Amounts:
    def counted(**changes: Any) -> dict[str, int]:
        named = {f"train.{name}": value for name, value in changes.items()}
        return num_images(recipes.override(recipe, named), inputs.tables)

    assert sweep.returns is not None
    real = counted(mixing="real")["real"]
    whole = {"mixing": "shuffled", "synthetic_fraction": 1.0, "synthetic_images": None}
    made = counted(synthetic_of="all", **whole)["synthetic"]
    kept = {}
    for number in _numbers(sweep.returns.amounts, made):
        drawn = {**whole, "synthetic_of": "kept", "synthetic_images": number}
        try:
            passed = [counted(synthetic_draw=seed, **drawn)["synthetic"] for seed in sweep.seeds]
        except ValueError as error:
            raise ValueError(
                f"sweep {sweep.name!r}: returns: of {number} of the {made} generated images too "
                f"few passed the filters: {error}"
            ) from error
        kept[number] = sum(passed) / len(passed)
    whole_real = counted(mixing="real", real_fraction=1.0)["real"]
    return Amounts(real, whole_real - real, made, kept, _batches_of_a_pass(recipe, inputs.tables))


def _numbers(shares: Sequence[float], made: int) -> list[int]:
    """Numbers of images that are drawn, each once."""
    return list(dict.fromkeys(max(1, round(share * made)) for share in shares))


def _batches_of_a_pass(recipe: Recipe, tables: Sequence[Place]) -> int:
    """Batches in which a training on real images only sees each of them once."""
    from ray_reid.training import validation

    once = {**ONLY, "train.batches_per_epoch": None, "train.repeats": 1}
    single = recipes.override(recipe, once)
    batches = num_batches(single, tables, validation.left_out(single, tables))
    return max(1, batches // single.train.epochs)


def _changes(point: ReturnPoint, recipe: Recipe, found: Amounts) -> dict[str, Any]:
    changes = {**_added(point.arm), **_lasts(point.budget, recipe, found)}
    if point.arm == "real":
        more = found.real + min(found.kept[point.drawn], found.held_back)
        share = min(1.0, more / (found.real + found.held_back))
        return {**changes, "train.real_fraction": share}
    return {**changes, "train.synthetic_images": point.drawn}


def _added(arm: Arm) -> dict[str, Any]:
    """What an arm adds, whatever the amount."""
    if arm == "real":
        return dict(ONLY)
    # The amounts are the report's own.
    return {"train.synthetic_of": arm, "train.synthetic_fraction": 1.0}


def _lasts(budget: Budget, recipe: Recipe, found: Amounts) -> dict[str, Any]:
    """How long an epoch is: real images only train equally long by either budget."""
    asked = recipe.train.batches_per_epoch or found.batches * recipe.train.repeats
    passes = max(1, round(asked / found.batches))
    if budget == "steps":
        return {"train.batches_per_epoch": passes * found.batches}
    return {"train.batches_per_epoch": None, "train.repeats": passes}


def _of_arms(
    sweep: Sweep, changes: Mapping[str, Mapping[str, Any]], seeded: tuple[str, ...] = ()
) -> Sweep:
    """The same sweep, of arms that are known one by one."""
    values = {"returns": None, "arms": changes, "seeded": seeded}
    return Sweep.model_validate({**sweep.model_dump(), **values})


def _generators(jobs: Sequence[Job]) -> list[str]:
    train = next((job for job in jobs if job.name == "train"), None)
    return [] if train is None else [name for name in GENERATING if name in train.needs]
