"""The file that AI City's server scores, from made-up embeddings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_reid import schema, storage
from ray_reid.datasets.export import track2


def publish(run: Path, queries: int = 3, gallery: int = 120, named: bool = True) -> np.ndarray:
    """Random embeddings; image n of either side is number n + 1. Returns all by side and number."""
    rng = np.random.default_rng(0)
    rows = []
    for split, count in (("query", queries), ("gallery", gallery)):
        for number in range(1, count + 1):
            name = {track2.IMAGE_NUMBER: f"{number:06d}"} if named else None
            key = schema.observation_id("cityflow", split, number)
            rows.append({schema.OBSERVATION_ID: key, schema.IMAGE: b"", schema.SOURCE: "cityflow",
                         schema.SPLIT: split, schema.ATTRIBUTES: name})  # fmt: skip
    table = schema.observations(rows)
    vectors = rng.standard_normal((len(rows), 8)).astype(np.float32)
    # Two images of the gallery are the same: the one with the smaller number comes first.
    vectors[-1] = vectors[-2]
    storage.write(run / "ingest" / "key-ingest" / "observations", table)
    embedded = {name: table[name] for name in (schema.OBSERVATION_ID, schema.SPLIT)}
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
    storage.write(
        run / "embed" / "key-embed" / "embeddings",
        pa.table({**embedded, schema.EMBEDDING: flat}),
    )
    return vectors


def test_each_query_has_a_line_of_its_nearest_hundred(
    tmp_path: Path, publish_job: Callable[..., Path]
) -> None:
    for job in ("ingest", "embed"):
        publish_job(tmp_path, job)
    vectors = publish(tmp_path)
    assert track2.write(tmp_path, tmp_path / "track2.txt") == 3
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    lines = (tmp_path / "track2.txt").read_text().splitlines()
    for query, line in enumerate(lines):
        numbers = [int(text) for text in line.split(" ")]
        similarity = [float(unit[query] @ unit[3 + place]) for place in range(120)]
        expected = sorted(range(120), key=lambda place: (-round(similarity[place], 6), place))
        assert numbers == [place + 1 for place in expected[:100]]
    assert len(lines) == 3
    with pytest.raises(ValueError, match="exists; give a new file"):
        track2.write(tmp_path, tmp_path / "track2.txt")


def test_other_images_are_refused(tmp_path: Path, publish_job: Callable[..., Path]) -> None:
    publish_job(tmp_path, "ingest")
    with pytest.raises(ValueError, match="has no current 'embed'"):
        track2.write(tmp_path, tmp_path / "track2.txt")
    publish_job(tmp_path, "embed")
    publish(tmp_path, named=False)
    with pytest.raises(ValueError, match="the 3 query images of this run are not the official"):
        track2.write(tmp_path, tmp_path / "track2.txt")
    assert not (tmp_path / "track2.txt").exists()
