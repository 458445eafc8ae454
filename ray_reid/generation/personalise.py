"""The personalise job: a fine-tuning an identity, and its images (Diffusion-ReID, section 3.1).

references -> [restore -> fine-tune -> generate] -> filters -> encode and write: one streaming
execution on Ray Data over identities, in any order. Every row is written, dropped ones with their
reason; an identity that fails is recorded and ends nothing.
"""

import logging
from collections import Counter
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ray_reid import images, places, schema, storage
from ray_reid.generation import attribute_references as attributes
from ray_reid.generation import enhance
from ray_reid.generation import identity_plan as plans
from ray_reid.generation.balance import Projection, Rates, project, tuning_seconds
from ray_reid.generation.filters.steps import (
    check_filters,
    check_given,
    filter_entries,
    filter_jobs,
    filter_models,
    filter_steps,
)
from ray_reid.generation.generators.identities import (
    ATTEMPTS,
    FAILED,
    GENERATING,
    RESTORING,
    TUNING,
    GenerateIdentity,
    encode,
)
from ray_reid.generation.generators.settings import pipeline_settings
from ray_reid.models.pretrained import references, roles
from ray_reid.places import Place, place
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.resources import StageSpec
from ray_reid.runtime import figures, stage
from ray_reid.runtime.facts import Cost, Facts
from ray_reid.runtime.figures import Card
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.run import REFERENCES
from ray_reid.runtime.sections import Section, Table, number
from ray_reid.runtime.stage import Note, Step

log = logging.getLogger(__name__)

OBSERVATIONS, ADAPTERS, SHEET = "observations", "adapters", "personalised.png"
SHOWN, SHOWN_IMAGES = 6, 8
# Bytes of a JPEG a pixel, before any is made.
PIXEL_BYTES = 0.5
PARTS = (TUNING, GENERATING, RESTORING)


class PersonaliseFacts(Facts):
    """What the personalise job says."""

    generator: str = ""
    identities: int = 0
    """With a prompt, and at least one image to make."""
    without_prompt: dict[str, str] = Field(default_factory=dict)
    """Identities that the enhance job has dropped, and why."""
    failures: dict[str, str] = Field(default_factory=dict)
    """Identities that could not be tuned to, and why."""
    retried: int = 0
    """Identities that were tried a second time, with smaller batches."""
    made: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """Images by reason."""
    references: int = 0
    reference_prompts: int = 0
    """Sets of references, which identities share."""
    cost: Cost | None = None
    """What the images took, filters among it; null where all were there."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Of all actors together, by part of the work."""
    identities_per_hour: float | None = None
    """Of one actor, without filters and waiting."""


def personalise_job(work: Work) -> PersonaliseFacts:
    """Write the table `observations`: images of every identity that has a prompt.

    Raises:
        ValueError: If no identity has a prompt, no image is asked for, every identity fails, or a
            model cannot be loaded.
    """
    recipe, spec = work.recipe, work.recipe.personalise
    check_given(recipe, work.inputs)
    table = (work.inputs["ingest"] / OBSERVATIONS).resolve()
    prompted, without = plans.read_prompted(_prompts(work))
    shared = plans.shared_prompts(recipe, prompted) if spec.prior_weight > 0 else {}
    plan = plans.identities_plan(recipe, table, prompted, shared)
    known = _references(work, shared) if shared else None
    _announce(recipe, plan, known)
    out = work.out / OBSERVATIONS
    last = partial(encode, quality=recipe.generate.quality)
    note = Note((schema.IDENTITY, *PARTS), partial(_progress, _counts(plan), spec.stage))
    first = identity_step(recipe, table, known, work.out.resolve())
    steps = [first, *filter_steps(recipe, work.inputs)]
    cost = stage.stream(
        plan, plan.column_names, steps, out, "personalise", encode=last, by=schema.IDENTITY,
        note=note,
    )  # fmt: skip
    found = _facts(out)
    return found.model_copy(
        update={
            "generator": plans.generator_name(recipe),
            "cost": cost,
            "without_prompt": without,
            "references": 0 if known is None else storage.dataset(known).count_rows(),
            "reference_prompts": len(set(shared.values())),
            "shared": () if known is None else (known.name,),
            "pictures": _draw(table, known, out, work.out),
        }
    )


def _prompts(work: Work) -> Place:
    given = work.recipe.personalise.prompts
    return work.inputs["enhance"] / enhance.TABLE if given is None else place(given)


def identity_step(recipe: Recipe, table: Place, known: Place | None, out: Place) -> Step:
    """The stage that fine-tunes and generates; `known` is the table of references."""
    spec = recipe.personalise
    params = {
        "table": str(table),
        "references": None if known is None else str(known),
        "model": recipe.models.text_to_image,
        "precision": recipe.models.precision,
        "spec": spec,
        "settings": pipeline_settings(recipe.generate),
        "adapters": str(out / ADAPTERS) if spec.keep_adapters else None,
        "token": plans.new_token(recipe.enhance),
    }
    return Step(GenerateIdentity, params, spec.stage, whole=True)


