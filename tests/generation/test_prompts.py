from pathlib import Path
from typing import Any

import pytest

from ray_reid.generation.generators import vehicle_prompts
from ray_reid.generation.generators.vehicle_prompts import (
    ATTRIBUTES,
    VehicleType,
    identities,
    read_library,
)
from ray_reid.miniature.vehicle_models import MODELS, VEHICLE_COLOURS, YEARS
from ray_reid.recipe.prompts import Prompts

HEADER = "brand,model,body_style,years,colours\n"
ROW = "Orvella,Pim,hatchback,2004;2011,red;dark blue\n"


def library(root: Path, text: str, encoding: str = "utf-8") -> Path:
    file = root / "own.csv"
    file.write_text(text, encoding=encoding)
    return file


def spec(library: Path | str, **values: Any) -> Prompts:
    return Prompts.model_validate({"library": str(library), **values})


# The library


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_library_is_read_with_and_without_a_byte_order_mark(
    tmp_path: Path, encoding: str
) -> None:
    file = library(tmp_path, HEADER + "\n" + ROW, encoding)
    pim = VehicleType("Orvella", "Pim", "hatchback", (2004, 2011), ("red", "dark blue"))
    assert read_library(file) == [pim]


def test_columns_may_come_in_any_order_and_line_ends_of_any_kind(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_bytes(b"colours,years,body_style,model,brand\r\nred, 2004 ;2011,van,A,B\r\n")
    assert read_library(file) == [VehicleType("B", "A", "van", (2004, 2011), ("red",))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("brand,model,body_style,years,color\n", "line 1: unknown column 'color'; the columns"),
        ("brand,model,body_style,years\n", "line 1: column 'colours' is missing"),
        ("brand,brand,model,body_style,years\n", "line 1: column 'brand' is there twice"),
        (HEADER + ROW + ",Pim,van,2004,red\n", "line 3: brand is empty"),
        (HEADER + "A,B,van,2004,\n", "line 2: colours is empty"),
        (HEADER + "A,B,van,,red\n", "line 2: years is empty"),
        (HEADER + "A,B,van,2004,;\n", "line 2: colours ';' holds none"),
        (HEADER + "A,B,van,2004,red;;blue\n", "line 2: colours 'red;;blue' has an empty entry"),
        (HEADER + "A,B,van,2004,red;Red\n", "line 2: colours 'red;Red' has 'red' twice"),
        (HEADER + "A,B,van,2004;11,red\n", "line 2: year '11' is no number of four digits"),
        (HEADER + "A,B,van,20o4,red\n", "line 2: year '20o4' is no number"),
        (HEADER + "A,-,van,2004,red\n", "line 2: model '-' has no letter or digit"),
        (HEADER + "A,B,van,2004\n", "line 2: 4 cells in 5 columns"),
        (HEADER + ROW + "\n" + ROW, "line 4: 'Orvella Pim hatchback' is there twice"),
        (HEADER + ROW + "orvella,PIM,hatchback,2030,red\n", "line 3: 'orvella PIM hatchback' is"),
        (HEADER + 'A,"B,van,2004,red\n', "line 2: unexpected end of data"),
        (HEADER, "line 1: the file ends without a vehicle"),
        ("", "line 0: the file ends without a vehicle"),
    ],
)
def test_a_mistake_in_a_library_is_one_sentence_with_file_and_line(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ValueError, match=r"^own\.csv, ") as raised:
        read_library(library(tmp_path, text))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_library_in_another_encoding_names_the_line(tmp_path: Path) -> None:
    file = library(tmp_path, HEADER + ROW + "Citro\u00ebn,C3,hatchback,2004,red\n", "latin-1")
    with pytest.raises(ValueError, match=r"own\.csv, line 3: is not UTF-8"):
        read_library(file)


def test_a_missing_library_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"for none\.csv and .*prompts/none\.csv") as raised:
        read_library("none.csv")
    assert "'miniature_vehicles.csv'" in str(raised.value)
    with pytest.raises(ValueError, match="no prompt library"):
        read_library(tmp_path)


