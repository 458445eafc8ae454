"""The generate job of DLCR: every training image again in other clothes (section 3.1).

plan -> parse -> inpaint -> filters -> encode and write, one streaming execution on Ray Data. Every
row is written, dropped ones with their reason; what is not painted keeps its value to the bit.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ray_reid import images, schema, storage
from ray_reid.generation.generate import filter_steps
from ray_reid.generation.generators import clothes, descriptions
from ray_reid.generation.generators.descriptions import Description
from ray_reid.images import Pixels
from ray_reid.models.pretrained import references
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import figures, stage
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.figures import Card
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.stage import Step

log = logging.getLogger(__name__)

OBSERVATIONS, UNGUIDED, SHEET = "observations", "unguided", "outfits.png"
DISCRIMINATOR = "discriminator"
WHOSE, NUMBER = "whose", "number"
"""Attributes of a generated image: whose clothes, and its number among its source's from 0."""
SHOWN, SHOWN_OUTFITS = 6, 6
# Sides of the images that pipelines paint are whole multiples of it.
STEP = 8
COLUMNS = (
    schema.OBSERVATION_ID, schema.IDENTITY, schema.CAMERA, schema.VIEW, schema.CLOTHES,
    schema.SOURCE, schema.LICENCE,
)  # fmt: skip


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
    _stream(recipe, plan, steps(recipe, table, guide), out, "inpaint")
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
        metrics={"generated_images": made.num_rows - reasons.total()},
        pictures=captions,
        fingerprint=storage.fingerprint(out, f"inpaint/{OBSERVATIONS}"),
    )


