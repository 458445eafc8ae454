"""The training of the discriminator that guides inpainting, from images on disk to its weights."""

from typing import Any

import pyarrow.compute as pc
from torch import Tensor

from ray_reid import images, schema, storage
from ray_reid.generation import guidance
from ray_reid.generation.generators import clothes
from ray_reid.models.pretrained import references
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage


def train(recipe: Recipe, real: Place, generated: Place, folder: Place) -> None:
    """Train a discriminator in a worker; see `train_and_save`.

    Args:
        real: Table with the real training images.
        generated: Table of images that were generated without guidance.
        folder: Where the discriminator is saved.

    Raises:
        ValueError: If the training fails, with its reason.
    """
    arguments = {
        "recipe": recipe,
        "real": str(real),
        "generated": str(generated),
        "folder": folder,
    }
    spec = recipe.generate.stage
    cpus = max(spec.num_cpus, 1.0)
    # The one task has ended when its result is there.
    list(stage.tasks("guidance", train_and_save, [arguments], cpus, spec.num_gpus))


def train_and_save(recipe: Recipe, real: str, generated: str, folder: Place) -> None:
    """Train the discriminator and save it into `folder`; see `guidance.save`.

    Raises:
        ValueError: If there is no real or no generated image.
    """
    from ray_reid.models.pretrained import inpainting

    pipeline = inpainting.load_pipeline(recipe.models.inpainting, recipe.models.precision)
    real_latents = _latents(pipeline, real, clothes.DRESSED["train"], recipe)
    generated_latents = _latents(pipeline, generated, None, recipe)
    discriminator = guidance.train_discriminator(
        real_latents, generated_latents, pipeline.scheduler, recipe.guidance, recipe.seed
    )
    guidance.save(discriminator, folder)


def _latents(pipeline: Any, table: str, where: pc.Expression | None, recipe: Recipe) -> Tensor:
    """Latents of evenly spaced rows of a table, at most `guidance.num_images`."""
    ids = storage.read(table, [schema.OBSERVATION_ID], where)[schema.OBSERVATION_ID]
    if not len(ids):
        raise ValueError(
            "guidance: no image passed the filters, so none can be told from the real ones"
        )
    chosen = ids.take(storage.evenly_spaced(len(ids), recipe.guidance.num_images)).to_pylist()
    encoded = storage.images_by_id(table, chosen).values()
    pixels = [images.decode(image) for image in encoded]
    latents = guidance.encode_latents(pipeline, pixels, recipe.generate.image_size)
    return latents.to(references.device())
