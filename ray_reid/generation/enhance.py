"""The enhance job: a prompt for every identity (Diffusion-ReID, section 3.1: LPE and IIR).

A describer sees the images of one camera in sequence; what it says of them is merged to one
description, and a token stands for the identity in the prompt.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from ray_reid import images, schema, storage
from ray_reid.generation import manual_prompts
from ray_reid.generation.generators import phrases
from ray_reid.generation.sequences import COLUMNS, CameraSequence, camera_sequences
from ray_reid.models.pretrained import identity_tokens, references, roles
from ray_reid.places import Place
from ray_reid.recipe.enhance import Enhance
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import figures, stage
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.figures import Card
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.sections import Section, Table
from ray_reid.schema import Batch

log = logging.getLogger(__name__)

TABLE, ANSWERS = "prompts", "answers"
ANSWER = "answer"
SEPARATOR = "\n"
"""Between the answers to several questions; an answer is one line."""
SHEET = "enhance.png"
SHOWN = 6
UNDESCRIBED, UNREADABLE = "undescribed", "no readable image"

DESCRIBED = (
    (pc.field(schema.SPLIT) == "train")
    & (pc.field(schema.ROLE) == "normal")
    & (pc.field(schema.ORIGIN) == "real")
)
"""Rows of the real images that sequences are made of."""

PROMPTS = pa.schema(
    [
        pa.field(schema.IDENTITY, pa.string(), nullable=False),
        pa.field(schema.SOURCE, pa.string(), nullable=False),
        pa.field(schema.CAMERA, pa.string()),
        # Observation ids of the images that are described, and that a model is tuned to.
        pa.field(schema.IMAGES, pa.list_(pa.string()), nullable=False),
        pa.field("description", pa.string()),
        pa.field(schema.TOKEN, pa.string(), nullable=False),
        pa.field(schema.PROMPT, pa.string()),
        # The same without the token.
        pa.field("class_prompt", pa.string()),
        # Words of the description that the tokenizer has no room for.
        pa.field("cut", pa.int32(), nullable=False),
        pa.field(schema.DROP_REASON, pa.string()),
    ]
)
"""Columns of the table `prompts`; a row is an identity."""


class AskAll:
    """Replace the image by the `answer` to every question, a line each; null if unreadable."""

    def __init__(
        self, model: str, precision: str, questions: Sequence[str], max_words: int
    ) -> None:
        """Load the describer once per actor; see `models.pretrained.describer`."""
        from ray_reid.models.pretrained.describer import Describer

        self.model = Describer(model, precision)
        self.questions, self.max_words = questions, max_words

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Answer for the rows of a batch."""
        pixels = [_decoded(encoded) for encoded in batch[schema.IMAGE]]
        there = [row for row, image in enumerate(pixels) if image is not None]
        known = [image for image in pixels if image is not None]
        answers = np.full(len(pixels), None, dtype=object)
        if known:
            told = [self.model.answer(known, text, self.max_words) for text in self.questions]
            answers[there] = [SEPARATOR.join(own) for own in zip(*told, strict=True)]
        rest = {name: values for name, values in batch.items() if name != schema.IMAGE}
        return {**rest, ANSWER: answers}


def _decoded(encoded: bytes) -> images.Pixels | None:
    try:
        return images.decode(encoded)
    except ValueError:
        return None


class EnhanceFacts(Facts):
    """What the enhance job says."""

    style: str = ""
    token: str = ""
    identities: int = 0
    prompts: int = 0
    """Identities with a prompt."""
    images: int = 0
    """In the sequences."""
    single: int = 0
    """Identities with one image in their sequence."""
    unlabelled: int = 0
    """Training images without an identity, which are left out."""
    cut_prompts: int = 0
    """Prompts from which words were cut."""
    cut_words: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """Identities without a prompt, by reason."""
    examples: dict[str, str] = Field(default_factory=dict)
    """Prompts of some identities."""


