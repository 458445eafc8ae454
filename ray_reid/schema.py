"""The one record that flows through every job: an observation, one image of one object.

Column names and types live here and nowhere else; modules meet in these columns.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Batch = Mapping[str, NDArray[Any]]

OBSERVATION_ID = "observation_id"
IMAGE = "image"
IDENTITY = "identity"
CAMERA = "camera"
VIEW = "view"
CLOTHES = "clothes"
TRACK = "track"
TIME = "time"
SOURCE = "source"
PATH = "path"
LICENCE = "licence"
SPLIT = "split"
ROLE = "role"
ORIGIN = "origin"
PARENT = "parent"
PROMPT = "prompt"
SEED = "seed"
GENERATOR = "generator"
ATTRIBUTES = "attributes"
SCORES = "scores"
PASSED = "passed_"
"""Begins the score that says what a filter by itself would do: 1 keeps the image, 0 drops it."""
DROP_REASON = "drop_reason"

# Columns of tables and streams that are no part of the record.
PIXELS = "pixels"
"""An image between two stages, as `images.pack` writes it."""
CAPTION = "caption"
EMBEDDING = "embedding"
REFERENCE_EMBEDDING = "reference_embedding"
TEST_EMBEDDING = "test_embedding"
"""What is evaluated in place of `embedding`, where crops or further models are averaged in."""
CAMERA_EMBEDDING = "camera_embedding"
"""What a camera classifier makes of an image."""
NUMBER = "number"
"""Of a variant among those of its query, from 0."""
TOKEN = "token"
"""The word that stands for an identity in a prompt."""
IMAGES = "images"
"""Ids of the images of an identity that its prompt was made of."""
CROPPED = "cropped"
"""Whether a detector found the object in an image."""

SPLITS = ("train", "query", "gallery", "unlabelled")
ROLES = ("normal", "distractor", "junk")
ORIGINS = ("real", "synthetic")
NOT_MADE = ("unsafe", "no_clothes", "all_clothes", "unreadable", "personalise")
"""Kinds of a `drop_reason` of rows for which no image was made; what they hold is none."""

OBSERVATION = pa.schema(
    [
        pa.field(OBSERVATION_ID, pa.string(), nullable=False),
        pa.field(IMAGE, pa.binary(), nullable=False),
        pa.field(IDENTITY, pa.string()),
        pa.field(CAMERA, pa.string()),
        pa.field(VIEW, pa.string()),
        pa.field(CLOTHES, pa.string()),
        # Consecutive images of one object under one camera; a name within the source.
        pa.field(TRACK, pa.string()),
        # Seconds since an origin that only the source knows; comparable within one source.
        pa.field(TIME, pa.float64()),
        pa.field(SOURCE, pa.string(), nullable=False),
        # Of the file that a real image was read from, relative to the root of its source.
        pa.field(PATH, pa.string()),
        pa.field(LICENCE, pa.string()),
        pa.field(SPLIT, pa.string(), nullable=False),
        pa.field(ROLE, pa.string(), nullable=False),
        pa.field(ORIGIN, pa.string(), nullable=False),
        pa.field(PARENT, pa.string()),
        pa.field(PROMPT, pa.string()),
        pa.field(SEED, pa.int64()),
        pa.field(GENERATOR, pa.string()),
        pa.field(ATTRIBUTES, pa.map_(pa.string(), pa.string())),
        pa.field(SCORES, pa.map_(pa.string(), pa.float64())),
        pa.field(DROP_REASON, pa.string()),
    ]
)

DEFAULTS: Mapping[str, Any] = {ROLE: "normal", ORIGIN: "real"}


def observation_id(*parts: str | int) -> str:
    """Hash what makes an observation itself: the same parts give the same id on any machine.

    A real image is its source and its place in it, `(source, relative path)`; a synthetic
    one is `(parent or "", prompt, seed, generator)`.

    Returns:
        32 hexadecimal digits (128 bits of BLAKE2b).
    """
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def qualified_identity(source: str, identity: str) -> str:
    """Name an identity across sources: `source:identity`."""
    return f"{source}:{identity}"


def qualified_cameras(sources: Iterable[str], cameras: Iterable[str | None]) -> list[str | None]:
    """Name cameras across sources, `source:camera`; none stays none."""
    pairs = zip(sources, cameras, strict=True)
    return [None if camera is None else f"{source}:{camera}" for source, camera in pairs]


def observations(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Build a table with every column of the record; absent columns are null or the default.

    Raises:
        ValueError: If a row has an unknown column, lacks a required one, or its split, role
            or origin is not one of the choices.
    """
    choices = {SPLIT: SPLITS, ROLE: ROLES, ORIGIN: ORIGINS}
    filled = [{**DEFAULTS, **row} for row in rows]
    for row in filled:
        unknown = row.keys() - set(OBSERVATION.names)
        if unknown:
            raise ValueError(f"unknown column {min(unknown)!r}; choose from {OBSERVATION.names}")
        for field in OBSERVATION:
            if not field.nullable and row.get(field.name) is None:
                raise ValueError(f"column {field.name!r} is required: {row.get(OBSERVATION_ID)!r}")
        for column, allowed in choices.items():
            if row[column] not in allowed:
                raise ValueError(f"{column} {row[column]!r} is not one of {list(allowed)}")
    columns = {
        field.name: pa.array([row.get(field.name) for row in filled], type=field.type)
        for field in OBSERVATION
    }
    return pa.table(columns, schema=OBSERVATION)


def to_batch(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Turn Arrow columns into the arrays a stage sees; nulls are None (floats: NaN), maps dicts."""
    batch: dict[str, NDArray[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_fixed_size_list(kind):
            flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
            batch[name] = flat.reshape(len(column), kind.list_size)
        elif pa.types.is_map(kind):
            batch[name] = _objects(
                [None if value is None else dict(value) for value in column.to_pylist()]
            )
        elif pa.types.is_floating(kind) or (
            column.null_count == 0 and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))
        ):
            batch[name] = column.to_numpy()
        else:
            batch[name] = _objects(column.to_pylist())
    return batch


def to_table(batch: Batch) -> pa.Table:
    """Turn a stage's arrays back into Arrow; columns of the record get the record's types."""
    arrays = {name: _column(name, values) for name, values in batch.items()}
    fields = [
        OBSERVATION.field(name) if name in OBSERVATION.names else pa.field(name, array.type)
        for name, array in arrays.items()
    ]
    return pa.table(arrays, schema=pa.schema(fields))


def _column(name: str, values: NDArray[Any]) -> pa.Array:
    if name in OBSERVATION.names:
        kind = OBSERVATION.field(name).type
        nan_is_null = pa.types.is_floating(kind)
        return pa.array(_plain(values), type=kind, from_pandas=nan_is_null)
    if values.ndim == 2 and values.dtype != object:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(_plain(values))


def _plain(values: NDArray[Any]) -> Any:
    return values.tolist() if values.dtype == object else values


def _objects(values: list[Any]) -> NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
