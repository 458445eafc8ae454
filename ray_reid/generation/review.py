"""The review job: what the streaming filters kept and dropped, measured, counted and shown.

The filters mark rows in the stream that generates the images; this job marks and copies none. Its
table of stages has the shape of Vehicle-Diff's Table VI. Training reads the generated table itself,
whose dropped rows stay hidden.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from ray_reid import images, schema, storage
from ray_reid.generation import agreement, frechet, kept_identity, sheets
from ray_reid.generation.agreement import Agreement
from ray_reid.generation.frechet import Extract
from ray_reid.generation.kept_identity import KeptIdentity
from ray_reid.generation.sheets import COLUMNS, Selection
from ray_reid.models.pretrained import references, roles
from ray_reid.places import Place
from ray_reid.recipe.base import Frozen
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.bars import bar
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.sections import Section, Table, number, share

log = logging.getLogger(__name__)

TABLE, RAW, ADAPTED, UNGUIDED = "observations", "raw", "adapted", "unguided"
BATCH = 32
STAGES = {
    "raw": "raw: no adaptation, no filter",
    "adapted": "adapted, no filter",
    "filtered": "adapted and filtered",
    "unguided": "without the guidance of a discriminator",
    "made": "before the filters",
    "kept": "kept by the filters",
}
"""What the report calls the stages."""
REAL = (pc.field(schema.SPLIT) == "train") & (pc.field(schema.ORIGIN) == "real")


class StageFacts(Frozen):
    """Generated images at one stage, as Table VI of Vehicle-Diff lays them out."""

    stage: str
    identities: int
    images: int
    fid: float | None = None
    """Frechet distance to the real training images; null where it cannot be measured."""
    num_images: int | None = None
    """Images of either set that it was measured on."""
    extractor: str | None = None


class ReviewFacts(Facts):
    """What the review job says."""

    made: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """Images by reason."""
    identities_made: int = 0
    identities_kept: int = 0
    stages: tuple[StageFacts, ...] = ()
    agreement: Agreement | None = None
    """Of the filters; null if no filter measured an image."""
    kept_identity: tuple[KeptIdentity, ...] = ()
    """What models say that have seen none of the identities; empty without such models."""
    warnings: tuple[str, ...] = ()


def review_job(work: Work) -> ReviewFacts:
    """Count what was made and kept, measure each stage against the real images, draw both kinds.

    Raises:
        ValueError: If nothing was generated, or the extractor's model is missing.
    """
    place = _generated(work) / TABLE
    made = _select(place, kept_only=False)
    if not made.rows.num_rows:
        raise ValueError("nothing was generated: the table of generated images is empty")
    kept = Selection(place, made.rows.filter(made.rows[schema.DROP_REASON].is_null()))
    stages = _stages(work, made, kept)
    reasons = Counter(map(sheets.kind, sheets.dropped(made)[schema.DROP_REASON].to_pylist()))
    num_made, num_kept = made.rows.num_rows, kept.rows.num_rows
    warnings = [] if num_kept else ["the filters dropped every generated image"]
    for warning in warnings:
        log.warning("%s", warning)
    spec = work.recipe.frechet
    models = work.recipe.models
    real = _select(work.inputs["ingest"] / TABLE, REAL)
    size = common_size([real, *stages.values()], spec.num_images)
    distances: dict[str, float | None] = dict.fromkeys(stages)
    is_inception = spec.extractor != frechet.IMAGE_TEXT
    features = f"{spec.extractor}, {spec.layer} features" if is_inception else spec.extractor
    if size:
        extract = frechet.extractor(spec, models.image_text, models.precision)
        distances = measure(real, stages, size, extract)
    rows = [
        _stage(name, made if name == "adapted" else found, distances[name], size, features)
        for name, found in stages.items()
    ]
    captions = sheets.draw(made, kept, work.inputs["ingest"] / TABLE, work.out)
    identity = _kept_identity(work, made)
    figures_of = {f"frechet_{name}": value for name, value in distances.items()}
    figures_of |= {f"identity_{one.what}": one.rank_1 for one in identity}
    return ReviewFacts(
        made=num_made,
        kept=num_kept,
        dropped=dict(reasons),
        identities_made=_identities(made),
        identities_kept=_identities(kept),
        stages=tuple(rows),
        agreement=agreement.of_rows(made.rows),
        kept_identity=identity,
        warnings=tuple(warnings),
        metrics={
            "generated_images": num_made,
            "generated_kept": num_kept,
            **{name: value for name, value in figures_of.items() if value is not None},
        },
        pictures=captions,
    )


def common_size(sets: Sequence[Selection], limit: int) -> int:
    """Images of each set that are compared: as many as the smallest has, at most `limit`.

    A set of one image or none has no covariance and holds back no other; the first set is the
    real one, without which there is nothing to compare.

    Returns:
        0 if nothing can be compared.
    """
    sizes = [found.rows.num_rows for found in sets]
    useful = [size for size in sizes if size >= 2]
    return min(limit, *useful) if sizes[0] >= 2 and len(useful) > 1 else 0


def measure(
    real: Selection, stages: Mapping[str, Selection], size: int, extract: Extract
) -> dict[str, float | None]:
    """Frechet distance of each stage to the real images; null where there are no two images.

    Args:
        real: Real training images.
        stages: Generated images by the name of the stage.
        size: Images of each that are taken, the first in the order of their ids; ids are
            hashes, so that this is a draw at random, and always the same.
        extract: Gives the features.
    """
    taken = {name: found for name, found in stages.items() if found.rows.num_rows >= 2}
    total = size * (1 + len(taken))
    with bar("review", "image", total) as line:
        reference = _features(real, size, extract, line)
        return {
            name: frechet.frechet_distance(_features(taken[name], size, extract, line), reference)
            if name in taken
            else None
            for name in stages
        }


def _generated(work: Work) -> Place:
    """Return the directory of the job that made the images."""
    makers = ("generate", "inpaint", "personalise")
    return next(work.inputs[name] for name in makers if name in work.inputs)


def _kept_identity(work: Work, made: Selection) -> tuple[KeptIdentity, ...]:
    """Search generated images among the real ones, where a job has trained models for that."""
    if "judges" not in work.inputs:
        return ()
    return kept_identity.measure(work.inputs["judges"], made, work.recipe.teachers.judged_images)


def _select(table: Place, where: pc.Expression | None = None, kept_only: bool = True) -> Selection:
    return Selection(table, storage.read(table, COLUMNS, where, kept_only))


def _stages(work: Work, made: Selection, kept: Selection) -> dict[str, Selection]:
    """What is compared with the real images, by name."""
    if "adapt" in work.inputs:
        # Filters may crop, so what they have seen does not say how the images were before.
        return {"raw": _sample(work, RAW), "adapted": _sample(work, ADAPTED), "filtered": kept}
    if "personalise" in work.inputs:
        # No filter crops here.
        return {"made": Selection(made.table, agreement.measured(made.rows)), "kept": kept}
    unguided = _generated(work) / UNGUIDED
    # Rows that nobody could dress hold their source, which is a real image.
    without = {UNGUIDED: _select(unguided)} if unguided.is_dir() else {}
    return {**without, "kept": kept}


def _sample(work: Work, name: str) -> Selection:
    """Whole images without a filter, less those that the pipeline refused and left black.

    A recipe need not ask for any.
    """
    table = _generated(work) / name
    if any(table.rglob("*.parquet")):
        return _select(table)
    return Selection(table, schema.observations([]).select(list(COLUMNS)))


def _stage(
    name: str, found: Selection, distance: float | None, size: int, extractor: str
) -> StageFacts:
    measured = distance is not None
    return StageFacts(
        stage=name,
        identities=_identities(found),
        images=found.rows.num_rows,
        fid=distance,
        num_images=size if measured else None,
        extractor=extractor if measured else None,
    )


def _identities(found: Selection) -> int:
    count: int = pc.count_distinct(found.rows[schema.IDENTITY]).as_py()
    return count


def _features(found: Selection, size: int, extract: Extract, line: Any) -> NDArray[np.float32]:
    """Features (size, D) of the first images of a selection, decoded a batch at a time."""
    ids = found.ids()[:size]
    encoded = storage.images_by_id(found.table, ids, kept_only=False)
    parts = []
    for start in range(0, size, BATCH):
        some = ids[start : start + BATCH]
        parts.append(extract([images.decode(encoded[key]) for key in some]))
        line.update(len(some))
    return np.concatenate(parts)


def check(recipe: Recipe) -> None:
    """Refuse features that cannot be computed, before anything is generated for them.

    Raises:
        ValueError: If there is no such extractor, or its package, model or weights are missing.
    """
    frechet.check(recipe.frechet)
    if recipe.frechet.extractor == frechet.IMAGE_TEXT:
        roles.check(recipe.models, "image_text")


def outside(recipe: Recipe) -> str:
    """Fingerprint of the model whose features are compared."""
    if recipe.frechet.extractor == frechet.IMAGE_TEXT:
        return references.fingerprint(recipe.models.image_text)
    _, _, weights = recipe.frechet.extractor.partition(":")
    return references.fingerprint(weights) if weights else recipe.frechet.extractor


def section(facts: ReviewFacts) -> Section:
    """Show the stages of Vehicle-Diff's Table VI, and what the filters dropped and agree on."""
    tables = (
        _stages_table(facts.stages),
        _reasons_table(facts),
        agreement.table(facts.agreement),
        kept_identity.table(facts.kept_identity),
    )
    return Section(tuple(table for table in tables if table), warnings=facts.warnings)


