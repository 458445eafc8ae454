"""The adapt job: low-rank adapters fitted to a few unlabelled images of the target cameras.

Caption, fine-tune, judge, choose (Vehicle-Diff, section III-B and C). Labels are not looked at.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import images, places, schema, storage
from ray_reid.datasets.reading import share
from ray_reid.generation.candidates import (
    BASE,
    AdaptFacts,
    CandidateFacts,
    candidate_names,
    named_trainings,
    own_models,
    state_names,
)
from ray_reid.generation.generators import vehicle_prompts
from ray_reid.models.pretrained import references, roles
from ray_reid.places import Place
from ray_reid.recipe.adapt import Lora
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import figures, stage
from ray_reid.runtime.cluster import check_capacity
from ray_reid.runtime.figures import Card
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.progress import metered
from ray_reid.runtime.sections import Section, Table, number
from ray_reid.schema import Batch

log = logging.getLogger(__name__)

STATES = "states"
"""Folder of trainings that are not finished."""
SHEET = "adapt_candidates.png"
ROLES = ("text_to_image", "captioner", "image_text")
"""Models that it needs."""


class Caption:
    """Replace `image` by a `caption` of it."""

    def __init__(self, model: str, precision: str, prefix: str) -> None:
        """Load the captioner once per actor; `prefix` begins every caption."""
        from ray_reid.models.pretrained.captioner import Captioner

        self.model, self.prefix = Captioner(model, precision), prefix

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Caption a batch."""
        pixels = [images.decode(encoded) for encoded in batch[schema.IMAGE]]
        told = np.empty(len(pixels), dtype=object)
        told[:] = self.model.caption(pixels, self.prefix)
        return {schema.OBSERVATION_ID: batch[schema.OBSERVATION_ID], schema.CAPTION: told}


def adapt_job(work: Work) -> AdaptFacts:
    """Write the table `captions` and every candidate, and say which one is best.

    Raises:
        ValueError: If there is nothing to adapt to.
    """
    recipe, out = work.recipe, work.out
    chosen = _choose_images(work)
    _caption(work, chosen)
    _fit(work)
    candidates = _candidates(out, recipe)
    best = max(candidates, key=lambda candidate: candidate.score).name
    captions = {SHEET: _sheet(out, candidates, best, recipe)}
    licences = sorted({licence for licence in chosen[schema.LICENCE].to_pylist() if licence})
    return AdaptFacts(
        captioned=chosen.num_rows,
        candidates=candidates,
        best=best,
        licence="; ".join(licences) or None,
        fingerprint=storage.fingerprint(out / "captions", "adapt/captions"),
        pictures=captions,
    )


