from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_reid.ranking import labels


def lists(*columns: Any) -> list[list[int]]:
    return [numbers.tolist() for numbers in labels.number(*columns)]


def test_equal_labels_have_one_number_in_every_column() -> None:
    assert lists(["b", "a", "b"], ["c", "a"]) == [[0, 1, 0], [2, 1]]
    assert lists([("s", "c0"), ("t", "c0"), ("s", "c0")]) == [[0, 1, 0]]


@pytest.mark.parametrize(
    "column",
    [
        [1.0, None, float("nan"), 1.0],
        np.array([1.0, np.nan, np.nan, 1.0]),
        pa.array([1, None, None, 1]),
        np.array(["a", None, np.nan, "a"], dtype=object),
    ],
)
def test_null_is_no_label(column: Any) -> None:
    assert lists(column) == [[0, -1, -1, 0]]


@pytest.mark.parametrize("offset", [0, -7, 10**15])
@pytest.mark.parametrize("step", [1, 10**12])
def test_integers_are_numbered_small_wherever_they_lie(offset: int, step: int) -> None:
    integers = np.random.default_rng(0).integers(9, size=(2, 20))
    numbers = labels.number(*(integers * step + offset))
    same = integers[0][:, None] == integers[1]
    np.testing.assert_array_equal(numbers[0][:, None] == numbers[1], same)
    assert min(column.min() for column in numbers) == 0
    assert max(column.max() for column in numbers) <= labels.SPREAD * integers.size


def test_integers_of_an_array_equal_those_of_a_list() -> None:
    left, right = labels.number(np.array([5, 3]), [3, 5])
    assert left.tolist() == right[::-1].tolist()


def test_without_labels_all_are_null() -> None:
    query, gallery = labels.number_sides("camera", (2, 3), None, None)
    assert (query.tolist(), gallery.tolist()) == ([-1] * 2, [-1] * 3)
    assert labels.number(np.zeros(0, int))[0].tolist() == lists([])[0] == []


def test_labels_of_one_side_or_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="query_camera is given but gallery_camera is not"):
        labels.number_sides("camera", (1, 1), ["a"], None)
    with pytest.raises(ValueError, match="gallery has 3 embeddings but 2 values of gallery_time"):
        labels.number_sides("time", (1, 3), ["a"], ["a", "b"])


def test_names_are_numbered_in_their_order() -> None:
    names, numbers = labels.number_sorted(["b", None], ["c", "a", "b"])
    assert names == ["a", "b", "c"]
    assert [column.tolist() for column in numbers] == [[1, -1], [2, 0, 1]]


def test_a_null_that_is_split_equals_nothing_in_any_column() -> None:
    gallery, query = np.array([0, -1, 1, -1]), np.array([5, -1])
    split = labels.split_nulls(gallery, query)
    assert split.tolist() == [0, 6, 1, 7]
    assert labels.split_nulls(np.array([-1, -1])).tolist() == [0, 1]
