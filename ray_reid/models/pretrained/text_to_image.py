"""Text-to-image models of diffusers: Stable Diffusion 1, 2 and XL, with or without an adapter."""

from collections.abc import Sequence
from typing import Any

import torch

from ray_reid import places
from ray_reid.images import Pixels
from ray_reid.models.pretrained import diffusion
from ray_reid.places import Place

ADAPTER = "pytorch_lora_weights.safetensors"


def load_pipeline(
    reference: str, precision: str = "auto", key: str = "models.text_to_image"
) -> Any:
    """Load a pipeline onto this process's device; `key` of the recipe names it.

    Raises:
        ValueError: If there is no such model, or it makes no images from text.
    """
    # Here, because it takes seconds, and most commands never load such a model.
    from diffusers import AutoPipelineForText2Image

    return diffusion.load_pipeline(AutoPipelineForText2Image, key, reference, precision)


def load_adapter(pipeline: Any, adapter: Place) -> None:
    """Merge low-rank weights into the UNet: generation costs no more than without them.

    Raises:
        ValueError: If there are none, or they were made for another model.
    """
    if not (adapter / ADAPTER).is_file():
        raise ValueError(f"no adapter in {str(adapter)!r}: it has no {ADAPTER}")
    try:
        pipeline.load_lora_weights(
            str(places.fetched(adapter)), weight_name=ADAPTER, adapter_name="street"
        )
        pipeline.fuse_lora(components=["unet"])
    except (RuntimeError, ValueError, KeyError) as error:
        what = type(pipeline.unet).__name__
        raise ValueError(
            f"adapter {str(adapter)!r} does not fit the {what} of models.text_to_image: it was "
            "made for another model; run the adapt job with this one"
        ) from error
    pipeline.unload_lora_weights()


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float,
    steps: int,
    image_size: tuple[int, int],
    negative_prompt: str = "",
) -> list[Pixels | None]:
    """Generate one image a prompt; it depends on its own prompt and seed alone.

    Args:
        pipeline: From `load_pipeline`.
        seeds: One a prompt; the noise is drawn on the CPU, so it is the same everywhere.
        guidance_scale: Scale of classifier-free guidance; 1 is none.
        image_size: Height and width in pixels.
        negative_prompt: What guidance leads away from; empty is what the model does without one.

    Returns:
        (H, W, 3) uint8 each; None where the safety checker that some pipelines bring refused the
        image, in whose place it leaves black.
    """
    height, width = image_size
    found = pipeline(
        list(prompts),
        negative_prompt=diffusion.repeated(negative_prompt, len(prompts)),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        height=height,
        width=width,
        output_type="np",
    )
    return [
        None if unsafe else (image * 255.0).round().clip(0, 255).astype("uint8")
        for image, unsafe in zip(found.images, diffusion.refused(found), strict=True)
    ]
