import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_reid import storage
from ray_reid.gallery.embedded import contents, nearest
from ray_reid.gallery.embedded.segment import ROWS
from ray_reid.gallery.embedded.store import GalleryManifest, Reader
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.gallery.gallery import Gallery

NUM, DIMENSION, MODEL = 40, 16, "key1"


def unit(num: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = unit(NUM)


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "observation_id": f"id{number:03d}",
        "identity": f"s:{number // 4}",
        "camera": f"c{number % 3}",
        "time": float(number) if number % 5 else None,
        "source": "even" if number % 2 == 0 else "odd",
        "image": f"image {number}".encode(),
        **changes,
    }


def block(numbers: range) -> tuple[pa.Table, np.ndarray]:
    rows = [{**row(number), "split": "gallery"} for number in numbers]
    return pa.Table.from_pylist(rows, ROWS), VECTORS[list(numbers)]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    """A gallery of NUM rows: half of them in its segment, half in its log."""
    half = NUM // 2
    blocks = [block(range(7)), block(range(7, half))]
    with Writer.create(tmp_path / "gallery", MODEL, DIMENSION, blocks) as made:
        made.enrol([row(number) for number in range(half, NUM)], VECTORS[half:], MODEL)
        yield made


def living(source: Reader) -> dict[str, dict[str, Any]]:
    view = source.view()
    return {view.id(number): view.full(number) for number in view.numbers(Where())}


def ids(hits: list[Any]) -> list[str]:
    return [hit.observation_id for hit in hits]


def test_what_was_written_is_there_after_opening_again_and_after_a_compaction(
    writer: Writer,
) -> None:
    writer.enrol([row(3, camera="new"), row(30, camera="new")], unit(2, 1), MODEL)
    writer.update([{"observation_id": "id004", "identity": None}])
    writer.update([{"observation_id": "id035", "view": "rear"}], unit(1, 2), MODEL)
    writer.delete(["id001", "id021"])
    expected = living(writer)
    assert len(expected) == len(writer) == NUM - 2
    assert expected["id003"]["camera"] == expected["id030"]["camera"] == "new"
    assert expected["id004"] == {
        **dict.fromkeys(ROWS.names),
        **row(4, identity=None, split="gallery"),
    }
    for _ in range(2):
        with Reader(writer.path) as reader:
            assert living(reader) == expected
            assert reader.check() == []
            for name, vector in (("id003", unit(2, 1)[0]), ("id035", unit(1, 2)[0])):
                view, number = reader.find(name)
                np.testing.assert_array_equal(view.vector(number), vector)
            view, number = reader.find("id004")
            np.testing.assert_array_equal(view.vector(number), VECTORS[4])
            assert reader.find("id001")[1] is reader.find("id021")[1] is None
        writer.compact()
    assert writer.view().num_dead == len(writer.view().added) == 0
    # A compaction leaves nothing of the generation before it.
    files = [file for file in writer.path.rglob("*") if file.is_file()]
    assert len(files) == 6


def test_deletions_by_identity_and_by_filter_take_what_fits_only(writer: Writer) -> None:
    assert writer.delete_where(Where(identities=("s:1", "s:9"))) == 8
    gone = {f"id{number:03d}" for number in (4, 5, 6, 7, 36, 37, 38, 39)}
    assert living(writer).keys() == {f"id{number:03d}" for number in range(NUM)} - gone
    # Rows without a time fit no range of times.
    late = [n for n in range(10, 36) if n % 5 and n % 3 == 2]
    assert writer.delete_where(Where(cameras=("c2",), since=10.0, until=36.0)) == len(late)
    assert writer.delete_where(Where(sources=("nowhere",))) == 0
    with pytest.raises(ValueError, match="a deletion needs a condition"):
        writer.delete_where(Where())


