"""ReID models of one source each: trained or taken, and the features of the images they judge.

The jobs `teachers` and `judges` make them. A folder of such a model is a package, with the table
`features` beside its files.
"""

import json
import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import places, schema, storage
from ray_reid.places import Place
from ray_reid.ranking.belonging import CurvePoint, FalseMatches
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.cluster import check_capacity
from ray_reid.runtime.progress import metered
from ray_reid.training import checks, loader

log = logging.getLogger(__name__)

FEATURES, FALSE_MATCHES, STATES = "features", "false_matches.json", "states"
IMPORTED = "imported"
"""Source in the labels of a checkpoint that a peer trained."""
COLUMNS = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.SOURCE,
    schema.CAMERA,
)
"""Of the table of features, beside `embedding`; a camera is named `source:camera`."""


@dataclass(frozen=True)
class Lesson:
    """What is to become of one folder."""

    recipe: Recipe
    """Of the training, whose one source is that of the images."""
    table: Place
    folder: Place
    reference: str | None = None
    """A package to take; null trains one."""
    held_out: tuple[str, ...] = ()
    """Identities that are not trained on."""
    embedded: tuple[str, ...] | None = None
    """Identities whose images are embedded; null takes all of the source."""

    @property
    def source(self) -> str:
        """The data set that it is about."""
        return self.recipe.train.sources[0]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do: the features are written last."""
        return storage.is_complete(self.folder / FEATURES)


def teach(lesson: Lesson, state: Place, report: Callable[[int, int], None]) -> None:
    """Fill the folder of a lesson; a killed training goes on from its last whole epoch.

    Args:
        lesson: What to do.
        state: File of the training's state after each epoch.
        report: Is told after every batch how many are done, and of how many.

    Raises:
        ValueError: If the training diverges.
    """
    from ray_reid.models import package

    if lesson.is_done:
        return
    if not (lesson.folder / package.LAST).is_file():
        if lesson.reference is None:
            _train(lesson, state, report)
        else:
            _take(lesson.reference, lesson.folder)
    if not lesson.is_done:
        storage.write(lesson.folder / FEATURES, _features(lesson))


def read_features(folder: Place) -> tuple[pa.Table, NDArray[np.float32]]:
    """Read the `COLUMNS` of a model's features, by id, and (N, D) unit-norm embeddings."""
    rows = storage.read(folder / FEATURES, (*COLUMNS, schema.EMBEDDING))
    return rows.select(list(COLUMNS)), storage.embeddings(rows, schema.EMBEDDING)


def read_false_matches(folder: Place) -> dict[str, FalseMatches]:
    """Read the false-match curves of a teacher, by the kind of similarity."""
    return {
        name: FalseMatches(
            tuple(CurvePoint(**point) for point in values["points"]),
            values["genuine"],
            values["impostors"],
        )
        for name, values in json.loads((folder / FALSE_MATCHES).read_text()).items()
    }


def sources_of(teachers: Place) -> dict[str, Place]:
    """Return the folders of all teachers in the result of the job, by source."""
    found = places.matching(teachers, f"*/{FALSE_MATCHES}")
    return {file.parent.name: file.parent for file in found}


def folders_in(result: Place) -> list[Place]:
    """Return the folders of all models in the result of a job, by name."""
    found = places.matching(result, f"*/{FEATURES}/{storage.FILES}")
    return [file.parent.parent for file in found]


def perform(job: str, lessons: Sequence[Lesson], states: Place, cpus: float, gpus: float) -> None:
    """Do what a killed attempt left undone, trainings side by side.

    Args:
        job: Name of the job in messages.
        lessons: What is to become of each folder.
        states: Folder of the trainings' states.
        cpus: CPUs of one training.
        gpus: GPUs of one training.

    Raises:
        ValueError: If the images of a lesson cannot fill a batch, or a training diverges.
    """
    todo = [lesson for lesson in lessons if not lesson.is_done]
    for lesson in todo:
        _check_batches(lesson)
    if not todo:
        return
    states.mkdir(parents=True, exist_ok=True)
    check_capacity("teachers", 1, cpus, gpus)
    with metered(job, "batch") as meter:
        arguments = [
            {"lesson": lesson, "state": states / state_name(lesson), "meter": meter}
            for lesson in todo
        ]
        for place, _ in stage.tasks(job, _worker, arguments, cpus, gpus):
            log.debug("%s is done", todo[place].folder)


def state_name(lesson: Lesson) -> str:
    """Name of the file of a training's state."""
    return f"{schema.observation_id(lesson.source, lesson.folder.name)}.pt"


def training_of(recipe: Recipe, source: str) -> Recipe:
    """The recipe by which a model of a source is trained, and which its package holds."""
    spec = recipe.teachers.train.model_dump(mode="json") | {"sources": [source]}
    return Recipe.model_validate(
        {"name": f"teacher of {source}", "seed": recipe.seed, "train": spec}
    )


