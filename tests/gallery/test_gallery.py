import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_reid import images, schema, storage
from ray_reid.gallery import index, searcher
from ray_reid.gallery.embedded.segment import HIT_COLUMNS
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.gallery.gallery import Gallery, Hit
from ray_reid.gallery.searcher import Searcher, UnknownCameraError
from ray_reid.ranking.open_set import Thresholds
from ray_reid.recipe import recipes
from ray_reid.runtime.job import Work

NUM, DIMENSION = 60, 16
RNG = np.random.default_rng(3)
VECTORS = RNG.normal(size=(NUM, DIMENSION)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
SPLIT = ["gallery", "query", "gallery", "train"] * (NUM // 4)
ROLE = ["normal", "normal", "normal", "normal", "junk", "distractor"] * (NUM // 6)
IDS = [schema.observation_id("test", row) for row in range(NUM)]


def picture(row: int) -> bytes:
    return images.encode(np.full((8, 8, 3), 3 * row, np.uint8))


def observations(dropped: frozenset[int] = frozenset()) -> pa.Table:
    return schema.observations(
        [
            {
                "observation_id": IDS[row],
                "image": picture(row),
                "identity": None if ROLE[row] == "distractor" else f"test:{row % 7}",
                "camera": f"c{row % 3}",
                "time": float(row) if row % 2 else None,
                "source": "test",
                "licence": "Apache-2.0",
                "split": SPLIT[row],
                "role": ROLE[row],
                "drop_reason": "blurred" if row in dropped else None,
            }
            for row in range(NUM)
        ]
    )


def embeddings(vectors: np.ndarray = VECTORS) -> pa.Table:
    batch = {
        "observation_id": np.array(IDS, dtype=object),
        "split": np.array(SPLIT, dtype=object),
        "role": np.array(ROLE, dtype=object),
        "embedding": vectors,
    }
    return schema.to_table(batch)


@pytest.fixture
def work_on(publish_job: Callable[..., None]) -> Callable[..., Work]:
    """A function that embeds the observations in a run and returns the work of its index job."""

    def work(
        path: Path,
        splits: tuple[str, ...] = ("gallery",),
        dropped: frozenset[int] = frozenset(),
        **settings: Any,
    ) -> Work:
        storage.write(path / "ingest" / "i1" / "observations", observations(dropped))
        storage.write(path / "embed" / "e1" / "embeddings", embeddings())
        recipe = recipes.validate({"name": "test", "index": {"splits": splits, **settings}})
        publish_job(path, "embed", "e1", {"ingest": "i1", "train": "t1"})
        out = path / "index"
        out.mkdir()
        inputs = {"ingest": path / "ingest" / "i1", "embed": path / "embed" / "e1"}
        return Work(recipe=index.JOB.view(recipe), out=out, inputs=inputs, facts={})

    return work


def indexed(work: Work) -> Gallery:
    index.index_job(work)
    return Gallery.open(work.out)


def rows_in(splits: tuple[str, ...]) -> list[int]:
    return [row for row in range(NUM) if SPLIT[row] in splits and ROLE[row] != "junk"]


@pytest.mark.parametrize("num_queries", [1, 5, 40])
def test_search_matches_a_loop_over_all_pairs(
    tmp_path: Path, num_queries: int, work_on: Callable[..., Work]
) -> None:
    found = indexed(work_on(tmp_path))
    queries = VECTORS[:num_queries]
    for query, hits in zip(queries, found.search(queries, 4), strict=True):
        similarity = {row: float(query @ VECTORS[row]) for row in rows_in(("gallery",))}
        expected = sorted(similarity, key=lambda row: -similarity[row])[:4]
        assert [hit.observation_id for hit in hits] == [IDS[row] for row in expected]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4]
        np.testing.assert_allclose(
            [hit.similarity for hit in hits], [similarity[row] for row in expected], atol=1e-5
        )


def test_a_hit_carries_the_columns_of_its_observation(
    tmp_path: Path, work_on: Callable[..., Work]
) -> None:
    found = indexed(work_on(tmp_path))
    row = 2
    hit = found.search(VECTORS[[row]], 1)[0][0]
    assert hit == Hit(
        rank=1,
        observation_id=IDS[row],
        identity="test:2",
        camera="c2",
        view=None,
        time=None,
        source="test",
        licence="Apache-2.0",
        split="gallery",
        similarity=pytest.approx(1.0),
    )
    assert [field.name for field in fields(Hit)][2:-1] == list(HIT_COLUMNS)
    assert found.image(hit.observation_id) == picture(row)


def test_every_image_is_that_of_its_row(tmp_path: Path, work_on: Callable[..., Work]) -> None:
    found = indexed(work_on(tmp_path, ("gallery", "query")))
    for row in rows_in(("gallery", "query")):
        assert found.image(IDS[row]) == picture(row)


@pytest.mark.parametrize("splits", [("gallery",), ("gallery", "query"), ("query",)])
def test_the_index_holds_the_wanted_splits_without_junk(
    tmp_path: Path, splits: tuple[str, ...], work_on: Callable[..., Work]
) -> None:
    work = work_on(tmp_path, splits)
    facts = index.index_job(work)
    rows = rows_in(splits)
    stored = storage.read(work.out / "gallery", ["observation_id"])["observation_id"].to_pylist()
    assert stored == sorted(IDS[row] for row in rows)
    assert facts.metrics == {
        "gallery_images": len(rows),
        "gallery_identities": len({row % 7 for row in rows if ROLE[row] != "distractor"}),
        "gallery_cameras": len({row % 3 for row in rows}),
    }
    assert facts.dimension == DIMENSION
    assert facts.fingerprint.rows == len(rows)


def test_k_beyond_the_gallery_gives_all_of_it(tmp_path: Path, work_on: Callable[..., Work]) -> None:
    found = indexed(work_on(tmp_path))
    assert len(found.search(VECTORS[:1], 1000)[0]) == len(found) == len(rows_in(("gallery",)))


def test_an_attempt_after_a_kill_replaces_the_half_written_table(
    tmp_path: Path, work_on: Callable[..., Work]
) -> None:
    work = work_on(tmp_path)
    (work.out / "gallery").mkdir()
    (work.out / "gallery" / "part-0.parquet").write_bytes(b"half")
    assert len(indexed(work)) == len(rows_in(("gallery",)))


def test_wrong_queries_are_refused_with_the_rule(
    tmp_path: Path, work_on: Callable[..., Work]
) -> None:
    found = indexed(work_on(tmp_path))
    with pytest.raises(ValueError, match=re.escape("needs (N, 16)")):
        found.search(np.zeros((1, 8), np.float32), 3)
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        found.search(VECTORS[:1], 0)
    with pytest.raises(ValueError, match="not finite"):
        found.search(np.full((1, DIMENSION), np.nan, np.float32), 3)
    with pytest.raises(ValueError, match="no observation 'nobody'"):
        found.image("nobody")


def test_an_index_unlike_its_table_is_refused(tmp_path: Path, work_on: Callable[..., Work]) -> None:
    work = work_on(tmp_path)
    index.index_job(work)
    table = storage.dataset(work.out / "gallery").to_table()
    (work.out / "gallery" / "part-1.parquet").unlink()
    (work.out / "gallery").rmdir()
    storage.write(work.out / "gallery", table.slice(1))
    (work.out / "gallery" / "part-0.parquet").rename(work.out / "gallery" / "part-1.parquet")
    rows = len(table)
    with pytest.raises(ValueError, match=f"has {rows - 1} rows, not the {rows}"):
        Gallery.open(work.out)


def test_a_gallery_that_is_missing_or_broken_is_refused(
    tmp_path: Path, work_on: Callable[..., Work]
) -> None:
    with pytest.raises(ValueError, match=r"is not a gallery: it has no file 'CURRENT'"):
        Gallery.open(tmp_path)
    work = work_on(tmp_path, kind="hnsw")
    index.index_job(work)
    file = work.out / "search" / "part-1-1.faiss"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="is not a whole faiss index; make it again"):
        Gallery.open(work.out)
    file.unlink()
    with pytest.raises(ValueError, match=r"lacks the file 'search/part-1-1.faiss'; make it again"):
        Gallery.open(work.out)
    with Writer(work.out) as writer:
        writer.rebuild()
    assert len(Gallery.open(work.out)) == len(rows_in(("gallery",)))
    vectors = work.out / "vectors" / "part-1.f32"
    vectors.write_bytes(vectors.read_bytes()[:100])
    with pytest.raises(ValueError, match="has 100 bytes, not those of"):
        Gallery.open(work.out)


def test_an_empty_gallery_is_refused_with_the_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work_on: Callable[..., Work]
) -> None:
    monkeypatch.setattr(f"{__name__}.SPLIT", ["gallery"] * NUM)
    with pytest.raises(ValueError, match=re.escape("index.splits ['query']; add the other")):
        index.index_job(work_on(tmp_path, ("query",)))


