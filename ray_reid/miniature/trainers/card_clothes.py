"""Measure the miniature models of clothes on drawn people they never saw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_reid.images import Pixels
from ray_reid.miniature.drawing import Domain
from ray_reid.miniature.trainers.inpainting import prompt
from ray_reid.miniature.trainers.measures import Measure
from ray_reid.miniature.trainers.people import SIZE, TEST_WORLD, People, people
from ray_reid.models.pretrained.describer import Describer
from ray_reid.models.pretrained.inpainting import inpaint, load_pipeline
from ray_reid.models.pretrained.parser import Parser, worn
from ray_reid.recipe.describe import Describe
from ray_reid.recipe.outfits import PARTS
from ray_reid.runtime.figures import Card

NUM, NUM_DRESSED, NUM_SHOWN = 600, 300, 10
COLUMNS = 10
GUIDANCE, STEPS = 2.0, 10


def measure(weights: Path, cache: Path) -> tuple[list[Measure], dict[str, list[Card]]]:
    """Measure parser, describer and inpainting; returns some dressed people too."""
    parser, describer = Parser(str(weights / "parser")), Describer(str(weights / "describer"))
    found = []
    domains: tuple[Domain, ...] = ("street", "showroom")
    for domain in domains:
        drawn = people(domain, NUM, TEST_WORLD, cache)
        bar = 0.90 if domain == "street" else None
        found.append(Measure(f"parser: IoU of the clothes mask, {domain}",
                             overlap(parser, drawn), bar))  # fmt: skip
        for part, right in zip(PARTS, agreement(describer, drawn), strict=True):
            found.append(Measure(f"describer: colour and kind, {part}, {domain}", right, None))
    street = people("street", NUM, TEST_WORLD, cache)
    asked, made, masks = dressed(weights, parser, street)
    colours = np.mean([
        one.split(" ")[0] == said.split(" ")[0]
        for (one, _, _), (said, _, _) in zip(asked, answers(describer, made), strict=True)
    ])  # fmt: skip
    found.append(Measure("inpainting: the asked colour above, by the describer, street",
                         float(colours), 0.80))  # fmt: skip
    seen = [worn(parts) for parts in parse_all(parser, made)]
    there = np.mean([one[mask].mean() for one, mask in zip(seen, masks, strict=True)])
    found.append(Measure("inpainting: clothes are found where it painted, street",
                         float(there), 0.80))  # fmt: skip
    before = [Card(image, "") for image in street.images[:NUM_SHOWN]]
    after = [
        Card(image, prompt(*worn)) for image, worn in zip(made[:NUM_SHOWN], asked, strict=False)
    ]
    return found, {"as they were": before, "dressed otherwise, nobody picked them": after}


def overlap(parser: Parser, drawn: People) -> float:
    """Intersection over union of clothes and shoes, of all pixels of all drawings."""
    got, wanted = worn(np.stack(parse_all(parser, list(drawn.images)))), drawn.masks()
    return float((got & wanted).sum() / (got | wanted).sum())


def parse_all(parser: Parser, images: Sequence[Pixels]) -> list[NDArray[np.uint8]]:
    """Parts of many images."""
    return [
        parts
        for start in range(0, len(images), 64)
        for parts in parser.parse(images[start : start + 64])
    ]


def agreement(describer: Describer, drawn: People) -> NDArray[np.float64]:
    """Share of drawings whose upper, lower and footwear are named right, colour and kind."""
    told = answers(describer, list(drawn.images))
    right: NDArray[np.float64] = (np.array(told) == drawn.clothes).mean(axis=0)
    return right


def answers(describer: Describer, images: Sequence[Pixels]) -> list[list[str]]:
    """Upper, lower and footwear of many images; empty where an answer has not three parts."""
    spec = Describe()
    told: list[str] = []
    for start in range(0, len(images), 64):
        told += describer.answer(images[start : start + 64], spec.prompt, spec.max_words)
    split = [[part.strip().replace(" - ", "-") for part in text.split("|")] for text in told]
    return [parts if len(parts) == len(PARTS) else [""] * len(PARTS) for parts in split]


def dressed(
    weights: Path, parser: Parser, drawn: People
) -> tuple[list[tuple[str, str, str]], list[Pixels], list[NDArray[np.bool_]]]:
    """People in the clothes of others: what was asked, the images, and where they were painted."""
    pipeline = load_pipeline(str(weights / "inpainting"))
    sources = list(drawn.images[:NUM_DRESSED])
    masks = [worn(parts) for parts in parse_all(parser, sources)]
    # Those of somebody half the world away.
    others = np.roll(drawn.clothes, len(drawn) // 2, axis=0)[:NUM_DRESSED]
    asked = [(str(upper), str(lower), str(shoes)) for upper, lower, shoes in others]
    made: list[Pixels] = []
    for start in range(0, len(sources), 32):
        rows = slice(start, start + 32)
        prompts = [prompt(*worn) for worn in asked[rows]]
        seeds = list(range(start, start + len(prompts)))
        painted = inpaint(pipeline, sources[rows], masks[rows], prompts, seeds,
                          guidance_scale=GUIDANCE, steps=STEPS, image_size=SIZE)  # fmt: skip
        made += [image for image in painted if image is not None]
    return asked, made, masks
