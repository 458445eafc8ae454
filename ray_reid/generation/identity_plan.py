"""The plan of personalised generation: one row an image, the rows of an identity side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_reid import schema, storage
from ray_reid.generation import attribute_references, balance
from ray_reid.generation.generators.identities import INSTANCES, REFERENCE
from ray_reid.models.pretrained.identity_tokens import NEW_TOKEN
from ray_reid.places import Place
from ray_reid.recipe.enhance import Enhance
from ray_reid.recipe.recipe import Recipe

COLUMNS = (schema.IDENTITY, schema.SOURCE, "images", "prompt", "class_prompt", "drop_reason")
"""What is read of the table `prompts`: its row is an identity."""


@dataclass(frozen=True)
class Prompted:
    """An identity with a prompt."""

    identity: str
    source: str
    images: tuple[str, ...]
    """Ids of the images that the model is tuned to, in order."""
    prompt: str
    class_prompt: str
    """The prompt without the token of the identity."""


def read_prompted(table: Place) -> tuple[list[Prompted], dict[str, str]]:
    """Read a table of prompts; see `COLUMNS`.

    Returns:
        Identities with a prompt in the order of their names, and why others have none.

    Raises:
        ValueError: If there is no such table, it lacks a column, or none has a prompt.
    """
    try:
        found_table = storage.dataset(table)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"there is no table of prompts {str(table)!r}") from error
    missing = sorted(set(COLUMNS) - set(found_table.schema.names))
    if missing:
        raise ValueError(
            f"the table of prompts {str(table)!r} has no column {missing[0]!r}; it must have "
            f"{list(COLUMNS)}"
        )
    rows = found_table.to_table(columns=list(COLUMNS)).to_pylist()
    without = {row[schema.IDENTITY]: row["drop_reason"] for row in rows if row["drop_reason"]}
    found = [
        Prompted(
            identity=row[schema.IDENTITY],
            source=row[schema.SOURCE],
            images=tuple(row["images"]),
            prompt=row["prompt"],
            class_prompt=row["class_prompt"],
        )
        for row in rows
        if not row["drop_reason"]
    ]
    if not found:
        reason = next(iter(without.values()), "the table is empty")
        raise ValueError(
            f"none of the {len(rows)} identities has a prompt, the first because {reason}; there "
            "is nothing to personalise"
        )
    return sorted(found, key=lambda one: one.identity), without


def shared_prompts(recipe: Recipe, prompted: Sequence[Prompted]) -> dict[str, str]:
    """The prompt whose references each class prompt uses; see `attribute_references`."""
    texts = sorted({one.class_prompt for one in prompted})
    clusters = recipe.personalise.clusters
    embedding = None
    if clusters is not None and len(texts) > clusters:
        embedding = attribute_references.embed_texts(recipe.models.text_to_image, texts)
    return attribute_references.shared_prompts(texts, clusters, embedding, recipe.seed)


def identities_plan(
    recipe: Recipe, table: Place, prompted: Sequence[Prompted], shared: Mapping[str, str]
) -> pa.Table:
    """One row for every image to make.

    Identities that use the same references stand side by side. The seed of an image belongs to
    its row, so that it is the same image whatever else is made.

    Args:
        table: Of the real images.
        prompted: The identities.
        shared: The prompt of the references of each class prompt; empty without references.

    Raises:
        ValueError: If no image is to be made.
    """
    real = storage.read(table, _REAL_COLUMNS, storage.REAL).to_pylist(maps_as_pydicts="strict")
    numbers = {row[schema.OBSERVATION_ID]: number for number, row in enumerate(real)}
    counts: dict[str, int] = {}
    for row in real:
        counts[row[schema.IDENTITY]] = counts.get(row[schema.IDENTITY], 0) + 1
    wanted = balance.images_to_make(
        [counts.get(one.identity, 0) for one in prompted], recipe.personalise.balance
    )
    if not sum(wanted):
        raise ValueError(
            "personalise.balance asks for no image: every identity has as many real images as the "
            "target; raise target, or least"
        )
    generator = generator_name(recipe)
    rows: list[dict[str, Any]] = []
    instances: list[list[int]] = []
    ordered = sorted(
        zip(prompted, wanted, strict=True),
        key=lambda pair: (shared.get(pair[0].class_prompt, ""), pair[0].identity),
    )
    for one, number in ordered:
        # An identity that has lost its images is a failing one, with rows that say so.
        own = [numbers[name] for name in one.images if name in numbers]
        for place in range(number):
            parent = real[own[place % len(own)]] if own else {}
            rows.append(_row(recipe, one, parent, place, generator))
            instances.append(own)
    texts = {one.identity: shared.get(one.class_prompt, "") for one in prompted}
    plan = schema.observations(rows)
    plan = plan.append_column(INSTANCES, pa.array(instances, pa.list_(pa.int64())))
    return plan.append_column(REFERENCE, pa.array([texts[row[schema.IDENTITY]] for row in rows]))


_REAL_COLUMNS = (schema.OBSERVATION_ID, schema.IDENTITY, schema.LICENCE, schema.ATTRIBUTES)


def _row(
    recipe: Recipe, one: Prompted, parent: Mapping[str, Any], number: int, generator: str
) -> dict[str, Any]:
    """A row of the plan: the `number`th image of an identity."""
    key = schema.observation_id(recipe.seed, one.identity, one.prompt, *one.images, number)
    seed = int(key[:15], 16)
    return {
        schema.OBSERVATION_ID: schema.observation_id(
            one.identity, one.prompt, seed, generator, number
        ),
        schema.IMAGE: b"",
        schema.IDENTITY: one.identity,
        schema.SOURCE: one.source,
        # That of the image holds for what is made from it.
        schema.LICENCE: parent.get(schema.LICENCE),
        schema.SPLIT: "train",
        schema.ORIGIN: "synthetic",
        schema.PARENT: parent.get(schema.OBSERVATION_ID),
        schema.PROMPT: one.prompt,
        schema.SEED: seed,
        schema.GENERATOR: generator,
        # What is known of the object is true of its other images.
        schema.ATTRIBUTES: parent.get(schema.ATTRIBUTES),
    }


def new_token(spec: Enhance) -> tuple[str, str] | None:
    """The token that the tokenizer does not know, if there is one, and what it begins with."""
    if spec.token.kind != "new":
        return None
    return spec.token.text or NEW_TOKEN, spec.token.initialise_from or spec.category


def generator_name(recipe: Recipe) -> str:
    """What makes the images: that of the references, and how it is tuned to an identity."""
    spec = recipe.personalise
    parts = [attribute_references.generator_name(recipe)]
    parts.append(
        f"personalised={spec.mode},steps={spec.steps},rate={spec.learning_rate:g},"
        f"batch={spec.batch_size},prior={spec.prior_weight:g},decay={spec.weight_decay:g}"
    )
    if spec.prior_weight > 0:
        parts.append(f"references={spec.references},clusters={spec.clusters}")
    if spec.mode == "lora":
        lora = spec.lora
        where = "+".join((*(lora.blocks or ("all",)), *lora.target_modules))
        parts.append(f"rank={lora.rank},alpha={lora.alpha or lora.rank:g},layers={where}")
    if spec.text_encoder:
        parts.append("text_encoder")
    token = new_token(recipe.enhance)
    if token is not None:
        parts.append("token={},from={}".format(*token))
    height, width = spec.output_size
    parts.append(f"resized={height}x{width}")
    return " ".join(parts)
