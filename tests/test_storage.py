"""Tables: what is written is read back, in an order that no writer decides."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ray_reid import schema, storage


def _table(count: int = 50, start: int = 0) -> pa.Table:
    rows = [
        {
            schema.OBSERVATION_ID: schema.observation_id("s", i),
            schema.IMAGE: bytes([i]) * (i + 1),
            schema.IDENTITY: f"s:{i % 7}",
            schema.SOURCE: "s",
            schema.SPLIT: "train" if i % 2 else "gallery",
            schema.DROP_REASON: "corrupt image: x" if i % 10 == 0 else None,
            schema.ATTRIBUTES: {"colour": "red"},
        }
        for i in range(start, start + count)
    ]
    return schema.observations(rows)


def test_a_table_is_never_overwritten(tmp_path: Path) -> None:
    storage.write(tmp_path / "t", _table())
    with pytest.raises(FileExistsError):
        storage.write(tmp_path / "t", _table())


def test_rows_are_numbered_by_id_however_the_files_are_cut(tmp_path: Path) -> None:
    storage.write(tmp_path / "one", _table())
    shuffled = _table().take(pa.array(list(reversed(range(50)))))
    storage.write(tmp_path / "many", shuffled.slice(0, 20))
    pq.write_table(shuffled.slice(20), tmp_path / "many" / "part-1.parquet")
    storage.complete(tmp_path / "many", ["part-0.parquet", "part-1.parquet"])
    columns = [schema.IMAGE, schema.IDENTITY]
    one, many = (storage.read(tmp_path / name, columns) for name in ("one", "many"))
    assert one.equals(many)
    assert one.num_rows == 45
    prints = [storage.fingerprint(tmp_path / name, "t") for name in ("one", "many")]
    assert prints[0] == prints[1]
    assert prints[0].rows == 50


def test_images_are_read_by_their_ids_in_the_order_of_these(tmp_path: Path) -> None:
    storage.write(tmp_path / "t", _table())
    ids = [schema.observation_id("s", i) for i in (7, 3, 10)]
    kept = storage.images_by_id(tmp_path / "t", [*ids, "absent"])
    assert kept == {ids[0]: bytes([7]) * 8, ids[1]: bytes([3]) * 4}
    assert list(kept) == sorted(kept)
    every = storage.images_by_id(tmp_path / "t", ids, kept_only=False)
    assert every == {**kept, ids[2]: bytes([10]) * 11}
    assert storage.images_by_id(tmp_path / "t", []) == {}


def test_rows_are_evenly_spaced_from_the_first_to_the_last() -> None:
    assert storage.evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert storage.evenly_spaced(3, 8).tolist() == [0, 1, 2]
    assert storage.evenly_spaced(5, 1).tolist() == [0]
    assert storage.evenly_spaced(0, 4).tolist() == []


def test_a_fingerprint_sees_one_changed_byte_and_one_lost_row(tmp_path: Path) -> None:
    table = _table()
    images = table[schema.IMAGE].to_pylist()
    images[3] = b"?" + images[3][1:]
    column = table.column_names.index(schema.IMAGE)
    field = table.schema.field(column)
    changed = table.set_column(column, field, pa.array(images, field.type))
    storage.write(tmp_path / "a", table)
    storage.write(tmp_path / "b", changed)
    storage.write(tmp_path / "c", table.slice(1))
    a, b, c = (storage.fingerprint(tmp_path / name, name) for name in "abc")
    assert a.ids == b.ids
    assert a.images != b.images
    assert a.ids != c.ids


def test_the_row_cache_gives_the_bytes_of_the_rows_that_read_numbers(tmp_path: Path) -> None:
    storage.write(tmp_path / "t", _table())
    where = pc.field(schema.SPLIT) == "train"
    expected = storage.read(tmp_path / "t", [schema.IMAGE], where)[schema.IMAGE].to_pylist()
    for _ in range(2):  # built, then found again
        cache = storage.RowCache(tmp_path / "t", tmp_path / "cache", where)
        assert [cache.image(row).to_pybytes() for row in range(len(cache))] == expected
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
    everything = storage.RowCache(tmp_path / "t", tmp_path / "cache", pc.scalar(True))
    assert len(everything) == 45


def test_batches_and_tables_are_two_views_of_the_same_columns() -> None:
    table = _table()
    assert schema.to_table(schema.to_batch(table)).equals(table)


def test_a_row_with_an_unknown_column_or_choice_is_refused() -> None:
    row = {"observation_id": "a", "image": b"", "source": "s", "split": "train"}
    with pytest.raises(ValueError, match="unknown column 'colour'; choose from"):
        schema.observations([{**row, "colour": "red"}])
    with pytest.raises(ValueError, match="split 'test' is not one of"):
        schema.observations([{**row, "split": "test"}])
    with pytest.raises(ValueError, match="column 'source' is required"):
        schema.observations([{**row, "source": None}])


def test_tables_are_found_in_a_folder_but_not_hidden_ones_or_parts_of_one(tmp_path: Path) -> None:
    for name in ("ingest/observations", ".aside/observations"):
        storage.write(tmp_path / name, _table(3))
    (tmp_path / "ingest" / "observations" / "attempt-1").mkdir()
    pq.write_table(_table(2), tmp_path / "ingest" / "observations" / "attempt-1" / "0.parquet")
    (tmp_path / "foreign").mkdir()
    pq.write_table(_table(2), tmp_path / "foreign" / "0.parquet")
    assert list(storage.tables(tmp_path)) == ["foreign", "ingest/observations"]


def test_what_no_list_names_is_no_part_of_a_table(tmp_path: Path) -> None:
    storage.write(tmp_path / "t", _table(3))
    # A worker that outlived its driver writes on.
    pq.write_table(_table(5), tmp_path / "t" / "part-9.parquet")
    assert storage.dataset(tmp_path / "t").count_rows() == 3
    assert storage.fingerprint(tmp_path / "t", "t").rows == 3


def test_a_table_that_was_not_completed_is_written_again_and_a_complete_one_is_not(
    tmp_path: Path,
) -> None:
    storage.write(tmp_path / "t", _table(3))
    with pytest.raises(FileExistsError, match="exists"):
        storage.write(tmp_path / "t", _table(4))
    (tmp_path / "t" / storage.FILES).unlink()
    storage.write(tmp_path / "t", _table(4))
    assert storage.dataset(tmp_path / "t").count_rows() == 4


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no Parquet files in"):
        storage.dataset(tmp_path / "empty")
