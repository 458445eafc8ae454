"""The describe job: what every clothes id looks like, in words (DLCR, section 3.1)."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from ray_reid import images, schema, storage
from ray_reid.generation.generators import answers as reading
from ray_reid.generation.generators import clothes, descriptions
from ray_reid.generation.generators.answers import Answer
from ray_reid.generation.generators.descriptions import Description
from ray_reid.models.pretrained import references, roles
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.schema import Batch

log = logging.getLogger(__name__)

ANSWERS, SUMMARIES = "answers", "summaries"
ANSWER, ASKED = "answer", "asked"
SEPARATOR = "\n"
SHOWN = 20
"""Most clothes that a message or the facts name."""


class Ask:
    """Replace the image by the `answer` of a model to one prompt; an unreadable one has none."""

    def __init__(self, model: str, precision: str, prompt: str, max_words: int) -> None:
        """Load the describer once per actor; see `models.pretrained.describer`."""
        from ray_reid.models.pretrained.describer import Describer

        self.model = Describer(model, precision)
        self.prompt, self.max_words = prompt, max_words

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Answer for the rows of a batch."""
        pictures = [images.decode(encoded) for encoded in batch[schema.IMAGE]]
        answers = np.empty(len(pictures), dtype=object)
        answers[:] = self.model.answer(pictures, self.prompt, self.max_words)
        rest = {name: values for name, values in batch.items() if name != schema.IMAGE}
        return {**rest, ANSWER: answers}


