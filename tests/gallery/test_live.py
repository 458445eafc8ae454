"""The live gallery: seeded from an index, changed by people, and seeded again."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_reid.gallery import live, searcher
from ray_reid.gallery.embedded.edits import Edits
from ray_reid.gallery.embedded.seeding import UnembeddableError
from ray_reid.gallery.embedded.segment import ROWS
from ray_reid.gallery.embedded.store import GalleryManifest, Reader
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.gallery.gallery import Gallery
from ray_reid.recipe import recipes
from ray_reid.runtime.results import RunState

FLAT = {"kind": "flat"}


class House:
    """Indexes of two models, and a live gallery."""

    def __init__(self, path: Path, script: ModuleType) -> None:
        self.script = script
        self.indexes, self.gallery = path / "indexes", path / "gallery"
        for model in script.MODELS:
            script.make_index(self.indexes, model, FLAT)

    def seed(self, key: str, model: str = "key1", **options: Any) -> live.Seeded:
        embed = partial(self.script.embed, model=model)
        return live.seed(self.indexes / model, key, self.gallery, embed, **options)

    def write(self, operation: str, *ids: str, version: int = 1) -> None:
        with Writer(self.gallery) as writer:
            self.script.perform(writer, operation, [[one, "c1"] for one in ids], version)

    def index(self, name: str, ids: list[str]) -> Path:
        """Another index of the first model."""
        script, path = self.script, self.indexes / name
        table = pa.Table.from_pylist([script.row(one, 0, "c0") for one in ids], ROWS)
        vectors = np.stack([script.vector(one, 0) for one in ids])
        Writer.create(path, "key1", script.DIMENSION, [(table, vectors)]).close()
        return path

    def versions(self) -> dict[str, int]:
        """The version of each row; every vector must be its own, of the gallery's model."""
        with Reader(self.gallery) as reader:
            assert reader.check() == []
            view = reader.view()
            found = {}
            for number in view.numbers(Where()):
                row = view.full(number)
                found[view.id(number)] = version = int(row["identity"][1:])
                expected = self.script.vector(view.id(number), version, reader.model)
                np.testing.assert_array_equal(view.vector(number), expected)
                assert row["image"] in (None, self.script.picture(view.id(number), version))
            return found


@pytest.fixture
def house(tmp_path: Path, gallery_writer: ModuleType) -> House:
    return House(tmp_path, gallery_writer)


def content(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("part-*")}


def test_a_new_gallery_has_the_rows_of_the_index_which_never_changes(house: House) -> None:
    index = content(house.indexes)
    assert house.seed("a") == live.Seeded(True, 8, 0)
    assert house.versions() == dict.fromkeys(house.script.INDEXED, 0)
    house.write("enrol", "id01", "id09")
    house.write("delete", "id10")
    house.write("compact")
    assert house.seed("b", "key2").kept == 2
    assert content(house.indexes) == index
    # Nothing but a link, where the file system has them.
    table = house.indexes / "key1" / "gallery" / "part-1.parquet"
    assert table.stat().st_nlink == 1
    other = live.seed(house.indexes / "key1", "a", house.gallery.parent / "other", list)
    assert other.images == 8
    assert table.stat().st_nlink == 2


