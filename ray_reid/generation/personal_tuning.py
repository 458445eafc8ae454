"""Fine-tune one text-to-image model to one identity after the other: plain PyTorch, no Ray.

Prior-preservation loss (Ruiz et al., 2023; Diffusion-ReID, eq. 1). Between two identities the
model becomes what it was without being read again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_reid.generation.denoising import Conditions, Denoising, encode_texts
from ray_reid.generation.lora import add_adapter, save_adapter
from ray_reid.generation.token_embedding import save_token, token_embeddings
from ray_reid.images import Pixels
from ray_reid.models.pretrained import latents
from ray_reid.models.pretrained.text_to_image import generate
from ray_reid.recipe.personalise import Personalise

Latents = tuple[Tensor, Tensor]
"""Mean and deviation, (N, C, h, w) each, on the CPU."""


class UntunableError(Exception):
    """One identity cannot be fine-tuned; the others can."""


@dataclass(frozen=True)
class Subject:
    """What the model is tuned to."""

    instances: Latents
    """Of the images of the identity."""
    prompt: str
    references: Latents | None = None
    """Of images of the model as it was; None where the loss has no such part."""
    reference_prompt: str = ""


class IdentityTuner:
    """A pipeline that is tuned to an identity, generates, and becomes what it was."""

    def __init__(
        self,
        pipeline: Any,
        spec: Personalise,
        size: tuple[int, int],
        precision: torch.dtype,
        token: tuple[str, str] | None = None,
    ) -> None:
        """Make room for the training, and keep a copy on the host of what it changes.

        Args:
            pipeline: Of diffusers, in fp32 on its device.
            spec: Section of the recipe.
            size: Height and width in pixels at which is trained.
            precision: Of what is not trained, and of products; what is trained is fp32.
            token: A token that the tokenizer does not know, whose embedding is trained too, and
                the words that it begins with.

        Raises:
            ValueError: If no layer of the UNet is one that the recipe adapts, or the token has no
                words to begin with.
        """
        self.token = None if token is None else token[0]
        # First: room for a token is a new table.
        self.embeddings = [] if token is None else token_embeddings(pipeline, *token)
        self.pipeline, self.spec, self.size, self.precision = pipeline, spec, size, precision
        self.device: torch.device = pipeline.unet.device
        self.half = precision != torch.float32
        encoders = [
            part
            for part in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None))
            if part is not None
        ]
        whole: list[nn.Module] = [*(encoders if spec.text_encoder else [])]
        whole += [pipeline.unet] if spec.mode == "full" else []
        for part in (pipeline.vae, pipeline.unet, *encoders):
            part.requires_grad_(part in whole)
            if part not in whole:
                part.to(precision)
        self.adapter: dict[str, Tensor] = {}
        if spec.mode == "lora":
            add_adapter(pipeline.unet, spec.lora, "personalise.lora")
            self.adapter = {
                name: value for name, value in pipeline.unet.named_parameters() if "lora_" in name
            }
        if spec.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        self.weights: list[Tensor] = [value for part in whole for value in part.parameters()]
        self.base = self._copies()
        vectors = [one.vector for one in self.embeddings]
        self.trained: list[Tensor] = [*self.adapter.values(), *self.weights, *vectors]
        self.restore(0)

    def _copies(self) -> list[Tensor]:
        """What is trained as a whole, in one piece of the host's memory."""
        sizes = [value.numel() for value in self.weights]
        # From pinned memory a GPU reads at the full speed of its bus.
        kept = torch.empty(sum(sizes), pin_memory=self.device.type == "cuda")
        copies, start = [], 0
        for value, size in zip(self.weights, sizes, strict=True):
            copies.append(kept[start : start + size].view(value.shape))
            copies[-1].copy_(value.detach())
            start += size
        return copies

    @torch.no_grad()
    def restore(self, seed: int) -> None:
        """Make the model what it was; `seed` draws the factors that an adapter begins with."""
        for weight, kept in zip(self.weights, self.base, strict=True):
            weight.copy_(kept, non_blocking=True)
        rng = torch.Generator().manual_seed(seed)
        for name, value in self.adapter.items():
            if "lora_B" in name:
                # An adapter whose second factor is zero changes nothing.
                value.zero_()
            else:
                drawn = torch.randn(value.shape, generator=rng) / self.spec.lora.rank
                value.copy_(drawn)
        for one in self.embeddings:
            one.restore()
        for trained in self.trained:
            trained.grad = None
        self._wait()

    def encode(self, pixels: list[Pixels]) -> Latents:
        """The latents of images of any sizes, resized to that of the training."""
        return latents.encode(self.pipeline, pixels, self.size)

    def tune(self, subject: Subject, seed: int, micro_batch: int | None) -> float:
        """Fine-tune the restored model; returns the mean loss of the last tenth of the steps.

        Args:
            subject: The identity.
            seed: Of the order of the images, of noise and of times.
            micro_batch: Images in memory at once; None takes those of a step.

        Raises:
            UntunableError: If the loss is not a number.
        """
        spec, unet = self.spec, self.pipeline.unet
        denoising, num_instances, weights = self._denoising(subject)
        rng = torch.Generator().manual_seed(seed)
        batches = _batches(num_instances, len(denoising.means), spec.batch_size, rng)
        optimizer = torch.optim.AdamW(
            self.trained,
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            fused=self.device.type == "cuda",
        )
        unet.train()
        last = 0.0
        num_last = math.ceil(spec.steps / 10)
        for step in range(spec.steps):
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for loss in denoising.losses(next(batches), rng, micro_batch, weights):
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            if not math.isfinite(total):
                raise UntunableError(f"the loss of step {step + 1} is {total}")
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            optimizer.step()
            last += total if step >= spec.steps - num_last else 0.0
        self._wait()
        return last / num_last

    def _denoising(self, subject: Subject) -> tuple[Denoising, int, Tensor]:
        """The loss on an identity's images and then the references, and weights of a batch."""
        spec, texts = self.spec, [subject.prompt]
        means, deviations = subject.instances
        num_instances, num_rows = len(means), spec.batch_size
        weights = torch.full((num_rows,), 1.0 / num_rows)
        told = torch.zeros(num_instances, dtype=torch.long)
        if subject.references is not None:
            own, spread = subject.references
            means, deviations = torch.cat([means, own]), torch.cat([deviations, spread])
            told = torch.cat([told, torch.ones(len(own), dtype=torch.long)])
            texts.append(subject.reference_prompt)
            weights = torch.cat([weights, weights * spec.prior_weight])

        def conditions() -> Conditions:
            return encode_texts(self.pipeline, texts, self.size, self.device)

        if spec.text_encoder or self.embeddings:
            given: Any = conditions
        else:
            with torch.no_grad():
                given = conditions()
        denoising = Denoising(self.pipeline, (means, deviations), given, told, self.half)
        return denoising, num_instances, weights

    def generate(
        self, prompts: list[str], seeds: list[int], settings: dict[str, Any], batch_size: int
    ) -> list[Pixels | None]:
        """Generate one image a prompt, `batch_size` at once; see `text_to_image.generate`."""
        self.pipeline.unet.eval()
        made: list[Pixels | None] = []
        with torch.autocast(self.device.type, self.precision, enabled=self.half):
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                made += generate(self.pipeline, prompts[part], seeds[part], **settings)
        return made

    def save(self, place: Path) -> None:
        """Write the adapter in diffusers' own format, and the embedding of a new token."""
        save_adapter(self.pipeline, self.spec.lora, place)
        if self.token is not None:
            save_token(self.pipeline, self.embeddings, self.token, place)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _batches(instances: int, images: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Rows of each step: `size` of the instances, and as many of the images after them.

    Each of both is drawn once before any is drawn again.
    """
    kinds = [_rounds(0, instances, rng)]
    if images > instances:
        kinds.append(_rounds(instances, images, rng))
    while True:
        yield torch.tensor([next(rows) for rows in kinds for _ in range(size)])


def _rounds(start: int, stop: int, rng: torch.Generator) -> Iterator[int]:
    while True:
        for row in torch.randperm(stop - start, generator=rng).tolist():
            yield start + row
