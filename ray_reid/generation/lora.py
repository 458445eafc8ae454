"""The training of one low-rank adapter of a UNet: plain PyTorch, no Ray.

Hu et al., 2022; text encoder and autoencoder stay frozen (Vehicle-Diff, section III-B).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_reid.images import Pixels
from ray_reid.models.pretrained import latents, references
from ray_reid.models.pretrained.text_to_image import ADAPTER
from ray_reid.recipe.adapt import Lora
from ray_reid.recipe.recipe import Recipe

CAPTIONS = 64
"""Captions that are encoded at once."""


class Tuning:
    """The training of one adapter: mean squared error of the predicted noise or velocity."""

    def __init__(
        self, pipeline: Any, pixels: list[Pixels], captions: list[str], lora: Lora, recipe: Recipe
    ) -> None:
        """Encode all images and captions once and add the adapter to the UNet.

        Raises:
            ValueError: If no layer of the UNet is one that the recipe adapts.
        """
        from diffusers import DDPMScheduler

        self.pipeline, self.lora, self.seed = pipeline, lora, recipe.seed
        self.device = pipeline.unet.device
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        size = recipe.generate.image_size
        self.means, self.deviations = latents.encode(pipeline, pixels, size)
        with torch.inference_mode():
            self.conditions = _conditions(pipeline, captions, size)
        torch.manual_seed(recipe.seed)
        self.trained = _adapted(pipeline, lora)
        self.optimizer = torch.optim.Adam(self.trained, lr=lora.learning_rate)
        self.batches = max(1, -(-len(pixels) // lora.batch_size))
        self.steps, self.step, self.epoch = self.batches * lora.epochs, 0, 0
        self.loss = 0.0
        self.bf16 = self.device.type == "cuda" or lora.frozen == "bf16"

    def run_epoch(self) -> None:
        """Pass over the images once, in an order of the epoch's own."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.means), generator=rng)
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
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.pipeline.unet, adapter_name="street")
        # The file knows no alpha: its readers take that of the rank, so the scale goes into B.
        scale = (self.lora.alpha or self.lora.rank) / self.lora.rank
        layers = {
            name: (value * scale if ".up." in name else value).half().contiguous()
            for name, value in convert_state_dict_to_diffusers(state).items()
        }
        assert any(".up." in name for name in layers), list(layers)[:2]
        self.pipeline.save_lora_weights(
            str(place), unet_lora_layers=layers, weight_name=ADAPTER, safe_serialization=True
        )

    def losses(self, rows: Tensor, rng: torch.Generator) -> Iterator[Tensor]:
        """What each micro-batch adds to the mean loss over images; noise and times are drawn once.

        Args:
            rows: Numbers of the images.
            rng: Draws noise and times, the same however the images are divided.
        """

        def normal() -> Tensor:
            return torch.randn(self.means[rows].shape, generator=rng)

        encoded = self.means[rows] + self.deviations[rows] * normal()
        drawn = normal()
        steps = self.noise.config.num_train_timesteps
        times = torch.randint(0, steps, (len(rows),), generator=rng)
        noisy = self.noise.add_noise(encoded, drawn, times)
        if self.noise.config.prediction_type == "v_prediction":
            target = self.noise.get_velocity(encoded, drawn, times)
        else:
            target = drawn
        size = self.lora.micro_batch or len(rows)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            predicted = self._predicted(rows[part], noisy[part], times[part])
            loss = F.mse_loss(predicted.float(), target[part].to(self.device))
            yield loss * (len(predicted) / len(rows))

    def _predicted(self, rows: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """What the UNet makes of noisy latents (B, C, h, w), told the captions of their images."""
        condition = {name: value[rows].to(self.device) for name, value in self.conditions.items()}
        extra = {}
        if "text_embeds" in condition:
            extra["added_cond_kwargs"] = {
                "text_embeds": condition["text_embeds"],
                "time_ids": condition["time_ids"],
            }
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            predicted: Tensor = self.pipeline.unet(
                noisy.to(self.device),
                times.to(self.device),
                encoder_hidden_states=condition["hidden"],
                **extra,
            ).sample
        return predicted


def _conditions(pipeline: Any, captions: list[str], size: tuple[int, int]) -> dict[str, Tensor]:
    """What the UNet is told of each caption, on the CPU; SDXL is also told sizes."""
    is_xl = pipeline.unet.config.addition_embed_type == "text_time"
    arguments: dict[str, Any] = {} if is_xl else {"num_images_per_prompt": 1}
    hidden, pooled = [], []
    for start in range(0, len(captions), CAPTIONS):
        found = pipeline.encode_prompt(
            prompt=captions[start : start + CAPTIONS],
            device=pipeline.unet.device,
            do_classifier_free_guidance=False,
            **arguments,
        )
        hidden.append(found[0].float().cpu())
        if is_xl:
            pooled.append(found[2].float().cpu())
    conditions = {"hidden": torch.cat(hidden)}
    if is_xl:
        # Original size, crop corner and target size (Podell et al., 2023, section 2.2).
        conditions["text_embeds"] = torch.cat(pooled)
        conditions["time_ids"] = torch.tensor([[*size, 0.0, 0.0, *size]] * len(captions))
    return conditions


def _adapted(pipeline: Any, lora: Lora) -> list[Tensor]:
    """Add an adapter to the UNet of a pipeline, ready to train; returns its weights.

    Raises:
        ValueError: If no layer of the UNet is one that the recipe adapts.
    """
    from peft import LoraConfig

    unet = pipeline.unet
    unet.to(references.dtype(lora.frozen))
    for part in (pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        # Images and captions are encoded: a GPU needs the room for the UNet.
        if part is not None:
            part.to("cpu")
    unet.add_adapter(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha or lora.rank,
            init_lora_weights="gaussian",
            target_modules=adapted_layers(unet, lora),
        ),
        adapter_name="street",
    )
    unet.train()
    if lora.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    trained = [value for value in unet.parameters() if value.requires_grad]
    for value in trained:
        # They are made in the number type of the layer beside them.
        value.data = value.data.float()
    return trained


def adapted_layers(unet: Any, lora: Lora) -> list[str]:
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
            f"adapt.trainings: no layer in {list(lora.blocks or ['the UNet'])} has a name that "
            f"ends in one of {list(lora.target_modules)}; change blocks or target_modules"
        )
    return found


def schedule(lora: Lora, epochs: float) -> float:
    """Share of the learning rate: linear warm-up, then polynomial decay to zero at the end."""
    if epochs < lora.warmup_epochs:
        return min(1.0, (epochs + 1e-3) / lora.warmup_epochs)
    left = (lora.epochs - epochs) / max(lora.epochs - lora.warmup_epochs, 1e-9)
    return float(max(left, 0.0) ** lora.power)
