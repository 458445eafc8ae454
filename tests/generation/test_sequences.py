"""Sequences of an identity under one camera."""

from typing import Any

import pytest

from ray_reid import schema
from ray_reid.generation.sequences import COLUMNS, camera_sequences


def _row(
    key: str, identity: str | None = "s:1", camera: str | None = "c1", **more: Any
) -> dict[str, Any]:
    known = {schema.OBSERVATION_ID: key, schema.IDENTITY: identity, schema.CAMERA: camera}
    return {**dict.fromkeys(COLUMNS), schema.SOURCE: "s", **known, **more}


def test_the_middle_of_the_longest_sequence_is_chosen_in_order_of_time() -> None:
    rows = [_row(f"a{n}", time=float(9 - n)) for n in range(9)]
    rows += [_row(f"b{n}", camera="c0", time=float(n)) for n in range(8)]
    (found,) = camera_sequences(rows, 4)
    assert found.camera == "c1"
    # Times are 9 down to 1; the five in the middle are 3 to 7.
    assert found.images == ("a6", "a5", "a4", "a3", "a2")


@pytest.mark.parametrize(("around", "length"), [(0, 1), (1, 2), (3, 4), (9, 6)])
def test_a_short_sequence_is_taken_whole(around: int, length: int) -> None:
    (found,) = camera_sequences([_row(f"a{n}") for n in range(6)], around)
    assert len(found.images) == length
    assert list(found.images) == sorted(found.images)


def test_images_without_time_stand_in_the_order_of_their_paths_then_of_their_ids() -> None:
    rows = [_row("a", path="f2.jpg"), _row("b", path="f1.jpg"), _row("c", time=1.0, path="f0.jpg")]
    assert camera_sequences(rows, 2)[0].images == ("c", "b", "a")
    assert camera_sequences([_row("z"), _row("y")], 2)[0].images == ("y", "z")


def test_images_of_other_clothes_are_another_sequence() -> None:
    rows = [_row("a", clothes="x"), _row("b", clothes="y"), _row("c", clothes="y")]
    assert camera_sequences(rows, 4)[0].images == ("b", "c")


def test_identities_come_by_name_and_rows_without_one_are_left_out() -> None:
    rows = [_row("a", "s:2", None), _row("b", None), _row("c", "s:1")]
    found = camera_sequences(rows, 4)
    assert [(one.identity, one.camera, one.images) for one in found] == [
        ("s:1", "c1", ("c",)),
        ("s:2", None, ("a",)),
    ]
