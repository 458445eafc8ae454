"""Answers of a vision-language model through Ray Data's LLM support: vLLM on a cluster's GPUs."""

import base64
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray.data
from ray.data.expressions import Expr

from ray_reid import schema
from ray_reid.places import Place
from ray_reid.recipe.describe import Describe
from ray_reid.runtime import stage

ANSWER = "answer"
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What vLLM calls `models.precision`."""


def check() -> None:
    """Refuse a machine without vLLM, before anything runs.

    Raises:
        ValueError: If the package is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "describe.backend 'vllm' needs the package vllm, which is not installed; install "
            "'ray[llm]' on every node, or set describe.backend to 'transformers'"
        )


def answer(
    table: Place,
    columns: Sequence[str],
    where: Expr,
    out: Place,
    model: str,
    precision: str,
    spec: Describe,
) -> None:
    """Stream images of a table to the table `out` of answers; a killed stream resumes.

    Args:
        columns: `observation_id` and `image`.
        model: Hub id or folder, resolved.
        precision: `models.precision`.

    Raises:
        ValueError: If vLLM is missing or a worker fails.
    """
    check()
    stage.stream(
        table, columns, (), out, "describe", where, through=processor(model, precision, spec),
        block_rows=spec.stage.block_rows,
    )  # fmt: skip


def processor(
    model: str, precision: str, spec: Describe
) -> "Callable[[ray.data.Dataset], ray.data.Dataset]":
    """What turns a data set of images into one of answers."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    found: Callable[[ray.data.Dataset], ray.data.Dataset] = build_processor(
        vLLMEngineProcessorConfig(**engine(model, precision, spec)),
        preprocess=lambda row: request(row, spec.prompt, spec.max_words),
        postprocess=lambda row: {
            schema.OBSERVATION_ID: row[schema.OBSERVATION_ID],
            ANSWER: " ".join(row["generated_text"].split()),
        },
    )
    return found


def engine(model: str, precision: str, spec: Describe) -> dict[str, Any]:
    """How vLLM runs the describer.

    Of `spec.stage` it takes `actors` and `batch_size`; every actor has a whole GPU, whatever
    `num_cpus` and `num_gpus` say.
    """
    return {
        "model_source": model,
        "engine_kwargs": {"dtype": DTYPES[precision]},
        "concurrency": spec.stage.actors,
        "batch_size": spec.stage.batch_size,
        "prepare_multimodal_stage": True,
    }


def request(row: Mapping[str, Any], prompt: str, max_words: int) -> dict[str, Any]:
    """What vLLM is asked about one row: its image and the prompt, decoded greedily."""
    encoded = bytes(row[schema.IMAGE])
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": prompt},
    ]
    return {
        schema.OBSERVATION_ID: row[schema.OBSERVATION_ID],
        "messages": [{"role": "user", "content": content}],
        "sampling_params": {"temperature": 0.0, "max_tokens": max_words},
    }
