"""A whole trial: a training, then the test images embedded and scored in this process.

What comparisons and sweeps do many times at once, each in a process of its own. A training of
several workers runs on Ray Train, like that of a run; all others in this process too.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import places, schema, storage
from ray_reid.experiments import query_ap
from ray_reid.places import Place
from ray_reid.ranking import scoring
from ray_reid.ranking.scoring import Side
from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.runtime.facts import VARIANTS
from ray_reid.training import beginnings, train, validation
from ray_reid.training.train import num_batches, stages_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ray_reid.evaluation.extraction import Extractor

    Weights = Mapping[str, Tensor]

METRICS = ("mAP", "rank-1", "rank-5", "subject-rank-5", "mINP")
TESTED = pc.field(schema.SPLIT).isin(["query", "gallery"])


@dataclass(frozen=True)
class TrialScores:
    """What the model of a trial scores."""

    metrics: dict[str, float]
    """`METRICS` by name, each a share between 0 and 1."""
    ap: str = ""
    """Average precision of each query, as `query_ap` packs it."""


def run_trial(
    recipe: Recipe,
    tables: Sequence[Place],
    device: "torch.device",
    report: Callable[[int], None] = lambda _: None,
    held_out: Collection[str] = (),
    validate: Callable[[int, Mapping[str, float]], None] | None = None,
    source: str | None = None,
    shared: Place | None = None,
    variants: Place | None = None,
    folder: Place | None = None,
    pretrained: Place | None = None,
) -> TrialScores:
    """Train by a recipe, then embed and score the test images of the first table.

    Args:
        report: Is told after every batch how many are done.
        held_out: Identities that are not trained on, where the recipe itself holds out none.
        validate: Is told after every epoch its number, from 0, and the `METRICS` of a search
            among the real images of `held_out`. The training is the same with it and without.
        source: Name of the source whose test images are scored; null takes all.
        shared: Package of an equal training: taken if it is there, else left there. Nothing is
            validated then.
        variants: Table of the queries in other clothes, for a recipe that refines.
        folder: Of this trial alone: its training has several workers, whose checkpoints lie there.
            Nothing but the recipe holds identities out then.
        pretrained: Package that `train.start: pretrain` begins with; all trials share it.
    """
    from ray_reid.evaluation import extraction
    from ray_reid.models import package

    if shared is not None and (shared / package.LAST).is_file():
        model = package.load(shared, str(device))
        report(num_batches(recipe, tables, held_out))
    else:
        made = (
            _trained(recipe, tables, device, report, held_out, validate, pretrained)
            if folder is None
            else _trained_by_workers(recipe, tables, folder, report, pretrained)
        )
        model = package.unsaved(*made, str(device))
        if shared is not None:
            _share(shared, *made)
    rows = storage.read(tables[0], scoring.COLUMNS, scored_rows(source))
    # Only crops need a further model.
    models = recipe.models if recipe.embed.crop is not None else None
    extract = extraction.Extractor(model, recipe.embed, models)
    vectors = _embedded(extract, tables[0], scored_rows(source))
    query, gallery = validation.sides(rows, vectors.pop(schema.EMBEDDING), vectors)
    dressed = None
    if recipe.refine is not None:
        if variants is None:
            raise ValueError("refine needs queries in other clothes, which no job has made")
        dressed = _dressed(extract, variants, query.observation_id)
    judged = scoring.judge(query, gallery, recipe.evaluate, recipe.refine, dressed)
    figures = judged.figures()
    return TrialScores({name: figures[name] for name in METRICS}, query_ap.pack(judged.ap()))


def _trained(
    recipe: Recipe,
    tables: Sequence[Place],
    device: "torch.device",
    report: Callable[[int], None],
    held_out: Collection[str],
    validate: Callable[[int, Mapping[str, float]], None] | None,
    pretrained: Place | None = None,
) -> tuple[Recipe, list[str], "Weights"]:
    """All stages of a training in this process; takes the weights that the train job would."""
    from ray_reid.models.networks.starting import Start
    from ray_reid.training import loader
    from ray_reid.training.fit import Fit

    search = own = validation.of_recipe(recipe, tables)
    if own is not None:
        held_out = own.held_out
    elif validate is not None:
        search = validation.Validation(tables[0], held_out, recipe.evaluate)
    weights, batches, epochs = None, 0, 0
    start = beginnings.start_of(recipe.train, pretrained)
    for _, stage_recipe in stages_of(recipe):
        rows = loader.TrainingRows(tables, stage_recipe.train, held_out)
        fit = Fit(stage_recipe, rows, device=device, start=start)
        # A search that the recipe has not asked for chooses nothing.
        keep = stage_recipe.train.keep if own else "last"
        for progress in fit.run():
            report(batches + fit.batches_done)
            if progress.batch:
                continue
            found = search.follow(fit) if search else {}
            if validate is not None:
                validate(epochs + progress.epoch - 1, {name: found[name] for name in METRICS})
            if validation.kept(progress.history, keep) == progress.epoch - 1:
                weights = fit.weights()
        batches, epochs = batches + fit.batches_done, epochs + progress.epoch
        assert weights is not None, "every stage has an epoch"
        start = Start(stage_recipe.train, weights)
    assert weights is not None, "every training has a stage"
    return stage_recipe, rows.chosen.identities, weights


def _trained_by_workers(
    recipe: Recipe,
    tables: Sequence[Place],
    folder: Place,
    report: Callable[[int], None],
    pretrained: Place | None = None,
) -> tuple[Recipe, list[str], "Weights"]:
    """The same on Ray Train; its batches are told when it has ended."""
    own = validation.of_recipe(recipe, tables)
    held_out = own.held_out if own else frozenset[str]()
    done = train.trained(recipe, tables, held_out, folder, pretrained)
    report(num_batches(recipe, tables, held_out))
    return done.recipe, done.identities, done.weights


def _share(path: Place, recipe: Recipe, identities: list[str], weights: "Weights") -> None:
    """Leave a package for equal trainings; one that came first stays."""
    from ray_reid.models import package

    if not isinstance(path, Path):
        package.save(path, recipe, identities, weights)
        return
    aside = path.parent / f".{path.name}-{os.getpid()}"
    package.save(aside, recipe, identities, weights)
    try:
        aside.rename(path)
    except OSError:
        shutil.rmtree(aside)


def _embedded(
    extract: "Extractor", table: Place, where: pc.Expression
) -> dict[str, NDArray[np.float32]]:
    """Columns of vectors of some rows of a table, by id."""
    cache = storage.RowCache(table, places.node_cache(), where)
    named = storage.read(table, [schema.SOURCE, schema.CAMERA, schema.VIEW], where)
    owner, camera, view = (column.to_pylist() for column in named.columns)
    sides = schema.qualified_cameras(owner, camera), view
    found = extract([cache.image(row) for row in range(len(cache))], sides)
    columns = {
        schema.EMBEDDING: found.embedding,
        schema.TEST_EMBEDDING: found.test_embedding,
        schema.CAMERA_EMBEDDING: found.camera_embedding,
    }
    return {name: one for name, one in columns.items() if one is not None}


def _dressed(extract: "Extractor", table: Place, queries: Sequence[str]) -> pa.Table | None:
    """Embedded variants of some queries, as the embed job writes them; none if there are none."""
    where = pc.field(schema.PARENT).isin(list(queries))
    rows = storage.read(table, [schema.OBSERVATION_ID, schema.PARENT, schema.NUMBER], where)
    if not len(rows):
        return None
    for name, values in _embedded(extract, table, where).items():
        rows = rows.append_column(name, schema.to_table({name: values})[name])
    return rows


def portable(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe of a trial, with paths that hold in any working directory."""
    from ray_reid.evaluation import extraction

    start = recipe.train.start
    if start not in (None, PRETRAIN):
        start = extraction.placed(start)
    train = recipe.train.model_copy(update={"start": start})
    embed = extraction.resolved(recipe.embed)
    return recipe.model_copy(update={"embed": embed, "seed": seed, "train": train})


def scored_rows(source: str | None) -> pc.Expression:
    """Which rows are query or gallery, of one source or of all."""
    return TESTED if source is None else TESTED & (pc.field(schema.SOURCE) == source)


def scored_sides(
    table: Place,
    embedded: Callable[[int], NDArray[np.float32]],
    source: str | None = None,
) -> tuple[Side, Side]:
    """Queries and gallery of a table; `embedded` gives the vectors of its tested rows, by id.

    Raises:
        ValueError: If one of them is empty.
    """
    rows = storage.read(table, scoring.COLUMNS, scored_rows(source))
    return validation.sides(rows, embedded(len(rows)))


def variants_table(inputs: Mapping[str, Place]) -> Place | None:
    """The queries in other clothes, if a job has made them."""
    table = inputs[VARIANTS] / "observations" if VARIANTS in inputs else None
    return table.resolve() if table is not None and table.is_dir() else None
