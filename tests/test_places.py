"""Paths in a bucket do what paths on a disk do; both are tried by the same steps."""

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from ray_reid import places, storage
from ray_reid.places import BucketPath, Place
from tests import buckets


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    pytest.importorskip("moto", reason="moto is the S3 double; the extra `dev` has it")
    with buckets.served():
        yield


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder with nothing in it."""
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("server")
    return buckets.new_bucket() / "folder"


def _names(found: Iterator[Place], root: Place) -> list[str]:
    return sorted(str(one).removeprefix(f"{root}/") for one in found)


def _fill(root: Place) -> None:
    for name in ("a/one.json", "a/two.txt", "b/one.json", "b/deep/three.json", "top.json"):
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)


def test_what_is_written_is_read(root: Place) -> None:
    file = root / "a" / "b.txt"
    file.parent.mkdir(parents=True)
    assert not file.exists()
    places.write_text(file, "häuser\n")
    assert file.read_text(encoding="utf-8") == "häuser\n"
    assert file.is_file()
    assert not file.is_dir()
    assert file.parent.is_dir()
    assert (file.name, file.stem, file.suffix, file.parent.name) == ("b.txt", "b", ".txt", "a")
    assert file.stat().st_size == len(file.read_bytes()) == 8
    assert abs(time.time() - file.stat().st_mtime) < 60
    assert file.relative_to(root).as_posix() == "a/b.txt"
    assert root in file.parents
    assert file.with_name("c") == root / "a" / "c"
    file.write_bytes(b"other")
    assert file.read_bytes() == b"other"
    file.unlink()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.unlink()
    with pytest.raises(FileNotFoundError):
        file.read_text()
    with pytest.raises(FileNotFoundError):
        file.stat()


def test_listings_and_patterns_find_the_same(root: Place) -> None:
    assert not (root / "nothing").exists()
    assert list((root / "nothing").glob("*")) == []
    _fill(root)
    assert _names(root.iterdir(), root) == ["a", "b", "top.json"]
    assert _names(root.glob("*/one.json"), root) == ["a/one.json", "b/one.json"]
    assert _names(root.glob("[!b]*/*.json"), root) == ["a/one.json"]
    assert _names(root.glob("b/*/three.json"), root) == ["b/deep/three.json"]
    assert _names(root.glob("a/none.json"), root) == []
    assert _names(root.rglob("*.json"), root) == [
        "a/one.json", "b/deep/three.json", "b/one.json", "top.json",
    ]  # fmt: skip


def test_folders_are_removed_with_all_that_is_in_them(root: Place) -> None:
    _fill(root)
    places.remove(root / "b")
    places.remove(root / "top.json")
    places.remove(root / "nothing")
    assert _names(root.rglob("*.*"), root) == ["a/one.json", "a/two.txt"]
    assert not (root / "b" / "deep" / "three.json").exists()


def test_a_file_that_fails_half_way_is_none(root: Place) -> None:
    file = root / "state"
    file.parent.mkdir(parents=True, exist_ok=True)

    def fail() -> None:
        with places.created(file) as sink:
            sink.write(b"half")
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fail()
    assert not file.exists()
    with places.created(file) as sink:
        sink.write(b"whole")
    assert file.read_bytes() == b"whole"


def test_folders_are_written_and_fetched_as_folders_of_this_machine(
    root: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))
    with places.written(root / "model") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_bytes(b"1")
        (folder / "name").write_text("one")
    assert (root / "model" / "part" / "weights").read_bytes() == b"1"
    copy = places.fetched(root / "model")
    assert copy.name == "model"
    assert (copy / "part" / "weights").read_bytes() == b"1"
    assert places.fetched(root / "model" / "name").read_text() == "one"
    with pytest.raises(FileNotFoundError):
        places.fetched(root / "none").read_text()


def test_copies_are_kept_and_made_anew_when_their_originals_change(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path))
    file = buckets.new_bucket() / "model" / "weights"
    file.write_text("one")
    first = places.fetched(file)
    inode = first.stat().st_ino
    assert places.fetched(file).stat().st_ino == inode
    file.write_text("three")
    assert places.fetched(file).read_text() == "three"
    assert first.read_text() == "one"
    # What nobody has asked for in a week goes when something else is fetched.
    os.utime(first.parent, (0, 0))
    (file.parent / "other").write_text("other")
    places.fetched(file.parent / "other")
    assert not first.exists()


def test_a_table_lives_in_a_bucket(root: Place) -> None:
    table = pa.table({"observation_id": ["b", "a"], "image": [b"2", b"1"]})
    storage.write(root / "job" / "table", table)
    other = root / "job" / "table" / "attempt-late.parquet"
    other.write_bytes((root / "job" / "table" / "part-0.parquet").read_bytes())
    assert storage.read(str(root / "job" / "table"), ["image"])["image"].to_pylist() == [b"1", b"2"]
    assert list(storage.tables(root / "job")) == ["table"]
    assert storage.fingerprint(root / "job" / "table", "t").rows == 2
    with pytest.raises(FileExistsError):
        storage.write(root / "job" / "table", table)
    with pytest.raises(FileNotFoundError, match="none"):
        storage.dataset(root / "job" / "none")


def test_places_are_named_by_paths_and_uris() -> None:
    assert places.place("runs/demo") == Path("runs/demo")
    assert places.place("file:///runs/my%20demo") == Path("/runs/my demo")
    assert places.place("s3://bucket/run@2").name == "run@2"
    bucket = places.place("s3://bucket/runs/demo/")
    assert bucket == BucketPath("s3", "bucket/runs/demo")
    assert str(bucket) == "s3://bucket/runs/demo"
    assert places.place(str(bucket / "x")) == bucket / "x"
    assert places.place(bucket) is bucket
    assert pickle.loads(pickle.dumps(bucket)) == bucket
    assert (bucket / "x").parents == (bucket, bucket.parent, bucket.parent.parent)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://host/run",
        "s3://",
        "s3://bucket/run?region=x",
        "s3://key:word@bucket/run",
        "s3://key:wo/word@bucket",
        "file://runs/demo",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a place: give a path, or s3://BUCKET") as raised:
        places.place(text)
    assert "word" not in str(raised.value)


def test_a_bucket_that_is_not_there_is_one_sentence(server: None) -> None:
    with pytest.raises(ValueError, match=r"no bucket 's3://nowhere-at-all'") as raised:
        places.check(places.place("s3://nowhere-at-all/run"))
    assert "\n" not in str(raised.value)


def test_a_server_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**buckets.KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(ValueError, match="cannot use 's3://silent/run'") as raised:
        places.check(places.place("s3://silent/run"))
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < 60
