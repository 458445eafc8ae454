"""The section `embed`: images to embeddings."""

from typing import Annotated

from pydantic import Field

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec


class Crop(Frozen):
    """Average an image's embedding with that of the object that a detector finds in it."""

    threshold: float = Field(0.5, gt=0, lt=1)
    """Least confidence; of the boxes that have it the largest is the object."""
    classes: tuple[str, ...] = ()
    """Names of the detector's classes that count; empty takes any."""
    margin: float = Field(0.0, ge=0, le=1)
    """Share of the box's sides added around it, within the image."""


class Embed(Frozen):
    """Images to unit-norm embeddings."""

    flip: bool = True
    """Average each embedding with that of the mirrored image."""
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field((1.0,), min_length=1)
    """Average over the input resized by each of these (VehicleNet: 1, 0.9 and 0.8)."""
    crop: Crop | None = None
    """Average with the object found in the image by `models.detector`; `{}` takes the defaults."""
    ensemble: tuple[str, ...] = ()
    """Further models, whose embeddings are put beside the trained one's: run directories, packages,
    or `package:NAME/FOLDER` of an installed Python package."""
    camera_model: str | None = None
    """Run directory, package or `package:NAME/FOLDER` of a model trained with `train.target:
    camera`. Its embeddings are the column `camera_embedding` for the step `camera_verification`."""
    stage: StageSpec = StageSpec(actors=2, batch_size=128)