def test_the_miniature_library_is_the_catalogue_of_the_drawn_world() -> None:
    expected = [
        VehicleType(model.brand, model.name, model.body_style, YEARS, VEHICLE_COLOURS)
        for model in MODELS
    ]
    assert read_library("miniature_vehicles.csv") == expected


def test_the_library_of_real_vehicles_gives_more_than_a_thousand_identities() -> None:
    vehicles = read_library("vehicles.csv")
    assert len(vehicles) == 40
    assert len({vehicle.brand for vehicle in vehicles}) == 12
    assert len(identities(spec("vehicles.csv", num_identities=1000), 0)) == 1000


# Identities


def test_all_combinations_are_chosen_once(tmp_path: Path) -> None:
    file = library(tmp_path, HEADER + ROW + "Taskin,Fen,coupe,2017,red\n")
    found = identities(spec(file, num_identities=5), 0)
    assert {identity.name for identity in found} == {
        *(f"{c}_{y}_orvella_pim_hatchback" for c in ("red", "dark-blue") for y in (2004, 2011)),
        "red_2017_taskin_fen_coupe",
    }
    blue = next(i for i in found if i.name == "dark-blue_2011_orvella_pim_hatchback")
    assert blue.prompt == "a dark blue 2011 Orvella Pim hatchback driving down the road"
    values = ("dark blue", "2011", "Orvella", "Pim", "hatchback")
    assert blue.attributes == dict(zip(ATTRIBUTES, values, strict=True))


def test_fewer_identities_are_the_first_of_more() -> None:
    many = identities(spec("miniature_vehicles.csv", num_identities=100), 3)
    assert identities(spec("miniature_vehicles.csv", num_identities=7), 3) == many[:7]
    assert identities(spec("miniature_vehicles.csv", num_identities=100), 4) != many


def test_other_rows_do_not_change_the_order_of_these(tmp_path: Path) -> None:
    alone = identities(spec(library(tmp_path, HEADER + ROW), num_identities=4), 1)
    more = HEADER + "Taskin,Fen,coupe,2017,red;white\n" + ROW
    both = identities(spec(library(tmp_path, more), num_identities=6), 1)
    assert [identity for identity in both if identity.attributes["model"] == "Pim"] == alone


def test_every_attribute_varies_in_the_first_few() -> None:
    found = identities(spec("miniature_vehicles.csv", num_identities=60), 0)
    for name in ATTRIBUTES:
        assert len({identity.attributes[name] for identity in found}) >= 4


def test_more_identities_than_combinations_are_refused(tmp_path: Path) -> None:
    file = library(tmp_path, HEADER + ROW)
    with pytest.raises(ValueError, match="num_identities 5 is more than the 4 combinations of"):
        identities(spec(file, num_identities=5), 0)


# The template


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("a {color} car", r"unknown field 'color'; choose from \['colour', 'year'"),
        ("a {} car", "unknown field ''"),
        ("a {colour.upper} car", "unknown field 'colour.upper'"),
        ("a {colour!r} car", r"formats the field 'colour'; write {colour} alone"),
        ("a {year:>9} car", "formats the field 'year'"),
        ("a {colour car", "is not a template: "),
        ("a car", "has no field"),
        ("a {colour} car", r"the same prompt; add the missing fields \['year', 'brand'"),
    ],
)
def test_a_template_that_cannot_be_filled_is_one_sentence(template: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        identities(spec("miniature_vehicles.csv", template=template), 0)


def test_a_template_may_leave_out_what_does_not_vary(tmp_path: Path) -> None:
    file = library(tmp_path, HEADER + "A,B,van,2004,red;blue\n")
    found = identities(spec(file, num_identities=2, template="a {colour} van {{x}}"), 0)
    assert {identity.prompt for identity in found} == {"a red van {x}", "a blue van {x}"}


def test_names_of_different_combinations_differ() -> None:
    first = {"colour": "a b", "year": "1", "brand": "c", "model": "d", "body_style": "e"}
    second = {**first, "colour": "a", "year": "b_1"}
    assert vehicle_prompts.slug(first) != vehicle_prompts.slug(second)