def _stages_table(stages: Sequence[StageFacts]) -> Table | None:
    if not stages:
        return None
    rows = tuple(
        (
            STAGES.get(stage.stage, stage.stage),
            str(stage.identities) if stage.images else "-",
            str(stage.images) if stage.images else "-",
            number(stage.fid, 3),
        )
        for stage in stages
    )
    measured = [stage for stage in stages if stage.extractor is not None]
    note = "Frechet distances need at least 2 real and 2 generated images."
    if measured:
        # After a colon comes the file of the weights.
        extractor = str(measured[0].extractor).partition(":")[0]
        note = (
            f"Frechet distance to the real training images: {measured[0].num_images} images of "
            f"either, features of {extractor}; lower is nearer. Only distances of the same "
            "features and number of images compare."
        )
    header = ("generated images", "identities", "images", "Frechet distance")
    return Table("Generated images", header, rows, note, measured=True)


def _reasons_table(facts: ReviewFacts) -> Table | None:
    if not facts.made:
        return None
    dropped = sorted(facts.dropped.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [("kept", facts.kept), *((f"dropped: {why}", count) for why, count in dropped)]
    rows = tuple((name, str(count), share(count, facts.made)) for name, count in named)
    return Table("Filters", ("verdict", "images", "share"), rows)


JOB = Job(
    "review",
    review_job,
    needs=("ingest", "adapt", "generate"),
    sections=("models.image_text", "models.precision", "frechet", "teachers.judged_images"),
    check=check,
    outside=outside,
    # 2: agreement of the filters, a sheet for each, images of an identity, identity kept.
    format=2,
    uses_ray=False,
    facts=ReviewFacts,
    report=section,
)