class Summarise:
    """Add the `answer` of a language model to all answers for one clothes id."""

    def __init__(self, model: str, precision: str, max_words: int) -> None:
        """Load the summariser once per actor; see `models.pretrained.summariser`."""
        from ray_reid.models.pretrained.summariser import Summariser

        self.model, self.max_words = Summariser(model, precision), max_words

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Summarise the answers of every row, which are lines of `asked`."""
        told = [asked.split(SEPARATOR) for asked in batch[ASKED]]
        answers = np.empty(len(told), dtype=object)
        answers[:] = [self.model.summarise(one, self.max_words) for one in told]
        return {**batch, ANSWER: answers}


class DescribeFacts(Facts):
    """What the describe job says."""

    worn: int = 0
    """Sets of clothes in the training images."""
    described: int = 0
    without_clothes: int = 0
    """Images that do not know their clothes."""
    undescribed: tuple[str, ...] = ()
    """The first clothes without a description."""
    answers: dict[str, Any] = Field(default_factory=dict)
    """How the model answered, or the file that took its place."""


def describe_job(work: Work) -> DescribeFacts:
    """Write `descriptions.parquet`, a row for every clothes id of the real training images.

    Raises:
        ValueError: If no training image has clothes, two identities wear those of one id, a file
            of descriptions lacks one that is worn, or no answer can be read.
    """
    table = work.inputs["ingest"] / "observations"
    columns = (schema.OBSERVATION_ID, schema.CLOTHES, schema.IDENTITY)
    rows = storage.read(table, columns, clothes.DRESSED["train"])
    ids, outfits, wearers = (rows[name].to_pylist() for name in columns)
    worn = dict(zip(ids, outfits, strict=True))
    _check_wearers(outfits, wearers)
    names = sorted({name for name in worn.values() if name is not None})
    if not names:
        raise ValueError(
            "no training image has clothes in the column 'clothes', so there are none to describe; "
            "take a source that tells them apart"
        )
    spec = work.recipe.describe
    counts: dict[str, dict[str, int]] = {}
    told: dict[str, Any] = {"file": spec.file}
    if spec.file is not None:
        found, told["ignored"] = _given(Path(spec.file), names)
    else:
        answers = _ask(work, table)
        found, counts, told = _described(work, worn, answers)
    descriptions.write(work.out / descriptions.FILE, found, counts)
    shown = [f"{one.clothes}: {one.prompt('{upper} | {lower} | {footwear}')}" for one in found]
    log.info("describe: %d of %d clothes described, such as %s", len(found), len(names), shown[0])
    return DescribeFacts(
        worn=len(names),
        described=len(found),
        without_clothes=sum(name is None for name in worn.values()),
        undescribed=tuple(sorted(set(names) - {one.clothes for one in found})[:SHOWN]),
        answers=told,
        metrics={"clothes_described": len(found)},
    )


def check(recipe: Recipe) -> None:
    """Refuse what cannot be described, before anything runs.

    Raises:
        ValueError: If a model or a file is not there, or vLLM is not installed.
    """
    spec = recipe.describe
    if spec.file is not None:
        descriptions.read(Path(spec.file))
        return
    roles.check(recipe.models, "describer")
    if spec.summary == "llm":
        if recipe.models.summariser is None:
            raise ValueError("describe.summary 'llm' needs a model: set models.summariser")
        roles.check(recipe.models, "summariser")
    if spec.backend == "vllm":
        from ray_reid.runtime import vllm

        vllm.check()


def outside(recipe: Recipe) -> str:
    """Fingerprint of the models or of the edited file."""
    spec, models = recipe.describe, recipe.models
    if spec.file is not None:
        return references.digest([Path(spec.file)], Path(spec.file).parent)
    used = [models.describer, *([models.summariser] if models.summariser else [])]
    return schema.observation_id(*(references.fingerprint(model) for model in used))


def _check_wearers(outfits: Sequence[str | None], wearers: Sequence[str]) -> None:
    """One id is described once, so it must not name different clothes of different people."""
    first: dict[str, str] = {}
    for name, wearer in zip(outfits, wearers, strict=True):
        if name is not None and first.setdefault(name, wearer) != wearer:
            raise ValueError(
                f"the clothes {name!r} are worn by several identities, such as {first[name]!r} "
                f"and {wearer!r}, but one description is made of each clothes id; put the "
                "identity into the id, in the source's pattern or its column 'clothes'"
            )


def _given(file: Path, names: Sequence[str]) -> tuple[list[Description], int]:
    """Descriptions of the clothes that are worn, and how many others the file has."""
    given = descriptions.read(file)
    missing = sorted(set(names) - {one.clothes for one in given})
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(
            f"describe.file {str(file)!r} lacks {len(missing)} of the {len(names)} clothes that "
            f"are worn in the training images: {missing[:SHOWN]}{more}; add them, or leave "
            "describe.file out to have all described"
        )
    found = [one for one in given if one.clothes in set(names)]
    return found, len(given) - len(found)


def _ask(work: Work, table: Place) -> dict[str, str]:
    """The answer for every image with clothes, by its id; what a killed attempt asked is kept."""
    spec, models, out = work.recipe.describe, work.recipe.models, work.out / ANSWERS
    where = (
        (stage.column(schema.SPLIT) == "train")
        & (stage.column(schema.ROLE) == "normal")
        & (stage.column(schema.ORIGIN) == "real")
        & stage.column(schema.IDENTITY).is_not_null()
        & stage.column(schema.CLOTHES).is_not_null()
        & stage.column(schema.DROP_REASON).is_null()
    )
    columns = (schema.OBSERVATION_ID, schema.IMAGE)
    if spec.backend == "vllm":
        from ray_reid.runtime import vllm

        found = references.resolve(models.describer)
        vllm.answer(table, columns, where, out, found, models.precision, spec)
    else:
        params = {
            "model": models.describer,
            "precision": models.precision,
            "prompt": spec.prompt,
            "max_words": spec.max_words,
        }
        stage.stream(table, columns, [stage.Step(Ask, params, spec.stage)], out, "describe", where)
    told = storage.read(out, [schema.OBSERVATION_ID, ANSWER])
    return dict(zip(*(column.to_pylist() for column in told.columns), strict=True))


def _described(
    work: Work, worn: Mapping[str, str | None], answers: Mapping[str, str]
) -> tuple[list[Description], dict[str, dict[str, int]], dict[str, Any]]:
    """Descriptions, counts of images by clothes id, and what the facts say of the answers."""
    read: dict[str, list[Answer]] = {}
    counts: dict[str, dict[str, int]] = {}
    unreadable: Counter[str] = Counter()
    for key, text in sorted(answers.items()):
        name = worn[key]
        assert name is not None, "only images with clothes are asked about"
        own = counts.setdefault(name, {"images": 0, "unparsable": 0})
        own["images"] += 1
        answer = reading.parse_answer(text)
        if answer is None:
            own["unparsable"] += 1
            unreadable[text[:80]] += 1
        else:
            read.setdefault(name, []).append(answer)
    if not read:
        sample = next(iter(unreadable), "")
        raise ValueError(
            f"none of the {len(answers)} answers has the form 'upper | lower | footwear', or names "
            f"the three parts otherwise, such as {sample!r}; change describe.prompt or "
            "models.describer"
        )
    asked = read if work.recipe.describe.summary == "llm" else {}
    summaries = _summaries(work, asked) if asked else {}
    found = []
    if work.recipe.describe.summary == "one":
        whole = {name: [one for one in own if None not in one] for name, own in read.items()}
        read = {name: (whole[name] or own)[:1] for name, own in read.items()}
    for name, own_answers in sorted(read.items()):
        upper, lower, footwear = descriptions.summarise(own_answers, summaries.get(name))
        if upper is not None and lower is not None and footwear is not None:
            found.append(Description(name, upper, lower, footwear))
    if not found:
        raise ValueError(
            f"no answer names footwear, upper and lower clothes for any of {len(read)} clothes; "
            "change describe.prompt or models.describer"
        )
    told = {
        "images": len(answers),
        "unparsable": sum(unreadable.values()),
        "most_unparsable": dict(unreadable.most_common(5)),
        "summaries": len(summaries),
        "unparsable_summaries": len(asked) - len(summaries),
    }
    return found, counts, told


def _summaries(work: Work, read: Mapping[str, Sequence[Answer]]) -> dict[str, Answer]:
    """What a language model makes of the answers for each clothes id, where that can be read."""
    spec, models, out = work.recipe.describe, work.recipe.models, work.out / SUMMARIES
    lines = {
        name: SEPARATOR.join(" | ".join(part or "unknown" for part in answer) for answer in own)
        for name, own in read.items()
    }
    plan = pa.table({schema.OBSERVATION_ID: list(lines), ASKED: list(lines.values())})
    params = {
        "model": models.summariser,
        "precision": models.precision,
        "max_words": spec.max_words,
    }
    stage.stream(
        plan, plan.column_names, [stage.Step(Summarise, params, spec.stage)], out, "summarise"
    )
    told = storage.read(out, [schema.OBSERVATION_ID, ANSWER])
    texts = dict(zip(*(column.to_pylist() for column in told.columns), strict=True))
    parsed = {name: reading.first_answer(text) for name, text in texts.items()}
    unreadable = [name for name, answer in parsed.items() if answer is None]
    if unreadable:
        log.warning(
            "describe: %d of %d summaries cannot be read, such as %r; the most frequent answers "
            "count there; change models.summariser",
            len(unreadable), len(parsed), texts[unreadable[0]][:80],
        )  # fmt: skip
    return {name: answer for name, answer in parsed.items() if answer is not None}


JOB = Job(
    "describe",
    describe_job,
    needs=("ingest",),
    sections=(
        "describe",
        "models.describer",
        "models.summariser",
        "models.precision",
    ),
    check=check,
    outside=outside,
    format=2,
    facts=DescribeFacts,
)
