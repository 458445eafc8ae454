"""The section `personalise`: one fine-tuning an identity, and the images that it makes."""

from typing import Literal

from pydantic import Field, model_validator

from ray_reid.recipe.adapt import LowRank
from ray_reid.recipe.base import Frozen, ImageSide
from ray_reid.recipe.resources import StageSpec


class Balance(Frozen):
    """How many images each identity gets: more where there are few real ones."""

    target: int | None = Field(150, ge=1)
    """Real and generated images of an identity together; null takes `total` in place of it."""
    total: int | None = Field(None, ge=1)
    """Generated images of all identities together: the identities with the fewest real images
    are filled up to one level, which this number decides. Null takes `target`."""
    least: int = Field(10, ge=0)
    """Generated images of an identity that has as many real ones as the target, or more."""
    most: int | None = Field(None, ge=1)
    """Most generated images of an identity; null is without a limit."""

    @model_validator(mode="after")
    def _one_measure(self) -> "Balance":
        if (self.target is None) == (self.total is None):
            raise ValueError(
                f"target {self.target} and total {self.total}: give one of them, and null for "
                "the other"
            )
        if self.most is not None and self.least > self.most:
            raise ValueError(f"least {self.least} is more than most {self.most}; lower it")
        return self


class Personalise(Frozen):
    """Fine-tune the text-to-image model to one identity after the other, and generate with it.

    Size, steps and guidance of the images are those of the section `generate`.
    """

    prompts: str | None = None
    """A table of prompts, a Parquet file or a folder of such, in place of that of the enhance job:
    one that an earlier run made, perhaps edited. docs/diffusion_reid.md has its columns."""
    mode: Literal["full", "lora"] = "full"
    """What is trained: every weight of the UNet, or a low-rank adapter of it."""
    steps: int = Field(1000, ge=1)
    """Steps of the optimiser for one identity."""
    learning_rate: float = Field(2e-6, gt=0)
    """Of AdamW, constant; an adapter needs one that is about a hundred times higher."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW."""
    batch_size: int = Field(1, ge=1)
    """Images of the identity in a step; where `prior_weight` is above 0, as many references are
    added."""
    micro_batch: int | None = Field(None, ge=1)
    """Images in memory at once: the gradient of a step is summed over several of them. Null takes
    the whole batch."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back in place of keeping them: a third more time."""
    text_encoder: bool = False
    """Whether the text encoder is trained too, as a whole and at the same rate."""
    prior_weight: float = Field(1.0, ge=0)
    """Lambda of the prior-preservation loss; 0 needs no references."""
    lora: LowRank = LowRank()
    """The adapter of mode `lora`."""
    references: int = Field(200, ge=1)
    """Attribute references, images of the model as it was, for each class prompt or cluster."""
    clusters: int | None = Field(None, ge=1)
    """Most sets of references: identities whose class prompts are near each other share one.
    Null gives one to every class prompt."""
    balance: Balance = Balance()
    output_size: tuple[ImageSide, ImageSide] = (256, 128)
    """Height and width of the images in the table; they are generated at `generate.image_size`."""
    keep_adapters: bool = False
    """Whether the adapter of every identity stays in the result; for mode `lora`."""
    stage: StageSpec = StageSpec(batch_size=8)
    """Of the actors that fine-tune and generate: each takes one identity at a time, and generates
    `batch_size` images at once. A block is one identity, whatever `block_rows` says."""
    reference_stage: StageSpec = StageSpec(batch_size=8, block_rows=8)
    """Of the actors that make the references."""

    @model_validator(mode="after")
    def _adapters_to_keep(self) -> "Personalise":
        if self.keep_adapters and (self.mode == "full" or self.text_encoder):
            what = "text_encoder true" if self.mode == "lora" else "mode 'full'"
            raise ValueError(
                f"keep_adapters true needs a low-rank adapter, and {what} trains whole weights, "
                "gigabytes an identity; set it to false, or mode to 'lora' and text_encoder to "
                "false"
            )
        return self