def enhance_job(work: Work) -> EnhanceFacts:
    """Write the table `prompts`, a row for every identity of the real training images.

    Raises:
        ValueError: If no training image has an identity, nothing can be said of any, or the
            tokenizer splits the token.
    """
    recipe, table = work.recipe, (work.inputs["ingest"] / "observations").resolve()
    spec = recipe.enhance
    tokenizer = identity_tokens.load_tokenizer(recipe.models.text_to_image)
    token = identity_tokens.identity_token(tokenizer, spec.token)
    found, unlabelled = _sequences(table, spec.around)
    described, reasons = _descriptions(work, table, found)
    if spec.token.kind == "rare":
        _check_unused(token, described, spec)
    rows = [
        _row(tokenizer, spec, token, one, described.get(one.identity), reasons.get(one.identity))
        for one in found
    ]
    kept = [row for row in rows if row[schema.DROP_REASON] is None]
    if not kept:
        reason = rows[0][schema.DROP_REASON]
        raise ValueError(
            f"none of the {len(rows)} identities has a prompt, {rows[0][schema.IDENTITY]!r} "
            f"because of {reason!r}; change models.describer, enhance.questions or enhance.style"
        )
    if not storage.is_complete(work.out / TABLE):
        storage.write(work.out / TABLE, pa.Table.from_pylist(rows, schema=PROMPTS))
    shown = [kept[place] for place in storage.evenly_spaced(len(kept), SHOWN)]
    log.info("enhance: %d of %d identities have a prompt, such as %r",
             len(kept), len(rows), shown[0][schema.PROMPT])  # fmt: skip
    return EnhanceFacts(
        style=spec.style,
        token=token,
        identities=len(rows),
        prompts=len(kept),
        images=sum(len(one.images) for one in found),
        single=sum(len(one.images) == 1 for one in found),
        unlabelled=unlabelled,
        cut_prompts=sum(row["cut"] > 0 for row in kept),
        cut_words=sum(row["cut"] for row in kept),
        dropped=dict(Counter(row[schema.DROP_REASON] for row in rows if row not in kept)),
        examples={row[schema.IDENTITY]: row[schema.PROMPT] for row in shown},
        metrics={"identities_with_prompt": len(kept)},
        pictures=_draw(table, shown, work.out),
    )


def check(recipe: Recipe) -> None:
    """Refuse what cannot be described, before anything runs.

    Raises:
        ValueError: If a model or a file is not there, or the tokenizer splits the token.
    """
    spec = recipe.enhance
    if spec.style == "generated":
        roles.check(recipe.models, "describer")
    if spec.manual_file is not None:
        manual_prompts.read(Path(spec.manual_file))
    roles.check(recipe.models, "text_to_image")
    tokenizer = identity_tokens.load_tokenizer(recipe.models.text_to_image)
    identity_tokens.identity_token(tokenizer, spec.token)


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models and of the file of descriptions."""
    spec, models = recipe.enhance, recipe.models
    used = [models.text_to_image, *([models.describer] if spec.style == "generated" else [])]
    parts = [references.fingerprint(model) for model in used]
    if spec.manual_file is not None:
        parts.append(references.digest([Path(spec.manual_file)], Path(spec.manual_file).parent))
    return schema.observation_id(*parts)


def _sequences(table: Place, around: int) -> tuple[list[CameraSequence], int]:
    """The images of every identity, and the number of training images without one."""
    wanted = storage.read(table, COLUMNS, DESCRIBED).to_pylist()
    found = camera_sequences(wanted, around)
    if not found:
        raise ValueError(
            f"none of the {len(wanted)} training images has an identity, so there is nobody to "
            "write a prompt for; take a labelled source, or one whose identities were found by "
            "clustering"
        )
    return found, sum(row[schema.IDENTITY] is None for row in wanted)


def _descriptions(
    work: Work, table: Place, found: Sequence[CameraSequence]
) -> tuple[dict[str, str], dict[str, str]]:
    """Descriptions by identity, and why others have none."""
    spec = work.recipe.enhance
    if spec.style == "category":
        return {}, {}
    if spec.style == "manual":
        described = manual_prompts.descriptions(spec, table, found)
        return described, {
            one.identity: UNDESCRIBED for one in found if one.identity not in described
        }
    answers = _ask(work, table, found)
    described, reasons = {}, {}
    for one in found:
        told = [text for key in one.images if (text := answers.get(key)) is not None]
        if not told:
            reasons[one.identity] = UNREADABLE
            continue
        merged = _merged(told, spec)
        if merged is None:
            reasons[one.identity] = UNDESCRIBED
        else:
            described[one.identity] = merged
    return described, reasons


def _merged(told: Sequence[str], spec: Enhance) -> str | None:
    """One description of the answers for the images of an identity, question by question."""
    by_question = zip(*(text.split(SEPARATOR) for text in told), strict=True)
    parts = [
        question.say.replace("{answer}", text)
        for question, own in zip(spec.questions, by_question, strict=True)
        if (text := phrases.merge(own, spec.category)) is not None
    ]
    return phrases.JOINT.join(parts) or None


def _ask(work: Work, table: Place, found: Sequence[CameraSequence]) -> dict[str, str | None]:
    """The answers for every image of the sequences, by its id; a killed attempt's are kept."""
    spec, out = work.recipe.enhance, work.out / ANSWERS
    wanted = [key for one in found for key in one.images]
    params = {
        "model": work.recipe.models.describer,
        "precision": work.recipe.models.precision,
        "questions": [one.ask.replace("{category}", spec.category) for one in spec.questions],
        "max_words": spec.max_words,
    }
    stage.stream(
        table, (schema.OBSERVATION_ID, schema.IMAGE), [stage.Step(AskAll, params, spec.stage)],
        out, "enhance", stage.column(schema.OBSERVATION_ID).is_in(wanted),
    )  # fmt: skip
    told = storage.read(out, [schema.OBSERVATION_ID, ANSWER])
    return dict(zip(*(column.to_pylist() for column in told.columns), strict=True))


