"""The section `adapt`: how the text-to-image model is fine-tuned to the target cameras."""

from typing import Literal

from pydantic import Field

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec


class LowRank(Frozen):
    """A low-rank adapter of the UNet (Hu et al., 2022)."""

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    """Scale of the adapter; null takes the rank."""
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Layers of the UNet, by the end of their names."""
    blocks: tuple[Literal["down_blocks", "mid_block", "up_blocks"], ...] | None = None
    """Parts of the UNet whose layers are adapted, `up_blocks` being its decoder; null takes all."""


class Lora(LowRank):
    """One fine-tuning of the UNet by low-rank adapters (Hu et al., 2022)."""

    model: str | None = None
    """Text-to-image model that is fine-tuned; null takes `models.text_to_image`. Images of a
    candidate are generated with its own model."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of Adam; linear warm-up, then polynomial decay to zero."""
    power: float = Field(1.0, gt=0)
    epochs: int = Field(100, ge=1)
    warmup_epochs: float = Field(20.0, ge=0)
    batch_size: int = Field(8, ge=1)
    """Images of one step of the optimiser."""
    micro_batch: int | None = Field(None, ge=1)
    """Images that are in memory at once: the gradient of a step is summed over several of them.
    Null takes the whole batch."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back in place of keeping them: a third more time."""
    frozen: Literal["fp32", "bf16"] = "fp32"
    """Number type of the UNet's own weights, which stay as they are; the adapter is fp32."""
    keep_epochs: tuple[int, ...] = ()
    """Epochs after which the adapter is kept as a candidate of its own, besides the last."""


class Adapt(Frozen):
    """Fine-tune the text-to-image model on a few unlabelled images of the target cameras."""

    fraction: float = Field(0.01, gt=0, le=1)
    """Share of the real training images that is captioned and fine-tuned on; labels unseen."""
    caption_prefix: str = ""
    """Text that the captioner goes on from; some models need one."""
    caption_stage: StageSpec = StageSpec(batch_size=16)
    trainings: tuple[Lora, ...] = (Lora(),)
    """Each yields candidates."""
    num_prompts: int = Field(10, ge=1)
    images_per_prompt: int = Field(4, ge=1)
    """Images that judge a candidate: num_prompts times this."""
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    """Resources of one fine-tuning."""
