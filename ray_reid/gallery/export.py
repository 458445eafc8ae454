"""A gallery in formats of others: a Parquet file, or a faiss index with the ids of its rows."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_reid import places, schema, storage
from ray_reid.gallery.embedded.contents import View
from ray_reid.gallery.embedded.segment import ROWS
from ray_reid.gallery.gallery import check_faiss

IDS = ".ids.json"
"""Ends the name of the file beside a faiss index: a JSON list, the id of each row in its order."""


def export(view: View, file: Path) -> int:
    """Write a gallery as it is now; the suffix says in which format.

    Args:
        view: The gallery.
        file: A new file. `.parquet`: all columns and `embedding`. `.faiss`: an exact index of the
            embeddings (inner product), beside it `FILE.ids.json`.

    Returns:
        The number of rows.

    Raises:
        ValueError: If the suffix is another or the file exists, or faiss is missing.
    """
    if file.suffix not in FORMATS:
        raise ValueError(f"cannot export to {str(file)!r}; choose one of {sorted(FORMATS)}")
    targets = [file, *([file.with_name(file.name + IDS)] if file.suffix == ".faiss" else [])]
    for target in targets:
        if target.exists():
            raise ValueError(f"{str(target)!r} exists; choose a new file")
    FORMATS[file.suffix](view, file)
    return len(view)


def _write_parquet(view: View, file: Path) -> None:
    dimension = view.segment.vectors.shape[1]
    kind = ROWS.append(pa.field(schema.EMBEDDING, pa.list_(pa.float32(), dimension)))
    options = {name: value for name, value in storage.PARQUET.items() if name != "row_group_size"}
    aside = _aside(file)
    with pq.ParquetWriter(aside, kind, **options) as sink:
        for table, vectors in view.blocks():
            flat = pa.array(vectors.reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, dimension)
            whole = table.append_column(kind.field(schema.EMBEDDING), column)
            sink.write_table(whole, row_group_size=storage.ROW_GROUP)
    aside.replace(file)


def _write_faiss(view: View, file: Path) -> None:
    check_faiss()
    import faiss

    index = faiss.IndexFlatIP(view.segment.vectors.shape[1])
    ids: list[str] = []
    for table, vectors in view.blocks():
        index.add(vectors)
        ids += table[schema.OBSERVATION_ID].to_pylist()
    aside = _aside(file)
    try:
        faiss.write_index(index, str(aside))
    except RuntimeError as error:
        raise ValueError(f"cannot write {str(file)!r}: {error}") from error
    places.write_text(file.with_name(file.name + IDS), json.dumps(ids) + "\n")
    aside.replace(file)


def _aside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}")


FORMATS: dict[str, Callable[[View, Path], None]] = {
    ".parquet": _write_parquet,
    ".faiss": _write_faiss,
}
"""By the suffix of the file."""