def check(recipe: Recipe) -> None:
    """Refuse what cannot be adapted, before anything runs.

    Raises:
        ValueError: If one image alone would judge, or a model is not there.
    """
    if _num_judged(recipe) < 2:
        raise ValueError(
            "adapt.num_prompts 1 times images_per_prompt 1 leaves one image to judge a candidate "
            "by, and a Frechet distance needs 2"
        )
    roles.check(recipe.models, *ROLES)
    for place, lora in enumerate(recipe.adapt.trainings):
        if lora.model is not None:
            with references.refusing(f"adapt.trainings.{place}.model", lora.model):
                references.locate(lora.model)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models and of the prompts that judge."""
    used = [getattr(recipe.models, role) for role in ROLES]
    used += [lora.model for lora in recipe.adapt.trainings if lora.model is not None]
    wanted = vehicle_prompts.identities(recipe.prompts, recipe.seed)[: recipe.adapt.num_prompts]
    prompts = [one.prompt for one in wanted]
    return schema.observation_id(*(references.fingerprint(model) for model in used), *prompts)


def _num_judged(recipe: Recipe) -> int:
    prompts = min(recipe.adapt.num_prompts, recipe.prompts.num_identities)
    return prompts * recipe.adapt.images_per_prompt


def _choose_images(work: Work) -> pa.Table:
    """A share of the real training images by a hash of their ids; labels are not read."""
    table = work.inputs["ingest"] / "observations"
    real = pc.field(schema.ORIGIN) == "real"
    unlabelled = pc.field(schema.SPLIT).isin(["train", "unlabelled"])
    # Ids alone: the images of a large table would fill the memory.
    (ids,) = storage.read(table, [schema.OBSERVATION_ID], unlabelled & real)
    wanted = round(work.recipe.adapt.fraction * len(ids))
    if wanted < 2:
        raise ValueError(
            f"adapt.fraction {work.recipe.adapt.fraction:g} of {len(ids)} real training "
            "images is fewer than 2; raise it"
        )
    seed = work.recipe.seed
    order = sorted(ids.to_pylist(), key=lambda name: share("adapt", seed, name))
    columns = [schema.OBSERVATION_ID, schema.IMAGE, schema.LICENCE]
    return storage.read(table, columns, pc.field(schema.OBSERVATION_ID).isin(order[:wanted]))


def _caption(work: Work, chosen: pa.Table) -> None:
    recipe, place = work.recipe, work.out / "images"
    if not storage.is_complete(place):
        storage.write(place, chosen.select([schema.OBSERVATION_ID, schema.IMAGE]))
    params = {
        "model": recipe.models.captioner,
        "precision": recipe.models.precision,
        "prefix": recipe.adapt.caption_prefix,
    }
    step = stage.Step(Caption, params, recipe.adapt.caption_stage)
    columns = [schema.OBSERVATION_ID, schema.IMAGE]
    stage.stream(place, columns, [step], work.out / "captions", "caption")


def _fit(work: Work) -> None:
    """Fit and judge whatever a killed attempt left undone, trainings side by side."""
    out, recipe = work.out, work.recipe
    trainings = named_trainings(recipe.adapt.trainings)
    wanted: list[tuple[str, Lora | None]] = [(BASE, None), *trainings.items()]
    todo = [
        (name, lora)
        for name, lora in wanted
        if not all((out / "candidates" / state / "judged.json").is_file()
                   for state in ([name] if lora is None else state_names(name, lora)))
    ]  # fmt: skip
    if not todo:
        return
    spec = recipe.adapt
    check_capacity("adapt", 1, spec.num_cpus, spec.num_gpus)
    with metered("adapt", "step") as meter:
        arguments = [
            {
                "recipe": recipe,
                "out": out.resolve(),
                "name": name,
                "lora": lora,
                "meter": meter,
            }
            for name, lora in todo
        ]
        for place, _ in stage.tasks("adapt", _worker, arguments, spec.num_cpus, spec.num_gpus):
            log.debug("%s is judged", todo[place][0])


def _worker(recipe: Recipe, out: Place, name: str, lora: Lora | None, meter: Any) -> None:
    from ray_reid.generation.finetune import fit_and_judge

    fit_and_judge(recipe, out, name, lora, meter)


def _candidates(out: Place, recipe: Recipe) -> tuple[CandidateFacts, ...]:
    """What was measured of each candidate, and its score.

    The score is the share of images in the asked colour minus the Frechet distance to the target
    images as a share of that of the model as it was: a good adapter lowers the distance and
    still does what the prompt says.
    """
    names, models = candidate_names(recipe), own_models(recipe)
    found = [json.loads((out / "candidates" / name / "judged.json").read_text()) for name in names]
    base = max(found[0]["fid"], 1e-9)
    return tuple(
        CandidateFacts(
            name=name,
            model=models.get(name),
            score=round(one["agreement"] - one["fid"] / base, 4),
            **one,
        )
        for name, one in zip(names, found, strict=True)
    )


def _sheet(out: Place, candidates: Sequence[CandidateFacts], best: str, recipe: Recipe) -> str:
    """Draw the first images of every candidate, and beside them what they are to look like."""
    shown = 10
    rows = storage.read(out / "images", [schema.IMAGE]).slice(0, shown)
    street = [Card(images.decode(encoded), "") for encoded in rows[schema.IMAGE].to_pylist()]
    groups: dict[str, list[Card]] = {"the images adapted to": street}
    for one in candidates:
        sheet = np.load(places.fetched(out / "candidates" / one.name / "images.npz"))
        cards = [
            Card(pixels, str(colour))
            for pixels, colour in zip(sheet["images"][:shown], sheet["colours"], strict=False)
        ]
        sign = ", the best score" if one.name == best else ""
        heading = (
            f"{_title(one)}{sign}: Frechet distance {one.fid:.3f}, asked colour "
            f"{one.agreement:.0%}, score {one.score:.2f}"
        )
        groups[heading] = cards
    figures.save(figures.contact_sheet(groups, columns=shown), out / SHEET)
    return (
        "The same prompts and seeds through every candidate; each is judged on "
        f"{_num_judged(recipe)} images "
        "with the image-text model. The best score is taken unless generate.candidate names "
        "another."
    )


def _title(candidate: CandidateFacts) -> str:
    """Name of a candidate, with its model where that is its own."""
    return candidate.name + (f" of {candidate.model}" if candidate.model is not None else "")


def section(facts: AdaptFacts) -> Section:
    """Show the candidates and which one scored best."""
    rows = tuple(
        (
            _title(candidate),
            number(candidate.fid, 3),
            number(candidate.agreement, 3),
            number(candidate.score, 3),
            "best" if candidate.name == facts.best else "",
        )
        for candidate in facts.candidates
    )
    header = ("candidate", "Frechet distance", "prompt agreement", "score", "")
    note = "Fine-tunings of the text-to-image model; of distances, lower is nearer to the target."
    return Section((Table("Adaptation", header, rows, note),))


JOB = Job(
    "adapt",
    adapt_job,
    needs=("ingest",),
    sections=(
        "seed",
        "models.text_to_image",
        "models.captioner",
        "models.image_text",
        "models.precision",
        "prompts.template",
        "adapt",
        "generate.guidance_scale",
        "generate.steps",
        "generate.image_size",
        "generate.negative_prompt",
    ),
    check=check,
    # The prompts that judge are hashed as they are: more identities leave the first ones.
    covered=("prompts",),
    outside=outside,
    format=2,
    scratch=("images", STATES),
    facts=AdaptFacts,
    report=section,
)
