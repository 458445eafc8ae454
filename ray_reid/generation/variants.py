"""The variants job: every query again in other clothes, for prediction refinement (DLCR, Alg. 1).

It needs no trained model, so it stands before the training, and all trials of a sweep share it.
`tailor.Tailor` makes the same of a query that a service receives.
"""

import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import schema, storage
from ray_reid.generation import outfits
from ray_reid.generation.generators import clothes
from ray_reid.generation.tailor import choose_variants, variant_recipe
from ray_reid.models.pretrained import references
from ray_reid.places import Place
from ray_reid.recipe.models import Models
from ray_reid.recipe.outfits import Outfits
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.facts import VariantCounts, VariantsFacts
from ray_reid.runtime.job import Job, Work
from ray_reid.schema import Batch

OBSERVATIONS = "observations"
SECONDS = "seconds"
"""What a row took the actor that made it."""


class Vary:
    """Parse and paint rows of a plan in one actor, and add how many `seconds` each took."""

    def __init__(
        self,
        table: str,
        models: Models,
        outfits: Outfits,
        settings: Mapping[str, Any],
    ) -> None:
        """Load both models once per actor; see `clothes.Parse` and `clothes.InpaintClothes`."""
        self.parse = clothes.Parse(table, "query", models, outfits)
        self.paint = clothes.InpaintClothes(models, outfits, settings)

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Dress the queries of a batch."""
        started = time.perf_counter()
        made = self.paint(self.parse(batch))
        each = (time.perf_counter() - started) / len(batch[schema.PROMPT])
        return {**made, SECONDS: np.full(len(batch[schema.PROMPT]), each)}


def variants_job(work: Work) -> VariantsFacts:
    """Write the table `observations`: `refine.num_variants` images of each query.

    Without the section `refine` there is nothing to make.

    Raises:
        ValueError: If fewer clothes are described than are asked for, or a model cannot be loaded.
    """
    spec = work.recipe.refine
    if spec is None:
        return VariantsFacts()
    recipe = variant_recipe(work.recipe, spec)
    table = (work.inputs["ingest"] / OBSERVATIONS).resolve()
    plan = variants_plan(recipe, table, work.inputs["describe"], spec.num_variants)
    out = work.out / OBSERVATIONS
    step = stage.Step(Vary, {"table": str(table), **outfits.painter_params(recipe)}, spec.stage)
    stage.stream(plan, plan.column_names, [step], out, "variants", encode=_encode)
    columns = (schema.PARENT, schema.DROP_REASON, SECONDS)
    made = storage.read(out, columns, kept_only=False)
    dropped = pc.is_valid(made[schema.DROP_REASON])
    reasons = dict(
        zip(*(made.filter(dropped)[name].to_pylist() for name in columns[:2]), strict=True)
    )
    queries = pc.count_distinct(made[schema.PARENT]).as_py()
    seconds = pc.sum(made[SECONDS]).as_py()
    return VariantsFacts(
        generator=outfits.generator_name(recipe),
        counts=VariantCounts(
            queries=queries,
            with_variants=queries - len(reasons),
            made=made.num_rows - pc.sum(dropped).as_py(),
            without=dict(Counter(reason.partition(":")[0] for reason in reasons.values())),
        ),
        num_variants=spec.num_variants,
        seconds_per_query=seconds / queries,
        metrics={"queries_with_variants": queries - len(reasons)},
        fingerprint=storage.fingerprint(out, f"variants/{OBSERVATIONS}"),
    )


def check(recipe: Recipe) -> None:
    """Refuse models that are not there, before anything runs.

    Raises:
        ValueError: Names the model.
    """
    if recipe.refine is not None:
        outfits.check_models(recipe)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models."""
    if recipe.refine is None:
        return "none"
    used = outfits.model_references(recipe)
    return schema.observation_id(*map(references.fingerprint, used))


def variants_plan(recipe: Recipe, table: Place, describe: Place, number: int) -> pa.Table:
    """Plan `number` images of every query; see `outfits.plan`.

    The variants of a smaller number are among those of a larger.

    Raises:
        ValueError: If there is no query, or there are too few descriptions.
    """
    queries = storage.read(table, outfits.COLUMNS, clothes.DRESSED["query"]).to_pylist()
    if not queries:
        raise ValueError(
            "there is no real query to dress in other clothes; set refine to null, or take sources "
            "with query images"
        )
    available = outfits.wardrobe(recipe, describe)
    choose = partial(choose_variants, available, number=number, seed=recipe.seed)
    plan = outfits.plan(recipe, queries, choose, outfits.generator_name(recipe))
    numbers = np.tile(np.arange(number), len(queries))
    return plan.append_column(schema.NUMBER, pa.array(numbers, pa.int64()))


def _encode(batch: Batch) -> dict[str, NDArray[Any]]:
    return {**clothes.encode(batch), schema.NUMBER: batch[schema.NUMBER], SECONDS: batch[SECONDS]}


JOB = Job(
    "variants",
    variants_job,
    needs=("ingest", "describe"),
    sections=(
        "seed",
        "refine.num_variants",
        "refine.steps",
        "refine.scale",
        "models.parser",
        "models.inpainting",
        "models.precision",
        "outfits.clothes",
        "outfits.method",
        "outfits.strength",
        "outfits.template",
        "outfits.margin",
        "outfits.min_mask",
        "outfits.max_mask",
        "generate.guidance_scale",
        "generate.image_size",
        "generate.negative_prompt",
    ),
    check=check,
    outside=outside,
    format=2,
    facts=VariantsFacts,
)
