"""The teachers job: one ReID model of each source data set, before anything is generated.

Diffusion-ReID, section 3.2. The filters `reid` and `classifier` ask these models about generated
images; the review asks models that have seen no image of an identity (`teachers.judge`).

    OUT/SOURCE/            the teacher, a model package
    OUT/SOURCE/features    its features of the train images of the source
    OUT/SOURCE/false_matches.json   what thresholds on similarities to an identity are worth
    OUT/SOURCE/judge-0     a model that saw none of the identities in its own table `features`
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from ray_reid import places, schema, storage
from ray_reid.generation.teaching import (
    FALSE_MATCHES,
    JUDGE,
    Lesson,
    judges_of,
    read_features,
    teach,
    trained_on,
)
from ray_reid.places import Place
from ray_reid.ranking.belonging import Against, FalseMatches, Identities
from ray_reid.recipe.base import Frozen
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.teachers import Teachers
from ray_reid.runtime import stage
from ray_reid.runtime.cluster import check_capacity
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.progress import metered
from ray_reid.runtime.sections import Section, Table, number
from ray_reid.training import beginnings, checks, loader

log = logging.getLogger(__name__)

TABLE, STATES = "observations", "states"
AGAINST: tuple[Against, ...] = ("centroid", "nearest")
HALVES = "halves"
IMPORTED = "imported"
"""Source in the labels of a checkpoint that a peer trained."""
FEWEST = 4
"""Identities of which either half can be trained on."""
SHOWN_RATES = (1e-3, 1e-2, 1e-1)


class TeacherFacts(Frozen):
    """What is known of the teacher of one source."""

    source: str
    images: int
    identities: int
    taken: str | None = None
    """The package that it was taken from; null if it was trained here."""
    judges: int = 0
    """Models that have seen none of the identities that they judge."""
    tar: dict[str, dict[str, float]]
    """Share of genuine pairs that pass, by similarity and false-match rate."""


class TeachersFacts(Facts):
    """What the teachers job says."""

    teachers: tuple[TeacherFacts, ...] = ()
    warnings: tuple[str, ...] = ()


def teachers_job(work: Work) -> TeachersFacts:
    """Write the folder of every source: a package, features, the false-match curve, judges.

    Raises:
        ValueError: If a package is of another data set, or a source has too few images to train on.
    """
    table = (work.inputs["ingest"] / TABLE).resolve()
    identities = _identities(table)
    spec = work.recipe.teachers
    _check_packages(spec, sorted(identities))
    out = work.out.resolve()
    warnings = _warnings(spec, identities)
    for warning in warnings:
        log.warning("%s", warning)
    lessons = [
        lesson
        for source in identities
        for lesson in _lessons(work.recipe, table, out / source, source, identities[source])
    ]
    for lesson in lessons:
        _check_batches(lesson)
    _perform(lessons, out / STATES, spec)
    found = tuple(_told(spec, out / source, source) for source in identities)
    return TeachersFacts(teachers=found, warnings=tuple(warnings))


def check(recipe: Recipe) -> None:
    """Refuse teachers that cannot be trained or taken, before anything runs.

    Raises:
        ValueError: If a network cannot be built, or a package is not there or of another data set.
    """
    spec = recipe.teachers
    try:
        checks.check(_training(recipe, "source"))
    except ValueError as error:
        said = str(error)
        own = said if said.startswith("train.") else f"train: {said}"
        raise ValueError(f"teachers.{own}") from error
    _check_packages(spec, sorted(spec.packages))


def outside(recipe: Recipe) -> str:
    """Fingerprint of the packages, and of the weights that a training begins with."""
    from ray_reid.models import package
    from ray_reid.models.pretrained import references

    spec = recipe.teachers
    used = [spec.packages[source] for source in sorted(spec.packages)]
    if spec.judge is not None and spec.judge != HALVES:
        used.append(spec.judge)
    digests = [references.fingerprint(str(package.fetched(one))) for one in used]
    return schema.observation_id(beginnings.outside(_training(recipe, "source")), *digests)


def _identities(table: Place) -> dict[str, list[str]]:
    """Identities with real training images, by source; both in the order of their names."""
    columns = (schema.SOURCE, schema.IDENTITY)
    real = storage.TRAINABLE & (pc.field(schema.ORIGIN) == "real")
    rows = storage.read(table, columns, real).group_by(list(columns)).aggregate([])
    found: dict[str, list[str]] = {}
    for row in rows.sort_by([(name, "ascending") for name in columns]).to_pylist():
        found.setdefault(row[schema.SOURCE], []).append(row[schema.IDENTITY])
    if not found:
        raise ValueError(
            "teachers learn from labelled training images, and the sources have none: give a "
            "labelled source"
        )
    return found


def _training(recipe: Recipe, source: str) -> Recipe:
    """The recipe by which a teacher of a source is trained, and which its package holds."""
    spec = recipe.teachers.train.model_dump(mode="json") | {"sources": [source]}
    return Recipe.model_validate(
        {"name": f"teacher of {source}", "seed": recipe.seed, "train": spec}
    )


def _lessons(
    recipe: Recipe, table: Place, folder: Place, source: str, identities: Sequence[str]
) -> list[Lesson]:
    """The teacher of a source, and its judges."""
    spec = recipe.teachers
    own = _training(recipe, source)
    lessons = [Lesson(own, table, folder, spec.packages.get(source))]
    if spec.judge == HALVES:
        order = sorted(identities, key=lambda name: schema.observation_id("half", name))
        halves = [tuple(sorted(order[half::2])) for half in range(2)]
        if len(identities) >= FEWEST:
            lessons += [
                Lesson(own, table, folder / f"{JUDGE}-{n}", None, half, half)
                for n, half in enumerate(halves)
            ]
    elif spec.judge is not None:
        lessons.append(Lesson(own, table, folder / JUDGE, spec.judge))
    return lessons


def _check_batches(lesson: Lesson) -> None:
    """Refuse a training that its images cannot fill, where a refusal is one sentence.

    Raises:
        ValueError: If there are too few.
    """
    if lesson.is_done or lesson.reference is not None:
        return
    try:
        chosen = loader.labels([lesson.table], lesson.recipe.train, lesson.held_out)
        checks.check_plan(lesson.recipe, chosen)
    except ValueError as error:
        half, way = (
            ("half of the identities of ", " or set teachers.judge to null")
            if lesson.held_out
            else ("", "")
        )
        raise ValueError(
            f"teachers.train on {half}source {lesson.source!r}: {error}; lower "
            f"teachers.train.sampler{way}"
        ) from error


def _warnings(spec: Teachers, identities: Mapping[str, Sequence[str]]) -> list[str]:
    """What the filters or the review will have to do without."""
    found = [
        f"source {source!r} has {len(names)} identities, and halves of fewer than {FEWEST} teach "
        "nothing: what is generated of it is not judged"
        for source, names in identities.items()
        if spec.judge == HALVES and len(names) < FEWEST
    ]
    found += [
        f"teachers.packages.{source} {reference!r} is an imported checkpoint, which does not say "
        "which identities it was trained on: the filter 'classifier' cannot ask it"
        for source, reference in sorted(spec.packages.items())
        if trained_on(reference) == [IMPORTED]
    ]
    return found


def _check_packages(spec: Teachers, sources: Sequence[str]) -> None:
    """Hold the packages that are taken against the sources.

    Raises:
        ValueError: If one names no source, is not there, or is of another data set.
    """
    for source, reference in sorted(spec.packages.items()):
        key = f"teachers.packages.{source}"
        if source not in sources:
            raise ValueError(f"{key} names no source of this run; choose from {list(sources)}")
        known = _known(key, reference)
        if source not in known and known != [IMPORTED]:
            raise ValueError(
                f"{key} {reference!r} was trained on {known}, not on {source!r}; give a model of "
                "that data set, or leave it out to train one"
            )
    if spec.judge is not None and spec.judge != HALVES:
        seen = sorted(set(_known("teachers.judge", spec.judge)) & set(sources))
        if seen:
            raise ValueError(
                f"teachers.judge {spec.judge!r} was trained on {seen[0]!r}, whose images it is to "
                f"judge; give a model of other data sets, or {HALVES!r}"
            )


def _known(key: str, reference: str) -> list[str]:
    try:
        return trained_on(reference)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _perform(lessons: Sequence[Lesson], states: Place, spec: Teachers) -> None:
    """Do what a killed attempt left undone, trainings side by side."""
    todo = [lesson for lesson in lessons if not lesson.is_done]
    if not todo:
        return
    states.mkdir(parents=True, exist_ok=True)
    check_capacity("teachers", 1, spec.num_cpus, spec.num_gpus)
    with metered("teachers", "batch") as meter:
        arguments = [
            {"lesson": lesson, "state": states / _state_name(lesson), "meter": meter}
            for lesson in todo
        ]
        for place, _ in stage.tasks("teachers", _worker, arguments, spec.num_cpus, spec.num_gpus):
            log.debug("%s is done", todo[place].folder)


def _state_name(lesson: Lesson) -> str:
    return f"{schema.observation_id(lesson.source, lesson.folder.name)}.pt"


def _worker(lesson: Lesson, state: Place, meter: Any) -> None:
    teach(lesson, state, lambda *done: meter.set.remote(*done, f" {lesson.folder.name}"))


def _told(spec: Teachers, folder: Place, source: str) -> TeacherFacts:
    """Measure the false-match curves of a teacher, keep them beside it, and sum up."""
    rows, embedding = read_features(folder)
    images = Identities(embedding, rows[schema.IDENTITY].to_pylist())
    curves = {name: images.curve(name) for name in AGAINST}
    values = {name: asdict(curve) for name, curve in curves.items()}
    places.write_text(folder / FALSE_MATCHES, json.dumps(values, indent=1) + "\n")
    return TeacherFacts(
        source=source,
        images=rows.num_rows,
        identities=len(images.names),
        taken=spec.packages.get(source),
        judges=len(judges_of(folder)),
        tar={name: _rates(curve) for name, curve in curves.items()},
    )


def _rates(curve: FalseMatches) -> dict[str, float]:
    return {
        f"{rate:g}": point.tar
        for rate in SHOWN_RATES
        for point in curve.points
        if abs(point.far - rate) < rate * 1e-6
    }


def section(facts: TeachersFacts) -> Section:
    """Show how well each teacher tells its own identities apart."""
    rows = tuple(
        (one.source, kind, str(one.images), str(one.identities), *_cells(one.tar[kind]))
        for one in facts.teachers
        for kind in AGAINST
    )
    header = (
        "source", "similarity to", "images", "identities",
        *(f"TAR at FAR {rate:g}" for rate in SHOWN_RATES),
    )  # fmt: skip
    note = (
        "Images of each source's train split against their own and all other identities, with the "
        "model that was trained on them: figures of seen images, which calibrate the filter 'reid'."
    )
    return Section((Table("Teachers", header, rows, note, measured=True),), warnings=facts.warnings)


def _cells(tar: Mapping[str, float]) -> list[str]:
    return [number(tar.get(f"{rate:g}"), 3) for rate in SHOWN_RATES]


JOB = Job(
    "teachers",
    teachers_job,
    needs=("ingest",),
    sections=("seed", "teachers.packages", "teachers.train", "teachers.judge"),
    check=check,
    outside=outside,
    scratch=(STATES,),
    facts=TeachersFacts,
    report=section,
)