def unread(recipe: Recipe) -> frozenset[str]:
    """Return the jobs that this recipe does not read."""
    prompts = {"enhance"} if recipe.personalise.prompts is not None else set()
    return frozenset(prompts | ({"teachers"} - set(filter_jobs(recipe))))


def check(recipe: Recipe) -> None:
    """Refuse what cannot be made, before anything runs.

    Raises:
        ValueError: If a filter, one of its parameters, the size or a model is impossible.
    """
    check_filters(recipe, JOB.inputs(recipe))
    if any(spec.name == "detection" for spec in recipe.filters):
        raise ValueError(
            "the filter 'detection' crops, but personalised images have the size of "
            "personalise.output_size; leave it out"
        )
    if any(spec.name == "clothes" for spec in recipe.filters):
        raise ValueError(
            "the filter 'clothes' looks where clothes were painted, but a personalised model "
            "makes whole images; leave it out"
        )
    if any(side % 8 for side in recipe.generate.image_size):
        raise ValueError(
            f"generate.image_size {list(recipe.generate.image_size)} must be multiples of 8: that "
            "is how latents are laid out"
        )
    if recipe.generate.licence is not None:
        raise ValueError(
            f"generate.licence {recipe.generate.licence!r} would replace the terms of the images "
            "that the model is tuned to, which hold for what it makes too; leave it null"
        )
    roles.check(recipe.models, "text_to_image")
    if recipe.personalise.prompts is not None:
        plans.read_prompted(place(recipe.personalise.prompts))


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models, and of a table of prompts that no job made."""
    used = [recipe.models.text_to_image, *filter_models(recipe)]
    if recipe.personalise.prompts is not None:
        used.append(str(places.fetched(place(recipe.personalise.prompts)).resolve()))
    return schema.observation_id(*map(references.fingerprint, used))


def _references(work: Work, shared: dict[str, str]) -> Place:
    """The table of references, made once for all results of a run that need the same."""
    plan = attributes.references_plan(work.recipe, list(shared.values()))
    folder = work.out if work.trials is None else work.trials
    out = folder / REFERENCES / attributes.content_key(plan, work.recipe.generate.quality)
    last = partial(attributes.encode_references, quality=work.recipe.generate.quality)
    steps = attributes.reference_steps(work.recipe)
    stage.stream(plan, plan.column_names, steps, out, "personalise references", encode=last)
    return out.resolve()


def _counts(plan: pa.Table) -> tuple[int, int]:
    """Identities and images."""
    return pc.count_distinct(plan[schema.IDENTITY]).as_py(), plan.num_rows


def _announce(recipe: Recipe, plan: pa.Table, known: Place | None) -> None:
    """Say what the work will take, from what the references took."""
    spec, size = recipe.personalise, recipe.generate.image_size
    identities, wanted = _counts(plan)
    height, width = spec.output_size
    if known is None:
        log.info(
            "personalise: %d identities, %d images, about %.2f GB; how long they take is known "
            "from the first identity on",
            *(identities, wanted, wanted * height * width * PIXEL_BYTES / 1e9),
        )
        return
    made = storage.dataset(known).to_table(columns=[GENERATING])
    each = pc.mean(made[GENERATING]).as_py()
    stored = sum(file.stat().st_size for file in storage.files(known) or [])
    per_pixel = stored / made.num_rows / (size[0] * size[1])
    rates = Rates(
        tuning=tuning_seconds(spec, each, recipe.generate.steps, recipe.generate.guidance_scale),
        generating=each,
        image_bytes=per_pixel * height * width,
    )
    found = project(identities, wanted, rates, spec.stage.actors, spec.stage.num_gpus)
    log.info("personalise, by what the references took: %s", found.told())


def _progress(
    counts: tuple[int, int], resources: StageSpec, done: pa.Table, size: int, left: int
) -> str:
    """What the rest of the work will take, from what the identities so far took."""
    return measured(counts, resources, done, size, left).told() if left else ""


def measured(
    counts: tuple[int, int], resources: StageSpec, done: pa.Table, size: int, left: int
) -> Projection:
    """Project the rest of the work from what was done.

    Args:
        counts: Identities and images of the whole plan.
        resources: Of the actors.
        done: Identity and seconds of the rows that are written.
        size: Their bytes.
        left: Rows that are not.
    """
    identities, wanted = counts
    number_done = max(1, pc.count_distinct(done[schema.IDENTITY]).as_py())
    tuning, generating, restoring = (pc.sum(done[part]).as_py() for part in PARTS)
    rates = Rates(
        tuning=tuning / number_done,
        generating=generating / max(1, done.num_rows),
        image_bytes=size / max(1, done.num_rows),
        restoring=restoring / number_done,
    )
    rest = round(identities * left / wanted)
    return project(rest, left, rates, resources.actors, resources.num_gpus)


def _facts(out: Place) -> PersonaliseFacts:
    """What the table says of the work.

    Raises:
        ValueError: If every identity failed.
    """
    columns = (schema.IDENTITY, schema.DROP_REASON, ATTEMPTS, *PARTS)
    rows = storage.read(out, columns, kept_only=False)
    names, reasons = (rows[name].to_pylist() for name in columns[:2])
    failures = {
        name: reason.removeprefix(f"{FAILED}: ")
        for name, reason in zip(names, reasons, strict=True)
        if reason is not None and reason.startswith(FAILED)
    }
    identities = len(set(names))
    if len(failures) == identities:
        first = min(failures)
        raise ValueError(
            f"none of the {identities} identities could be personalised, {first!r} because "
            f"{failures[first]}"
        )
    retried = rows.filter(pc.greater(rows[ATTEMPTS], 1))
    dropped = Counter(reason.partition(":")[0] for reason in reasons if reason is not None)
    seconds = {part.removesuffix("_seconds"): pc.sum(rows[part]).as_py() for part in PARTS}
    kept = rows.num_rows - dropped.total()
    rate = identities / sum(seconds.values()) * 3600
    if not kept:
        log.warning(
            "personalise: no image of %d passed the filters: %s", rows.num_rows, dict(dropped)
        )
    for name in sorted(failures)[:SHOWN]:
        log.warning("personalise: %s has no images: %s", name, failures[name])
    return PersonaliseFacts(
        identities=identities,
        failures=failures,
        retried=pc.count_distinct(retried[schema.IDENTITY]).as_py(),
        made=rows.num_rows,
        kept=kept,
        dropped=dict(dropped),
        seconds=seconds,
        identities_per_hour=rate,
        metrics={"generated_images": kept, "identities_failed": len(failures)},
        fingerprint=storage.fingerprint(out, f"personalise/{OBSERVATIONS}"),
    )


def _draw(table: Place, known: Place | None, generated: Place, out: Place) -> dict[str, str]:
    """Write the contact sheet: an image of an identity, a reference, and what was generated.

    Returns:
        File name to caption; nothing if nothing was kept.
    """
    columns = (schema.IDENTITY, schema.PARENT, schema.PROMPT, schema.IMAGE)
    names = sorted(set(storage.read(generated, columns[:1])[schema.IDENTITY].to_pylist()))
    if not names:
        return {}
    shown = [names[place] for place in storage.evenly_spaced(len(names), SHOWN)]
    rows = storage.read(generated, columns, pc.field(schema.IDENTITY).isin(shown)).to_pylist()
    groups: dict[str, list[Card]] = {}
    for name in shown:
        own = [row for row in rows if row[schema.IDENTITY] == name][:SHOWN_IMAGES]
        parent = own[0][schema.PARENT]
        source = storage.images_by_id(table, [parent])[parent]
        cards = [Card(images.decode(source), "real")]
        cards += [Card(images.decode(row[schema.IMAGE]), "generated") for row in own]
        groups[f"{name}: {own[0][schema.PROMPT]}"] = cards
    if known is not None:
        ids = storage.read(known, [schema.OBSERVATION_ID]).slice(0, SHOWN_IMAGES + 1)
        some = storage.images_by_id(known, ids[schema.OBSERVATION_ID].to_pylist())
        cards = [Card(images.decode(one), "") for one in some.values()]
        groups["references: the model as it was"] = cards
    figures.save(figures.contact_sheet(groups, SHOWN_IMAGES + 1), out / SHEET)
    return {
        SHEET: (
            "A real image of an identity, and what the model that was fine-tuned to it makes; "
            "evenly spaced in the list of all identities, nobody picked them."
        )
    }


def section(facts: PersonaliseFacts) -> Section:
    """Show what the work took, and which identities failed."""
    total = sum(facts.seconds.values()) or 1.0
    rows = tuple(
        (part, number(seconds, 1), f"{seconds / total:.1%}")
        for part, seconds in facts.seconds.items()
    )
    note = (
        f"{facts.identities} identities, {facts.kept} of {facts.made} images kept; seconds are "
        "those of all actors together, without filters."
    )
    tables = [Table("Personalisation", ("part", "seconds", "share"), rows, note)]
    if facts.failures:
        failed = tuple(sorted(facts.failures.items()))
        tables.append(Table("Identities without images", ("identity", "reason"), failed, ""))
    return Section(tuple(tables))


JOB = Job(
    "personalise",
    personalise_job,
    needs=("ingest", "enhance", "teachers"),
    unread=unread,
    sections=(
        "seed",
        "enhance.token",
        "enhance.category",
        "models.text_to_image",
        "models.precision",
        "personalise",
        "generate.guidance_scale",
        "generate.image_size",
        "generate.negative_prompt",
        "generate.quality",
        "generate.steps",
        "filters",
    ),
    also=filter_entries,
    check=check,
    outside=outside,
    # 2: facts name the references, so that they are not pruned.
    format=2,
    facts=PersonaliseFacts,
    report=section,
)
