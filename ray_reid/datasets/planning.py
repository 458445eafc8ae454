"""The plan of an ingest: the rows of all sources, united, without decoding any image."""

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from ray_reid import schema
from ray_reid.datasets.reading import LOCATOR, ReaderSource, Reading, Row, one_tested
from ray_reid.datasets.sources import read

PLAN = pa.schema(
    [
        *(field for field in schema.OBSERVATION if field.name != schema.IMAGE),
        pa.field(LOCATOR, pa.string(), nullable=False),
    ]
)
_WARNINGS = b"warnings"


def plan(sources: Sequence[ReaderSource], use: Mapping[str, str] | None = None) -> pa.Table:
    """Read every source and unite the rows, as `united` does, sorted by `observation_id`.

    Returns:
        The columns of `PLAN`; `warnings` gives what the readers had to say.
    """
    found = united(sources, use)
    return _table(found.rows, found.warnings)


def united(sources: Sequence[ReaderSource], use: Mapping[str, str] | None = None) -> Reading:
    """Read every source and unite the rows.

    Args:
        sources: Their identities stay apart, also where their numbers are the same.
        use: What to take of a source, by its name: `train` for its train split alone, `whole` to
            train on its test images too (VehicleNet), `unlabelled` to hide whom its train images
            show. Others are taken as they are divided.

    Raises:
        ValueError: If a source cannot be used, two have the same name, or `use` names none.
    """
    rows: list[Row] = []
    warnings: list[str] = []
    names: set[str] = set()
    for source in sources:
        reading = read(source)
        found = {row[schema.SOURCE] for row in reading.rows}
        if names & found:
            raise ValueError(
                f"two sources are named {min(names & found)!r}; give one of them another name, or "
                "their identities would be mixed up"
            )
        names |= found
        rows += [used for row in reading.rows for used in _used(row, use or {})]
        warnings += reading.warnings
    unknown = sorted((use or {}).keys() - names)
    if unknown:
        raise ValueError(f"ingest.use names {unknown[0]!r}, which is no source of {sorted(names)}")
    if not rows:
        raise ValueError("ingest.sources is empty; give at least one source")
    return Reading(rows, [*warnings, *one_tested(rows)])


def _used(row: Row, use: Mapping[str, str]) -> list[Row]:
    """The row as it is taken, or nothing."""
    wanted = use.get(row[schema.SOURCE])
    if wanted == "train":
        return [row] if row[schema.SPLIT] == "train" else []
    if wanted == "whole":
        # Nobody can be trained to tell distractors and junk apart.
        return [row | {schema.SPLIT: "train"}] if row[schema.IDENTITY] is not None else []
    if wanted == "unlabelled" and row[schema.SPLIT] == "train":
        return [row | {schema.SPLIT: "unlabelled", schema.IDENTITY: None}]
    return [row]


def warnings(table: pa.Table) -> list[str]:
    """The warnings that a plan carries, also after it was written and read back."""
    found: list[str] = json.loads((table.schema.metadata or {}).get(_WARNINGS, b"[]"))
    return found


def _table(rows: Sequence[Row], sentences: Sequence[str]) -> pa.Table:
    record = [{k: v for k, v in row.items() if k != LOCATOR} | {schema.IMAGE: b""} for row in rows]
    table = schema.observations(record).drop_columns([schema.IMAGE])
    locators = pa.array([row[LOCATOR] for row in rows], pa.string())
    table = table.append_column(PLAN.field(LOCATOR), locators).sort_by(schema.OBSERVATION_ID)
    # An id names one image; two equal ones are a bug of a reader.
    assert len(set(table[schema.OBSERVATION_ID].to_pylist())) == table.num_rows
    return table.replace_schema_metadata({_WARNINGS: json.dumps(list(sentences))})
