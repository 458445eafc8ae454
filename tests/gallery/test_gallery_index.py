from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_reid.gallery.embedded import ann
from ray_reid.gallery.embedded.segment import ROWS
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.gallery.gallery import Gallery
from ray_reid.recipe import recipes
from ray_reid.recipe.index import Index
from ray_reid.recipe.recipe import Recipe

faiss = pytest.importorskip("faiss", reason="faiss is an extra")

NUM, DIMENSION, MODEL = 2000, 32, "key1"
KINDS = [{"kind": "flat"}, {"kind": "ivf"}, {"kind": "hnsw"}]


def clusters(num: int, seed: int) -> np.ndarray:
    """Vectors around 50 identities, as embeddings lie."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(50, DIMENSION))
    vectors = centres[np.arange(num) % 50] + 0.7 * chance.normal(size=(num, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


VECTORS, QUERIES = clusters(NUM, 1), clusters(60, 2)
TABLE = pa.Table.from_pylist(
    [
        {
            "observation_id": f"id{number:05d}",
            "identity": f"s:{number % 50}",
            "camera": f"c{number % 4}",
            "source": "s",
            "split": "gallery",
        }
        for number in range(NUM)
    ],
    ROWS,
)


def made(path: Path, index: dict[str, Any]) -> Writer:
    return Writer.create(path, MODEL, DIMENSION, [(TABLE, VECTORS)], index)


def recall(gallery: Gallery, kept: np.ndarray, where: Where | None = None) -> float:
    """Share of the true ten nearest of the kept rows; what is found must be kept."""
    found = gallery.search(QUERIES, 10, where or Where())
    similarity = np.where(kept, QUERIES @ VECTORS.T, -np.inf)
    hits = 0
    for row, answers in zip(similarity, found, strict=True):
        numbers = [int(hit.observation_id[2:]) for hit in answers]
        assert kept[numbers].all()
        np.testing.assert_allclose([hit.similarity for hit in answers], row[numbers], atol=1e-5)
        hits += len(set(numbers) & set(np.argsort(-row)[:10].tolist()))
    return hits / (10 * len(QUERIES))


@pytest.mark.parametrize("index", KINDS)
def test_every_kind_finds_the_nearest_through_filters_writes_and_rebuilding(
    tmp_path: Path, index: dict[str, Any]
) -> None:
    numbers = np.arange(NUM)
    kept = np.ones(NUM, bool)
    with made(tmp_path / "gallery", index) as writer:
        gallery = Gallery(writer)
        assert recall(gallery, kept) > 0.97
        # Few rows are searched exactly, whatever the kind.
        assert recall(gallery, numbers % 50 == 7, Where(identities=("s:7",))) == 1
        assert recall(gallery, numbers % 4 == 1, Where(cameras=("c1",))) > 0.97
        writer.delete_where(Where(identities=("s:0", "s:1")))
        kept &= numbers % 50 > 1
        assert recall(gallery, kept) > 0.97
        writer.compact()
        assert recall(gallery, kept) > 0.97
        writer.rebuild()
        assert recall(gallery, kept) > 0.97
        assert writer.check() == []


def test_a_gallery_changes_its_kind_by_rebuilding(tmp_path: Path) -> None:
    with made(tmp_path / "gallery", {"kind": "flat"}) as writer:
        gallery = Gallery.open(writer.path)
        kept = np.ones(NUM, bool)
        for index in ({"kind": "hnsw", "ef_search": 64}, {"kind": "ivf", "nlist": 20}):
            writer.rebuild(index)
            gallery.refresh()
            assert recall(gallery, kept) > 0.9
            assert len(list((writer.path / "search").iterdir())) == 1
        writer.rebuild({"kind": "flat"})
        gallery.refresh()
        assert recall(gallery, kept) == 1
        assert list((writer.path / "search").iterdir()) == []
        with pytest.raises(ValueError, match="nlist is 5000 but the gallery has 2000 rows"):
            writer.rebuild({"kind": "ivf", "nlist": 5000})
        assert recall(Gallery.open(writer.path), kept) == 1
        # What no longer fits after deletions is refused, and the gallery stays as it was.
        writer.rebuild({"kind": "ivf", "nlist": 1900})
        writer.delete_where(Where(cameras=("c1",)))
        with pytest.raises(ValueError, match="nlist is 1900 but the gallery has 1500 rows"):
            writer.compact()
        assert writer.manifest.generation == 1
        assert len(list(writer.path.rglob("part-*"))) == 5
        assert len(Gallery.open(writer.path)) == 1500


def test_a_kind_that_does_not_exist_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'index.kind' is 'lsh'"):
        made(tmp_path / "gallery", {"kind": "lsh"})
    assert list((tmp_path / "gallery").iterdir()) == [tmp_path / "gallery" / "lock"]
    with made(tmp_path / "gallery", {"kind": "flat"}) as writer:
        with pytest.raises(ValueError, match=r"'index.ef_search' is 0"):
            writer.rebuild({"kind": "hnsw", "ef_search": 0})
        assert len(Gallery(writer)) == NUM


def test_an_empty_gallery_of_any_kind_takes_its_first_rows(tmp_path: Path) -> None:
    for index in KINDS:
        with Writer.create(tmp_path / index["kind"], MODEL, DIMENSION, index=index) as writer:
            gallery = Gallery(writer)
            assert gallery.search(QUERIES[:2], 3) == [[], []]
            rows = TABLE.slice(0, 50).to_pylist()
            writer.enrol(rows, VECTORS[:50], MODEL)
            for _ in range(2):
                (hits,) = gallery.search(VECTORS[[4]], 1)
                assert hits[0].observation_id == "id00004"
                writer.compact()


class OnGpu:
    """A stand-in for an index on GPUs, which takes neither masks nor more than 2048 hits."""

    def __init__(self, index: Any) -> None:
        self._index, self.ntotal = index, index.ntotal
        self.asked: list[int] = []

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert k <= 2048
        self.asked.append(k)
        return self._index.search(queries, k)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_on_gpus_is_searched_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    moved = []

    def move(index: Any) -> OnGpu:
        moved.append(OnGpu(index))
        return moved[-1]

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", move, raising=False)
    numbers = np.arange(NUM)
    kept = np.ones(NUM, bool)
    with made(tmp_path / "gallery", {"kind": kind}) as writer:
        gallery = Gallery(writer)
        assert recall(gallery, kept) > 0.97
        assert recall(gallery, numbers % 4 != 1, Where(cameras=("c0", "c2", "c3"))) > 0.97
        writer.delete_where(Where(identities=("s:0",)))
        assert recall(gallery, numbers % 50 > 0) > 0.97
        assert len(moved[0].asked) == 3
        assert len(gallery.search(QUERIES[:1], NUM)[0]) == NUM - NUM // 50


def test_lists_and_probes_follow_the_size_unless_told() -> None:
    index = Index(kind="ivf")
    assert [ann.num_lists(index, rows) for rows in (1, 1000, 100_000, 1_000_000)] == [
        1,
        8,
        79,
        250,
    ]
    assert [ann.num_probes(index, lists) for lists in (1, 5, 250)] == [1, 3, 125]
    told = Index(kind="ivf", nlist=10, nprobe=3)
    assert (ann.num_lists(told, 1000), ann.num_probes(told, 10)) == (10, 3)


def test_settings_of_another_kind_are_refused() -> None:
    def read(**index: Any) -> Recipe:
        return recipes.validate({"name": "test", "index": index})

    with pytest.raises(ValueError, match="nlist goes with the kind 'ivf', not 'flat'"):
        read(nlist=10)
    with pytest.raises(ValueError, match="ef_search goes with the kind 'hnsw', not 'ivf'"):
        read(kind="ivf", ef_search=10)
    with pytest.raises(ValueError, match="nprobe is 20, more than the 10 of nlist"):
        read(kind="ivf", nlist=10, nprobe=20)
    with pytest.raises(ValueError, match=r"'index.kind' is 'lsh': .*'flat', 'ivf' or 'hnsw'"):
        read(kind="lsh")
    dumped = read(kind="hnsw", ef_search=64).model_dump(mode="json")
    assert recipes.validate(dumped).index.ef_search == 64