@pytest.mark.parametrize("num_queries", [1, 30])
@pytest.mark.parametrize(
    "where",
    [
        Where(),
        Where(cameras=("c0", "c2")),
        Where(sources=("odd",), since=5.0, until=32.0),
        Where(identities=("s:2",)),
        Where(cameras=("nowhere",)),
    ],
)
def test_search_finds_the_nearest_of_the_living_that_fit(
    writer: Writer, where: Where, num_queries: int
) -> None:
    writer.delete(["id008", "id025"])
    queries = unit(num_queries, 5)

    def fits(number: int) -> bool:
        found = row(number)
        return (
            number not in (8, 25)
            and (where.cameras is None or found["camera"] in where.cameras)
            and (where.sources is None or found["source"] in where.sources)
            and (where.identities is None or found["identity"] in where.identities)
            and (where.since is None or (found["time"] or -1) >= where.since)
            and (where.until is None or (found["time"] or 99) < where.until)
        )

    fitting = [number for number in range(NUM) if fits(number)]
    for _ in range(2):
        for query, hits in zip(queries, Gallery(writer).search(queries, 6, where), strict=True):
            nearest_first = sorted(fitting, key=lambda number: -float(VECTORS[number] @ query))
            assert ids(hits) == [f"id{number:03d}" for number in nearest_first[:6]]
        writer.compact()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("num_queries", [1, 25])
def test_exact_search_matches_sorting_all_pairs(num_queries: int, share: float) -> None:
    vectors, queries = unit(3000, 1), unit(num_queries, 2)
    mask = np.random.default_rng(3).random(3000) < share
    # The nearest of one query are all masked, as the images of a deleted identity are.
    mask[np.argsort(-(vectors @ queries[0]))[:600]] = False
    similarity = np.where(mask, queries @ vectors.T, -np.inf)
    expected = np.argsort(-similarity, axis=1)[:, :7]
    found, number = nearest.search(vectors, queries, 7, mask)
    np.testing.assert_array_equal(number, expected)
    np.testing.assert_allclose(found, np.take_along_axis(similarity, expected, 1), atol=1e-5)


def test_the_first_living_row_is_the_one_that_is_pictured(writer: Writer) -> None:
    gallery = Gallery(writer)
    for gone in ((), ("id000", "id001"), tuple(f"id{number:03d}" for number in range(2, 22))):
        writer.delete(list(gone))
        view = writer.view()
        assert view.first() == view.numbers(Where())[0]
        assert gallery.pictured() == view.full(view.numbers(Where())[0])
    writer.delete([f"id{number:03d}" for number in range(22, NUM)])
    assert writer.view().first() is gallery.pictured() is None


def test_a_view_does_not_change_when_the_gallery_does(writer: Writer) -> None:
    view = writer.view()
    before = view.rows(np.array(view.numbers(Where())))
    image = view.full(2)
    writer.delete(["id000", "id030"])
    writer.enrol([row(50), row(5, camera="new")], unit(2, 9), MODEL)
    writer.compact()
    assert view.rows(np.array(view.numbers(Where()))) == before
    assert view.full(2) == image
    assert len(view) == NUM


def test_a_reader_follows_a_writer_through_a_compaction(writer: Writer) -> None:
    with Reader(writer.path) as reader:
        writer.enrol([row(41)], unit(1, 1), MODEL)
        assert len(reader) == NUM
        reader.refresh()
        assert len(reader) == NUM + 1
        writer.compact()
        writer.delete(["id000"])
        assert living(reader)["id000"]["image"] == b"image 0"
        reader.refresh()
        assert len(reader) == NUM
        assert reader.manifest.generation == 2


def test_a_second_writer_is_refused_until_the_first_closes(writer: Writer) -> None:
    with pytest.raises(ValueError, match=r"process \d+ is writing gallery .* end it, or open it"):
        Writer(writer.path)
    writer.close()
    with Writer(writer.path) as second:
        assert len(second) == NUM
    with pytest.raises(ValueError, match="is closed"):
        writer.delete(["id000"])


def test_a_snapshot_stays_while_the_gallery_goes_on(writer: Writer, tmp_path: Path) -> None:
    writer.delete(["id000"])
    with Reader(writer.path) as reader:
        reader.snapshot(tmp_path / "then")
    expected = living(writer)
    writer.delete(["id001"])
    writer.compact()
    with Writer(tmp_path / "then") as then:
        assert living(then) == expected
        assert then.check() == []
        then.delete(["id002"])
    assert "id002" in living(writer)
    with pytest.raises(ValueError, match="exists; a snapshot needs a name of its own"):
        writer.snapshot(tmp_path / "then")


