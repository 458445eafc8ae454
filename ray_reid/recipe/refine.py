"""The section `refine`: answers to a query in several clothes."""

from typing import Literal

from pydantic import Field

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec


class Gate(Frozen):
    """Refine only the queries whose first place is in doubt."""

    share: float = Field(0.3, gt=0, lt=1)
    """Share of the queries to refine: those with the smallest margins between the best image and
    the best image of anybody else. The threshold is calibrated by the evaluate job."""


class Refine(Frozen):
    """Prediction refinement: the gallery's answer to a query in several clothes (DLCR, Alg. 1)."""

    num_variants: int = Field(6, ge=1, le=100)
    """l: images of each query in other clothes."""
    m: int = Field(5, ge=1)
    """Most similar gallery images of each list."""
    rule: Literal["paper", "released"] = "paper"
    """As the paper has it, or as the authors' code does; see docs/reranking.md."""
    steps: int = Field(10, ge=1)
    """Denoising steps of a variant."""
    scale: float = Field(0.5, gt=0, le=1)
    """Size that variants are painted at, as a share of `generate.image_size`."""
    gate: Gate | None = None
    """Which queries are refined; null refines all, `{}` takes the defaults."""
    stage: StageSpec = StageSpec(batch_size=24, block_rows=24)
    """What paints the variants; a batch of several times `num_variants` parses each image once."""
