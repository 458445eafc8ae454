"""Descriptions that people wrote: of a file, or of the attributes that a source comes with."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ray_reid import schema, storage
from ray_reid.generation.sequences import CameraSequence
from ray_reid.places import Place
from ray_reid.recipe.enhance import DESCRIPTION, Enhance, fields

_COLUMNS = (schema.IDENTITY, DESCRIPTION)


def descriptions(
    spec: Enhance, table: Place, sequences: Sequence[CameraSequence]
) -> dict[str, str]:
    """The description of every identity that has one.

    Args:
        spec: Section of the recipe.
        table: Of the real images.
        sequences: Of the identities.

    Raises:
        ValueError: If there is no such file, or no image has the attributes that the template
            names.
    """
    if spec.manual_file is not None:
        return read(Path(spec.manual_file))
    ids = [key for one in sequences for key in one.images]
    found = storage.column_by_id(table, schema.ATTRIBUTES, ids)
    told = {key: dict(values or ()) for key, values in found.items()}
    wanted = set(fields(spec.manual_template))
    described = {}
    for one in sequences:
        texts = Counter(
            spec.manual_template.format(**told[key])
            for key in one.images
            if wanted <= told.get(key, {}).keys()
        )
        if texts:
            described[one.identity] = min(texts, key=lambda text: (-texts[text], text))
    if not described:
        known = sorted({name for own in told.values() for name in own})
        raise ValueError(
            f"no training image has the attributes {sorted(wanted)} of enhance.manual_template; "
            f"the source gives {known or 'none'}: change the template, or set enhance.manual_file"
        )
    return described


def read(file: Path) -> dict[str, str]:
    """Read descriptions by identity from a `.csv` or `.parquet` file.

    Raises:
        ValueError: If there is no such file, a column is missing, or an identity is described
            twice or with nothing.
    """
    if not file.is_file():
        raise ValueError(f"there is no file of descriptions {str(file)!r}")
    as_text = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in _COLUMNS})
    try:
        table = (
            pyarrow.csv.read_csv(file, convert_options=as_text)
            if file.suffix == ".csv"
            else pq.read_table(file)
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{str(file)!r} cannot be read: {str(error).splitlines()[0]}") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{str(file)!r} has no column {missing[0]!r}; it needs {list(_COLUMNS)}, and has "
            f"{table.column_names}"
        )
    found: dict[str, str] = {}
    for number, row in enumerate(table.select(_COLUMNS).to_pylist(), start=1):
        identity, text = row[schema.IDENTITY], " ".join(str(row[DESCRIPTION] or "").split())
        if identity is None or not text:
            raise ValueError(f"{str(file)!r}, row {number}: identity or description is empty")
        if identity in found:
            raise ValueError(f"{str(file)!r} describes the identity {identity!r} twice")
        found[identity] = text
    return found
