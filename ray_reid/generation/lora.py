"""The training of one low-rank adapter of a UNet: plain PyTorch, no Ray.

Hu et al., 2022; text encoder and autoencoder stay frozen (Vehicle-Diff, section III-B).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ray_reid.generation.denoising import Denoising, encode_texts
from ray_reid.images import Pixels
from ray_reid.models.pretrained import latents, references
from ray_reid.models.pretrained.text_to_image import ADAPTER
from ray_reid.recipe.adapt import Lora, LowRank
from ray_reid.recipe.recipe import Recipe

NAME = "street"
"""Of an adapter in a UNet."""


class Tuning:
    """The training of one adapter: mean squared error of the predicted noise or velocity."""

    def __init__(
        self, pipeline: Any, pixels: list[Pixels], captions: list[str], lora: Lora, recipe: Recipe
    ) -> None:
        """Encode all images and captions once and add the adapter to the UNet.

        Raises:
            ValueError: If no layer of the UNet is one that the recipe adapts.
        """
        self.pipeline, self.lora, self.seed = pipeline, lora, recipe.seed
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        size = recipe.generate.image_size
        encoded = latents.encode(pipeline, pixels, size)
        with torch.inference_mode():
            conditions = encode_texts(pipeline, captions, size)
        bf16 = pipeline.unet.device.type == "cuda" or lora.frozen == "bf16"
        self.denoising = Denoising(pipeline, encoded, conditions, bf16=bf16)
        torch.manual_seed(recipe.seed)
        self.trained = _adapted(pipeline, lora)
        self.optimizer = torch.optim.Adam(self.trained, lr=lora.learning_rate)
        self.num_images = len(pixels)
        self.batches = max(1, -(-len(pixels) // lora.batch_size))
        self.steps, self.step, self.epoch = self.batches * lora.epochs, 0, 0
        self.loss = 0.0

    def run_epoch(self) -> None:
        """Pass over the images once, in an order of the epoch's own."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_images, generator=rng)
        total = 0.0
        for start in range(0, len(order), self.lora.batch_size):
            rows = order[start : start + self.lora.batch_size]
            rate = self.lora.learning_rate * schedule(self.lora, self.step / self.batches)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total += self.backward(rows, rng) * len(rows)
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.step += 1
        self.epoch += 1
        self.loss = total / len(order)

    def backward(self, rows: Tensor, rng: torch.Generator) -> float:
        """Set the gradient of the mean loss over images, `micro_batch` of them in memory at once.

        Returns:
            The loss.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for loss in self.losses(rows, rng):
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def state(self) -> dict[str, Any]:
        """All that the epochs so far have changed."""
        return {
            "adapter": [value.detach().cpu() for value in self.trained],
            "optimizer": self.optimizer.state_dict(),
            "progress": {"epoch": self.epoch, "step": self.step, "loss": self.loss},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        with torch.no_grad():
            for value, kept in zip(self.trained, state["adapter"], strict=True):
                value.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self).update(state["progress"])

    def save(self, place: Path) -> None:
        """Write the adapter in diffusers' own format."""
        save_adapter(self.pipeline, self.lora, place)

    def losses(self, rows: Tensor, rng: torch.Generator) -> Iterator[Tensor]:
        """What each micro-batch adds to the mean loss over images; see `Denoising.losses`."""
        return self.denoising.losses(rows, rng, self.lora.micro_batch)


def _adapted(pipeline: Any, lora: Lora) -> list[Tensor]:
    """Add an adapter to the UNet of a pipeline, ready to train; returns its weights.

    Raises:
        ValueError: If no layer of the UNet is one that the recipe adapts.
    """
    unet = pipeline.unet
    unet.to(references.dtype(lora.frozen))
    for part in (pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        # Images and captions are encoded: a GPU needs the room for the UNet.
        if part is not None:
            part.to("cpu")
    trained = add_adapter(unet, lora, "adapt.trainings")
    unet.train()
    if lora.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return trained


def add_adapter(unet: Any, lora: LowRank, key: str) -> list[Tensor]:
    """Add an adapter to a frozen UNet; returns its weights, fp32, which alone have gradients.

    Args:
        unet: Of diffusers.
        lora: What of it is adapted.
        key: Of the recipe, which says so.

    Raises:
        ValueError: If no layer of the UNet is one that the recipe adapts.
    """
    from peft import LoraConfig

    unet.add_adapter(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha or lora.rank,
            init_lora_weights="gaussian",
            target_modules=adapted_layers(unet, lora, key),
        ),
        adapter_name=NAME,
    )
    trained = [value for value in unet.parameters() if value.requires_grad]
    for value in trained:
        # They are made in the number type of the layer beside them.
        value.data = value.data.float()
    return trained


def save_adapter(pipeline: Any, lora: LowRank, place: Path) -> None:
    """Write the adapter of a pipeline's UNet in diffusers' own format, half precision."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(pipeline.unet, adapter_name=NAME)
    # The file knows no alpha: its readers take that of the rank, so the scale goes into B.
    scale = (lora.alpha or lora.rank) / lora.rank
    layers = {
        name: (value * scale if ".up." in name else value).half().contiguous()
        for name, value in convert_state_dict_to_diffusers(state).items()
    }
    assert any(".up." in name for name in layers), list(layers)[:2]
    pipeline.save_lora_weights(
        str(place), unet_lora_layers=layers, weight_name=ADAPTER, safe_serialization=True
    )


def adapted_layers(unet: Any, lora: LowRank, key: str) -> list[str]:
    """Names of the layers of a UNet that an adapter is added to.

    Raises:
        ValueError: If there are none.
    """
    within = None if lora.blocks is None else tuple(f"{block}." for block in lora.blocks)
    ends = tuple(f".{name}" for name in lora.target_modules)
    found = [
        name
        for name, _ in unet.named_modules()
        if f".{name}".endswith(ends) and (within is None or name.startswith(within))
    ]
    if not found:
        raise ValueError(
            f"{key}: no layer in {list(lora.blocks or ['the UNet'])} has a name that "
            f"ends in one of {list(lora.target_modules)}; change blocks or target_modules"
        )
    return found


def schedule(lora: Lora, epochs: float) -> float:
    """Share of the learning rate: linear warm-up, then polynomial decay to zero at the end."""
    if epochs < lora.warmup_epochs:
        return min(1.0, (epochs + 1e-3) / lora.warmup_epochs)
    left = (lora.epochs - epochs) / max(lora.epochs - lora.warmup_epochs, 1e-9)
    return float(max(left, 0.0) ** lora.power)
