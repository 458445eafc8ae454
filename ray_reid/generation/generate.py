"""The generate job: prompts to images to verdicts, one streaming execution on Ray Data.

generator actors -> filters (detector actors, image-text actors) -> encode and write, each pool
sized by the recipe. Every row is written, dropped ones with their reason.
"""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from ray_reid import places, schema, storage
from ray_reid.generation.candidates import BASE, AdaptFacts, candidate_names
from ray_reid.generation.filters.colour import COLOURS
from ray_reid.generation.filters.steps import (
    check_filters,
    filter_entries,
    filter_models,
    filter_steps,
)
from ray_reid.generation.generators import vehicle_prompts
from ray_reid.generation.generators.settings import pipeline_settings, settings_name
from ray_reid.generation.generators.text_to_image import GenerateImages, encode
from ray_reid.models.pretrained import references, roles
from ray_reid.models.pretrained.text_to_image import ADAPTER
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.facts import Cost, Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.sections import Section
from ray_reid.runtime.stage import Step

SOURCE, MODEL = "vehicle_diff", "models.text_to_image"
OBSERVATIONS, RAW, ADAPTED = "observations", "raw", "adapted"
"""The table, and two of a few whole images that no filter has seen, for comparison."""


class GenerateFacts(Facts):
    """What the generate job says."""

    candidate: str = ""
    """The adapted model that made the images."""
    generator: str = ""
    licence: str | None = None
    """Terms of the images."""
    made: int = 0
    kept: int = 0
    cost: Cost | None = None
    """Of the images, filters included; null where an earlier attempt had made them all."""


def generate_job(work: Work) -> GenerateFacts:
    """Write the table `observations`, and the samples `raw` and `adapted` if they are asked for.

    Raises:
        ValueError: If a filter is unknown, a prompt is impossible or a model cannot be loaded.
    """
    recipe, adapted = _recipe(work), work.facts_of("adapt", AdaptFacts)
    adapter = _adapter(work)
    # Images of the model as it was owe nothing to those that others were adapted to.
    licence = recipe.generate.licence or (adapted.licence if adapter else None)
    plan = prompts_plan(recipe, generator_name(recipe, adapter), licence)
    cost = _stream(work, OBSERVATIONS, plan, steps(recipe, adapter))
    if recipe.generate.raw_images:
        unadapted = prompts_plan(recipe, generator_name(recipe, None), recipe.generate.licence)
        for name, rows, of in ((RAW, unadapted, None), (ADAPTED, plan, adapter)):
            few = rows.slice(0, recipe.generate.raw_images)
            _stream(work, name, few, steps(recipe, of, filtered=False))
    out = work.out / OBSERVATIONS
    kept = storage.read(out, [schema.IDENTITY])
    return GenerateFacts(
        candidate=_candidate(work),
        generator=generator_name(recipe, adapter),
        licence=licence,
        made=plan.num_rows,
        kept=kept.num_rows,
        cost=cost,
        fingerprint=storage.fingerprint(out, f"generate/{OBSERVATIONS}"),
    )


def check(recipe: Recipe) -> None:
    """Refuse what cannot be generated, before anything runs.

    Raises:
        ValueError: If a filter, one of its parameters, a prompt, a candidate or a model is
            impossible.
    """
    check_filters(recipe)
    names, wanted_name = candidate_names(recipe), recipe.generate.candidate
    if wanted_name not in (None, *names):
        raise ValueError(
            f"generate.candidate is {wanted_name!r}, which is no candidate; choose from {names}"
        )
    roles.check(recipe.models, "text_to_image")
    wanted = vehicle_prompts.identities(recipe.prompts, recipe.seed)
    asked = {identity.attributes["colour"] for identity in wanted}
    for spec in recipe.filters:
        known = set(spec.params.get("colours", COLOURS)) if spec.name == "colour" else asked
        if asked - known:
            raise ValueError(
                f"prompts ask for the colour {min(asked - known)!r}, which filter colour does not "
                f"know; add it to its params.colours {sorted(known)}"
            )