WRONG = [
    ({"colour": "red"}, r"unknown column 'colour'; choose from \['observation_id'"),
    ({"source": None}, "column 'source' is required"),
    ({"observation_id": 7}, "observation_id 7 must be a text"),
    ({"split": "probe"}, r"split 'probe' is not one of \['train'"),
    ({"time": float("nan")}, "time nan must be a finite number of seconds"),
    ({"time": "noon"}, "time 'noon' must be a finite number of seconds"),
    ({"camera": 3}, "a row has a value of another type"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG)
def test_a_wrong_row_is_refused_and_changes_nothing(
    writer: Writer, changes: dict[str, Any], sentence: str
) -> None:
    before, size = living(writer), writer.log_bytes
    with pytest.raises(ValueError, match=sentence):
        writer.enrol([row(90), row(91, **changes)], unit(2), MODEL)
    assert living(writer) == before
    assert writer.log_bytes == size


def test_wrong_vectors_ids_and_models_are_refused(writer: Writer) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 8\); 1 rows need floats of shape \(1, 16\)"):
        writer.enrol([row(90)], unit(1)[:, :8], MODEL)
    with pytest.raises(ValueError, match="vector 1 has norm 2; it must be finite and of unit"):
        writer.enrol([row(90), row(91)], unit(2) * [[1], [2]], MODEL)
    with pytest.raises(ValueError, match="vector 0 has norm nan"):
        writer.enrol([row(90)], np.full((1, DIMENSION), np.nan, np.float32), MODEL)
    with pytest.raises(ValueError, match="are of model 'key2' but the gallery's are of 'key1'"):
        writer.enrol([row(90)], unit(1), "key2")
    with pytest.raises(ValueError, match="are of model None"):
        writer.update([{"observation_id": "id000"}], unit(1))
    with pytest.raises(ValueError, match="'id090' is there twice; name each once"):
        writer.enrol([row(90), row(90)], unit(2), MODEL)
    with pytest.raises(ValueError, match="has no observation 'id090'"):
        writer.update([{"observation_id": "id000"}, {"observation_id": "id090"}])
    with pytest.raises(ValueError, match="has no observation 'id090'"):
        writer.delete(["id000", "id090"])
    with pytest.raises(ValueError, match="must be a list of ids"):
        writer.delete("id000")
    assert len(writer) == NUM
    writer.close()
    with pytest.raises(ValueError, match="is a gallery already"):
        Writer.create(writer.path, MODEL, DIMENSION)


def test_a_first_segment_needs_ordered_ids_and_unit_vectors(tmp_path: Path) -> None:
    table, vectors = block(range(4))
    path = tmp_path / "gallery"
    with pytest.raises(ValueError, match="'id000' comes after 'id003'; a segment needs the order"):
        Writer.create(path, MODEL, DIMENSION, [(table, vectors), (table, vectors)])
    with pytest.raises(ValueError, match="a vector of rows 0 to 4 has another norm than 1"):
        Writer.create(path, MODEL, DIMENSION, [(table, 2 * vectors)])
    with Writer.create(path, MODEL, DIMENSION, [(table, vectors)]) as writer:
        assert len(writer) == 4


def test_conditions_that_nothing_can_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cameras 'c1' must be a tuple of names"):
        Where(cameras="c1")
    with pytest.raises(ValueError, match=r"sources \(\) must be a tuple of names"):
        Where(sources=())
    with pytest.raises(ValueError, match=r"since 3.0 must be before until 3.0"):
        Where(since=3.0, until=3.0)
    with pytest.raises(ValueError, match="until inf must be a finite number"):
        Where(until=float("inf"))


def test_the_log_cut_at_any_byte_keeps_every_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    ends = []
    with Writer.create(path, MODEL, DIMENSION) as writer:
        for number in range(3):
            ends.append(writer.log_bytes)
            writer.enrol([row(number)], VECTORS[[number]], MODEL)
        ends.append(writer.log_bytes)
    file = path / "log" / "part-1.log"
    whole = file.read_bytes()
    cuts = sorted({*range(ends[0], ends[-1], 251), *ends, *(end + 1 for end in ends[:-1])})
    for cut in cuts:
        file.write_bytes(whole[:cut])
        expected = sum(end <= cut for end in ends[1:])
        with Reader(path) as reader:
            assert len(reader) == expected
        # A power failure may leave zeros where the rest should be.
        padded = whole[:cut] + bytes(300)
        expected = sum(padded[:end] == whole[:end] for end in ends[1:])
        file.write_bytes(padded)
        with Writer(path) as writer:
            assert len(writer) == expected
            assert file.stat().st_size == ends[expected]
            writer.enrol([row(9)], VECTORS[[9]], MODEL)
        with Reader(path) as reader:
            assert len(reader) == expected + 1


