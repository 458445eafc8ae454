"""The embed job: a model package over query and gallery images, streaming on Ray Data."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from ray_reid import images, schema, storage
from ray_reid.recipe.embed import Embed
from ray_reid.recipe.models import Models
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.facts import VARIANTS, Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.schema import Batch

COLUMNS = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.CAMERA,
    schema.VIEW,
    schema.CLOTHES,
    schema.TRACK,
    schema.TIME,
    schema.SOURCE,
    schema.SPLIT,
    schema.ROLE,
)


NOTHING = "none"
"""What `outside` says where the run's own model is the only one."""


CROPS = ("models.detector", "models.precision")
"""What of the recipe finds the objects to crop."""


class EmbedImages:
    """Add the unit-norm `embedding` column of a model package, and those of models beside it."""

    def __init__(self, package: str, spec: Embed, models: Models | None) -> None:
        """Load the package once per actor; `spec` and `models` are those sections of the recipe."""
        from ray_reid.evaluation import extraction
        from ray_reid.models import package as packages

        self.extract = extraction.Extractor(packages.load(package), spec, models)

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Embed the `image` column."""
        encoded = list(batch[schema.IMAGE])
        cameras = schema.qualified_cameras(batch[schema.SOURCE], batch[schema.CAMERA])
        sides = cameras, list(batch[schema.VIEW])
        found = self.extract(encoded, sides)
        columns = {
            schema.EMBEDDING: found.embedding,
            schema.TEST_EMBEDDING: found.test_embedding,
            schema.CAMERA_EMBEDDING: found.camera_embedding,
            schema.CROPPED: found.cropped,
        }
        asked = {name: values for name, values in columns.items() if values is not None}
        return {**batch, **asked}


class ColourHistogram:
    """Replace the image by a colour histogram of six stripes: the floor without learning.

    Six horizontal stripes, 8 bins for each of hue, saturation and value; the square root makes
    the dot product the Bhattacharyya coefficient.
    """

    def __init__(self, stripes: int = 6, bins: int = 8, size: tuple[int, int] = (48, 48)) -> None:
        """Count `bins` bins of each channel in each of `stripes` stripes at `size` pixels."""
        self.stripes, self.bins, self.size = stripes, bins, size

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Add `reference_embedding` and leave `image` out."""
        rows = [self.histogram(image) for image in batch[schema.IMAGE]]
        rest = {name: values for name, values in batch.items() if name != schema.IMAGE}
        return {**rest, schema.REFERENCE_EMBEDDING: np.stack(rows)}

    def histogram(self, encoded: bytes) -> NDArray[np.float32]:
        """(stripes * 3 * bins,) float32 of one image, unit norm."""
        hsv = images.to_hsv(images.decode(encoded, self.size))
        stripes = np.array_split(hsv // (256 // self.bins), self.stripes)
        counts = [
            np.bincount(stripe[..., channel].ravel(), minlength=self.bins)
            for stripe in stripes
            for channel in range(3)
        ]
        roots = np.sqrt(np.concatenate(counts).astype(np.float32))
        unit: NDArray[np.float32] = roots / np.linalg.norm(roots)
        return unit


def check(recipe: Recipe) -> None:
    """Refuse scales that the backbone cannot take and packages that do not fit, before training."""
    spec = recipe.embed
    if set(spec.scales) != {1}:
        from ray_reid.models import views

        views.check_scales(recipe.train.backbone, spec.scales)
    if spec.ensemble or spec.camera_model is not None:
        from ray_reid.evaluation import extraction

        extraction.check(spec)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models that no job of the run made."""
    spec = recipe.embed
    if spec.crop is None and spec.camera_model is None and not spec.ensemble:
        return NOTHING
    from ray_reid.evaluation import extraction

    return extraction.fingerprint(spec, recipe.models)


class EmbedFacts(Facts):
    """What the embed job says."""

    counts: dict[str, int] = Field(default_factory=dict)
    """Images by split."""
    variants: int = 0
    """Images of queries in other clothes."""
    without_crop: int | None = None
    """Images in which the detector found no object; null where it is not asked."""


def embed_job(work: Work) -> EmbedFacts:
    """Embed query and gallery images into the table `embeddings`."""
    spec = work.recipe.embed
    out = work.out / "embeddings"
    from ray_reid.evaluation import extraction

    model = {
        "package": str((work.inputs["train"] / "model").resolve()),
        "spec": extraction.resolved(spec),
        # Only crops need a further model.
        "models": None if spec.crop is None else work.recipe.models,
    }
    steps = [
        stage.Step(EmbedImages, model, spec.stage),
        stage.Step(ColourHistogram, {}, spec.stage.model_copy(update={"num_gpus": 0.0})),
    ]
    table = work.inputs["ingest"] / "observations"
    tested = stage.column(schema.SPLIT).is_in(["query", "gallery"])
    kept = stage.column(schema.DROP_REASON).is_null()
    stage.stream(table, (*COLUMNS, schema.IMAGE), steps, out, "embed", tested & kept)
    made = _embed_variants(work, steps[0])
    embedded = storage.read(out, [schema.SPLIT])[schema.SPLIT].value_counts().to_pylist()
    cropped = None
    if spec.crop is not None:
        cropped = storage.read(out, [schema.CROPPED])[schema.CROPPED].to_pylist()
    return EmbedFacts(
        counts={entry["values"]: entry["counts"] for entry in embedded},
        variants=made,
        without_crop=None if cropped is None else cropped.count(False),
        fingerprint=storage.fingerprint(out, "embed/embeddings"),
    )


def crops_with(recipe: Recipe) -> tuple[str, ...]:
    """Return what decides, besides `embed`, how images are cropped."""
    return () if recipe.embed.crop is None else CROPS


def _embed_variants(work: Work, step: stage.Step) -> int:
    """Embed the variants of the queries into the table `variants`; says how many."""
    if VARIANTS not in work.inputs:
        return 0
    table, out = work.inputs[VARIANTS] / "observations", work.out / VARIANTS
    # A recipe that refines nothing makes none.
    if not table.is_dir():
        return 0
    count: int = storage.dataset(table).count_rows(filter=pc.field(schema.DROP_REASON).is_null())
    if not count:
        return 0
    columns = (
        schema.OBSERVATION_ID,
        schema.PARENT,
        schema.NUMBER,
        schema.SOURCE,
        schema.CAMERA,
        schema.VIEW,
        schema.IMAGE,
    )
    kept = stage.column(schema.DROP_REASON).is_null()
    stage.stream(table, columns, [step], out, "embed variants", kept, _without_image)
    return count


def _without_image(batch: Batch) -> dict[str, NDArray[Any]]:
    return {name: values for name, values in batch.items() if name != schema.IMAGE}


JOB = Job(
    "embed",
    embed_job,
    needs=("ingest", "train"),
    sections=("embed",),
    also=crops_with,
    check=check,
    outside=outside,
    facts=EmbedFacts,
)
