"""The judges job: ReID models that have seen no image of the identities that they judge.

The review asks them whether generated images keep their identity: neither the generator nor a
filter knows them.

    OUT/SOURCE-0, SOURCE-1   of each source, models that saw one half of its identities each
    OUT/SOURCE               or of each source, the package that judges all of them
    OUT/*/features           their features of the train images that they may judge
"""

import logging
from collections.abc import Mapping, Sequence

from ray_reid import schema
from ray_reid.generation.teaching import (
    STATES,
    Lesson,
    check_training,
    folders_in,
    identities_of,
    perform,
    trained_on,
    training_of,
)
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.sections import Section
from ray_reid.training import beginnings

log = logging.getLogger(__name__)

TABLE, HALVES = "observations", "halves"
FEWEST = 4
"""Identities of which either half can be trained on."""


class JudgesFacts(Facts):
    """What the judges job says."""

    judges: int = 0
    warnings: tuple[str, ...] = ()


def judges_job(work: Work) -> JudgesFacts:
    """Write the folder of every judge; none where `teachers.judge` is null.

    Raises:
        ValueError: If a package has seen a source, or half of one fills no batch.
    """
    spec, out = work.recipe.teachers, work.out.resolve()
    if spec.judge is None:
        return JudgesFacts()
    table = (work.inputs["ingest"] / TABLE).resolve()
    identities = identities_of(table)
    _check_unseen(spec.judge, list(identities))
    warnings = _warnings(spec.judge, identities)
    for warning in warnings:
        log.warning("%s", warning)
    lessons = [
        lesson
        for source, names in identities.items()
        for lesson in _lessons(work.recipe, table, out, source, names)
    ]
    perform("judges", lessons, out / STATES, spec.num_cpus, spec.num_gpus)
    return JudgesFacts(judges=len(folders_in(out)), warnings=tuple(warnings))


def check(recipe: Recipe) -> None:
    """Refuse judges that cannot be trained or taken, before anything runs.

    Raises:
        ValueError: If the network cannot be built, or a package is not there.
    """
    judge = recipe.teachers.judge
    if judge == HALVES:
        check_training(recipe)
    elif judge is not None:
        trained_on("teachers.judge", judge)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the package, or of the weights that a training begins with."""
    from ray_reid.models import package
    from ray_reid.models.pretrained import references

    judge = recipe.teachers.judge
    if judge is None:
        return schema.observation_id()
    if judge == HALVES:
        return beginnings.outside(training_of(recipe, "source"))
    return references.fingerprint(str(package.fetched(judge)))


def _lessons(
    recipe: Recipe, table: Place, out: Place, source: str, identities: Sequence[str]
) -> list[Lesson]:
    """The judges of a source."""
    judge, own = recipe.teachers.judge, training_of(recipe, source)
    if judge != HALVES:
        return [Lesson(own, table, out / source, judge)]
    if len(identities) < FEWEST:
        return []
    order = sorted(identities, key=lambda name: schema.observation_id("half", name))
    halves = [tuple(sorted(order[half::2])) for half in range(2)]
    return [
        Lesson(own, table, out / f"{source}-{number}", None, half, half)
        for number, half in enumerate(halves)
    ]


def _warnings(judge: str, identities: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a warning for each source that cannot be judged."""
    return [
        f"source {source!r} has {len(names)} identities, and halves of fewer than {FEWEST} teach "
        "nothing: what is generated of it is not judged"
        for source, names in identities.items()
        if judge == HALVES and len(names) < FEWEST
    ]


def _check_unseen(judge: str, sources: Sequence[str]) -> None:
    """Refuse a package that was trained on what it is to judge.

    Raises:
        ValueError: Names the source.
    """
    if judge == HALVES:
        return
    seen = sorted(set(trained_on("teachers.judge", judge)) & set(sources))
    if seen:
        raise ValueError(
            f"teachers.judge {judge!r} was trained on {seen[0]!r}, whose images it is to judge; "
            f"give a model of other data sets, or {HALVES!r}"
        )


def section(facts: JudgesFacts) -> Section:
    """Say of which source nothing is judged; what the judges find, the review shows."""
    return Section(warnings=facts.warnings)


JOB = Job(
    "judges",
    judges_job,
    needs=("ingest",),
    sections=("seed", "teachers.train", "teachers.judge"),
    check=check,
    outside=outside,
    scratch=(STATES,),
    facts=JudgesFacts,
    report=section,
)
