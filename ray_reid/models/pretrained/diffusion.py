"""What pipelines of diffusers have in common, whatever they paint."""

from typing import Any

from ray_reid.models.pretrained import references


def load_pipeline(kind: Any, key: str, reference: str, precision: str) -> Any:
    """Load a pipeline of diffusers onto this process's device.

    Args:
        kind: The automatic class that knows pipelines for a task.
        key: Of the recipe, which names the model.

    Raises:
        ValueError: If there is no such model, or it does not do the task.
    """
    references.quiet()
    with references.refusing(key, reference):
        pipeline = kind.from_pretrained(
            references.locate(reference),
            dtype=references.dtype(precision),
            use_safetensors=True,
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(references.device())
    bound_memory(pipeline)
    return pipeline


def bound_memory(pipeline: Any) -> None:
    """Let a GPU encode and decode one image at a time: the memory of a batch is its denoising's."""
    if pipeline.device.type == "cuda":
        pipeline.vae.enable_slicing()


def repeated(negative_prompt: str, count: int) -> list[str] | None:
    """The negative prompt of `count` images; None where it is empty.

    Pipelines do not take the two alike: SDXL was trained with zeros in place of no prompt, and
    embeds an empty one (`force_zeros_for_empty_prompt`).
    """
    return [negative_prompt] * count if negative_prompt else None


def refused(found: Any) -> list[bool]:
    """Which images of a pipeline's output its safety checker blackened; none if it has none."""
    verdicts = getattr(found, "nsfw_content_detected", None)
    return list(verdicts) if verdicts else [False] * len(found.images)