def check_training(recipe: Recipe) -> None:
    """Refuse a training of teachers that cannot be done, before anything runs.

    Raises:
        ValueError: If the network cannot be built.
    """
    try:
        checks.check(training_of(recipe, "source"))
    except ValueError as error:
        said = str(error)
        own = said if said.startswith("train.") else f"train: {said}"
        raise ValueError(f"teachers.{own}") from error


def identities_of(table: Place) -> dict[str, list[str]]:
    """Identities with real training images, by source; both in the order of their names.

    Raises:
        ValueError: If there are none.
    """
    columns = (schema.SOURCE, schema.IDENTITY)
    rows = storage.read(table, columns, storage.REAL).group_by(list(columns)).aggregate([])
    found: dict[str, list[str]] = {}
    for row in rows.sort_by([(name, "ascending") for name in columns]).to_pylist():
        found.setdefault(row[schema.SOURCE], []).append(row[schema.IDENTITY])
    if not found:
        raise ValueError(
            "teachers learn from labelled training images, and the sources have none: give a "
            "labelled source"
        )
    return found


def train_rows(source: str, identities: Collection[str] | None = None) -> pc.Expression:
    """Which rows are real training images of a source, and of some identities."""
    where = storage.REAL & (pc.field(schema.SOURCE) == source)
    if identities is None:
        return where
    return where & pc.field(schema.IDENTITY).isin(pa.array(sorted(identities), pa.string()))


def trained_on(key: str, reference: str | Place) -> list[str]:
    """Return the data sets in the labels of a package; `IMPORTED` for a peer's checkpoint.

    Raises:
        ValueError: If there is no package; `key` is what names it.
    """
    from ray_reid.models import package

    try:
        folder = package.fetched(reference)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    labels: list[str] = json.loads((folder / package.LABELS).read_text())
    return sorted({label.partition(":")[0] for label in labels})


def _worker(lesson: Lesson, state: Place, meter: Any) -> None:
    teach(lesson, state, lambda *done: meter.set.remote(*done, f" {lesson.folder.name}"))


def _check_batches(lesson: Lesson) -> None:
    """Refuse a training that its images cannot fill, where a refusal is one sentence.

    Raises:
        ValueError: If there are too few.
    """
    if lesson.reference is not None:
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


def _train(lesson: Lesson, state: Place, report: Callable[[int, int], None]) -> None:
    from ray_reid.models import package
    from ray_reid.models.pretrained import references
    from ray_reid.training import worker
    from ray_reid.training.fit import Fit
    from ray_reid.training.loader import TrainingRows

    recipe = lesson.recipe
    rows = TrainingRows([lesson.table], recipe.train, lesson.held_out)
    fit = Fit(recipe, rows, device=references.device())
    if state.is_file():
        fit.restore(worker.load(state))
    for progress in fit.run():
        report(fit.batches_done, fit.batches_per_epoch * recipe.train.epochs)
        if progress.batch == 0:
            worker.save(fit.state(), state)
    package.save(lesson.folder, recipe, rows.chosen.identities, fit.weights())


def _take(reference: str, folder: Place) -> None:
    """Copy a package, its recipe last, as `package.save` writes it."""
    from ray_reid.models import package

    source = package.fetched(reference)
    # Thresholds and a card are of another use; the file that makes it a package comes last.
    names = (package.WEIGHTS, package.LABELS, package.PREPROCESSING, package.LAST)
    with places.written(folder) as own:
        for name in names:
            shutil.copyfile(source / name, own / name)


def _features(lesson: Lesson) -> pa.Table:
    from ray_reid.models import package

    where = train_rows(lesson.source, lesson.embedded)
    model = package.load(lesson.folder)
    cache = storage.RowCache(lesson.table, places.node_cache(), where)
    columns = (*COLUMNS, schema.VIEW)
    rows = storage.read(lesson.table, columns, where).to_pydict()
    cameras = schema.qualified_cameras(rows[schema.SOURCE], rows[schema.CAMERA])
    vectors = [
        model.embed(
            [cache.image(row) for row in part],
            sides=(_at(cameras, part), _at(rows[schema.VIEW], part)),
        )
        for part in _parts(len(cache), package.BATCH_SIZE)
    ]
    embedding = np.concatenate(vectors)
    arrays = {
        schema.OBSERVATION_ID: pa.array(rows[schema.OBSERVATION_ID], pa.string()),
        schema.IDENTITY: pa.array(rows[schema.IDENTITY], pa.string()),
        schema.SOURCE: pa.array(rows[schema.SOURCE], pa.string()),
        schema.CAMERA: pa.array(cameras, pa.string()),
        schema.EMBEDDING: pa.FixedSizeListArray.from_arrays(
            pa.array(embedding.reshape(-1)), embedding.shape[1]
        ),
    }
    return pa.table(arrays)


def _parts(size: int, most: int) -> list[range]:
    return [range(start, min(start + most, size)) for start in range(0, size, most)]


def _at(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [values[row] for row in rows]
