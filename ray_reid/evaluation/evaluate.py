"""The evaluate job: embeddings to metrics with their protocol stamp, pictures and the package."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_reid import places, schema, storage
from ray_reid.datasets.ingest import IngestFacts
from ray_reid.evaluation import pictures, refinement
from ray_reid.evaluation.headline import REFERENCE, EvaluateFacts, OpenSetFacts, section
from ray_reid.models import card
from ray_reid.places import Place
from ray_reid.ranking import doubt, open_set, scoring
from ray_reid.ranking.open_set import Thresholds
from ray_reid.ranking.scoring import Found, Side
from ray_reid.recipe import recipes
from ray_reid.recipe.postprocess import describe
from ray_reid.recipe.refine import Refine
from ray_reid.runtime.bars import bar
from ray_reid.runtime.facts import VARIANTS, VariantsFacts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import MANIFEST, Manifest
from ray_reid.runtime.version import VERSION
from ray_reid.training.outcome import TrainFacts

log = logging.getLogger(__name__)

FILE = "metrics.json"
RANKED = "ranked_list.jpg"
INHERITED = "those of the images that the generator was adapted to, if it was"
COLUMNS = (*scoring.COLUMNS, schema.EMBEDDING, schema.REFERENCE_EMBEDDING)
OPTIONAL = (schema.TEST_EMBEDDING, schema.CAMERA_EMBEDDING)


def evaluate_job(work: Work) -> EvaluateFacts:
    """Score the embeddings and the colour histogram; write pictures and the stamped package.

    Raises:
        ValueError: If there are no queries, no gallery or no query with a true match.
    """
    path = work.inputs["embed"] / "embeddings"
    there = set(storage.dataset(path).schema.names)
    table = storage.read(path, [*COLUMNS, *(name for name in OPTIONAL if name in there)])
    query, gallery = scoring.read_sides(table)
    spec = work.recipe.evaluate
    line = bar("evaluate", "step", 4)
    refine = work.recipe.refine
    judged = scoring.judge(query, gallery, spec, refine, read_variants(work.inputs["embed"]))
    model = judged.found
    line.update()
    reference = scoring.score(query, gallery, schema.REFERENCE_EMBEDDING, spec)
    line.update()
    result: dict[str, Any] = {
        "metrics": judged.figures(),
        "reference": scoring.flatten(reference),
        "stamp": _stamp(work, table, query, gallery, model),
        "recipe": work.recipe.name,
        "profile": work.recipe.profile,
    }
    made = work.facts_of(VARIANTS, VariantsFacts) if VARIANTS in work.facts else None
    refined = refinement.facts_of(judged, made)
    if refined is not None:
        result["refinement"] = refined.model_dump(mode="json")
    text = json.dumps(result, indent=2) + "\n"
    (work.out / FILE).write_text(text)
    captions = _draw(work, query, gallery) | refinement.draw(refined, work.out)
    line.update()
    page, given = _page(work, result)
    thresholds, decided = _decide(work, query, gallery, result["stamp"])
    _write_package(work, text, page, thresholds)
    if judged.gate is not None:
        gate = scoring.served_gate(query, gallery, judged.gate.share)
        places.write_text(work.out / "model" / doubt.FILE, gate.dump())
    line.update()
    line.close()
    floor = {f"{REFERENCE}{name}": value for name, value in result["reference"].items()}
    return EvaluateFacts(
        metrics={**result["metrics"], **floor},
        stamp=result["stamp"],
        # Of the first draw, as the stamp's counts.
        postprocess={
            case: tuple(dict(change) for change in draws[0].changes)
            for case, draws in model.items()
        },
        open_set=decided,
        refinement=refined,
        pictures=captions,
        # A model that somebody made before is not the newest one.
        model=None if given else "model",
    )


def _page(work: Work, result: Mapping[str, Any]) -> tuple[str, bool]:
    """The card of the package, and whether the package was given: then it brought a card."""
    known = places.fetched(work.inputs["train"] / "model") / card.FILE
    if known.is_file():
        # It alone knows what the model was trained on.
        return card.evaluated(known.read_text(), result, RANKED), True
    weights = work.facts_of("train", TrainFacts).weights
    page = card.write(work.recipe, _trained_on(work), result, RANKED, weights=weights)
    return page, False


def read_variants(embed: Place) -> pa.Table | None:
    """Embedded variants of the queries, if the embed job has made any."""
    path = embed / VARIANTS
    if not path.is_dir():
        return None
    there = storage.dataset(path).schema.names
    vectors = [name for name in (schema.EMBEDDING, schema.TEST_EMBEDDING) if name in there]
    return storage.read(path, [schema.OBSERVATION_ID, schema.PARENT, schema.NUMBER, *vectors])


def _told(spec: Refine | None) -> dict[str, Any] | None:
    """The section `refine` without what changes no figure."""
    return None if spec is None else spec.model_dump(mode="json", exclude={"stage"})


def _stamp(work: Work, table: pa.Table, query: Side, gallery: Side, found: Found) -> dict[str, Any]:
    """What the figures depend on besides the model; unlike stamps are not to be compared."""
    ingest = work.facts_of("ingest", IngestFacts)
    spec, embed = work.recipe.evaluate, work.recipe.embed
    return {
        "protocol": spec.protocol,
        "cases": list(found),
        "draws": max(map(len, found.values())),
        "average_precision": spec.average_precision,
        "similarity": "cosine",
        "ties": "pessimistic",
        "dataset": None if ingest.fingerprint is None else asdict(ingest.fingerprint),
        "sources": [source["reader"] for source in ingest.sources],
        "split": _split_digest(table),
        "query": _count(query),
        "gallery": _count(gallery),
        # Of the first draw; the others differ by the images drawn.
        "scored": {case: draws[0].num_queries for case, draws in found.items()},
        "skipped": {case: draws[0].num_skipped for case, draws in found.items()},
        "junk": pc.sum(pc.equal(table[schema.ROLE], "junk")).as_py() or 0,
        "dropped": dict(ingest.dropped),
        "both_directions": spec.both_directions,
        "by_source": spec.by_source,
        "flip_averaging": embed.flip,
        "scales": list(embed.scales),
        "crop": None if embed.crop is None else embed.crop.model_dump(mode="json"),
        "ensemble": list(embed.ensemble),
        "camera_model": embed.camera_model,
        "postprocess": [describe(step) for step in spec.postprocess],
        "refine": _told(work.recipe.refine),
        "seed": work.recipe.seed,
        "source_seeds": [source.get("seed") for source in ingest.sources],
        "version": VERSION,
    }


def _split_digest(table: pa.Table) -> str:
    """Hash of who is asked and who answers; rows come in the order of their ids."""
    columns = (schema.OBSERVATION_ID, schema.IDENTITY, schema.CAMERA, schema.SPLIT, schema.ROLE)
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return schema.observation_id(*(json.dumps(row) for row in rows))


def _count(side: Side) -> dict[str, int]:
    return {
        "images": len(side.observation_id),
        "identities": len({name for name in side.identity if name is not None}),
        "distractors": sum(name is None for name in side.identity),
        "cameras": len({camera for camera in side.camera if camera is not None}),
        "without_camera": sum(camera is None for camera in side.camera),
    }


def _draw(work: Work, query: Side, gallery: Side) -> dict[str, str]:
    table = work.inputs["ingest"] / "observations"
    read = partial(storage.images_by_id, table)
    paths = partial(storage.column_by_id, table, schema.PATH)
    # Pictures show plain rankings, whatever the protocol makes of them.
    spec = work.recipe.evaluate
    if spec.protocol == "reassociation":
        # An object is searched where it was seen: all its images may be of one camera.
        query, gallery = (
            replace(side, camera=[None] * len(side.camera)) for side in (query, gallery)
        )
    plain = spec.model_copy(
        update={
            "protocol": "market",
            "both_directions": False,
            "by_source": False,
            "postprocess": (),
        }
    )
    columns_of = {"model": schema.EMBEDDING, "colour histogram": schema.REFERENCE_EMBEDDING}
    found = {
        name: scoring.score(query, gallery, column, plain)["standard"][0]
        for name, column in columns_of.items()
    }
    package = _load(work.inputs["train"] / "model") if spec.num_maps else None
    return pictures.draw(query, gallery, found, read, package, spec, work.out, paths)


def _decide(
    work: Work, query: Side, gallery: Side, stamp: Mapping[str, Any]
) -> tuple[Thresholds | None, OpenSetFacts | None]:
    """Thresholds of the open set, and what the facts say of them; too little data gives none."""
    spec = work.recipe.evaluate.open_set
    if spec is None:
        return None, None
    text = json.dumps(stamp, sort_keys=True)
    origin = {"recipe": work.recipe.name, "stamp": schema.observation_id("stamp", text)}
    train = work.inputs["train"]
    if (train / MANIFEST).is_file():
        origin["training"] = Manifest.read(train).key
    # Of the embeddings that are served: those of the package alone.
    asked, answering = (
        open_set.LabelledEmbeddings(
            side.embedding if side.alone is None else side.alone,
            side.identity,
            side.cameras(),
            side.observation_id,
        )
        for side in (query, gallery)
    )
    rates = spec.match_far, spec.possible_far
    try:
        found = open_set.calibrate(asked, answering, *rates, seed=work.recipe.seed, origin=origin)
    except ValueError as error:
        log.info("evaluate: no open-set thresholds: %s", error)
        return None, OpenSetFacts(missing=str(error))
    return found, OpenSetFacts(
        match=found.match,
        possible=found.possible,
        cameras=len(found.cameras),
        levels=dict(found.levels),
        counts=dict(found.counts),
    )


def _load(path: Place) -> pictures.Maps:
    from ray_reid.models import package

    return package.load(path)


def _trained_on(work: Work) -> list[card.Source]:
    """The training images by source, origin and licence."""
    by = [schema.SOURCE, schema.ORIGIN, schema.LICENCE]
    observations = work.inputs["ingest"] / "observations"
    clustered = any(own.labels == "clusters" for _, own in work.recipe.train.trainings())
    where = storage.CLUSTERABLE if clustered else storage.TRAINABLE
    table = storage.read(observations, [*by, schema.IDENTITY], where=where)
    counted = table.group_by(by).aggregate(
        [(schema.IDENTITY, "count"), (schema.IDENTITY, "count_distinct")]
    )
    found = [
        card.Source(
            row[schema.SOURCE],
            row[schema.ORIGIN],
            row[f"{schema.IDENTITY}_count"],
            row[f"{schema.IDENTITY}_count_distinct"],
            row[schema.LICENCE],
        )
        for row in counted.sort_by([(name, "ascending") for name in by]).to_pylist()
    ]
    facts = work.facts_of("train", TrainFacts)
    counts = [one.by_origin for one in (facts.counts, facts.begun_on) if one is not None]
    synthetic = [by_origin["synthetic"] for by_origin in counts if "synthetic" in by_origin]
    most = max(synthetic, key=lambda one: one["images"], default=None)
    if most is not None and most["images"]:
        terms = work.recipe.generate.licence or INHERITED
        found.append(card.Source("generated", "synthetic", **most, licence=terms))
    return found


def _write_package(work: Work, text: str, page: str, thresholds: Thresholds | None) -> None:
    """Copy the trained package; add the recipe and figures of its evaluation, and a card."""
    target = work.out / "model"
    # A killed attempt may have left half a copy.
    places.remove(target)
    trained, drawn = (
        places.fetched(place) for place in (work.inputs["train"] / "model", work.out / RANKED)
    )
    with places.written(target) as folder:
        shutil.copytree(trained, folder, copy_function=_link, dirs_exist_ok=True)
        # This replaces the file: writing in place would reach through a hard link.
        places.write_text(folder / FILE, text)
        places.write_text(folder / "recipe.yaml", recipes.dump(work.recipe))
        places.write_text(folder / card.FILE, page)
        if thresholds is not None:
            places.write_text(folder / open_set.FILE, thresholds.dump())
        _link(str(drawn), str(folder / RANKED))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copy2(source, target)


JOB = Job(
    "evaluate",
    evaluate_job,
    needs=("ingest", "train", "embed"),
    sections=(
        "name",
        "profile",
        "seed",
        "generate.licence",
        "train",
        "embed",
        "evaluate",
        "refine",
    ),
    # 2: rank-k over subjects; query expansion by the other queries of a cluster.
    format=2,
    facts=EvaluateFacts,
    report=section,
)