def _row(
    tokenizer: Any,
    spec: Enhance,
    token: str,
    of: CameraSequence,
    description: str | None,
    reason: str | None,
) -> dict[str, Any]:
    """The row of an identity in the table."""
    prompt, class_prompt, cut, left = None, None, 0, None
    if reason is None:
        template = spec.plain_template if description is None else spec.template
        filled = {name: _filled(template, spec.category, name) for name in (token, "")}
        words = (description or "").split()
        # The token needs room: what fits with it fits without it.
        left, cut = identity_tokens.fitted(tokenizer, filled[token], words)
        if description is not None and not left:
            filled = {name: _filled(spec.plain_template, spec.category, name) for name in filled}
        prompt, class_prompt = (
            text.replace("{description}", left).strip() for text in filled.values()
        )
    return {
        schema.IDENTITY: of.identity,
        schema.SOURCE: of.source,
        schema.CAMERA: of.camera,
        schema.IMAGES: list(of.images),
        "description": left or None,
        schema.TOKEN: token,
        schema.PROMPT: prompt,
        "class_prompt": class_prompt,
        "cut": cut,
        schema.DROP_REASON: reason,
    }


def _filled(template: str, category: str, token: str) -> str:
    """A template with its token and category, in single spaces; the description stays a field."""
    text = template.format(token=token, category=category, description="{description}")
    return " ".join(text.split())


def _check_unused(token: str, described: Mapping[str, str], spec: Enhance) -> None:
    """A word that describes an identity already means something."""
    told = f"{spec.template} {spec.plain_template} {spec.category}".split()
    using = next((text for text in described.values() if token in text.lower().split()), None)
    if using is None and token not in told:
        return
    where = f"the description {using!r}" if using is not None else "the template or the category"
    raise ValueError(
        f"the identity token {token!r} is a word of {where}, so it means something already; "
        "choose another enhance.token.rank, or set enhance.token.kind to 'new'"
    )


def _draw(table: Place, rows: Sequence[Mapping[str, Any]], out: Place) -> dict[str, str]:
    """Write the contact sheet: sequences below their prompts."""
    groups: dict[str, list[Card]] = {}
    for row in rows:
        found = storage.images_by_id(table, row[schema.IMAGES])
        pixels = [_decoded(found[key]) for key in row[schema.IMAGES] if key in found]
        cards = [Card(image, "") for image in pixels if image is not None]
        if cards:
            groups[f"{row[schema.IDENTITY]}: {row[schema.PROMPT]}"] = cards
    if not groups:
        return {}
    figures.save(figures.contact_sheet(groups), out / SHEET)
    return {
        SHEET: (
            "Images of one identity under one camera, and the prompt that was made of them; evenly "
            "spaced in the list of all identities, nobody picked them."
        )
    }


def section(facts: EnhanceFacts) -> Section:
    """Show what the prompts are made of, and which identities have none."""
    rows = [
        ("identities with a prompt", f"{facts.prompts} of {facts.identities}"),
        ("images described" if facts.style == "generated" else "images", f"{facts.images}"),
        ("identities with a single image", f"{facts.single}"),
        ("prompts that were cut", f"{facts.cut_prompts}, by {facts.cut_words} words"),
        *((f"without a prompt: {reason}", f"{count}") for reason, count in facts.dropped.items()),
    ]
    note = f"Style {facts.style!r}; the token of an identity is {facts.token!r}."
    warnings = []
    if facts.single:
        warnings.append(
            f"{facts.single} of {facts.identities} identities have a single image in their "
            "sequence: a model is tuned to that one alone"
        )
    if facts.unlabelled:
        warnings.append(f"{facts.unlabelled} training images without an identity are left out")
    return Section(
        tables=(Table("Prompts of the identities", ("", "number"), tuple(rows), note),),
        warnings=tuple(warnings),
        details=facts.examples,
    )


JOB = Job(
    "enhance",
    enhance_job,
    needs=("ingest",),
    sections=("enhance", "models.describer", "models.text_to_image", "models.precision"),
    check=check,
    outside=outside,
    facts=EnhanceFacts,
    report=section,
)
