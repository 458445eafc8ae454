"""What the attempts of a stream have written: whole files, their rows, and what to say of them."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_reid import places, schema
from ray_reid.places import Place


@dataclass(frozen=True)
class Note:
    """What is said behind the bar of a stream, of some columns of the rows that are written."""

    columns: tuple[str, ...]
    tell: Callable[[pa.Table, int, int], str]
    """Of the rows that this attempt has written so far, their bytes, and how many rows are left."""


def progress(
    attempt: Place, before: int, total: int, note: Note | None = None
) -> Callable[[], tuple[int, int, str]]:
    """What counts the rows of an attempt that are written, and those `before` it."""
    counted: dict[Place, int] = {}
    noted: list[pa.Table] = []
    sizes: list[int] = []

    def read() -> tuple[int, int, str]:
        for file in attempt.glob("*.parquet"):
            if file not in counted and _is_whole(file):
                counted[file] = _metadata(file).num_rows
                if note is not None:
                    noted.append(_columns(file, note.columns))
                    sizes.append(file.stat().st_size)
        done = before + sum(counted.values())
        if note is None or not noted:
            return done, total, ""
        return done, total, note.tell(pa.concat_tables(noted), sum(sizes), total - done)

    return read


def written(out: Place) -> tuple[list[str], pa.Array]:
    """Files that earlier attempts have finished, by their name in the table, and ids of their rows.

    A worker that outlived its driver may have done what the next attempt did again: of two files
    that have a row in common one is kept, and what only the other had is computed again.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    ids = pa.chunked_array([], pa.string())
    for file in places.matching(out, "attempt-*/*.parquet"):
        # Parquet's footer comes last, so half a file is never mistaken for a whole one.
        if not _is_whole(file):
            continue
        own = _columns(file, (schema.OBSERVATION_ID,)).column(0)
        if not pc.any(pc.is_in(own, value_set=ids)).as_py():
            kept.append(f"{file.parent.name}/{file.name}")
            ids = pa.chunked_array([*ids.chunks, *own.chunks], pa.string())
    return kept, ids.combine_chunks()


def _columns(file: Place, columns: tuple[str, ...]) -> pa.Table:
    filesystem, name = places.opened(file)
    return pq.read_table(name, columns=list(columns), filesystem=filesystem)


def _metadata(file: Place) -> pq.FileMetaData:
    filesystem, name = places.opened(file)
    return pq.read_metadata(name, filesystem=filesystem)


def _is_whole(file: Place) -> bool:
    try:
        _metadata(file)
    except (pa.ArrowInvalid, OSError):
        return False
    return True
