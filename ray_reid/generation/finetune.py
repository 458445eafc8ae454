"""Fine-tune a UNet by low-rank adapters and judge what comes out: plain PyTorch, no Ray.

Hu et al., 2022; text encoder and autoencoder stay frozen (Vehicle-Diff, section III-B).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ray_reid import images, places, schema, storage
from ray_reid.generation.candidates import kept_epochs, state_name
from ray_reid.generation.filters.colour import COLOURS
from ray_reid.generation.frechet import frechet_distance
from ray_reid.generation.generators import vehicle_prompts
from ray_reid.generation.generators.settings import pipeline_settings
from ray_reid.images import Pixels
from ray_reid.models.pretrained import latents
from ray_reid.models.pretrained.image_text import ImageText
from ray_reid.models.pretrained.text_to_image import ADAPTER, generate, load_adapter, load_pipeline
from ray_reid.places import Place
from ray_reid.recipe.adapt import Lora
from ray_reid.recipe.recipe import Recipe

NUM_STATES = 10
"""How often a training is saved, so that a killed one goes on from there."""


def fit_and_judge(recipe: Recipe, out: Place, name: str, lora: Lora | None, meter: Any) -> None:
    """Fit one adapter on `out/images` and `out/captions`; judge each state that is kept.

    Writes `out/candidates/NAME/` with the adapter, `images.npz` and, last, `judged.json`. A
    killed training goes on from the last of its `NUM_STATES` states in `out/states`.

    Args:
        lora: The training; null judges the model as it is.
        meter: `progress.Meter` actor that is told how far the training is.
    """
    columns = [schema.OBSERVATION_ID, schema.IMAGE]
    shown = storage.read(out / "images", columns)[schema.IMAGE].to_pylist()
    told = storage.read(out / "captions", [schema.CAPTION])[schema.CAPTION].to_pylist()
    pixels = [images.decode(encoded) for encoded in shown]
    judge = Judge(recipe, pixels)
    if lora is None:
        judge.judge(out / "candidates" / name, adapted=False)
        return
    pipeline = load_pipeline(recipe.models.text_to_image, "fp32")
    tuning = Tuning(pipeline, pixels, told, lora, recipe)
    file = out / "states" / f"{name}.pt"
    if file.exists():
        tuning.restore(torch.load(places.fetched(file), map_location="cpu", weights_only=True))
    kept = kept_epochs(lora)
    while tuning.epoch < lora.epochs:
        tuning.run_epoch()
        meter.set.remote(tuning.step, tuning.steps)
        if tuning.epoch in kept:
            place = out / "candidates" / state_name(name, tuning.epoch)
            with places.written(place) as folder:
                tuning.save(folder)
            judge.judge(place, adapted=True, loss=tuning.loss)
        if tuning.epoch % max(1, lora.epochs // NUM_STATES) == 0:
            _write_state(tuning.state(), file)


def _write_state(state: dict[str, Any], file: Place) -> None:
    file.parent.mkdir(exist_ok=True)
    with places.created(file) as sink:
        torch.save(state, sink)


class Tuning:
    """The training of one adapter: mean squared error of the predicted noise or velocity."""

    def __init__(
        self, pipeline: Any, pixels: list[Pixels], captions: list[str], lora: Lora, recipe: Recipe
    ) -> None:
        """Encode all images and captions once and add the adapter to the UNet."""
        from diffusers import DDPMScheduler
        from peft import LoraConfig

        self.pipeline, self.lora, self.seed = pipeline, lora, recipe.seed
        self.device = pipeline.unet.device
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        size = recipe.generate.image_size
        self.means, self.deviations = latents.encode(pipeline, pixels, size)
        with torch.inference_mode():
            self.conditions = self._conditions(captions, size)
        torch.manual_seed(recipe.seed)
        pipeline.unet.add_adapter(
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha or lora.rank,
                init_lora_weights="gaussian",
                target_modules=list(lora.target_modules),
            ),
            adapter_name="street",
        )
        pipeline.unet.train()
        self.trained = [value for value in pipeline.unet.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=lora.learning_rate)
        self.batches = max(1, -(-len(pixels) // lora.batch_size))
        self.steps, self.step, self.epoch = self.batches * lora.epochs, 0, 0
        self.loss = 0.0
        self.bf16 = self.device.type == "cuda"

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
            loss = self._loss(rows, rng)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.step += 1
            total += float(loss.detach()) * len(rows)
        self.epoch += 1
        self.loss = total / len(order)

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

    def _loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
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
        condition = {name: value[rows].to(self.device) for name, value in self.conditions.items()}
        extra = {}
        if "text_embeds" in condition:
            extra["added_cond_kwargs"] = {
                "text_embeds": condition["text_embeds"],
                "time_ids": condition["time_ids"],
            }
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            predicted = self.pipeline.unet(
                noisy.to(self.device),
                times.to(self.device),
                encoder_hidden_states=condition["hidden"],
                **extra,
            ).sample
        return F.mse_loss(predicted.float(), target.to(self.device))

    def _conditions(self, captions: list[str], size: tuple[int, int]) -> dict[str, Tensor]:
        """What the UNet is told of each caption; SDXL is also told sizes."""
        pipeline = self.pipeline
        is_xl = pipeline.unet.config.addition_embed_type == "text_time"
        arguments: dict[str, Any] = {} if is_xl else {"num_images_per_prompt": 1}
        found = pipeline.encode_prompt(
            prompt=captions, device=self.device, do_classifier_free_guidance=False, **arguments
        )
        conditions = {"hidden": found[0].float().cpu().clone()}
        if is_xl:
            # Original size, crop corner and target size (Podell et al., 2023, section 2.2).
            conditions["text_embeds"] = found[2].float().cpu().clone()
            conditions["time_ids"] = torch.tensor([[*size, 0.0, 0.0, *size]] * len(captions))
        return conditions


def schedule(lora: Lora, epochs: float) -> float:
    """Share of the learning rate: linear warm-up, then polynomial decay to zero at the end."""
    if epochs < lora.warmup_epochs:
        return min(1.0, (epochs + 1e-3) / lora.warmup_epochs)
    left = (lora.epochs - epochs) / max(lora.epochs - lora.warmup_epochs, 1e-9)
    return float(max(left, 0.0) ** lora.power)


class Judge:
    """Measure a candidate: distance to the target images, and the share of the asked colour."""

    def __init__(self, recipe: Recipe, target: list[Pixels]) -> None:
        """Embed the target images and the colour prompts."""
        spec = recipe.adapt
        self.recipe = recipe
        self.model = ImageText(recipe.models.image_text, recipe.models.precision)
        self.target = self._embed(target)
        wanted = vehicle_prompts.identities(recipe.prompts, recipe.seed)[: spec.num_prompts]
        wanted = [one for _ in range(spec.images_per_prompt) for one in wanted]
        self.prompts = [one.prompt for one in wanted]
        self.colours = [one.attributes["colour"] for one in wanted]
        self.names = sorted({*COLOURS, *self.colours})
        self.texts = self.model.embed_texts([f"a {name} vehicle" for name in self.names])

    def judge(self, place: Place, adapted: bool, **facts: float) -> None:
        """Generate as the generate job would and write `images.npz` and `judged.json`.

        Args:
            place: Folder of the candidate, with its adapter if it is `adapted`.
            facts: To be written too.
        """
        models = self.recipe.models
        pipeline = load_pipeline(models.text_to_image, models.precision)
        if adapted:
            load_adapter(pipeline, place)
        made = self._generate(pipeline)
        found = self._embed(made)
        nearest = (found @ self.texts.T).argmax(1)
        right = [
            self.names[int(best)] == own for best, own in zip(nearest, self.colours, strict=True)
        ]
        result = {
            "fid": round(frechet_distance(found, self.target), 5),
            "agreement": round(float(np.mean(right)), 4),
            **facts,
        }
        place.mkdir(parents=True, exist_ok=True)
        with places.created(place / "images.npz") as sink:
            np.savez_compressed(sink, images=np.stack(made), colours=self.colours)
        places.write_text(place / "judged.json", json.dumps(result) + "\n")

    def _generate(self, pipeline: Any) -> list[Pixels]:
        spec, made = self.recipe.generate, []
        size = spec.stage.batch_size
        for start in range(0, len(self.prompts), size):
            seeds = list(range(start, start + len(self.prompts[start : start + size])))
            made += generate(
                pipeline,
                self.prompts[start : start + size],
                seeds,
                **pipeline_settings(spec),
            )
        return made

    def _embed(self, pixels: list[Pixels]) -> NDArray[np.float32]:
        parts = [self.model.embed_images(pixels[at : at + 64]) for at in range(0, len(pixels), 64)]
        return np.concatenate(parts)