def test_a_damaged_record_before_a_whole_one_is_no_torn_tail(writer: Writer) -> None:
    writer.delete(["id000"])
    writer.close()
    file = writer.path / "log" / "part-1.log"
    damaged = bytearray(file.read_bytes())
    damaged[200] ^= 1
    file.write_bytes(damaged)
    for opened in (Reader, Writer):
        with pytest.raises(ValueError, match="is damaged at byte 12, with whole records from"):
            opened(writer.path)
    assert file.read_bytes() == damaged


def test_a_record_inside_an_image_is_not_taken_for_one_of_the_log(writer: Writer) -> None:
    inner = (writer.path / "log" / "part-1.log").read_bytes()[12:]
    with Writer.create(writer.path.parent / "other", MODEL, DIMENSION) as other:
        other.enrol([row(0, image=inner)], VECTORS[[0]], MODEL)
        size = other.log_bytes
    file = other.path / "log" / "part-1.log"
    file.write_bytes(file.read_bytes()[: size - 1])
    with Writer(other.path) as again:
        assert len(again) == 0


def test_the_check_names_every_damaged_file(writer: Writer) -> None:
    assert writer.check() == []
    for name in ("gallery/part-1.parquet", "vectors/part-1.f32"):
        file = writer.path / name
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[len(damaged) // 3] ^= 1
        file.write_bytes(damaged)
        assert any(f"{name} is damaged" in problem for problem in writer.check())
        file.write_bytes(whole)
    (writer.path / "vectors" / "part-1.f32").unlink()
    assert writer.check() == ["vectors/part-1.f32 is missing"]


def test_a_full_disk_refuses_a_write_and_loses_nothing(writer: Writer) -> None:
    before = living(writer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (writer.log_bytes + 100, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"a write to gallery .* failed: .*; it was not kept"):
            writer.enrol([row(90)], unit(1), MODEL)
        with pytest.raises(ValueError, match=r"cannot be compacted: .*; nothing is lost"):
            writer.compact()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert living(writer) == before
    writer.enrol([row(91)], unit(1), MODEL)
    writer.compact()
    with Reader(writer.path) as reader:
        assert living(reader).keys() == before.keys() | {"id091"}


def test_a_manifest_of_another_format_or_half_a_one_is_refused(writer: Writer) -> None:
    file = writer.path / "CURRENT"
    whole = file.read_text()
    file.write_text(json.dumps({**json.loads(whole), "format": 1}))
    with pytest.raises(ValueError, match="of format 1, and this version reads 2; run its recipe"):
        Reader(writer.path)
    file.write_text(whole[:50])
    with pytest.raises(ValueError, match="CURRENT' is damaged"):
        Reader(writer.path)
    file.write_text(whole)
    shutil.rmtree(writer.path / "vectors")
    with pytest.raises(ValueError, match=r"lacks the file .*restore it from a snapshot"):
        Reader(writer.path)


def test_the_table_stays_one_that_every_parquet_reader_opens(writer: Writer) -> None:
    writer.compact()
    table = storage.read(writer.path / "gallery", ["observation_id", "image"])
    assert table["observation_id"].to_pylist() == sorted(living(writer))
    assert table["image"].to_pylist()[3] == b"image 3"
    assert GalleryManifest.read(writer.path).rows == NUM


def test_a_payload_reads_back_as_it_was_written() -> None:
    rows = [{**row(number), "split": "gallery"} for number in range(3)]
    table = contents.put_table(rows, VECTORS[:3])
    again = contents.decode(contents.encode(table))
    assert again.equals(table)
    np.testing.assert_array_equal(storage.embeddings(again, "embedding"), VECTORS[:3])
