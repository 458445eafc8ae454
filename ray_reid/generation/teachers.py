"""The teachers job: one ReID model of each source data set, before anything is generated.

Diffusion-ReID, section 3.2. The filters `reid` and `classifier` ask these models about generated
images.

    OUT/SOURCE/            the teacher, a model package
    OUT/SOURCE/features    its features of the train images of the source
    OUT/SOURCE/false_matches.json   what thresholds on similarities to an identity are worth
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ray_reid import places, schema
from ray_reid.generation.teaching import (
    FALSE_MATCHES,
    IMPORTED,
    STATES,
    Lesson,
    check_training,
    identities_of,
    perform,
    read_features,
    trained_on,
    training_of,
)
from ray_reid.places import Place
from ray_reid.ranking.belonging import Against, FalseMatches, Identities
from ray_reid.recipe.base import Frozen
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.teachers import Teachers
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.sections import Section, Table, number
from ray_reid.training import beginnings

TABLE = "observations"
AGAINST: tuple[Against, ...] = ("centroid", "nearest")
SHOWN_RATES = (1e-3, 1e-2, 1e-1)


class TeacherFacts(Frozen):
    """What is known of the teacher of one source."""

    source: str
    images: int
    identities: int
    taken: str | None = None
    """The package that it was taken from; null if it was trained here."""
    tar: dict[str, dict[str, float]]
    """Share of genuine pairs that pass, by similarity and false-match rate."""


class TeachersFacts(Facts):
    """What the teachers job says."""

    teachers: tuple[TeacherFacts, ...] = ()


def teachers_job(work: Work) -> TeachersFacts:
    """Write the folder of every source: a package, features, the false-match curve.

    Raises:
        ValueError: If a package is of another data set, or a source has too few images to train on.
    """
    table = (work.inputs["ingest"] / TABLE).resolve()
    identities = identities_of(table)
    spec = work.recipe.teachers
    _check_packages(spec, sorted(identities))
    out = work.out.resolve()
    lessons = [
        Lesson(training_of(work.recipe, source), table, out / source, spec.packages.get(source))
        for source in identities
    ]
    perform("teachers", lessons, out / STATES, spec.num_cpus, spec.num_gpus)
    return TeachersFacts(teachers=tuple(_told(spec, out / name, name) for name in identities))


def check(recipe: Recipe) -> None:
    """Refuse teachers that cannot be trained or taken, before anything runs.

    Raises:
        ValueError: If a network cannot be built, or a package is not there, of another data set, or
            cannot tell what a filter asks it.
    """
    spec = recipe.teachers
    check_training(recipe)
    _check_packages(spec, sorted(spec.packages))
    if not any(one.name == "classifier" for one in recipe.filters):
        return
    for source, reference in sorted(spec.packages.items()):
        key = f"teachers.packages.{source}"
        if trained_on(key, reference) == [IMPORTED]:
            raise ValueError(
                f"{key} {reference!r} is an imported checkpoint, which does not say which "
                "identities it was trained on, so the filter 'classifier' cannot ask it; train "
                "that teacher here, or leave the filter out"
            )


def outside(recipe: Recipe) -> str:
    """Fingerprint of the packages, and of the weights that a training begins with."""
    from ray_reid.models import package
    from ray_reid.models.pretrained import references

    spec = recipe.teachers
    used = [spec.packages[source] for source in sorted(spec.packages)]
    digests = [references.fingerprint(str(package.fetched(one))) for one in used]
    return schema.observation_id(beginnings.outside(training_of(recipe, "source")), *digests)


def _check_packages(spec: Teachers, sources: Sequence[str]) -> None:
    """Hold the packages that are taken against the sources.

    Raises:
        ValueError: If one names no source, is not there, or is of another data set.
    """
    for source, reference in sorted(spec.packages.items()):
        key = f"teachers.packages.{source}"
        if source not in sources:
            raise ValueError(f"{key} names no source of this run; choose from {list(sources)}")
        known = trained_on(key, reference)
        if source not in known and known != [IMPORTED]:
            raise ValueError(
                f"{key} {reference!r} was trained on {known}, not on {source!r}; give a model of "
                "that data set, or leave it out to train one"
            )


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
    return Section((Table("Teachers", header, rows, note, measured=True),))


def _cells(tar: Mapping[str, float]) -> list[str]:
    return [number(tar.get(f"{rate:g}"), 3) for rate in SHOWN_RATES]


JOB = Job(
    "teachers",
    teachers_job,
    needs=("ingest",),
    sections=("seed", "teachers.packages", "teachers.train"),
    check=check,
    outside=outside,
    scratch=(STATES,),
    facts=TeachersFacts,
    report=section,
)