def test_an_embedding_without_its_observation_is_refused(
    tmp_path: Path, work_on: Callable[..., Work]
) -> None:
    work = work_on(tmp_path, dropped=frozenset({0}))
    rows = len(rows_in(("gallery",)))
    with pytest.raises(ValueError, match=f"{rows} embeddings but {rows - 1} kept observations"):
        index.index_job(work)


class ByBrightness:
    """A model whose embedding says how bright the image is, as the row's picture does."""

    thresholds: Thresholds | None = None
    cameras: tuple[str, ...] = ()

    def embed(self, encoded: Any, *, sides: Any = None) -> np.ndarray:
        self.sides = sides
        rows = [round(int(images.decode(image)[0, 0, 0]) / 3) for image in encoded]
        return VECTORS[rows]


def test_a_searcher_finds_the_image_itself(tmp_path: Path, work_on: Callable[..., Work]) -> None:
    searcher = Searcher(ByBrightness(), indexed(work_on(tmp_path)), "test/0")
    searcher.warm_up()
    assert searcher.search(picture(6), 3)[0].observation_id == IDS[6]
    with pytest.raises(ValueError, match="not a readable image"):
        searcher.search(b"words", 3)


def test_a_search_decides_by_the_cameras_of_both_images(
    tmp_path: Path, work_on: Callable[..., Work]
) -> None:
    model = ByBrightness()
    searcher = Searcher(model, indexed(work_on(tmp_path)), "test/0")
    undecided = searcher.search(picture(6), 3)
    assert {hit.decision for hit in undecided} == {None}
    first, second = undecided[0].similarity, undecided[1].similarity
    assert first > second
    between = (first + second) / 2
    camera = f"test:{undecided[0].camera}"
    model.thresholds = Thresholds(between, -1.1, {("asking:c0", camera): (2.0, 1.5)})
    found = searcher.search(picture(6), 3)
    assert [hit.decision for hit in found] == ["match", "possible", "possible"]
    strict = searcher.search(picture(6), 1, camera="asking:c0")
    assert [hit.decision for hit in strict] == ["unknown"]
    assert model.sides == (["asking:c0"], [None])
    searcher.search(picture(6), 1, camera=camera)
    with pytest.raises(UnknownCameraError, match="they know asking:c0, test:c0"):
        searcher.search(picture(6), 1, camera="test:c9")