def steps(recipe: Recipe, adapter: Place | None, filtered: bool = True) -> list[Step]:
    """Every stage between a plan and its images: generator, and filters if wanted.

    Raises:
        ValueError: If a filter or one of its parameters is unknown.
    """
    spec = recipe.generate
    params = {
        "model": recipe.models.text_to_image,
        "adapter": None if adapter is None else str(adapter),
        "precision": recipe.models.precision,
        **pipeline_settings(spec),
    }
    return [
        Step(GenerateImages, params, spec.stage),
        *(filter_steps(recipe) if filtered else ()),
    ]


def prompts_plan(recipe: Recipe, generator: str, licence: str | None) -> pa.Table:
    """One row for every image to make; its seed belongs to the row, not to its place.

    Rows go round the identities, so that the first n of them are as many identities as can be.
    """
    rows = []
    wanted = vehicle_prompts.identities(recipe.prompts, recipe.seed)
    for number in range(recipe.prompts.images_per_identity):
        for identity in wanted:
            key = schema.observation_id(recipe.seed, identity.prompt, number)
            seed = int(key[:15], 16)
            rows.append({
                schema.OBSERVATION_ID: schema.observation_id("", identity.prompt, seed, generator),
                schema.IMAGE: b"",
                schema.IDENTITY: schema.qualified_identity(SOURCE, identity.name),
                schema.SOURCE: SOURCE,
                schema.LICENCE: licence,
                schema.SPLIT: "train",
                schema.ORIGIN: "synthetic",
                schema.PROMPT: identity.prompt,
                schema.SEED: seed,
                schema.GENERATOR: generator,
                schema.ATTRIBUTES: dict(identity.attributes),
            })  # fmt: skip
    return schema.observations(rows)


def generator_name(recipe: Recipe, adapter: Place | None) -> str:
    """What makes the images: model, adapter and settings, the first two by their content."""
    spec, model = recipe.generate, recipe.models.text_to_image
    parts = [f"{model}@{references.fingerprint(model)}"]
    if adapter is not None:
        parts.append(f"adapter@{references.fingerprint(str(places.fetched(adapter / ADAPTER)))}")
    parts.append(settings_name(spec))
    parts.append(f"precision={recipe.models.precision}")
    if spec.negative_prompt:
        parts.append(f"not={spec.negative_prompt}")
    return " ".join(parts)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models and of the prompt library."""
    used = (recipe.models.text_to_image, *filter_models(recipe))
    identities = vehicle_prompts.identities(recipe.prompts, recipe.seed)
    prompts = [identity.prompt for identity in identities]
    return schema.observation_id(*map(references.fingerprint, used), *prompts)


def _recipe(work: Work) -> Recipe:
    """The recipe with the text-to-image model of the candidate, which may have one of its own."""
    name = _candidate(work)
    found = work.facts_of("adapt", AdaptFacts).candidates
    own = next((one.model for one in found if one.name == name), None)
    return work.recipe if own is None else recipes.override(work.recipe, {MODEL: own})


def _candidate(work: Work) -> str:
    return work.recipe.generate.candidate or work.facts_of("adapt", AdaptFacts).best


def _adapter(work: Work) -> Place | None:
    name = _candidate(work)
    return None if name == BASE else (work.inputs["adapt"] / "candidates" / name).resolve()


def _stream(work: Work, name: str, plan: pa.Table, stages: Sequence[Step]) -> Cost | None:
    last = partial(encode, quality=work.recipe.generate.quality)
    columns, title = schema.OBSERVATION.names, f"generate {name}"
    return stage.stream(plan, columns, stages, work.out / name, title, encode=last)


def section(facts: GenerateFacts) -> Section:
    """Say which adapted model made the images."""
    return Section(notes=(f"Generated with the candidate {facts.candidate}",))


JOB = Job(
    "generate",
    generate_job,
    needs=("adapt",),
    sections=(
        "seed",
        MODEL,
        "models.precision",
        "prompts",
        "generate",
        "filters",
    ),
    also=filter_entries,
    check=check,
    outside=outside,
    # 3: every filter measures every image.
    format=3,
    facts=GenerateFacts,
    report=section,
)