def test_the_same_index_changes_nothing_and_needs_no_lock(house: House) -> None:
    house.seed("a")
    house.write("enrol", "id01")
    before = {file: file.stat().st_mtime_ns for file in house.gallery.rglob("*")}
    with Writer(house.gallery):
        assert house.seed("a") == live.Seeded(False, 9, 1)
    del before[house.gallery / "lock"]
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("model", ["key1", "key2"])
def test_a_new_index_keeps_what_people_enrolled_changed_and_deleted(
    house: House, model: str, compacted: bool
) -> None:
    house.seed("a")
    house.write("enrol", "id01", "id02", "id08", version=3)
    house.write("update", "id09", version=4)
    house.write("delete", "id02", "id10")
    if compacted:
        house.write("compact")
    expected = dict.fromkeys(house.script.INDEXED, 0) | {"id01": 3, "id08": 3, "id09": 4}
    del expected["id10"]
    # An update keeps the image, whose version is the old one.
    with Writer(house.gallery) as writer:
        image = house.script.picture("id09", 4)
        writer.update([{"observation_id": "id09", "image": image}])
    for key in ("b", "c"):
        done = house.seed(key, model)
        assert done == live.Seeded(True, 8, 3)
        assert house.versions() == expected
        manifest = GalleryManifest.read(house.gallery)
        assert (manifest.model, manifest.seed) == (model, key)
    # What a person brings back is there again, and stays.
    house.write("enrol", "id10", version=5)
    house.seed("d", model)
    assert house.versions() == expected | {"id10": 5}


def test_an_index_without_some_rows_takes_them_away_unless_people_changed_them(
    house: House,
) -> None:
    house.seed("a")
    house.write("enrol", "id09")
    smaller = house.index("smaller", ["id08", "id20"])
    live.seed(smaller, "b", house.gallery, list)
    assert house.versions() == {"id08": 0, "id09": 1, "id20": 0}


def test_an_untouched_gallery_takes_the_files_of_a_new_index_as_they_are(house: House) -> None:
    house.seed("a")
    house.write("compact")
    assert house.seed("b", "key2") == live.Seeded(True, 8, 0)
    assert GalleryManifest.read(house.gallery).generation == 3
    assert house.gallery.joinpath("vectors/part-3.f32").samefile(
        house.indexes / "key2" / "vectors" / "part-1.f32"
    )
    assert sorted(house.versions()) == house.script.INDEXED


def test_a_gallery_that_was_never_seeded_keeps_all_its_rows(house: House) -> None:
    house.index("../gallery", ["id08", "id30"])
    assert house.seed("a") == live.Seeded(True, 9, 2)
    house.seed("b", "key2")
    assert {"id08", "id30"} < house.versions().keys()


def test_rows_without_an_image_refuse_another_model_by_their_names(house: House) -> None:
    house.seed("a")
    house.write("enrol", "id01", "id02")
    with Writer(house.gallery) as writer:
        writer.update([{"observation_id": "id01", "image": None}])
        rows = [{"observation_id": "bad", "source": "test", "image": b"words"}]
        writer.enrol(rows, house.script.vector("id07", 1)[None], "key1")
        writer.update([{"observation_id": "id09", "image": None}])
        before = content(house.gallery)
    with pytest.raises(UnembeddableError, match=r"3 rows .*\['bad', 'id01', 'id09'\]; enrol them"):
        house.seed("b", "key2")
    assert content(house.gallery) == before
    # The same model embeds nothing.
    assert house.seed("c").kept == 4
    done = house.seed("d", "key2", drop_unembeddable=True)
    assert done == live.Seeded(True, 9, 1, ("bad", "id01", "id09"))
    # Of a row that was left out, the index has its own again.
    assert house.versions() == dict.fromkeys(house.script.INDEXED, 0) | {"id02": 1}


def test_a_gallery_that_another_process_writes_is_not_seeded(house: House) -> None:
    house.seed("a")
    with Writer(house.gallery) as writer:
        house.script.perform(writer, "enrol", [["id01", "c0"]], 1)
        with pytest.raises(ValueError, match=r"process \d+ is writing gallery"):
            house.seed("b", "key2")
    assert house.versions()["id01"] == 1
    assert house.seed("b", "key2").kept == 1


def test_a_failed_embedding_leaves_the_gallery_as_it_was(house: House) -> None:
    house.seed("a")
    house.write("enrol", "id01")
    before = content(house.gallery)

    def embed(rows: Any) -> np.ndarray:
        raise ValueError("the model cannot")

    with Writer(house.gallery) as writer:
        with pytest.raises(ValueError, match="the model cannot"):
            writer.seed(house.indexes / "key2", "b", embed)
        assert content(house.gallery) == before
        house.script.perform(writer, "enrol", [["id02", "c0"]], 2)
    assert house.versions()["id02"] == 2