def test_warming_up_notices_another_model(tmp_path: Path, work_on: Callable[..., Work]) -> None:
    class Other(ByBrightness):
        def embed(self, encoded: Any, *, sides: Any = None) -> np.ndarray:
            return -super().embed(encoded)

    searcher = Searcher(Other(), indexed(work_on(tmp_path)), "test/0")
    with pytest.raises(ValueError, match="made with another model than 'test/0'"):
        searcher.warm_up()


def test_a_searcher_enrols_what_it_then_finds(tmp_path: Path, work_on: Callable[..., Work]) -> None:
    work = work_on(tmp_path)
    read_only = Searcher(ByBrightness(), indexed(work), "test/t1")
    row = {"observation_id": "new", "source": "door", "camera": "d1", "image": picture(1)}
    with pytest.raises(ValueError, match="is open for reading; open it with Writer"):
        read_only.enrol([row])
    with Writer(work.out) as writer:
        searcher = Searcher(ByBrightness(), Gallery(writer), "test/t1")
        with pytest.raises(ValueError, match="column 'image' is required"):
            searcher.enrol([{**row, "image": None}])
        searcher.enrol([row])
        assert searcher.model.sides == (["door:d1"], [None])
        hit = searcher.search(picture(1), 1)[0]
        assert (hit.observation_id, hit.camera, hit.split) == ("new", "d1", "gallery")
        assert searcher.gallery.image("new") == picture(1)
        assert searcher.search(picture(1), 1, Where(sources=("test",)))[0].source == "test"
        other = Searcher(ByBrightness(), Gallery(writer), "test/t2")
        with pytest.raises(ValueError, match="of model 't2' but the gallery's are of 't1'"):
            other.enrol([{**row, "observation_id": "newer"}])
    assert read_only.search(picture(1), 1)[0].observation_id != "new"
    read_only.gallery.refresh()
    assert read_only.search(picture(1), 1)[0].observation_id == "new"


def test_a_gallery_changed_after_its_job_is_made_again_as_the_job_would(
    tmp_path: Path, work_on: Callable[..., Work]
) -> None:
    work = work_on(tmp_path)
    found = indexed(work)
    with Writer(work.out) as writer:
        writer.delete([found.search(VECTORS[:1], 1)[0][0].observation_id])
        writer.compact()
    assert len(Gallery.open(work.out)) == len(found) - 1
    assert len(indexed(work)) == len(found)


def test_a_run_without_an_index_is_refused(
    tmp_path: Path, publish_job: Callable[..., Path]
) -> None:
    publish_job(tmp_path, "train", "t1")
    publish_job(tmp_path, "evaluate", "v1")
    with pytest.raises(ValueError, match=r"has no current 'index'; it has \['evaluate', 'train'\]"):
        searcher.check_current(tmp_path)
    publish_job(tmp_path, "index", "x1")
    assert searcher.check_current(tmp_path).keys["index"] == "x1"


def test_search_image_refuses_what_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="camera 'c3' must be named source:camera"):
        searcher.search_image(tmp_path, tmp_path / "photo.jpg", 3, "c3")
    with pytest.raises(ValueError, match=r"cannot read .*photo.jpg': No such file"):
        searcher.search_image(tmp_path, tmp_path / "photo.jpg", 3)
    (tmp_path / "photo.jpg").write_bytes(b"words")
    with pytest.raises(ValueError, match=r"photo.jpg': not a readable image"):
        searcher.search_image(tmp_path, tmp_path / "photo.jpg", 3)
    (tmp_path / "photo.jpg").write_bytes(picture(1))
    with pytest.raises(ValueError, match="is not a run directory"):
        searcher.search_image(tmp_path, tmp_path / "photo.jpg", 3)
