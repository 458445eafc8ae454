"""The inpaint job of DLCR: every training image again in other clothes (section 3.1).

plan -> parse -> inpaint -> filters -> encode and write, one streaming execution on Ray Data. Every
row is written, dropped ones with their reason; what is not painted keeps its value to the bit.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ray_reid import images, places, schema, storage
from ray_reid.generation import guidance, guidance_training
from ray_reid.generation.filters.steps import (
    check_filters,
    filter_entries,
    filter_models,
    filter_steps,
)
from ray_reid.generation.generators import clothes
from ray_reid.generation.outfits import (
    NUMBER,
    STEP,
    check_models,
    generator_name,
    model_references,
    outfits_plan,
    painter_params,
    wardrobe,
)
from ray_reid.images import Pixels
from ray_reid.models.pretrained import references
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import figures, stage
from ray_reid.runtime.facts import Cost, Facts
from ray_reid.runtime.figures import Card
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.stage import Step

log = logging.getLogger(__name__)

OBSERVATIONS, UNGUIDED, SHEET = "observations", "unguided", "outfits.png"
DISCRIMINATOR = "discriminator"
SHOWN, SHOWN_OUTFITS = 6, 6


class InpaintFacts(Facts):
    """What the inpaint job says."""

    generator: str = ""
    sources: int = 0
    """Real images."""
    made: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """Images by reason."""
    clothes: int = 0
    """Sets of clothes to choose from."""
    cost: Cost | None = None
    """Of the images, filters included; null where an earlier attempt had made them all."""


def inpaint_job(work: Work) -> InpaintFacts:
    """Write the table `observations`: `outfits.num_outfits` images of each real training image.

    Raises:
        ValueError: If fewer clothes are described than are asked for, or a model cannot be loaded.
    """
    recipe, table = work.recipe, (work.inputs["ingest"] / OBSERVATIONS).resolve()
    found = wardrobe(recipe, work.inputs["describe"])
    plan = outfits_plan(recipe, table, found, generator_name(recipe))
    guide = None
    if recipe.guidance.weight > 0:
        guide = _guide(work, table, plan)
        plan = outfits_plan(recipe, table, found, generator_name(recipe, guide))
    out = work.out / OBSERVATIONS
    cost = _stream(recipe, plan, steps(recipe, table, guide), out, "inpaint")
    made = storage.read(out, [schema.DROP_REASON, schema.PARENT], kept_only=False)
    reasons = Counter(
        reason.partition(":")[0]
        for reason in made[schema.DROP_REASON].to_pylist()
        if reason is not None
    )
    captions = draw(table, out, work.out)
    return InpaintFacts(
        generator=generator_name(recipe, guide),
        sources=pc.count_distinct(made[schema.PARENT]).as_py(),
        made=made.num_rows,
        kept=made.num_rows - reasons.total(),
        dropped=dict(reasons),
        clothes=len(found),
        cost=cost,
        metrics={"generated_images": made.num_rows - reasons.total()},
        pictures=captions,
        fingerprint=storage.fingerprint(out, f"inpaint/{OBSERVATIONS}"),
    )


def check(recipe: Recipe) -> None:
    """Refuse what cannot be generated, before anything runs.

    Raises:
        ValueError: If a filter, one of its parameters, the size or a model is impossible.
    """
    check_filters(recipe)
    named = {spec.name for spec in recipe.filters}
    if "detection" in named:
        raise ValueError(
            "the filter 'detection' crops, but people in other clothes keep the frame of their "
            "source; leave it out"
        )
    if "clothes" in named and recipe.outfits.method == "image_to_image":
        raise ValueError(
            "the filter 'clothes' looks where clothes were painted, but outfits.method "
            "'image_to_image' paints everywhere; set filters to []"
        )
    if any(side % STEP for side in recipe.generate.image_size):
        raise ValueError(
            f"generate.image_size {list(recipe.generate.image_size)} must be multiples of {STEP}: "
            "that is how latents are laid out"
        )
    if recipe.generate.licence is not None:
        raise ValueError(
            f"generate.licence {recipe.generate.licence!r} would replace the terms of the source, "
            "which hold for the same image in other clothes too; leave it null"
        )
    check_models(recipe)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models."""
    used = (*model_references(recipe), *filter_models(recipe))
    return schema.observation_id(*map(references.fingerprint, used))


