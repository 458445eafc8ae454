"""Whether the models that a recipe names are there, before any job runs."""

from ray_reid.models.pretrained import clip_models, references
from ray_reid.recipe.models import Models


def check(models: Models, *roles: str) -> None:
    """Refuse models that cannot be loaded from here: actors would find out one by one, and late.

    Args:
        models: Section of the recipe.
        roles: Names of its fields.

    Raises:
        ValueError: Names the key, the reference and what to do.
    """
    for role in roles:
        reference: str = getattr(models, role)
        with references.refusing(f"models.{role}", reference):
            if role == "image_text":
                clip_models.check(reference)
            else:
                references.locate(reference)
