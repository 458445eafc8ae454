"""The committed miniature models do what their card says, on a few drawings they never saw."""

import re
from pathlib import Path

import numpy as np
import pytest

from ray_reid.images import Pixels, decode
from ray_reid.miniature import draw, vehicle_identities
from ray_reid.miniature.trainers import card, card_clothes, card_people, people
from ray_reid.miniature.trainers.people import People
from ray_reid.miniature.trainers.people_text_to_image import RARE_WORDS
from ray_reid.miniature.vehicles import Vehicle
from ray_reid.models.pretrained import detector
from ray_reid.models.pretrained.captioner import Captioner
from ray_reid.models.pretrained.describer import Describer
from ray_reid.models.pretrained.image_text import ImageText
from ray_reid.models.pretrained.parser import Parser
from ray_reid.models.pretrained.references import WEIGHTS
from ray_reid.models.pretrained.text_to_image import generate, load_pipeline

# A world of its own: neither the trainers' nor the card's.
WORLD = 70_003


@pytest.fixture(scope="module")
def vehicles() -> list[Vehicle]:
    return vehicle_identities(48, WORLD)


@pytest.fixture(scope="module")
def showroom(vehicles: list[Vehicle]) -> list[Pixels]:
    return [draw(one, domain="showroom").image for one in vehicles]


def test_the_image_text_model_knows_colours(
    vehicles: list[Vehicle], showroom: list[Pixels]
) -> None:
    named = card.named_colours(ImageText("miniature:image_text"), showroom)
    assert np.mean([name == one.colour for name, one in zip(named, vehicles, strict=True)]) > 0.9


def test_the_captioner_names_colour_and_body_style(
    vehicles: list[Vehicle], showroom: list[Pixels]
) -> None:
    told = Captioner("miniature:captioner").caption(showroom)
    right = [
        {one.colour, one.model.body_style.lower()} <= set(caption.split())
        for caption, one in zip(told, vehicles, strict=True)
    ]
    assert np.mean(right) > 0.8, told


@pytest.mark.parametrize("domain", ["showroom", "street"])
def test_the_detector_finds_vehicles_where_they_are(vehicles: list[Vehicle], domain: str) -> None:
    drawn = [draw(one, domain=domain) for one in vehicles]  # type: ignore[arg-type]
    found = detector.load("miniature:detector").detect([one.image for one in drawn], 0.5)
    overlaps = [
        card._overlaps(boxes[0], np.array([one.box], float))[0] if boxes else 0.0
        for boxes, one in zip(found, drawn, strict=True)
    ]
    assert np.mean(np.array(overlaps) > 0.5) > 0.9


def test_a_corrupt_image_stays_one_beside_the_detector() -> None:
    detector.load("miniature:detector")
    with pytest.raises(ValueError, match="not a readable image"):
        decode(b"words")


def test_generated_vehicles_are_vehicles_of_the_asked_colour(vehicles: list[Vehicle]) -> None:
    pipeline = load_pipeline("miniature:text_to_image")
    asked = vehicles[:16]
    made = generate(
        pipeline, [one.caption for one in asked], list(range(16)), guidance_scale=card.GUIDANCE,
        steps=card.STEPS, image_size=(64, 64),
    )  # fmt: skip
    named = card.named_colours(ImageText("miniature:image_text"), made)
    assert sum(name == one.colour for name, one in zip(named, asked, strict=True)) >= 11
    found = detector.load("miniature:detector").detect(made, 0.65)
    assert sum(bool(boxes) for boxes in found) >= 13


@pytest.fixture(scope="module")
def street() -> People:
    drawn = [people._draw(("street", number, 0, WORLD)) for number in range(32)]
    return People(**people._columns(drawn))


def test_the_parser_finds_clothes_in_the_street(street: People) -> None:
    assert card_clothes.overlap(Parser("miniature:parser"), street) > 0.85


def test_the_describer_names_what_is_worn(street: People) -> None:
    told = card_clothes.answers(Describer("miniature:describer"), list(street.images))
    colours = [[part.split(" ")[0] for part in one[:2]] for one in told]
    worn = [[str(part).split(" ")[0] for part in one[:2]] for one in street.clothes]
    assert np.mean(np.array(colours) == np.array(worn)) > 0.75


def test_generated_people_wear_the_asked_colours_with_a_rare_word_too() -> None:
    pipeline = load_pipeline("miniature:people_text_to_image")
    asked = [people.worn(one.attributes(outfit))
             for one, outfit in people.dressed_people(16, WORLD)]  # fmt: skip
    for who in ("person", f"{RARE_WORDS[-1]} person"):
        made = generate(
            pipeline, [f"a {who} wearing {', '.join(clothes)}" for clothes in asked],
            list(range(16)), guidance_scale=card_people.GUIDANCE, steps=card_people.STEPS,
            image_size=people.SIZE,
        )  # fmt: skip
        colours, _ = card_people.agreement(Describer("miniature:describer"), made, asked)
        assert min(colours[:2]) >= 11 / 16


@pytest.mark.slow
def test_people_are_painted_in_the_asked_colours_and_nothing_else_changes(street: People) -> None:
    asked, made, masks = card_clothes.dressed(WEIGHTS, Parser("miniature:parser"), street)
    told = card_clothes.answers(Describer("miniature:describer"), made)
    right = [said[0].split(" ")[0] == one[0].split(" ")[0]
             for said, one in zip(told, asked, strict=True)]  # fmt: skip
    assert np.mean(right) > 0.7
    for image, source, mask in zip(made, street.images, masks, strict=True):
        np.testing.assert_array_equal(image[~mask], source[~mask])


def test_the_card_says_that_every_bar_holds_and_the_package_stays_small() -> None:
    text = (WEIGHTS / "README.md").read_text()
    assert len(re.findall(r"\d+%, holds", text)) == 14
    assert "FAILS" not in text
    size = sum(file.stat().st_size for file in Path(WEIGHTS).rglob("*") if file.is_file())
    assert size < 55e6
