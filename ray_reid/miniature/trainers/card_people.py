"""Measure the miniature text-to-image model of people: whether its prompts' words appear."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_reid.images import Pixels
from ray_reid.miniature.trainers.card_clothes import answers, parse_all
from ray_reid.miniature.trainers.measures import Measure
from ray_reid.miniature.trainers.people import SIZE, TEST_WORLD, dressed_people, worn
from ray_reid.miniature.trainers.people_text_to_image import RARE_WORDS
from ray_reid.models.pretrained import detector
from ray_reid.models.pretrained.describer import Describer
from ray_reid.models.pretrained.parser import Parser
from ray_reid.models.pretrained.parser import worn as clothes_mask
from ray_reid.models.pretrained.text_to_image import generate, load_pipeline
from ray_reid.recipe.outfits import PARTS
from ray_reid.runtime.figures import Card

NUM, NUM_PLAIN, NUM_SHOWN, COLUMNS = 256, 64, 20, 10
GUIDANCE, STEPS = 2.0, 12
MODEL = "people_text_to_image"


def measure(weights: Path) -> tuple[list[Measure], dict[str, list[Card]]]:
    """Measure prompts with clothes, with a rare word too, and without; returns some images.

    Describer and parser say what they see; the describer itself is right about most drawings, not
    all, so that its agreement is a lower bound.
    """
    pipeline = load_pipeline(str(weights / MODEL))
    describer, parser = Describer(str(weights / "describer")), Parser(str(weights / "parser"))
    finder = detector.load(str(weights / "detector"))
    asked = [worn(one.attributes(outfit)) for one, outfit in dressed_people(NUM, TEST_WORLD)]
    prompts = [f"a person wearing {', '.join(clothes)}" for clothes in asked]
    rare = [f"a {RARE_WORDS[0]} person wearing {', '.join(clothes)}" for clothes in asked]
    plain = ["a person"] * NUM_PLAIN
    made, with_rare, alone = (_generate(pipeline, texts) for texts in (prompts, rare, plain))
    colours, kinds = agreement(describer, made, asked)
    found = [
        Measure(f"people: the asked colour, {part}, by the describer", colour, 0.80)
        for part, colour in zip(PARTS, colours, strict=True)
    ]
    found += [
        Measure(f"people: the asked colour and kind, {part}, by the describer", kind, None)
        for part, kind in zip(PARTS, kinds, strict=True)
    ]
    colours, _ = agreement(describer, with_rare, asked)
    found.append(Measure("people: the asked colour above, with a rare word in the prompt",
                         colours[0], 0.80))  # fmt: skip
    for name, pictures in (("with clothes in the prompt", made), ("prompt 'a person'", alone)):
        seen = np.mean([
            any(box.label == "person" for box in boxes) for boxes in finder.detect(pictures, 0.5)
        ])  # fmt: skip
        shares = [clothes_mask(parts).mean() for parts in parse_all(parser, pictures)]
        found.append(Measure(f"people: a person is found, {name}", float(seen), None))
        found.append(Measure(f"people: share of images with clothes on 10 % or more, {name}",
                             float(np.mean(np.array(shares) >= 0.1)), 0.90))  # fmt: skip
    cards = {
        "generated people, nobody picked them": [
            Card(image, text.removeprefix("a person wearing "))
            for image, text in zip(made[:NUM_SHOWN], prompts, strict=False)
        ],
        "prompt 'a person'": [Card(image, "") for image in alone[:COLUMNS]],
    }
    return found, cards


def agreement(
    describer: Describer, images: Sequence[Pixels], asked: Sequence[Sequence[str]]
) -> tuple[list[float], list[float]]:
    """Share of images of which the describer names the asked colour, and colour and kind, by part.

    Args:
        describer: Names what it sees.
        images: One for each prompt.
        asked: What is worn above, below and on the feet.
    """
    told = answers(describer, images)
    colours, kinds = [], []
    for part in range(len(PARTS)):
        pairs = [(own[part], wanted[part]) for own, wanted in zip(told, asked, strict=True)]
        colours.append(
            float(np.mean([own.split(" ")[0] == wanted.split(" ")[0] for own, wanted in pairs]))
        )
        kinds.append(float(np.mean([own == wanted for own, wanted in pairs])))
    return colours, kinds


def _generate(pipeline: object, prompts: Sequence[str]) -> list[Pixels]:
    made: list[Pixels] = []
    for start in range(0, len(prompts), 32):
        texts = list(prompts[start : start + 32])
        seeds = list(range(start, start + len(texts)))
        images = generate(
            pipeline, texts, seeds, guidance_scale=GUIDANCE, steps=STEPS, image_size=SIZE
        )
        # The model of this package has no safety checker.
        made += [image for image in images if image is not None]
    return made
