"""`ray-reid gallery RUN ...`, as a person types it."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_reid import cli, images, schema
from ray_reid.gallery.embedded.store import Reader
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.models import package
from ray_reid.recipe import recipes

faiss = pytest.importorskip("faiss", reason="faiss is an extra")

Command = Callable[..., tuple[int, list[str], str]]


class ByBytes:
    """A model whose embedding is drawn from the bytes of an image."""

    thresholds = None
    cameras = ("door:9",)

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def embed(self, encoded: Any, *, sides: Any = None) -> np.ndarray:
        drawn = [np.random.default_rng(zlib.crc32(one)).normal(size=self.dimension)
                 for one in encoded]  # fmt: skip
        vectors = np.stack(drawn).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def run(
    tmp_path: Path,
    gallery_writer: ModuleType,
    publish_job: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A run with an index of eight images and no gallery yet."""
    path = tmp_path / "run"
    needs = {"train": [], "embed": ["train"], "evaluate": ["embed"], "index": ["embed"]}
    gallery_writer.make_index(tmp_path / "indexes", "key1", {"kind": "flat"})
    (path / "index").mkdir(parents=True)
    (tmp_path / "indexes" / "key1").rename(path / "index" / "key1")
    source = {"reader": "folder", "root": "/none", "pattern": r"(?P<identity>\d+)_c(?P<camera>\d+)"}
    recipe = recipes.validate({"name": "test", "ingest": {"sources": [source]}})
    for job, inputs in needs.items():
        publish_job(path, job, "key1", dict.fromkeys(inputs, "key1"), None, recipe)
    model = ByBytes(gallery_writer.DIMENSION)
    monkeypatch.setattr(package, "load", lambda run, device=None: model)
    return path


