"""The variants job: every query again in other clothes, for prediction refinement (DLCR, Alg. 1).

It needs no trained model, so it stands before the training, and all trials of a sweep share it.
`Tailor` makes the same of a query that somebody asks with.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import images, schema, storage
from ray_reid.evaluation.refinement import VariantCounts, VariantsFacts
from ray_reid.generation import inpaint
from ray_reid.generation.generators import clothes, descriptions
from ray_reid.generation.generators.descriptions import Description
from ray_reid.models.pretrained import references
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.refine import Refine
from ray_reid.runtime import stage
from ray_reid.runtime.job import Job, Work
from ray_reid.schema import Batch

SECONDS = "seconds"
"""What a row took the actor that made it."""
# A photograph is brought to at most this many times the size that it is painted at.
LARGEST = 4


class Vary:
    """Parse and paint rows of a plan in one actor, and add how many `seconds` each took."""

    def __init__(
        self,
        table: str,
        models: Mapping[str, Any],
        outfits: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        """Load both models once per actor; see `clothes.Parse` and `clothes.Redress`."""
        self.parse = clothes.Parse(table, "query", models, outfits)
        self.paint = clothes.Redress(models, outfits, settings)

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
    recipe = painted(work.recipe, spec)
    table = (work.inputs["ingest"] / inpaint.OBSERVATIONS).resolve()
    plan = variants_plan(recipe, table, work.inputs["describe"], spec.num_variants)
    out = work.out / inpaint.OBSERVATIONS
    step = stage.Step(Vary, {"table": str(table), **_models(recipe)}, spec.stage)
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
        generator=inpaint.generator_name(recipe),
        counts=VariantCounts(
            queries=queries,
            with_variants=queries - len(reasons),
            made=made.num_rows - pc.sum(dropped).as_py(),
            without=dict(Counter(reason.partition(":")[0] for reason in reasons.values())),
        ),
        num_variants=spec.num_variants,
        seconds_per_query=seconds / queries,
        metrics={"queries_with_variants": queries - len(reasons)},
        fingerprint=storage.fingerprint(out, f"variants/{inpaint.OBSERVATIONS}"),
    )


def check(recipe: Recipe) -> None:
    """Refuse models that are not there, before anything runs.

    Raises:
        ValueError: Names the model.
    """
    if recipe.refine is not None:
        for model in (recipe.models.parser, recipe.models.inpainting):
            references.resolve(model)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models."""
    if recipe.refine is None:
        return "none"
    used = (recipe.models.parser, recipe.models.inpainting)
    return schema.observation_id(*map(references.fingerprint, used))


def painted(recipe: Recipe, spec: Refine) -> Recipe:
    """The recipe with the steps and the size that variants are painted with."""
    step = inpaint.STEP
    sides = [
        max(step, step * round(side * spec.scale / step)) for side in recipe.generate.image_size
    ]
    changes = {"generate.steps": spec.steps, "generate.image_size": sides}
    return recipes.override(recipe, changes)


def variants_plan(recipe: Recipe, table: Path, describe: Path, number: int) -> pa.Table:
    """One row for every image to make, those of one query side by side: it is parsed once.

    The variants of a smaller number are among those of a larger.

    Raises:
        ValueError: If there is no query, or there are too few descriptions.
    """
    queries = storage.read(table, inpaint.COLUMNS, clothes.DRESSED["query"]).to_pylist()
    if not queries:
        raise ValueError(
            "there is no real query to dress in other clothes; set refine to null, or take sources "
            "with query images"
        )
    found, generator = inpaint.wardrobe(recipe, describe), inpaint.generator_name(recipe)
    rows, places, numbers = [], [], []
    for place, query in enumerate(queries):
        own = query[schema.OBSERVATION_ID], query[schema.CLOTHES]
        for count, worn in enumerate(_chosen(found, *own, number, recipe.seed)):
            row = inpaint.row(recipe, query, worn, count, generator)
            rows.append({**row, schema.SPLIT: "query"})
            places.append(place)
            numbers.append(count)
    plan = schema.observations(rows).append_column(clothes.ROW, pa.array(places, pa.int64()))
    return plan.append_column(schema.NUMBER, pa.array(numbers, pa.int64()))


class Tailor:
    """Makes the variants of an image, as the job makes those of a query."""

    def __init__(self, recipe: Recipe, describe: Path) -> None:
        """Read the descriptions; the models are loaded when they are first needed.

        Args:
            recipe: Of the run; it has the section `refine`.
            describe: Directory of its published job.

        Raises:
            ValueError: If the recipe has no such section, or the descriptions are missing or too
                few.
        """
        if recipe.refine is None:
            raise ValueError(
                "this run refines no query: its recipe has no section 'refine'; set refine={}"
            )
        self.recipe, self.number = painted(recipe, recipe.refine), recipe.refine.num_variants
        self.descriptions = inpaint.wardrobe(recipe, describe)
        # Refused here, before the models are loaded.
        _chosen(self.descriptions, "", None, self.number, recipe.seed)
        self._dresser: clothes.Dresser | None = None

    def load(self) -> clothes.Dresser:
        """Parser and inpainting pipeline, loaded once.

        Raises:
            ValueError: If one cannot be loaded.
        """
        if self._dresser is None:
            self._dresser = clothes.Dresser(**_models(self.recipe))
        return self._dresser

    def __call__(self, encoded: bytes) -> list[bytes] | str:
        """The variants of an image as PNG, or why it has none; the same image gets the same ones.

        Raises:
            ValueError: If the bytes are not an image, or a model cannot be loaded.
        """
        seed, template = self.recipe.seed, self.recipe.outfits.template
        name = schema.observation_id("query", hashlib.blake2b(encoded, digest_size=16).hexdigest())
        chosen = _chosen(self.descriptions, name, None, self.number, seed)
        prompts = [worn.prompt(template) for worn in chosen]
        seeds = [inpaint.seed_of(seed, name, worn) for worn in chosen]
        (found,) = self.load().dress([self._decoded(encoded)], [prompts], [seeds])
        return found if isinstance(found, str) else [images.encode_png(one) for one in found]

    def _decoded(self, encoded: bytes) -> images.Pixels:
        """The image, smaller where it is far larger than what is painted."""
        pixels = images.decode(encoded)
        most = LARGEST * max(self.recipe.generate.image_size)
        largest = max(pixels.shape[:2])
        if largest <= most:
            return pixels
        height, width = (max(1, round(side * most / largest)) for side in pixels.shape[:2])
        return images.decode(encoded, (height, width))


def _chosen(
    found: Sequence[Description], name: str, own: str | None, number: int, seed: int
) -> list[Description]:
    try:
        return descriptions.choose(found, name, own, number, seed)
    except ValueError as error:
        raise ValueError(f"refine.num_variants: {error}") from error


def _models(recipe: Recipe) -> dict[str, Any]:
    """What `Redress` and `Dresser` are made of."""
    return {
        "models": recipe.models.model_dump(mode="json"),
        "outfits": recipe.outfits.model_dump(mode="json"),
        "settings": inpaint.settings(recipe),
    }


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
        "generate.guidance",
        "generate.image_size",
        "generate.negative_prompt",
    ),
    check=check,
    outside=outside,
    facts=VariantsFacts,
)
