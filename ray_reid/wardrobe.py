"""What a recipe says of clothes: how they are described, who is dressed in them, and what for."""

import string
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_reid.resources import StageSpec
from ray_reid.sources import Frozen

PARTS = ("upper", "lower", "footwear")
"""What is described and painted over (DLCR, section 3.1)."""


class Describe(Frozen):
    """One description of every set of clothes: an answer per image, then a summary of them."""

    prompt: str = "describe the clothes of this person in one line: upper | lower | footwear"
    """What the model is asked of each image; it must answer in this form."""
    max_words: int = Field(40, ge=1)
    """Most tokens of an answer."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """`vllm` answers through Ray Data's LLM support; for GPU clusters that have it installed."""
    summary: Literal["majority", "llm"] = "majority"
    """How the answers for one set of clothes become one: by the most frequent of each part, or by
    `models.summariser` first; where that leaves several, the most frequent."""
    file: str | None = None
    """A `descriptions.parquet` of an earlier run, perhaps edited, in place of asking a model."""
    stage: StageSpec = StageSpec(batch_size=16)


class Outfits(Frozen):
    """How images of people are made with other clothes than they wear."""

    num_outfits: int = Field(10, ge=1)
    """K: generated images of each training image."""
    clothes: Literal["described", "random"] = "described"
    """`described`: those of other clothes in the training set; `random`: words put together."""
    method: Literal["inpaint", "image_to_image"] = "inpaint"
    """`inpaint` paints the clothes alone; `image_to_image` repaints the whole image, from noise of
    `strength`, which keeps nothing for certain (Table A1, row 2)."""
    strength: float = Field(0.6, gt=0, le=1)
    """Share of the denoising steps that `image_to_image` takes."""
    template: str = "{upper}, {lower}, {footwear}"
    """Prompt of a description."""
    margin: int = Field(0, ge=0, le=64)
    """Pixels around the clothes that are painted over too."""
    min_mask: float = Field(0.02, ge=0, lt=1)
    """Least share of the image that clothes must have: less is nobody."""
    max_mask: float = Field(0.85, gt=0, le=1)
    """Largest: more leaves nothing to recognise."""
    parse_stage: StageSpec = StageSpec(batch_size=16)
    """The human parser; what paints takes `generate.stage`."""

    @field_validator("template")
    @classmethod
    def _fields(cls, template: str) -> str:
        try:
            named = [
                name for _, name, _, _ in string.Formatter().parse(template) if name is not None
            ]
        except ValueError as error:
            raise ValueError(f"template {template!r} is not a template: {error}") from error
        unknown = sorted(set(named) - set(PARTS))
        if unknown or not named:
            what = f"the unknown field {unknown[0]!r}" if unknown else "no field"
            raise ValueError(f"template {template!r} has {what}; choose from {list(PARTS)}")
        return template

    @model_validator(mode="after")
    def _order(self) -> "Outfits":
        if self.min_mask >= self.max_mask:
            raise ValueError(
                f"min_mask {self.min_mask:g} must be less than max_mask {self.max_mask:g}"
            )
        return self


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


class Guidance(Frozen):
    """Generated images drawn towards the real ones by a discriminator (DLCR, section 12)."""

    weight: float = Field(0.0, ge=0)
    """w, the share of the discriminator's correction that is added to the predicted noise; 0 is
    no guidance and trains none."""
    num_images: int = Field(2000, ge=1)
    """Most real images, and most generated ones, that it is trained on."""
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((64, 128, 128), min_length=1)
    """Widths of its levels; every level but the first halves height and width of the latents."""
    steps: int = Field(2000, ge=1)
    batch_size: int = Field(32, ge=1)
    """Real latents of a step, and as many generated ones."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest of AdamW; it rises for the first 30 % of the steps and falls to nearly zero."""
