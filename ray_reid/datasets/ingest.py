"""Files to observations: read what the sources hold, check that every image decodes, count."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ray_reid import schema, storage
from ray_reid.datasets import depth, planning, reading, rules, sources
from ray_reid.datasets.loading import CORRUPT, load
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.reading import LOCATOR, ReaderSource, Row
from ray_reid.recipe.base import Frozen
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.sections import Section, Table
from ray_reid.schema import Batch

log = logging.getLogger(__name__)

TABLE = "observations"


class Load:
    """Replace `locator` by the encoded image; one that does not decode gets a `drop_reason`."""

    def __call__(self, batch: Batch) -> Batch:
        """Read the files or draw the pictures of a batch; returns the columns of the record."""
        loaded = [load(locator) for locator in batch[LOCATOR]]
        filled = dict(batch)
        for name in {name for row in loaded for name in row}:
            planned = batch[name] if name in batch else repeat(None, len(loaded))
            values = np.empty(len(loaded), dtype=object)
            values[:] = [row.get(name, old) for row, old in zip(loaded, planned, strict=True)]
            filled[name] = values
        return {name: filled[name] for name in schema.OBSERVATION.names}


class SplitCounts(Frozen):
    """What a split of the kept images holds."""

    images: int
    identities: int
    cameras: int


class IngestFacts(Facts):
    """What the ingest job says."""

    counts: dict[str, SplitCounts] = Field(default_factory=dict)
    """By split."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Images left out, by reason."""
    warnings: tuple[str, ...] = ()
    sources: tuple[dict[str, Any], ...] = ()
    """The sources with all their options."""

    @property
    def drawn(self) -> bool:
        """Whether any of the images are drawings."""
        return any(source["reader"] == "miniature" for source in self.sources)


def ingest_job(work: Work) -> IngestFacts:
    """Write the table `observations` of all sources; resumes where a killed attempt stopped.

    Raises:
        ValueError: If a source cannot be used or too many of its images are corrupt.
    """
    plan = _plan(work)
    spec = work.recipe.ingest.stage
    out = work.out / TABLE
    steps = [stage.Step(Load, {}, spec)]
    stage.stream(work.out / "plan", planning.PLAN.names, steps, out, "ingest")
    columns = [name for name in schema.OBSERVATION.names if name != schema.IMAGE]
    table = storage.read(out, columns, kept_only=False)
    assert table.num_rows == plan.num_rows, f"{table.num_rows} rows of {plan.num_rows} planned"
    warnings = planning.warnings(plan) + _check_corrupt(table, plan, work.recipe)
    kept = table.filter(table[schema.DROP_REASON].is_null())
    warnings += _check_kept(kept, table.num_rows)
    warnings += depth.sampled(sorted(plan[LOCATOR].to_pylist()))
    for warning in warnings:
        log.warning("%s", warning)
    return IngestFacts(
        counts=_counts(kept),
        dropped=_dropped(table),
        warnings=tuple(warnings),
        fingerprint=storage.fingerprint(out, f"ingest/{TABLE}"),
        sources=tuple(
            source.model_dump(mode="json") for source in sources.resolve(work.recipe.ingest.sources)
        ),
    )


def check(recipe: Recipe) -> None:
    """Refuse a recipe without a data set, and sources that their readers do not understand.

    Raises:
        ValueError: Says what to give, or which key breaks which rule.
    """
    if not recipe.ingest.sources:
        raise ValueError(
            f"the profile {recipe.profile!r} of the recipe {recipe.name!r} has no data set; give a "
            "folder of images with --data FOLDER, or list data sets under ingest.sources"
        )
    sources.resolve(recipe.ingest.sources)


def check_rows(recipe: Recipe) -> list[str]:
    """Read what the sources list, without any image, and hold it against the recipe's rules.

    Returns:
        Warnings; those of the readers are the job's to say.

    Raises:
        ValueError: If a source cannot be used, or a later job would refuse its images.
    """
    return rules.check(listed(recipe), recipe)


def listed(recipe: Recipe) -> Sequence[Row]:
    """Read what the sources of a recipe list, without any image.

    Raises:
        ValueError: If a source cannot be used.
    """
    spec = recipe.ingest
    return planning.united(sources.resolve(spec.sources), spec.use).rows


