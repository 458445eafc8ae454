"""The section `describe`: clothes in words."""

from typing import Literal

from pydantic import Field

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec


class Describe(Frozen):
    """One description of every set of clothes: an answer per image, then a summary of them."""

    prompt: str = "describe the clothes of this person in one line: upper | lower | footwear"
    """What the model is asked of each image; it must answer in this form."""
    max_words: int = Field(40, ge=1)
    """Most tokens of an answer."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """`vllm` answers through Ray Data's LLM support; for GPU clusters that have it installed."""
    summary: Literal["majority", "llm", "one"] = "majority"
    """How the answers for one set of clothes become one: by the most frequent of each part, or by
    `models.summariser` first; where that leaves several, the most frequent. `one` takes that of a
    single image, the first that names all parts (DLCR, Table A3)."""
    file: str | None = None
    """A `descriptions.parquet` of an earlier run, perhaps edited, in place of asking a model."""
    stage: StageSpec = StageSpec(batch_size=16)
