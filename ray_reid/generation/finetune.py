"""Fine-tune a text-to-image model and judge what comes out: plain PyTorch, no Ray.

Vehicle-Diff, section III-B and C.
"""

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_reid import images, places, schema, storage
from ray_reid.generation.candidates import kept_epochs, model_of, state_name
from ray_reid.generation.filters.colour import COLOURS
from ray_reid.generation.frechet import frechet_distance
from ray_reid.generation.generators import vehicle_prompts
from ray_reid.generation.generators.settings import pipeline_settings
from ray_reid.generation.lora import Tuning
from ray_reid.images import Pixels
from ray_reid.models.pretrained.image_text import ImageText
from ray_reid.models.pretrained.text_to_image import generate, load_adapter, load_pipeline
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
    key, model = model_of(recipe, lora)
    judge = Judge(recipe, pixels, model, key)
    if lora is None:
        judge.judge(out / "candidates" / name, adapted=False)
        return
    pipeline = load_pipeline(model, "fp32", key)
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


class Judge:
    """Measure a candidate: distance to the target images, and the share of the asked colour."""

    def __init__(self, recipe: Recipe, target: list[Pixels], generator: str, key: str) -> None:
        """Embed the target images and the colour prompts.

        Args:
            target: Images that were adapted to, (H, W, 3) uint8 each.
            generator: Reference of the text-to-image model.
            key: Of the recipe, which names that model.
        """
        spec = recipe.adapt
        self.recipe, self.generator, self.key = recipe, generator, key
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

        Raises:
            ValueError: If the model's safety checker refuses nearly all images.
        """
        pipeline = load_pipeline(self.generator, self.recipe.models.precision, self.key)
        if adapted:
            load_adapter(pipeline, place)
        made = self._generate(pipeline)
        shown = [number for number, image in enumerate(made) if image is not None]
        if len(shown) < 2:
            raise ValueError(
                f"{self.key} {self.generator!r}: its safety checker refused "
                f"{len(made) - len(shown)} of {len(made)} images that judge {place.name!r}, and a "
                "Frechet distance needs 2; raise adapt.images_per_prompt or take another model"
            )
        found = self._embed([image for image in made if image is not None])
        nearest = (found @ self.texts.T).argmax(1)
        # What the pipeline itself refuses does not do what the prompt says.
        right = sum(
            self.names[int(best)] == self.colours[number]
            for best, number in zip(nearest, shown, strict=True)
        )
        result = {
            "fid": round(frechet_distance(found, self.target), 5),
            "agreement": round(right / len(made), 4),
            **facts,
        }
        black = np.zeros((*self.recipe.generate.image_size, 3), np.uint8)
        sheet = np.stack([black if image is None else image for image in made])
        place.mkdir(parents=True, exist_ok=True)
        with places.created(place / "images.npz") as sink:
            np.savez_compressed(sink, images=sheet, colours=self.colours)
        places.write_text(place / "judged.json", json.dumps(result) + "\n")

    def _generate(self, pipeline: Any) -> list[Pixels | None]:
        spec = self.recipe.generate
        made: list[Pixels | None] = []
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
