"""What every diffusion pipeline is asked with: the settings of the section `generate`."""

from typing import Any

from ray_reid.recipe.generate import Generate

UNSAFE = "unsafe: the pipeline's safety checker refused what was painted"
"""Why an image is dropped in whose place a pipeline leaves black."""


def pipeline_settings(spec: Generate) -> dict[str, Any]:
    """Settings of a pipeline, by the names of the arguments that take them."""
    return {
        "guidance_scale": spec.guidance_scale,
        "steps": spec.steps,
        "image_size": spec.image_size,
        "negative_prompt": spec.negative_prompt,
    }


def settings_name(spec: Generate) -> str:
    """Name the settings, as a part of the name of a generator; the negative prompt stands apart."""
    height, width = spec.image_size
    # Ids of images hash this text, so its words stay when fields of the recipe are renamed.
    return f"guidance={spec.guidance_scale:g},steps={spec.steps},size={height}x{width}"