def outside(recipe: Recipe) -> str:
    """Fingerprint of what the sources name: paths, sizes and times of the images, and options.

    Raises:
        ValueError: If a folder or list does not exist.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in sources.resolve(recipe.ingest.sources):
        for part in _outside(source):
            digest.update(f"{part}\n".encode())
    return digest.hexdigest()


def _outside(source: ReaderSource) -> Iterator[str]:
    """What changes when the files of a source do, or an option that the recipe leaves to us."""
    # The recipe itself says where the files are.
    yield source.model_dump_json(exclude={"root"})
    yield from READERS[source.reader].beside(source)
    root = sources.folder(source)
    for file in sources.files(source):
        assert root is not None, f"reader {source.reader!r} has files, so it has a folder"
        yield f"{file.relative_to(root).as_posix()}\x1f{_state(file)}"


def _state(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        # A broken link, or a file deleted since; it becomes one corrupt image, not the end.
        return "missing"
    return f"{status.st_size}\x1f{status.st_mtime_ns}"


def _plan(work: Work) -> pa.Table:
    """The plan of an earlier attempt at this very work, or a new one."""
    place = work.out / "plan"
    if not storage.is_complete(place):
        spec = work.recipe.ingest
        storage.write(place, planning.plan(sources.resolve(spec.sources), spec.use))
    return storage.dataset(place).to_table()


def _check_corrupt(table: pa.Table, plan: pa.Table, recipe: Recipe) -> list[str]:
    """Name the first corrupt image, in the order of paths: a warning, or the end if many are."""
    bad = table.filter(table[schema.DROP_REASON].is_valid())
    if not bad.num_rows:
        return []
    columns = bad.select([schema.OBSERVATION_ID, schema.DROP_REASON]).to_pylist()
    reasons = {row[schema.OBSERVATION_ID]: row[schema.DROP_REASON] for row in columns}
    locator, observation = min(
        (row[LOCATOR], row[schema.OBSERVATION_ID])
        for row in plan.select([schema.OBSERVATION_ID, LOCATOR]).to_pylist()
        if row[schema.OBSERVATION_ID] in reasons
    )
    reason = reasons[observation].removeprefix(f"{CORRUPT}: ")
    share = f"{bad.num_rows} of {table.num_rows} images ({bad.num_rows / table.num_rows:.1%})"
    first = f"the first is {_relative(locator, recipe)!r}: {reason}"
    limit = recipe.ingest.max_corrupt_fraction
    if bad.num_rows > limit * table.num_rows:
        raise ValueError(
            f"{share} are corrupt, more than ingest.max_corrupt_fraction {limit} allows; {first}"
        )
    return [f"{share} are corrupt and left out; {first}"]


def _relative(locator: str, recipe: Recipe) -> str:
    """A file's path relative to its source's folder."""
    for root in map(sources.folder, sources.resolve(recipe.ingest.sources)):
        if root is not None and Path(locator).is_relative_to(root):
            return Path(locator).relative_to(root).as_posix()
    return locator


def _check_kept(kept: pa.Table, num_read: int) -> list[str]:
    """Check what is left once the corrupt images are gone."""
    rows = kept.select([schema.IDENTITY, schema.CAMERA, schema.SPLIT]).to_pylist()
    where = f"what is left of {num_read} images"
    reading.check_training(rows, where)
    warnings = reading.check_queries(rows, where)
    # The readers have said this of whole sources; it is news only if corrupt images caused it.
    return warnings if len(rows) < num_read else []


def _counts(kept: pa.Table) -> dict[str, SplitCounts]:
    counts = {}
    for split in schema.SPLITS:
        rows = kept.filter(pc.equal(kept[schema.SPLIT], split))
        if rows.num_rows:
            counts[split] = SplitCounts(
                images=rows.num_rows,
                identities=pc.count_distinct(rows[schema.IDENTITY]).as_py(),
                cameras=pc.count_distinct(rows[schema.CAMERA]).as_py(),
            )
    return counts


def _dropped(table: pa.Table) -> dict[str, int]:
    reasons = table[schema.DROP_REASON].drop_null().to_pylist()
    return dict(Counter(reason.partition(":")[0] for reason in reasons))


def section(facts: IngestFacts) -> Section:
    """Show what was read: images, identities and cameras by split."""
    rows = tuple(
        (split, str(count.images), str(count.identities), str(count.cameras))
        for split, count in facts.counts.items()
    )
    dropped = ", ".join(f"{count} ({reason})" for reason, count in facts.dropped.items())
    table = Table(
        "Data",
        ("split", "images", "identities", "cameras"),
        rows,
        f"Dropped: {dropped or 'none'}.",
    )
    return Section((table,), warnings=facts.warnings, printed=False)


JOB = Job(
    "ingest",
    ingest_job,
    sections=("ingest",),
    # 2: paths of images, one decoder for all ways in, folders of splits under their usual names.
    format=2,
    check=check,
    outside=outside,
    scratch=("plan",),
    facts=IngestFacts,
    report=section,
)
