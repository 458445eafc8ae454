"""The section `prompts`: attributes to prompts."""

from pydantic import Field

from ray_reid.recipe.base import Frozen


class Prompts(Frozen):
    """Attributes to prompts; one combination of attributes is one identity."""

    library: str = "miniature_vehicles.csv"
    """CSV with the columns brand, model, body_style, years and colours, the last two lists with
    `;` between; a path, or the name of a file in jobs/recipes/prompts."""
    template: str = "a {colour} {year} {brand} {model} {body_style} driving down the road"
    """Vehicle-Diff, section III-B."""
    num_identities: int = Field(60, ge=2)
    images_per_identity: int = Field(8, ge=1)
