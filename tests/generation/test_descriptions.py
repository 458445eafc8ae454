"""Answers of a model to descriptions of clothes, and who is dressed in which."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ray_reid.generation.generators import descriptions
from ray_reid.generation.generators.answers import first_answer, parse_answer
from ray_reid.generation.generators.descriptions import Description, summarise


def _worn(number: int) -> list[Description]:
    return [Description(f"c{n:02d}", f"red {n}", "jeans", "boots") for n in range(number)]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            "red hoodie | blue trousers | white sneakers",
            ("red hoodie", "blue trousers", "white sneakers"),
        ),
        (" Red  T - Shirt |blue jeans| Shoes: boots.", ("red t-shirt", "blue jeans", "boots")),
        ("upper: red coat | lower: jeans | footwear: boots", ("red coat", "jeans", "boots")),
        ("red hoodie | blue trousers | not visible", ("red hoodie", "blue trousers", None)),
        ("red hoodie | blue trousers", None),
        ("red | blue | white | black", None),
        ("none | unknown | n/a", None),
        ("the person wears a red hoodie and blue trousers", None),
        ("1 | 2 | 3", None),
        ("a very long story of what someone may have worn that day | jeans | boots", None),
        ("colour: red: hoodie | jeans | boots", None),
        ("red shirt; {blue} (maybe) <x>! | jeans | boots", None),
        ("no-sleeve shirt | 3/4 jeans | boots", None),
        (
            "no-sleeve shirt | women's jeans, blue | boots /",
            ("no-sleeve shirt", "women's jeans, blue", "boots"),
        ),
        ("none visible | jeans | not visible in the image", (None, "jeans", None)),
        ("nothing | jeans | no shoes visible", (None, "jeans", None)),
        ("red knot top | jeans | shoes not shown", ("red knot top", "jeans", None)),
        ("", None),
    ],
)
def test_an_answer_has_three_short_parts_or_is_refused(
    text: str, answer: tuple[str | None, ...] | None
) -> None:
    assert parse_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "Red hoodie | blue jeans | white sneakers",
        "Upper: red hoodie, Lower: blue jeans, Footwear: white sneakers",
        "Sure! **Upper body:** red hoodie. **Lower body:** blue jeans. **Shoes:** white sneakers.",
        '{"upper": "red hoodie", "lower": "blue jeans", "footwear": "white sneakers"}',
        "1. red hoodie 2. blue jeans 3. white sneakers",
        "1) Upper: red hoodie 2) Lower: blue jeans 3) Footwear: white sneakers",
        "- red hoodie - blue jeans - white sneakers",
        "red hoodie; blue jeans; white sneakers",
        "Red hoodie, blue jeans, and white sneakers.",
        "The person in the image wears red hoodie with blue jeans and white sneakers. He runs.",
        "A man wearing red hoodie, blue jeans and white sneakers",
        "1. Upper: red hoodie\n2. Lower: blue jeans\n3. Footwear: white sneakers",
        "- Upper: red hoodie\n- Lower: blue jeans\n- Footwear: white sneakers",
        "* **Upper:** red hoodie\n* **Lower:** blue jeans\n* **Footwear:** white sneakers",
        "* red hoodie\n* blue jeans\n* white sneakers",
        "Upper - red hoodie, Lower - blue jeans, Footwear - white sneakers",
        "Upper body clothing: red hoodie, the lower: blue jeans, and the shoes: white sneakers",
    ],
)
def test_the_usual_forms_of_an_answer_are_read_alike(text: str) -> None:
    assert parse_answer(text) == ("red hoodie", "blue jeans", "white sneakers")


def test_an_and_between_colours_parts_no_garments() -> None:
    told = "The person is wearing a black and white shirt, red pants and blue shoes."
    assert parse_answer(told) == ("a black and white shirt", "red pants", "blue shoes")


@pytest.mark.parametrize(
    "text",
    [
        "Upper: red hoodie, Lower: blue jeans",
        "Upper: coat. Lower: jeans. Shoes: boots. Footwear: sandals",
        "a red hoodie, a long bag, white sneakers",
        "red hoodie, blue hoodie, jeans, boots",
        "1. red hoodie 2. blue jeans",
        "red hoodie; blue jeans",
    ],
)
def test_an_answer_that_leaves_a_part_open_is_refused_in_every_form(text: str) -> None:
    assert parse_answer(text) is None


def test_of_each_part_the_most_frequent_description_is_kept() -> None:
    answers = [
        ("red coat", "jeans", None),
        ("blue coat", "jeans", "boots"),
        ("red coat", "skirt", None),
    ]
    assert summarise(answers) == ("red coat", "jeans", "boots")
    # Of equally frequent ones the first by name, whatever their order.
    assert summarise([("b", "x", "y"), ("a", "x", "y")])[0] == "a"


def test_where_a_summary_leaves_several_the_most_frequent_answer_is_kept() -> None:
    answers = [("red coat", "jeans", "boots")] * 2 + [("blue coat", "jeans", "boots")]
    assert summarise(answers, ("blue coat / red coat", "jeans", "brown boots")) == (
        "red coat",
        "jeans",
        "brown boots",
    )


def test_the_same_words_in_another_order_are_the_same_description() -> None:
    answers = [("coat in gray", "jeans", "boots"), ("a grey coat", "jeans", "boots")]
    answers += [("grey coat", "jeans", "pair of boots")] * 2 + [("blue coat", "jeans", "boots")] * 3
    # Two texts of four images; of the same words the most frequent text.
    assert summarise(answers)[0] == "grey coat"


def test_a_hyphen_makes_no_other_description() -> None:
    answers = [("long-sleeved t-shirt", "jeans", "boots")] * 2
    answers += [("T shirt, long sleeved", "jeans", "boots"), ("short shirt", "jeans", "boots")]
    answers += [("shirt, short", "jeans", "boots")]
    assert descriptions.words("long-sleeved t-shirt") == descriptions.words(answers[2][0] or "")
    assert descriptions.words("short shirt") == descriptions.words("shirt, short")
    assert summarise(answers)[0] == "long-sleeved t-shirt"


def test_a_paraphrase_in_a_summary_is_as_frequent_as_the_answers_that_it_restates() -> None:
    answers = [("blue denim jacket", "jeans", "boots")] * 3 + [("a red coat", "jeans", "boots")] * 2
    assert summarise(answers, ("coat in red / denim jackets, blue", "jeans", "boots"))[0] == (
        "denim jackets, blue"
    )
    # None has the same words: the words that they share with answers decide, not the alphabet.
    assert summarise(answers, ("bright red coat / jacket of denim", "jeans", "boots"))[0] == (
        "jacket of denim"
    )


def test_a_comma_parts_garments_only_where_an_image_shows_one_of_them() -> None:
    answers = [("red coat", "jeans", "boots"), ("blue coat", "jeans", "boots")]
    summary = ("blue coat, parka", "white, long trousers", "boots or sandals")
    assert summarise(answers, summary) == ("blue coat", "white, long trousers", "boots")
    whole: tuple[str, str, str] = ("white, long shirt", "jeans", "boots")
    assert summarise([whole, ("long shirt", "jeans", "boots")], whole) == whole


def test_a_summary_that_ends_in_a_separator_leaves_nothing_empty() -> None:
    answers = [("red coat", "jeans", "boots")]
    assert summarise(answers, ("dark coat, ", "grey trousers / none", "no shoes / no socks")) == (
        "dark coat",
        "grey trousers",
        "boots",
    )
    assert parse_answer("dark coat, | jeans | boots/") == ("dark coat", "jeans", "boots")


def test_a_summary_is_the_first_line_that_can_be_read() -> None:
    told = "Sure!\nIn the form upper | lower | footwear:\n\nred coat | jeans | boots\na | b | c"
    assert first_answer(told) == ("red coat", "jeans", "boots")
    assert first_answer("I am sorry.") is None
    told = "Here it is:\nUpper: red coat\nLower: jeans\nFootwear: boots\nAnything else?"
    assert first_answer(told) == ("red coat", "jeans", "boots")


def test_a_part_that_nobody_names_has_no_description() -> None:
    assert summarise([("red coat", None, "boots")]) == ("red coat", None, "boots")


def test_descriptions_are_read_as_they_were_written_and_edited(tmp_path: Path) -> None:
    worn = _worn(3)
    file = tmp_path / descriptions.FILE
    descriptions.write(file, worn, {"c01": {"images": 4, "unparsable": 1}})
    assert descriptions.read(file) == worn
    assert pq.read_table(file)["unparsable"].to_pylist() == [None, 1, None]
    edited = pq.read_table(file).to_pylist()
    edited[0]["upper"] = "green parka"
    pyarrow.csv.write_csv(pa.Table.from_pylist(edited), tmp_path / "edited.csv")
    assert descriptions.read(tmp_path / "edited.csv")[0].upper == "green parka"


def test_ids_of_digits_keep_their_zeros_in_an_edited_file(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("upper,clothes,lower,footwear\ncoat,001,jeans,boots\n")
    assert [one.clothes for one in descriptions.read(tmp_path / "mine.csv")] == ["001"]
    (tmp_path / "short.csv").write_text("upper,clothes,lower\ncoat,001,jeans\n")
    with pytest.raises(ValueError, match="has no column 'footwear'"):
        descriptions.read(tmp_path / "short.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"clothes": "a", "upper": "x", "lower": "y"}], "has no column 'footwear'"),
        (
            [{"clothes": "a", "upper": "x", "lower": " ", "footwear": "z"}],
            "row 1: 'lower' of clothes 'a' is empty",
        ),
        (
            [{"clothes": "a", "upper": "x", "lower": "y", "footwear": "z"}] * 2,
            "describes the clothes 'a' twice",
        ),
    ],
)
def test_a_bad_file_of_descriptions_is_refused_in_a_sentence(
    tmp_path: Path, rows: list[dict[str, str]], message: str
) -> None:
    file = tmp_path / descriptions.FILE
    pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(ValueError, match=message):
        descriptions.read(file)
    with pytest.raises(ValueError, match="no file of descriptions"):
        descriptions.read(tmp_path / "none.parquet")


def test_outfits_of_a_smaller_number_are_the_first_of_a_larger() -> None:
    worn = _worn(12)
    many = descriptions.choose(worn, "id", "c03", 8, 0)
    assert descriptions.choose(worn, "id", "c03", 3, 0) == many[:3]
    assert descriptions.choose(worn[::-1], "id", "c03", 8, 0) == many
    assert "c03" not in {one.clothes for one in many}
    assert len({one.clothes for one in many}) == 8


def test_outfits_are_drawn_uniformly_and_by_the_seed() -> None:
    worn = _worn(6)
    drawn = Counter(
        one.clothes for n in range(600) for one in descriptions.choose(worn, f"id{n}", None, 2, 0)
    )
    assert set(drawn) == {one.clothes for one in worn}
    assert 150 < min(drawn.values()) <= max(drawn.values()) < 250
    assert descriptions.choose(worn, "id", None, 6, 0) != descriptions.choose(
        worn, "id", None, 6, 1
    )


def test_more_outfits_than_there_are_other_clothes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 outfits .* only 2 other clothes"):
        descriptions.choose(_worn(3), "id", "c00", 3, 0)


def test_random_clothes_repeat_with_their_seed() -> None:
    found = descriptions.at_random(5, 3)
    assert found == descriptions.at_random(8, 3)[:5]
    assert found != descriptions.at_random(5, 4)
    assert all(parse_answer(one.prompt("{upper} | {lower} | {footwear}")) for one in found)
