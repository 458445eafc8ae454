"""The embed job: a model package over query and gallery images, streaming on Ray Data."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid import images, schema, stage, storage
from ray_reid.config import Recipe
from ray_reid.run import Facts, Work
from ray_reid.schema import Batch

COLUMNS = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.CAMERA,
    schema.VIEW,
    schema.CLOTHES,
    schema.TRACK,
    schema.SOURCE,
    schema.SPLIT,
    schema.ROLE,
)


class Embed:
    """Add the unit-norm `embedding` column of a model package."""

    def __init__(self, package: str, flip: bool, scales: Sequence[float] = (1.0,)) -> None:
        """Load the package once per actor; `flip` and `scales` say over which views to average."""
        from ray_reid import package as packages

        self.model = packages.load(package)
        self.flip, self.scales = flip, scales

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Embed the `image` column."""
        encoded = list(batch[schema.IMAGE])
        cameras = schema.qualified_cameras(batch[schema.SOURCE], batch[schema.CAMERA])
        sides = cameras, list(batch[schema.VIEW])
        embedding = self.model.embed(encoded, flip=self.flip, scales=self.scales, sides=sides)
        return {**batch, schema.EMBEDDING: embedding}


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
    """Refuse scales that the backbone cannot take, before anything is trained."""
    if set(recipe.embed.scales) != {1}:
        from ray_reid import views

        views.check_scales(recipe.train.backbone, recipe.embed.scales)


def embed_job(work: Work) -> Facts:
    """Embed query and gallery images into the table `embeddings`."""
    spec = work.recipe.embed
    out = work.out / "embeddings"
    model = str((work.inputs["train"] / "model").resolve())
    steps = [
        stage.Step(Embed, {"package": model, "flip": spec.flip, "scales": spec.scales}, spec.stage),
        stage.Step(ColourHistogram, {}, spec.stage.model_copy(update={"num_gpus": 0.0})),
    ]
    table = work.inputs["ingest"] / "observations"
    tested = stage.column(schema.SPLIT).is_in(["query", "gallery"])
    kept = stage.column(schema.DROP_REASON).is_null()
    stage.stream(table, (*COLUMNS, schema.IMAGE), steps, out, "embed", tested & kept)
    embedded = storage.read(out, [schema.SPLIT])[schema.SPLIT].value_counts().to_pylist()
    return {
        "counts": {entry["values"]: entry["counts"] for entry in embedded},
        "fingerprint": dataclasses.asdict(storage.fingerprint(out, "embed/embeddings")),
    }
