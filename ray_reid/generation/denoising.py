"""The loss of a diffusion model on given images and texts: plain PyTorch, no Ray.

Mean squared error of the predicted noise, or of the velocity where the scheduler says so.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CAPTIONS = 64
"""Captions that are encoded at once."""
Conditions = dict[str, Tensor]
"""What the UNet is told of each text, by the name of the argument."""


class Denoising:
    """Images as latents, texts as conditions, and the loss of the UNet on them."""

    def __init__(
        self,
        pipeline: Any,
        encoded: tuple[Tensor, Tensor],
        conditions: Conditions | Callable[[], Conditions],
        told: Tensor | None = None,
        bf16: bool = False,
    ) -> None:
        """Take what `latents.encode` and `encode_texts` have made.

        Args:
            pipeline: Of diffusers; its UNet is what is trained.
            encoded: Mean and deviation of the latents of N images.
            conditions: Of the texts; a function is called for every loss, so that a text encoder
                can be trained.
            told: (N,) number of the text of each image; None where there is one text an image.
            bf16: Whether products are computed in bf16.
        """
        from diffusers import DDPMScheduler

        self.pipeline, self.bf16 = pipeline, bf16
        self.device = pipeline.unet.device
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.means, self.deviations = encoded
        self.conditions = conditions
        self.told = torch.arange(len(self.means)) if told is None else told

    def losses(
        self,
        rows: Tensor,
        rng: torch.Generator,
        micro_batch: int | None = None,
        weights: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """What each micro-batch adds to the loss over images; noise and times are drawn once.

        Args:
            rows: Numbers of the images.
            rng: Draws noise and times, the same however the images are divided.
            micro_batch: Images in memory at once; None takes all.
            weights: Of each image in the loss; None is the mean over the images.
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
        size = micro_batch or len(rows)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            predicted = self._predicted(rows[part], noisy[part], times[part]).float()
            wanted = target[part].to(self.device)
            if weights is None:
                yield F.mse_loss(predicted, wanted) * (len(predicted) / len(rows))
            else:
                each = (predicted - wanted).square().flatten(1).mean(1)
                yield (each * weights[part].to(self.device)).sum()

    def _predicted(self, rows: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """What the UNet makes of noisy latents (B, C, h, w), told the texts of their images."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            known = self.conditions() if callable(self.conditions) else self.conditions
            condition = {
                name: value[self.told[rows].to(value.device)].to(self.device)
                for name, value in known.items()
            }
            extra = {}
            if "text_embeds" in condition:
                extra["added_cond_kwargs"] = {
                    "text_embeds": condition["text_embeds"],
                    "time_ids": condition["time_ids"],
                }
            predicted: Tensor = self.pipeline.unet(
                noisy.to(self.device),
                times.to(self.device),
                encoder_hidden_states=condition["hidden"],
                **extra,
            ).sample
        return predicted


def encode_texts(
    pipeline: Any, captions: list[str], size: tuple[int, int], device: str | torch.device = "cpu"
) -> Conditions:
    """What the UNet is told of each caption, fp32 on a device; SDXL is also told sizes."""
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
        hidden.append(found[0].float().to(device))
        if is_xl:
            pooled.append(found[2].float().to(device))
    conditions = {"hidden": torch.cat(hidden)}
    if is_xl:
        # Original size, crop corner and target size (Podell et al., 2023, section 2.2).
        conditions["text_embeds"] = torch.cat(pooled)
        conditions["time_ids"] = torch.tensor(
            [[*size, 0.0, 0.0, *size]] * len(captions), device=device
        )
    return conditions
