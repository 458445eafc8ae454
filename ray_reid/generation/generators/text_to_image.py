"""The stage that turns prompts into images, and what encodes them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid import images, places, schema
from ray_reid.generation.generators.settings import UNSAFE
from ray_reid.schema import Batch


class GenerateImages:
    """Add the packed `pixels` column: one image for every row's prompt and seed."""

    def __init__(
        self,
        model: str,
        adapter: str | None,
        precision: str,
        guidance_scale: float,
        steps: int,
        image_size: tuple[int, int],
        negative_prompt: str,
    ) -> None:
        """Load the model once per actor; see `models.text_to_image.generate`."""
        from ray_reid.models.pretrained import text_to_image

        self.pipeline = text_to_image.load_pipeline(model, precision)
        if adapter is not None:
            text_to_image.load_adapter(self.pipeline, places.place(adapter))
        self.settings: dict[str, Any] = {
            "guidance_scale": guidance_scale,
            "steps": steps,
            "image_size": image_size,
            "negative_prompt": negative_prompt,
        }

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Generate a batch; drop what the pipeline itself refuses."""
        from ray_reid.models.pretrained.text_to_image import generate

        prompts, seeds = list(batch[schema.PROMPT]), [int(seed) for seed in batch[schema.SEED]]
        made = generate(self.pipeline, prompts, seeds, **self.settings)
        black = np.zeros((*self.settings["image_size"], 3), np.uint8)
        pixels = np.empty(len(made), dtype=object)
        pixels[:] = [images.pack(black if image is None else image) for image in made]
        reason = np.array(batch[schema.DROP_REASON], dtype=object)
        reason[[image is None for image in made]] = UNSAFE
        return {**batch, schema.PIXELS: pixels, schema.DROP_REASON: reason}


def encode(batch: Batch, quality: int) -> dict[str, NDArray[Any]]:
    """Turn the packed pixels into the JPEG `image` of a whole record of this quality."""
    encoded = np.empty(len(batch[schema.PIXELS]), dtype=object)
    encoded[:] = [images.encode(images.unpack(packed), quality) for packed in batch[schema.PIXELS]]
    filled = {**batch, schema.IMAGE: encoded}
    return {name: filled[name] for name in schema.OBSERVATION.names}
