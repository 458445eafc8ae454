"""Readers: files to the plan of an ingest, one row per image without decoding any.

To add a reader: a module that ends in its `LAYOUT`, its source in sources.py, and a line in the
dict below. Drawings have no files, and so no layout.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from ray_reid import schema
from ray_reid.datasets.readers import (
    ccvid,
    cityflow,
    compcars,
    cuhk03,
    cuhk03_np,
    dlcr,
    dukemtmc,
    folder,
    imagefolder,
    last,
    ltcc,
    market1501,
    miniature,
    msmt17,
    oml,
    parquet,
    prcc,
    prid2011,
    vc_clothes,
    vehicleid,
    vehiclex,
    veri776,
    veriwild,
    viper,
)
from ray_reid.datasets.reading import LOCATOR, Layout, Reading, Row
from ray_reid.recipe.sources import MiniatureSource, Source

LAYOUTS: Mapping[str, Layout] = {
    "folder": folder.LAYOUT,
    "imagefolder": imagefolder.LAYOUT,
    "oml": oml.LAYOUT,
    "parquet": parquet.LAYOUT,
    "market1501": market1501.LAYOUT,
    "dukemtmc": dukemtmc.LAYOUT,
    "msmt17": msmt17.LAYOUT,
    "cuhk03": cuhk03.LAYOUT,
    "cuhk03_np": cuhk03_np.LAYOUT,
    "viper": viper.LAYOUT,
    "prid2011": prid2011.LAYOUT,
    "prcc": prcc.LAYOUT,
    "ltcc": ltcc.LAYOUT,
    "vc_clothes": vc_clothes.LAYOUT,
    "ccvid": ccvid.LAYOUT,
    "last": last.LAYOUT,
    "dlcr": dlcr.LAYOUT,
    "vehiclex": vehiclex.LAYOUT,
    "veri776": veri776.LAYOUT,
    "vehicleid": vehicleid.LAYOUT,
    "veriwild": veriwild.LAYOUT,
    "cityflow": cityflow.LAYOUT,
    "compcars": compcars.LAYOUT,
}
"""By the `reader` of their sources."""

PLAN = pa.schema(
    [
        *(field for field in schema.OBSERVATION if field.name != schema.IMAGE),
        pa.field(LOCATOR, pa.string(), nullable=False),
    ]
)
_WARNINGS = b"warnings"


def read(source: Source) -> Reading:
    """The rows of one source.

    Raises:
        ValueError: If it cannot be used.
    """
    if isinstance(source, MiniatureSource):
        return miniature.read_miniature(source)
    return LAYOUTS[source.reader].read(source)


def files(source: Source) -> list[Path]:
    """The files that a reading depends on; drawings depend on none."""
    return [] if isinstance(source, MiniatureSource) else LAYOUTS[source.reader].files(source)


def plan(sources: Sequence[Source], use: Mapping[str, str] | None = None) -> pa.Table:
    """Read every source and unite the rows, sorted by `observation_id`.

    Args:
        sources: Their identities stay apart, also where their numbers are the same.
        use: What to take of a source, by its name: `train` for its train split alone, `whole` to
            train on its test images too (VehicleNet). Others are taken as they are divided.

    Returns:
        The columns of `PLAN`; `warnings` gives what the readers had to say.

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
    return _table(rows, warnings)


def _used(row: Row, use: Mapping[str, str]) -> list[Row]:
    """The row as it is taken, or nothing."""
    wanted = use.get(row[schema.SOURCE])
    if wanted == "train":
        return [row] if row[schema.SPLIT] == "train" else []
    if wanted == "whole":
        # Nobody can be trained to tell distractors and junk apart.
        return [row | {schema.SPLIT: "train"}] if row[schema.IDENTITY] is not None else []
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
