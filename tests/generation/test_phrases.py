"""Answers about several images of one identity, merged to one description."""

import pytest

from ray_reid.generation.generators.phrases import majority, merge, phrases


def test_answers_that_name_parts_are_merged_part_by_part() -> None:
    told = [
        "red hoodie | blue trousers | white boots",
        "red hoodie | grey trousers | white boots",
        "pink hoodie | blue trousers | none",
    ]
    assert merge(told, "person") == "red hoodie, blue trousers, white boots"


def test_a_part_that_no_image_shows_is_left_out() -> None:
    assert merge(["red coat | black trousers | none"], "person") == "red coat, black trousers"


def test_phrases_that_most_images_have_are_kept_in_their_order() -> None:
    told = [
        "a man wearing a grey coat, carrying a backpack and walking",
        "a man in a coat of grey, carrying a backpack",
        "walking, carrying a backpack",
    ]
    assert merge(told, "man") == "grey coat, carrying a backpack, walking"


def test_without_a_majority_the_phrase_nearest_to_the_others_stands() -> None:
    told = ["a red ford sedan", "a red ford van", "a blue kia bus"]
    assert merge(told, "car") == "red ford sedan"


def test_an_answer_that_says_nothing_is_no_description() -> None:
    assert merge(["", "none", "a person"], "person") is None
    assert merge([], "person") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A person wearing a red coat, black jeans.", ["red coat", "black jeans"]),
        ("a red 2010 ford focus", ["red 2010 ford focus"]),
        ("carrying a bag; talking on the phone", ["carrying a bag", "talking on the phone"]),
        ("a black and white shirt, and a hat", ["black and white shirt", "hat"]),
    ],
)
def test_phrases_of_an_answer(answer: str, expected: list[str]) -> None:
    assert phrases(answer, "person") == expected


def test_a_phrase_that_one_answer_repeats_counts_once() -> None:
    assert majority([["hat", "hat"], ["bag"], ["bag"]]) == ["bag"]