def _stream(
    recipe: Recipe, plan: pa.Table, stages: Sequence[Step], out: Place, title: str
) -> Cost | None:
    # What painting says is the unit that a resumed job keeps: it is what takes the time.
    rows = recipe.generate.stage.block_rows
    return stage.stream(
        plan, plan.column_names, stages, out, title, encode=clothes.encode, block_rows=rows
    )


def _guide(work: Work, table: Place, plan: pa.Table) -> Place:
    """The folder of a discriminator between real images and some generated without it.

    These stay as the table `unguided`, for comparison.
    """
    recipe, folder = work.recipe, work.out.resolve() / DISCRIMINATOR
    if not (folder / guidance.CONFIG).is_file():
        # Its files are part of the generator's name: none that a kill has left may stay.
        places.remove(folder)
        few = plan.take(storage.evenly_spaced(plan.num_rows, recipe.guidance.num_images))
        unguided = work.out / UNGUIDED
        _stream(recipe, few, steps(recipe, table, None), unguided, "inpaint, unguided")
        guidance_training.train(recipe, table, unguided.resolve(), folder)
        log.info("guidance: trained on %d generated images", few.num_rows)
    return folder


def steps(recipe: Recipe, table: Place, guide: Place | None) -> list[Step]:
    """Every stage between a plan and its images; `guide` is the folder of a discriminator."""
    paint = painter_params(recipe)
    parse = {"table": str(table), "rows": "train"}
    parse |= {section: paint[section] for section in ("models", "outfits")}
    if guide is not None:
        paint |= {"discriminator": str(guide), "weight": recipe.guidance.weight}
    return [
        Step(clothes.Parse, parse, recipe.outfits.parse_stage),
        Step(clothes.InpaintClothes, paint, recipe.generate.stage),
        *filter_steps(recipe),
    ]


def draw(table: Place, generated: Place, out: Place) -> dict[str, str]:
    """Write the contact sheet: sources, where they are painted, and their first outfits.

    Returns:
        File name to caption; nothing if nothing was kept.
    """
    columns = (schema.PARENT, schema.IDENTITY, schema.PROMPT, schema.ATTRIBUTES, schema.IMAGE)
    kept = storage.read(generated, columns[:2]).group_by(schema.PARENT).aggregate(
        [(schema.IDENTITY, "min")]
    )  # fmt: skip
    order = kept.sort_by([(f"{schema.IDENTITY}_min", "ascending"), (schema.PARENT, "ascending")])
    parents = order[schema.PARENT].to_pylist()
    if not parents:
        return {}
    shown = [parents[place] for place in storage.evenly_spaced(len(parents), SHOWN)]
    sources = storage.images_by_id(table, shown)
    rows = storage.read(generated, columns, pc.field(schema.PARENT).isin(shown)).to_pylist(
        maps_as_pydicts="strict"
    )
    groups: dict[str, list[Card]] = {}
    for parent in shown:
        own = sorted(
            (row for row in rows if row[schema.PARENT] == parent),
            key=lambda row: int(row[schema.ATTRIBUTES][NUMBER]),
        )[:SHOWN_OUTFITS]
        source = images.decode(sources[parent])
        outfits = [images.decode(row[schema.IMAGE]) for row in own]
        cards = [Card(source, "source"), Card(_difference(source, outfits), "painted over")]
        cards += [Card(image, row[schema.PROMPT]) for image, row in zip(outfits, own, strict=True)]
        groups[f"{own[0][schema.IDENTITY]}"] = cards
    figures.save(figures.contact_sheet(groups, SHOWN_OUTFITS + 2), out / SHEET)
    return {
        SHEET: (
            "People in other clothes: source, what was painted over, and the first outfits with "
            "their prompts; evenly spaced in the list of all people, nobody picked them."
        )
    }


def _difference(source: Pixels, outfits: Sequence[Pixels]) -> Pixels:
    """White where any of the outfits differs from the source."""
    differs = np.zeros(source.shape[:2], np.bool_)
    for image in outfits:
        differs |= (image != source).any(axis=2)
    return np.repeat((differs * 255).astype(np.uint8)[..., None], 3, axis=2)


JOB = Job(
    "inpaint",
    inpaint_job,
    needs=("ingest", "describe"),
    sections=(
        "seed",
        "models.parser",
        "models.inpainting",
        "models.precision",
        "outfits",
        "generate.guidance_scale",
        "generate.image_size",
        "generate.negative_prompt",
        "generate.steps",
        "guidance",
        "filters",
    ),
    also=filter_entries,
    check=check,
    outside=outside,
    # 3: every filter measures every image.
    format=3,
    facts=InpaintFacts,
)
