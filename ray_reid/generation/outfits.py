"""The plan of outfits: which image is painted again, in whose clothes, by which generator.

Seeds and ids belong to the rows of a plan (DLCR, section 3.1). Nothing here runs a job.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from ray_reid import places, schema, storage
from ray_reid.generation.generators import clothes, descriptions
from ray_reid.generation.generators.descriptions import Description
from ray_reid.generation.generators.settings import pipeline_settings, settings_name
from ray_reid.models.pretrained import references, roles
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe

WHOSE, NUMBER = "whose", "number"
"""Attributes of a generated image: whose clothes, and its number among its source's from 0."""
# Sides of the images that pipelines paint are whole multiples of it.
STEP = 8
COLUMNS = (
    schema.OBSERVATION_ID, schema.IDENTITY, schema.CAMERA, schema.VIEW, schema.CLOTHES,
    schema.SOURCE, schema.LICENCE, schema.SPLIT,
)  # fmt: skip
"""Columns of the sources that a plan needs."""
Choose = Callable[[str, str | None], Sequence[Description]]
"""The id of an image and of the clothes on it to the clothes that it gets."""


def wardrobe(recipe: Recipe, describe: Place) -> list[Description]:
    """Read the clothes that people get: those described, or as many at random.

    Args:
        describe: Directory of the published job.
    """
    described = descriptions.read(describe / descriptions.FILE)
    if recipe.outfits.clothes == "described":
        return described
    return descriptions.at_random(len(described), recipe.seed)


def outfits_plan(
    recipe: Recipe, table: Place, available: Sequence[Description], generator: str
) -> pa.Table:
    """Plan `outfits.num_outfits` images of every real training image; see `plan`.

    The outfits of a smaller number are among those of a larger.

    Raises:
        ValueError: If there is no such image, or there are too few descriptions.
    """
    sources = storage.read(table, COLUMNS, clothes.DRESSED["train"]).to_pylist()
    if not sources:
        raise ValueError("there is no labelled real training image to dress in other clothes")
    choose = partial(
        descriptions.choose, available, number=recipe.outfits.num_outfits, seed=recipe.seed
    )
    return plan(recipe, sources, choose, generator)


def plan(
    recipe: Recipe, sources: Sequence[Mapping[str, Any]], choose: Choose, generator: str
) -> pa.Table:
    """One row for every image to make, those of one source side by side: it is parsed once.

    The seed of an image belongs to its row, so that it is the same image whatever else is made.

    Args:
        sources: `COLUMNS` of the images that get other clothes, in the order of their ids.
    """
    rows, source_rows = [], []
    for source_row, source in enumerate(sources):
        chosen = choose(source[schema.OBSERVATION_ID], source[schema.CLOTHES])
        for number, outfit in enumerate(chosen):
            rows.append(row(recipe, source, outfit, number, generator))
            source_rows.append(source_row)
    return schema.observations(rows).append_column(clothes.ROW, pa.array(source_rows, pa.int64()))


def row(
    recipe: Recipe, source: Mapping[str, Any], outfit: Description, number: int, generator: str
) -> dict[str, Any]:
    """A row of a plan: a source in other clothes, the `number`th of its outfits."""
    prompt = outfit.prompt(recipe.outfits.template)
    parent = source[schema.OBSERVATION_ID]
    seed = seed_of(recipe.seed, parent, outfit)
    inherited = (
        schema.IDENTITY, schema.CAMERA, schema.VIEW, schema.SOURCE, schema.LICENCE, schema.SPLIT,
    )  # fmt: skip
    attributes = {
        "upper": outfit.upper,
        "lower": outfit.lower,
        "footwear": outfit.footwear,
        WHOSE: outfit.clothes,
        NUMBER: str(number),
    }
    return {
        **{name: source[name] for name in inherited},
        schema.OBSERVATION_ID: schema.observation_id(parent, prompt, seed, generator),
        schema.IMAGE: b"",
        # Nobody else wears this person's version of these clothes.
        schema.CLOTHES: f"{source[schema.IDENTITY]}/{outfit.clothes}",
        schema.ORIGIN: "synthetic",
        schema.PARENT: parent,
        schema.PROMPT: prompt,
        schema.SEED: seed,
        schema.GENERATOR: generator,
        schema.ATTRIBUTES: attributes,
    }


def seed_of(seed: int, parent: str, outfit: Description) -> int:
    """The seed of an image of `parent` in some clothes."""
    return int(schema.observation_id(seed, parent, outfit.clothes)[:15], 16)


def generator_name(recipe: Recipe, guide: Place | None = None) -> str:
    """What makes the images: models by their content, and settings.

    Args:
        guide: Folder of the discriminator that guides it, if there is one.
    """
    spec, outfits, models = recipe.generate, recipe.outfits, recipe.models
    parts = [
        f"{name}@{references.fingerprint(name)}" for name in (models.inpainting, models.parser)
    ]
    parts.append(f"{outfits.method},margin={outfits.margin}")
    if outfits.method == "image_to_image":
        parts.append(f"strength={outfits.strength:g}")
    parts.append(settings_name(spec))
    parts.append(f"precision={models.precision}")
    if guide is not None:
        parts.append(
            f"guided={recipe.guidance.weight:g}@{references.fingerprint(str(places.fetched(guide)))}"
        )
    if spec.negative_prompt:
        parts.append(f"not={spec.negative_prompt}")
    return " ".join(parts)


def painter_params(recipe: Recipe) -> dict[str, Any]:
    """Arguments of the classes of `generators.clothes` that paint, from the recipe."""
    return {
        "models": recipe.models,
        "outfits": recipe.outfits,
        "settings": pipeline_settings(recipe.generate),
    }


def model_references(recipe: Recipe) -> tuple[str, str]:
    """References of the two models that put a person into other clothes."""
    return recipe.models.parser, recipe.models.inpainting


def check_models(recipe: Recipe) -> None:
    """Refuse models that are not there.

    Raises:
        ValueError: Names the model.
    """
    roles.check(recipe.models, "parser", "inpainting")
