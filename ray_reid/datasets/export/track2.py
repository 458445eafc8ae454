"""What the AI City Challenge's server scores: for each query the nearest gallery images by number.

Its test labels are not public, so nothing can be evaluated here (CityFlow; Tang et al., CVPR 2019).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import places, schema, storage
from ray_reid.datasets.readers.cityflow import IMAGE_NUMBER
from ray_reid.places import Place
from ray_reid.ranking import metrics
from ray_reid.runtime.results import RunState

TOP = 100
"""Gallery images of a query that the server looks at."""


def write(run: Place, file: Path) -> int:
    """Write `track2.txt` of an embedded run: a line a query, in the order of their numbers.

    Returns:
        The number of queries.

    Raises:
        ValueError: If the run has not embedded test images of CityFlow, or the file exists.
    """
    if file.exists():
        raise ValueError(f"{str(file)!r} exists; give a new file")
    state = RunState.read(run)
    query, asked = _side(state, "query")
    gallery, answers = _side(state, "gallery")
    similarity = query @ gallery.T
    # Stable, and the gallery is in the order of its numbers: ties go to the smaller one.
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :TOP]
    lines = (" ".join(map(str, answers[row])) for row in nearest)
    places.write_text(file, "".join(f"{line}\n" for line in lines))
    return len(asked)


def _side(state: RunState, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Unit embeddings of a split and the numbers of its images, in the order of the numbers."""
    tables = {
        "embed": state.folder("embed") / "embeddings",
        "ingest": state.folder("ingest") / "observations",
    }
    where = pc.field(schema.SPLIT) == split
    columns = [schema.OBSERVATION_ID, schema.EMBEDDING]
    embedded = storage.read(tables["embed"], columns, where)
    wanted = where & pc.field(schema.OBSERVATION_ID).isin(
        embedded[schema.OBSERVATION_ID].to_pylist()
    )
    named = storage.read(tables["ingest"], [schema.OBSERVATION_ID, schema.ATTRIBUTES], wanted)
    numbers = _numbers(named, split)
    order = np.argsort(numbers)
    vectors = storage.embeddings(embedded, schema.EMBEDDING)
    return metrics.unit(vectors, split)[order], numbers[order]


def _numbers(table: pa.Table, split: str) -> NDArray[np.int64]:
    """Numbers of images by `observation_id`, as their names say."""
    names = [dict(one or {}).get(IMAGE_NUMBER, "") for one in table[schema.ATTRIBUTES].to_pylist()]
    if not names or not all(name.isdecimal() for name in names):
        raise ValueError(
            f"the {len(names)} {split} images of this run are not the official test images of "
            "CityFlow; read them with the reader cityflow and hold_out 0"
        )
    return np.array([int(name) for name in names], dtype=np.int64)
