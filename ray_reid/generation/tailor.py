"""What makes variants of a query: the same person in other clothes (DLCR, Alg. 1).

The variants job and the refined search share it, so it needs neither a job nor Ray.
"""

import hashlib
from collections.abc import Sequence

from ray_reid import images, schema
from ray_reid.generation import outfits
from ray_reid.generation.generators import descriptions
from ray_reid.generation.generators.clothes import ClothesChanger
from ray_reid.generation.generators.descriptions import Description
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.refine import Refine

# A photograph is brought to at most this many times the size that it is painted at.
LARGEST = 4


def variant_recipe(recipe: Recipe, spec: Refine) -> Recipe:
    """The recipe with the steps and the size that variants are painted with."""
    step = outfits.STEP
    sides = [
        max(step, step * round(side * spec.scale / step)) for side in recipe.generate.image_size
    ]
    changes = {"generate.steps": spec.steps, "generate.image_size": sides}
    return recipes.override(recipe, changes)


def choose_variants(
    available: Sequence[Description], observation_id: str, own: str | None, number: int, seed: int
) -> list[Description]:
    """Choose the clothes of the variants of a query; see `descriptions.choose`.

    Raises:
        ValueError: If too few clothes are described.
    """
    try:
        return descriptions.choose(available, observation_id, own, number, seed)
    except ValueError as error:
        raise ValueError(f"refine.num_variants: {error}") from error


class Tailor:
    """Makes the variants of an image, as the job makes those of a query."""

    def __init__(self, recipe: Recipe, describe: Place) -> None:
        """Read the descriptions; the models are loaded when they are first needed.

        Args:
            recipe: Of the run; it has the section `refine`.
            describe: Directory of its published job.

        Raises:
            ValueError: If the recipe has no such section, or the descriptions are missing or too
                few.
        """
        if recipe.refine is None:
            raise ValueError(
                "this run refines no query: its recipe has no section 'refine'; set refine={}"
            )
        self.recipe, self.number = variant_recipe(recipe, recipe.refine), recipe.refine.num_variants
        self.descriptions = outfits.wardrobe(recipe, describe)
        # Refused here, before the models are loaded.
        choose_variants(self.descriptions, "", None, self.number, recipe.seed)
        self._changer: ClothesChanger | None = None

    def load(self) -> ClothesChanger:
        """Parser and inpainting pipeline, loaded once.

        Raises:
            ValueError: If one cannot be loaded.
        """
        if self._changer is None:
            self._changer = ClothesChanger(**outfits.painter_params(self.recipe))
        return self._changer

    def __call__(self, encoded: bytes) -> list[bytes] | str:
        """The variants of an image as PNG, or why it has none; the same image gets the same ones.

        Raises:
            ValueError: If the bytes are not an image, or a model cannot be loaded.
        """
        seed, template = self.recipe.seed, self.recipe.outfits.template
        name = schema.observation_id("query", hashlib.blake2b(encoded, digest_size=16).hexdigest())
        chosen = choose_variants(self.descriptions, name, None, self.number, seed)
        prompts = [outfit.prompt(template) for outfit in chosen]
        seeds = [outfits.seed_of(seed, name, outfit) for outfit in chosen]
        (variants,) = self.load().change([self._decoded(encoded)], [prompts], [seeds])
        if isinstance(variants, str):
            return variants
        return [images.encode_png(variant) for variant in variants]

    def _decoded(self, encoded: bytes) -> images.Pixels:
        """The image, smaller where it is far larger than what is painted."""
        pixels = images.decode(encoded)
        most = LARGEST * max(self.recipe.generate.image_size)
        largest = max(pixels.shape[:2])
        if largest <= most:
            return pixels
        height, width = (max(1, round(side * most / largest)) for side in pixels.shape[:2])
        return images.decode(encoded, (height, width))