@pytest.fixture
def command(run: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that types a command of the run: exit code, lines, and what went wrong."""

    def typed(*words: Any) -> tuple[int, list[str], str]:
        code = cli.main(["gallery", str(run), *map(str, words)])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return typed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of three identities on two cameras, one that is none, and one of another name."""
    path = tmp_path / "door"
    path.mkdir()
    for identity in range(3):
        for camera in range(2):
            pixels = np.full((8, 8, 3), 40 * identity + 9 * camera, np.uint8)
            (path / f"{identity}_c{camera}.png").write_bytes(images.encode_png(pixels))
    (path / "3_c0.png").write_bytes(b"words")
    (path / "logo.png").write_bytes(images.encode_png(np.zeros((8, 8, 3), np.uint8)))
    return path


def test_a_gallery_is_seeded_counted_and_checked(
    run: Path, command: Command, publish_job: Callable[..., Path]
) -> None:
    code, lines, error = command("count")
    assert (code, lines) == (2, [])
    assert f"run '{run}' has no gallery" in error
    assert "'ray-reid gallery" in error
    assert command("seed") == (0, ["seeded: 8 images, 0 of them enrolled or changed"], "")
    assert command("seed") == (0, ["up to date: 8 images, 0 of them enrolled or changed"], "")
    assert command("count") == (0, ["8"], "")
    code, (line,), _ = command("check")
    assert code == 0
    assert "whole, 8 images, 0 of them enrolled or changed, 0 deleted; index key1" in line
    shutil.copytree(run / "index" / "key1", run / "index" / "key2")
    publish_job(run, "index", "key2", {"embed": "key1"})
    code, (line,), _ = command("check")
    assert code == 1
    assert "was seeded from index 'key1' and run" in line
    command("seed")
    vectors = run / "gallery" / "vectors" / "part-2.f32"
    damaged = bytearray(vectors.read_bytes())
    damaged[5] ^= 1
    vectors.unlink()
    vectors.write_bytes(damaged)
    code, (line,), _ = command("check")
    assert code == 1
    assert "vectors/part-2.f32 is damaged" in line


def test_a_folder_is_enrolled_found_and_updated(
    run: Path, folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("seed")
    code, lines, _ = command("enrol", folder)
    assert code == 0
    assert lines[0] == (
        f"{folder}: enrolled 6 images of 3 identities on 2 cameras; the gallery has 14"
    )
    assert lines[1] == "left out: 2"
    assert "1 of 8 image names" in lines[2]
    assert lines[3].startswith("  3_c0.png: not a readable image")
    # Enrolled again, the same images are the same rows.
    assert command("enrol", folder)[1][0].endswith("the gallery has 14")
    assert cli.main(["search", str(run), str(folder / "1_c1.png"), "-k", "1"]) == 0
    hit = capsys.readouterr().out.splitlines()[1].split()
    assert hit[1:5] == ["1.0000", "-", "door:1", "1"]
    assert hit[-1] == "1_c1.png"
    for camera, known in (("door:1", True), ("door:9", True), ("door:7", False)):
        code = cli.main(["search", str(run), str(folder / "1_c1.png"), "--camera", camera])
        assert code == (0 if known else cli.MISTAKE)
    said = capsys.readouterr().err
    assert "camera 'door:7' is on no image of the gallery" in said
    assert "they know door:0, door:1, door:9, test:c0; leave it out" in said
    with Reader(run / "gallery") as reader:
        view, number = reader.find(schema.observation_id("door", "1_c1.png"))
        row = view.full(number)
    assert row["image"] == (folder / "1_c1.png").read_bytes()
    assert (row["source"], row["split"]) == ("door", "gallery")
    (folder / "4_c0.heic").touch()
    code, lines, _ = command("enrol", folder, "--source", "yard", "--licence", "ours")
    assert code == 0
    assert lines[1] == "left out: 3"
    assert "1 files of" in lines[3]
    assert "are not read (1 .heic), e.g. '4_c0.heic'" in lines[3]
    assert command("count")[1] == ["20"]


def test_a_new_index_keeps_the_enrolled_folder(
    run: Path, folder: Path, command: Command, publish_job: Callable[..., Path]
) -> None:
    command("seed")
    command("enrol", folder)
    command("delete", "--identity", "door:0")
    for job, needed in {"train": [], "embed": ["train"], "evaluate": ["embed"]}.items():
        publish_job(run, job, "key2", dict.fromkeys(needed, "key2"))
    other = run / "index" / "key2"
    with Reader(run / "index" / "key1") as reader:
        blocks = list(reader.view().blocks())
        Writer.create(other, "key2", reader.dimension, blocks).close()
    publish_job(run, "index", "key2", {"embed": "key2"})
    code, _, error = command("enrol", folder)
    assert code == 2
    assert "is of model 'key1' but run" in error
    assert "seed' brings it up to date, with --drop-unembeddable" in error
    assert command("seed")[1] == ["seeded: 12 images, 4 of them enrolled or changed"]
    with Reader(run / "gallery") as reader:
        view = reader.view()
        numbers = view.numbers(Where(sources=("door",)))
        found = {view.full(number)["identity"] for number in numbers}
        assert found == {"door:1", "door:2"}
        for number in numbers:
            expected = package.load(run).embed([view.full(number)["image"]])[0]
            np.testing.assert_array_equal(view.vector(number), expected)


def test_rows_without_images_are_listed_before_they_are_left_out(
    run: Path, command: Command, publish_job: Callable[..., Path], gallery_writer: ModuleType
) -> None:
    command("seed")
    rows = [{"observation_id": f"bare{n:02d}", "source": "test"} for n in range(12)]
    vectors = np.stack([gallery_writer.vector("id00", n) for n in range(12)])
    with Writer(run / "gallery") as writer:
        writer.enrol(rows, vectors, "key1")
    for job, needed in {"train": [], "embed": ["train"], "evaluate": ["embed"]}.items():
        publish_job(run, job, "key2", dict.fromkeys(needed, "key2"))
    gallery_writer.make_index(run.parent / "indexes", "key2", {"kind": "flat"})
    (run.parent / "indexes" / "key2").rename(run / "index" / "key2")
    publish_job(run, "index", "key2", {"embed": "key2"})
    code, lines, error = command("seed")
    assert (code, lines) == (2, [row["observation_id"] for row in rows])
    assert "12 rows that were enrolled" in error
    assert "and 2 others" in error
    assert command("count")[1] == ["20"]
    code, lines, _ = command("seed", "--drop-unembeddable")
    assert code == 0
    assert lines[:2] == ["seeded: 8 images, 0 of them enrolled or changed", "left out: 12"]


def test_images_are_deleted_by_condition_only(command: Command) -> None:
    command("seed")
    code, _, error = command("delete")
    assert code == 2
    assert "a deletion needs a condition" in error
    assert command("delete", "--identity", "v0", "--camera", "c9")[1] == [
        "deleted 0 images; the gallery has 8"
    ]
    assert command("delete", "--source", "test", "--camera", "c0", "c1")[1] == [
        "deleted 8 images; the gallery has 0"
    ]
    code, (line,), _ = command("compact")
    assert code == 0
    assert line.startswith("folded ")
    assert command("count")[1] == ["0"]


def test_a_gallery_is_exported_and_copied(run: Path, command: Command, tmp_path: Path) -> None:
    command("seed")
    with Writer(run / "gallery") as writer:
        writer.delete(["id09"])
        writer.update([{"observation_id": "id08", "camera": "new"}])
        view = writer.view()
    ids = [f"id{number:02d}" for number in (8, *range(10, 16))]
    vectors = {view.id(number): view.vector(number) for number in view.numbers(Where())}
    assert command("export", "--to", tmp_path / "all.parquet")[1][0].endswith(": 7 images")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table["observation_id"].to_pylist() == ids
    assert table["camera"].to_pylist()[0] == "new"
    for one, vector in zip(ids, table["embedding"].to_pylist(), strict=True):
        np.testing.assert_array_equal(np.float32(vector), vectors[one])
    command("export", "--to", tmp_path / "all.faiss")
    index = faiss.read_index(str(tmp_path / "all.faiss"))
    assert json.loads((tmp_path / "all.faiss.ids.json").read_text()) == ids
    similarity, number = index.search(vectors["id12"][None], 1)
    assert ids[number[0, 0]] == "id12"
    assert similarity[0, 0] == pytest.approx(1)
    code, _, error = command("export", "--to", tmp_path / "all.parquet")
    assert code == 2
    assert "exists; choose a new file" in error
    assert "choose one of ['.faiss', '.parquet']" in command("export", "--to", "all.csv")[2]
    assert command("snapshot", tmp_path / "then")[0] == 0
    with Reader(tmp_path / "then") as reader:
        assert len(reader) == 7


def test_a_folder_that_cannot_be_enrolled_says_why(
    run: Path, folder: Path, command: Command
) -> None:
    command("seed")
    unlike = command("enrol", folder, "--pattern", "(?P<identity>x+)")
    assert "matches none of the 8 image names" in unlike[2]
    assert "it needs (?P<identity>...)" in command("enrol", folder, "--pattern", "x+")[2]
    only = folder / "only"
    only.mkdir()
    (folder / "3_c0.png").rename(only / "3_c0.png")
    assert "can be read; the first: 3_c0.png: not a readable" in command("enrol", only)[2]
    with Writer(run / "gallery"):
        code, _, error = command("enrol", folder)
    assert code == 2
    assert "is writing gallery" in error
    assert command("count")[1] == ["8"]