def test_what_a_killed_attempt_left_is_replaced_and_never_written_through(house: House) -> None:
    index = content(house.indexes)
    (house.gallery / "gallery").mkdir(parents=True)
    left = house.gallery / "gallery" / "part-1.parquet"
    left.hardlink_to(house.indexes / "key1" / "gallery" / "part-1.parquet")
    with Writer.create(house.gallery, "key1", house.script.DIMENSION) as writer:
        assert len(writer) == 0
    assert content(house.indexes) == index


def test_a_reader_refuses_to_go_on_with_vectors_of_another_model(house: House) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    house.seed("a")
    reading = Gallery.open(house.gallery)
    house.seed("b", "key2")
    with pytest.raises(ValueError, match="has been seeded with 'key2' since; open it again"):
        reading.refresh()
    query = house.script.vector("id08", 0)[None]
    assert reading.search(query, 1)[0][0].observation_id == "id08"


def test_edits_are_read_as_they_were_written(tmp_path: Path) -> None:
    edits = Edits({"b", "a"}, {"c"})
    edits.put(["c", "d"])
    edits.delete(["a", "e"])
    edits.write(tmp_path / "edits")
    assert Edits.read(tmp_path / "edits") == Edits({"b", "c", "d"}, {"a", "e"})
    assert not Edits()
    content = (tmp_path / "edits").read_bytes()
    (tmp_path / "edits").write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"edits' is damaged: .*; restore the gallery"):
        Edits.read(tmp_path / "edits")


@pytest.fixture
def run(house: House, publish_job: Callable[..., Path]) -> Path:
    """A run whose index is that of the first model."""
    path = house.gallery.parent
    needs = {"ingest": [], "train": [], "embed": ["train"], "evaluate": ["embed"]}
    for job, inputs in needs.items():
        publish_job(path, job, "key1", dict.fromkeys(inputs, "key1"))
    (path / "index").mkdir()
    (house.indexes / "key1").rename(path / "index" / "a")
    publish_job(path, "index", "a", {"embed": "key1"})
    return path


def test_a_run_without_a_current_gallery_is_told_which_command_helps(
    house: House,
    run: Path,
    publish_job: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = f"'ray-reid gallery {run} seed'"
    with pytest.raises(ValueError, match=f"has no gallery in .*; {command} makes it"):
        live.current(RunState.read(run))
    assert searcher.seed(run) == live.Seeded(True, 8, 0)
    assert live.current(RunState.read(run)) == run / "gallery"
    assert searcher.seed(run) == live.Seeded(False, 8, 0)
    publish_job(run, "index", "b", {"embed": "key1"})
    with caplog.at_level(logging.WARNING):
        assert live.current(RunState.read(run)) == run / "gallery"
    assert (
        f"was seeded from index 'a' and run '{run}' now has 'b'; {command} brings it up to date"
        in caplog.text
    )
    publish_job(run, "train", "key2", {})
    with pytest.raises(ValueError, match=f"now has model 'key2'; {command} brings it up to date"):
        live.current(RunState.read(run))


def test_a_gallery_lies_where_the_recipe_says(tmp_path: Path) -> None:
    def place(**section: str) -> Path:
        recipe = recipes.validate({"name": "test", "gallery": section})
        return live.place(RunState(tmp_path, recipe, {}))

    assert place() == tmp_path / "gallery"
    assert place(path="/disk/doors") == Path("/disk/doors")
    assert place(path="~/doors") == Path.home() / "doors"
    for path in ("doors", "s3://bucket/gallery", ""):
        with pytest.raises(ValueError, match="must be a directory on a disk, from / or from ~"):
            place(path=path)
