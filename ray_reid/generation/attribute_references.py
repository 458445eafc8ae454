"""Attribute references: images of the model as it was, which a fine-tuning must not forget.

Diffusion-ReID, section 3.1: made with the prompt without the identity's token. Identities whose
prompts are equal up to the token, or near each other, share them.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_reid import schema
from ray_reid.generation.generators.identities import GENERATING
from ray_reid.generation.generators.settings import pipeline_settings, settings_name
from ray_reid.generation.generators.text_to_image import GenerateImages, encode
from ray_reid.models.pretrained import references
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.stage import Step
from ray_reid.schema import Batch

SOURCE = "references"
TEXTS = 64
"""Prompts that are embedded at once."""


class MakeReferences:
    """Add the packed `pixels` of an image for every row, and the seconds that it took."""

    def __init__(self, model: str, precision: str, settings: Mapping[str, Any]) -> None:
        """Load the model once per actor; see `GenerateImages`."""
        self.generate = GenerateImages(model, None, precision, **settings)

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Generate a batch."""
        started = time.perf_counter()
        made = self.generate(batch)
        rows = len(batch[schema.PROMPT])
        return {**made, GENERATING: np.full(rows, (time.perf_counter() - started) / rows)}


def encode_references(batch: Batch, quality: int) -> dict[str, NDArray[Any]]:
    """Turn the packed pixels into the JPEG `image` of a record, and keep what it took."""
    return {**encode(batch, quality), GENERATING: batch[GENERATING]}


def shared_prompts(
    texts: Sequence[str], clusters: int | None, embedding: NDArray[np.float32] | None, seed: int
) -> dict[str, str]:
    """Return the prompt whose references each text uses.

    Args:
        texts: Class prompts; equal ones share in any case.
        clusters: Most prompts that get references of their own; None is all of them.
        embedding: (N, D) of the distinct texts in their sorted order; None where they are no more
            than `clusters`.
        seed: Of k-means.

    Returns:
        Each distinct text to that which is nearest to the centre of its cluster.
    """
    distinct = sorted(set(texts))
    if clusters is None or len(distinct) <= clusters:
        return {text: text for text in distinct}
    from sklearn.cluster import KMeans

    assert embedding is not None
    found = KMeans(clusters, n_init=4, random_state=seed).fit(embedding)
    distance = np.linalg.norm(embedding - found.cluster_centers_[found.labels_], axis=1)
    nearest: dict[int, int] = {}
    for row in np.argsort(distance, kind="stable"):
        nearest.setdefault(int(found.labels_[row]), int(row))
    return {
        text: distinct[nearest[int(label)]]
        for text, label in zip(distinct, found.labels_, strict=True)
    }


def embed_texts(model: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts with the first text encoder of a pipeline, without the rest of it.

    Returns:
        (N, D) unit-norm.

    Raises:
        ValueError: If there is no such model.
    """
    import torch
    from diffusers import DiffusionPipeline

    references.quiet()
    with references.refusing("models.text_to_image", model):
        pipeline = DiffusionPipeline.from_pretrained(
            references.locate(model), unet=None, vae=None, use_safetensors=True
        )
    tokens, encoder = pipeline.tokenizer, pipeline.text_encoder
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), TEXTS):
            asked = tokens(
                list(texts[start : start + TEXTS]),
                padding="max_length",
                truncation=True,
                max_length=tokens.model_max_length,
                return_tensors="pt",
            )
            pooled = encoder(asked.input_ids).pooler_output.float()
            parts.append(torch.nn.functional.normalize(pooled, dim=1).numpy())
    return np.concatenate(parts)


def references_plan(recipe: Recipe, prompts: Sequence[str]) -> pa.Table:
    """One row for every reference; its seed belongs to its prompt and number."""
    generator, rows = generator_name(recipe), []
    for prompt in sorted(set(prompts)):
        for number in range(recipe.personalise.references):
            seed = int(schema.observation_id(recipe.seed, SOURCE, prompt, number)[:15], 16)
            rows.append({
                schema.OBSERVATION_ID: schema.observation_id("", prompt, seed, generator),
                schema.IMAGE: b"",
                schema.SOURCE: SOURCE,
                schema.SPLIT: "unlabelled",
                schema.ORIGIN: "synthetic",
                schema.PROMPT: prompt,
                schema.SEED: seed,
                schema.GENERATOR: generator,
            })  # fmt: skip
    return schema.observations(rows)


def generator_name(recipe: Recipe) -> str:
    """What makes the references: the model by its content, and the settings."""
    model, spec = recipe.models.text_to_image, recipe.generate
    parts = [f"{model}@{references.fingerprint(model)}", settings_name(spec)]
    parts.append(f"precision={recipe.models.precision}")
    if spec.negative_prompt:
        parts.append(f"not={spec.negative_prompt}")
    return " ".join(parts)


def content_key(plan: pa.Table, quality: int) -> str:
    """Name a set of references by what they are.

    Args:
        plan: Its ids hash model, settings, prompt and seed.
        quality: Of the JPEGs.
    """
    return schema.observation_id(*plan[schema.OBSERVATION_ID].to_pylist(), str(quality))[:12]


def reference_steps(recipe: Recipe) -> list[Step]:
    """The stage that makes them."""
    params = {
        "model": recipe.models.text_to_image,
        "precision": recipe.models.precision,
        "settings": pipeline_settings(recipe.generate),
    }
    return [Step(MakeReferences, params, recipe.personalise.reference_stage)]
