"""How the section `train` protects the weights that a network starts from."""

from typing import Literal

from pydantic import Field

from ray_reid.recipe.base import Frozen


class Finetune(Frozen):
    """Limits to how far the backbone may move from its initial weights.

    `norms` and `head_epochs` hold for the semantic encoder too.
    """

    norms: Literal["train", "statistics", "fixed"] = "train"
    """What the batch norms of the backbone keep: `train` keeps nothing, `statistics` keeps the
    initial means and variances, `fixed` keeps the scales and shifts as well. Statistics that follow
    small batches of one data set can cost more accuracy than the training gains."""
    head_epochs: int = Field(0, ge=0)
    """Number of first epochs in which neck and head learn alone; the backbone and its norms stay as
    they are."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate from one layer of the backbone to the layer before it, in timm's
    division into layers; 1 gives all layers the same rate."""