def check(recipe: Recipe) -> None:
    """Refuse what cannot be generated, before anything runs.

    Raises:
        ValueError: If a filter, one of its parameters, the size or a model is impossible.
    """
    filter_steps(recipe)
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
    for model in (recipe.models.parser, recipe.models.inpainting):
        references.resolve(model)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models."""
    from ray_reid.generation.filters import FILTERS

    used = [recipe.models.parser, recipe.models.inpainting]
    used += [getattr(recipe.models, FILTERS[spec.name].ROLE)  # type: ignore[attr-defined]
             for spec in recipe.filters if spec.name in FILTERS]  # fmt: skip
    return schema.observation_id(*map(references.fingerprint, used))


def wardrobe(recipe: Recipe, describe: Path) -> list[Description]:
    """What people are dressed in: the clothes described, or as many at random.

    Args:
        describe: Directory of the published job.
    """
    found = descriptions.read(describe / descriptions.FILE)
    if recipe.outfits.clothes == "described":
        return found
    return descriptions.at_random(len(found), recipe.seed)


def _stream(recipe: Recipe, plan: pa.Table, stages: Sequence[Step], out: Path, title: str) -> None:
    # What painting says is the unit that a resumed job keeps: it is what takes the time.
    rows = recipe.generate.stage.block_rows
    stage.stream(
        plan, plan.column_names, stages, out, title, encode=clothes.encode, block_rows=rows
    )


def _guide(work: Work, table: Path, plan: pa.Table) -> Path:
    """The folder of a discriminator between real images and some generated without it.

    These stay as the table `unguided`, for comparison.
    """
    recipe, place = work.recipe, work.out.resolve() / DISCRIMINATOR
    if not place.exists():
        few = plan.take(_spaced(plan.num_rows, recipe.guidance.num_images))
        unguided = steps(recipe, table, None)
        _stream(recipe, few, unguided, work.out / UNGUIDED, "generate, unguided")
        arguments = {
            "recipe": recipe.model_dump(mode="json"),
            "real": str(table),
            "generated": str((work.out / UNGUIDED).resolve()),
            "place": str(place),
        }
        spec = recipe.generate.stage
        for _ in stage.tasks(
            "guidance", train_guide, [arguments], max(spec.num_cpus, 1.0), spec.num_gpus
        ):
            log.info("guidance: trained on %d generated images", few.num_rows)
    return place


def train_guide(recipe: Mapping[str, Any], real: str, generated: str, place: str) -> None:
    """Train the discriminator and save it into the folder `place`, whole or not at all."""
    from ray_reid.generation import guidance
    from ray_reid.models.pretrained import inpainting
    from ray_reid.recipe import recipes

    chosen = recipes.validate(dict(recipe))
    spec, size = chosen.guidance, chosen.generate.image_size
    pipeline = inpainting.load_pipeline(chosen.models.inpainting, chosen.models.precision)
    sides = []
    for folder, where in ((real, clothes.DRESSED["train"]), (generated, None)):
        ids = storage.read(folder, [schema.OBSERVATION_ID], where)[schema.OBSERVATION_ID]
        if not len(ids):
            raise ValueError(
                "guidance: no image passed the filters, so none can be told from the real ones"
            )
        taken = ids.take(_spaced(len(ids), spec.num_images)).to_pylist()
        encoded = _images(Path(folder), schema.OBSERVATION_ID, taken).values()
        latents = guidance.encode_latents(pipeline, list(map(images.decode, encoded)), size)
        sides.append(latents.to(references.device()))
    real_latents, made = sides
    found = guidance.train_discriminator(real_latents, made, pipeline.scheduler, spec, chosen.seed)
    aside = Path(f"{place}.part")
    guidance.save(found, aside)
    aside.rename(place)


def _spaced(size: int, number: int) -> pa.Array:
    """At most `number` places in `size` rows, evenly spaced."""
    places = np.linspace(0, size - 1, min(number, size)).round().astype(np.int64)
    return pa.array(places)


def steps(recipe: Recipe, table: Path, guide: Path | None) -> list[Step]:
    """Every stage between a plan and its images; `guide` is the folder of a discriminator."""
    models = recipe.models.model_dump(mode="json")
    outfits = recipe.outfits.model_dump(mode="json")
    parse = {"table": str(table), "rows": "train", "models": models, "outfits": outfits}
    paint: dict[str, Any] = {"models": models, "outfits": outfits, "settings": settings(recipe)}
    if guide is not None:
        paint |= {"discriminator": str(guide), "weight": recipe.guidance.weight}
    return [
        Step(clothes.Parse, parse, recipe.outfits.parse_stage),
        Step(clothes.Redress, paint, recipe.generate.stage),
        *filter_steps(recipe),
    ]


def settings(recipe: Recipe) -> dict[str, Any]:
    """How a recipe paints: the fields of `clothes.Settings`."""
    spec = recipe.generate
    return {
        "guidance": spec.guidance,
        "steps": spec.steps,
        "image_size": spec.image_size,
        "negative_prompt": spec.negative_prompt,
    }


def outfits_plan(
    recipe: Recipe, table: Path, found: Sequence[Description], generator: str
) -> pa.Table:
    """One row for every image to make, those of one source side by side: it is parsed once.

    Its seed belongs to the row, so that it is the same image whatever else is made; those of a
    smaller number of outfits are among those of a larger.
    """
    sources = storage.read(table, COLUMNS, clothes.DRESSED["train"]).to_pylist()
    if not sources:
        raise ValueError("there is no labelled real training image to dress in other clothes")
    rows, places = [], []
    for place, source in enumerate(sources):
        own = source[schema.OBSERVATION_ID]
        chosen = descriptions.choose(
            found, own, source[schema.CLOTHES], recipe.outfits.num_outfits, recipe.seed
        )
        for number, worn in enumerate(chosen):
            rows.append(row(recipe, source, worn, number, generator))
            places.append(place)
    plan = schema.observations(rows)
    return plan.append_column(clothes.ROW, pa.array(places, pa.int64()))


def seed_of(seed: int, parent: str, worn: Description) -> int:
    """The seed of an image of `parent` in some clothes."""
    return int(schema.observation_id(seed, parent, worn.clothes)[:15], 16)


def row(
    recipe: Recipe, source: Mapping[str, Any], worn: Description, number: int, generator: str
) -> dict[str, Any]:
    """A row of a plan: a source in other clothes, the `number`th of its outfits."""
    prompt = worn.prompt(recipe.outfits.template)
    parent = source[schema.OBSERVATION_ID]
    seed = seed_of(recipe.seed, parent, worn)
    inherited = (schema.IDENTITY, schema.CAMERA, schema.VIEW, schema.SOURCE, schema.LICENCE)
    attributes = {
        "upper": worn.upper,
        "lower": worn.lower,
        "footwear": worn.footwear,
        WHOSE: worn.clothes,
        NUMBER: str(number),
    }
    return {
        **{name: source[name] for name in inherited},
        schema.OBSERVATION_ID: schema.observation_id(parent, prompt, seed, generator),
        schema.IMAGE: b"",
        # Nobody else wears this person's version of these clothes.
        schema.CLOTHES: f"{source[schema.IDENTITY]}/{worn.clothes}",
        schema.SPLIT: "train",
        schema.ORIGIN: "synthetic",
        schema.PARENT: parent,
        schema.PROMPT: prompt,
        schema.SEED: seed,
        schema.GENERATOR: generator,
        schema.ATTRIBUTES: attributes,
    }


def generator_name(recipe: Recipe, guide: Path | None = None) -> str:
    """What makes the images: models by their content, and settings."""
    spec, outfits, models = recipe.generate, recipe.outfits, recipe.models
    height, width = spec.image_size
    parts = [
        f"{name}@{references.fingerprint(name)}" for name in (models.inpainting, models.parser)
    ]
    parts.append(f"{outfits.method},margin={outfits.margin}")
    if outfits.method == "image_to_image":
        parts.append(f"strength={outfits.strength:g}")
    parts.append(f"guidance={spec.guidance:g},steps={spec.steps},size={height}x{width}")
    parts.append(f"precision={models.precision}")
    if guide is not None:
        parts.append(f"guided={recipe.guidance.weight:g}@{references.fingerprint(str(guide))}")
    if spec.negative_prompt:
        parts.append(f"not={spec.negative_prompt}")
    return " ".join(parts)


def draw(table: Path, generated: Path, out: Path) -> dict[str, str]:
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
    shown = [parents[place] for place in _spaced(len(parents), SHOWN).to_pylist()]
    sources = _images(table, schema.OBSERVATION_ID, shown)
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
        dressed = [images.decode(row[schema.IMAGE]) for row in own]
        cards = [Card(source, "source"), Card(_painted(source, dressed), "painted over")]
        cards += [Card(image, row[schema.PROMPT]) for image, row in zip(dressed, own, strict=True)]
        groups[f"{own[0][schema.IDENTITY]}"] = cards
    figures.save(figures.contact_sheet(groups, SHOWN_OUTFITS + 2), out / SHEET)
    return {
        SHEET: (
            "People in other clothes: source, what was painted over, and the first outfits with "
            "their prompts; evenly spaced in the list of all people, nobody picked them."
        )
    }


def _painted(source: Pixels, dressed: Sequence[Pixels]) -> Pixels:
    """White where any of the outfits differs from the source."""
    differs = np.zeros(source.shape[:2], np.bool_)
    for image in dressed:
        differs |= (image != source).any(axis=2)
    return np.repeat((differs * 255).astype(np.uint8)[..., None], 3, axis=2)


def _images(table: Path, column: str, wanted: Sequence[str]) -> dict[str, bytes]:
    found = storage.read(table, [column, schema.IMAGE], pc.field(column).isin(list(wanted)))
    return dict(zip(*(found[name].to_pylist() for name in (column, schema.IMAGE)), strict=True))


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
        "generate.guidance",
        "generate.image_size",
        "generate.negative_prompt",
        "generate.steps",
        "guidance",
        "filters",
    ),
    check=check,
    outside=outside,
    facts=InpaintFacts,
)
