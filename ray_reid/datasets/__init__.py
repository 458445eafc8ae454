"""Readers: files to the plan of an ingest, one row per image without decoding any.

To add a reader: a module with `read_NAME` and `files`, its source in sources.py, and a line in
each of the two dicts below. Drawings have no files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_reid import schema
from ray_reid.datasets import folder, market1501, miniature, vehiclex
from ray_reid.datasets.reading import LOCATOR, Reading, Row
from ray_reid.sources import FolderSource, Market1501Source, MiniatureSource, VehicleXSource

Source = FolderSource | Market1501Source | MiniatureSource | VehicleXSource

READERS: Mapping[str, Callable[[Any], Reading]] = {
    "folder": folder.read_folder,
    "market1501": market1501.read_market1501,
    "miniature": miniature.read_miniature,
    "vehiclex": vehiclex.read_vehiclex,
}
FILES: Mapping[str, Callable[[Any], list[Path]]] = {
    "folder": folder.files,
    "market1501": market1501.files,
    "vehiclex": vehiclex.files,
}

PLAN = pa.schema(
    [
        *(field for field in schema.OBSERVATION if field.name != schema.IMAGE),
        pa.field(LOCATOR, pa.string(), nullable=False),
    ]
)
_WARNINGS = b"warnings"


def plan(sources: Sequence[Source]) -> pa.Table:
    """Read every source and unite the rows, sorted by `observation_id`.

    Returns:
        The columns of `PLAN`; `warnings` gives what the readers had to say.

    Raises:
        ValueError: If a source cannot be used, or two have the same name.
    """
    rows: list[Row] = []
    warnings: list[str] = []
    names: set[str] = set()
    for source in sources:
        reading = READERS[source.reader](source)
        name = reading.rows[0][schema.SOURCE]
        if name in names:
            raise ValueError(
                f"two sources are named {name!r}; give one of them another name, or their "
                "identities would be mixed up"
            )
        names.add(name)
        rows += reading.rows
        warnings += reading.warnings
    if not rows:
        raise ValueError("ingest.sources is empty; give at least one source")
    return _table(rows, warnings)


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
