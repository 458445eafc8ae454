"""Measure the miniature models on drawings they never saw, and write the model card."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_reid.images import Pixels
from ray_reid.miniature.drawing import Domain
from ray_reid.miniature.trainers import card_clothes, card_people
from ray_reid.miniature.trainers.detector import pictures
from ray_reid.miniature.trainers.drawings import TEST_WORLD, Drawings, drawings
from ray_reid.miniature.trainers.measures import Measure
from ray_reid.miniature.vehicle_models import VEHICLE_COLOURS
from ray_reid.models.pretrained import detector
from ray_reid.models.pretrained.captioner import Captioner
from ray_reid.models.pretrained.image_text import ImageText
from ray_reid.models.pretrained.text_to_image import generate, load_pipeline
from ray_reid.runtime import figures
from ray_reid.runtime.figures import Card

NUM = 600
NUM_GENERATED, NUM_SHOWN = 256, 40
SHEET, DRESSED, PEOPLE = "generated.png", "dressed.png", "people.png"
VEHICLES = ("car", "bus", "truck")
GUIDANCE, STEPS = 2.0, 12
INTRODUCTION = """# The miniature models

Small models in the formats of the real ones, trained by `jobs/train_miniature.py` on drawings of
`ray_reid.miniature` from a seed. Of vehicles: `text_to_image` (diffusers StableDiffusionPipeline,
predicts v), `image_text` (open_clip), `captioner` (transformers BLIP), `detector` (an ultralytics
YOLO of our own layout; car, bus, truck, person). Of people's clothes: `parser` (transformers
SegFormer), `describer` (BLIP, which answers the default prompt of `describe`), `inpainting`
(diffusers StableDiffusionInpaintPipeline). Those of vehicles know the *showroom* only, but for the
detector; it and those of clothes know the street too, of worlds that no recipe draws. They make
every stage of a run work on two cores. They know nothing of photographs, and their figures say
nothing of the real models.

Licence: Apache-2.0, like the drawings. To run the detector takes the package ultralytics, which
is AGPL-3.0; a transformers detector can take its place (`models.detector` of the recipe)."""
OF_PEOPLE = """

`people_text_to_image` (diffusers StableDiffusionPipeline, predicts v, 96 x 48 pixels) draws people
in the showroom from the describer's words."""
log = logging.getLogger(__name__)


def measure(weights: Path, cache: Path) -> tuple[list[Measure], list[Card]]:
    """Measure every model in `weights`; returns some generated images too, above their prompts."""
    image_text = ImageText(str(weights / "image_text"))
    captioner = Captioner(str(weights / "captioner"))
    finder = detector.load(str(weights / "detector"))
    found = []
    domains: tuple[Domain, ...] = ("showroom", "street")
    for domain in domains:
        # Only the showroom has bars: the street is what these models do not know.
        bars = (0.95, 0.90) if domain == "showroom" else (None, None)
        drawn = drawings(domain, NUM, TEST_WORLD, cache, images_each=1)
        colours = np.array(named_colours(image_text, list(drawn.images)))
        right = float((colours == drawn.colours).mean())
        found.append(Measure(f"image-text: colour, {domain}", right, bars[0]))
        told = caption_all(captioner, drawn)
        right = float(np.mean([
            colour in words and kind.lower() in words
            for words, colour, kind in zip(told, drawn.colours, drawn.kinds, strict=True)
        ]))  # fmt: skip
        found.append(Measure(f"captioner: colour and body style, {domain}", right, bars[1]))
    drawn_scenes = list(pictures(NUM, TEST_WORLD))
    found.append(Measure("detector: AP50, all classes, both domains",
                         average_precision(finder, drawn_scenes), 0.90))  # fmt: skip
    colour, seen, cards = generated(weights, image_text, finder, NUM_GENERATED)
    found.append(Measure("text-to-image: the asked colour, unfiltered", colour, 0.80))
    found.append(Measure("text-to-image: a vehicle is found, unfiltered", seen, 0.90))
    return found, cards


def named_colours(model: ImageText, images: Sequence[Pixels]) -> list[str]:
    """The colour whose prompt is nearest to each image."""
    texts = model.embed_texts([f"a {colour} vehicle" for colour in VEHICLE_COLOURS])
    names = []
    for start in range(0, len(images), 64):
        nearest = (model.embed_images(images[start : start + 64]) @ texts.T).argmax(1)
        names += [VEHICLE_COLOURS[int(place)] for place in nearest]
    return names


def caption_all(model: Captioner, drawn: Drawings) -> list[list[str]]:
    """Words of the caption of each drawing."""
    told: list[str] = []
    for start in range(0, len(drawn), 64):
        told += model.caption(list(drawn.images[start : start + 64]))
    return [caption.split() for caption in told]


def average_precision(
    finder: detector.Detector,
    scenes: Sequence[tuple[Pixels, list[tuple[int, int, int, int]], list[str]]],
) -> float:
    """Mean over the classes of the area under precision and recall at an overlap of 0.5.

    All points of the curve count, with precision made monotonous (PASCAL VOC 2010).
    """
    found = []
    for start in range(0, len(scenes), 32):
        images = [image for image, _, _ in scenes[start : start + 32]]
        found += finder.detect(images, 0.01)
    labels = sorted({name for _, _, names in scenes for name in names})
    return float(np.mean([_class_precision(name, found, scenes) for name in labels]))


def _class_precision(
    label: str,
    found: Sequence[list[detector.Box]],
    scenes: Sequence[tuple[Pixels, list[tuple[int, int, int, int]], list[str]]],
) -> float:
    truth = [
        np.array([box for box, name in zip(boxes, names, strict=True) if name == label], float)
        for _, boxes, names in scenes
    ]
    taken = [np.zeros(len(boxes), bool) for boxes in truth]
    ranked = sorted(
        ((number, box) for number, boxes in enumerate(found) for box in boxes
         if box.label == label), key=lambda pair: -pair[1].confidence,
    )  # fmt: skip
    hits = []
    for number, box in ranked:
        overlap = _overlaps(box, truth[number])
        best = int(overlap.argmax()) if len(overlap) else -1
        hit = best >= 0 and overlap[best] >= 0.5 and not taken[number][best]
        if hit:
            taken[number][best] = True
        hits.append(hit)
    right = np.cumsum(hits)
    recall = right / max(1, sum(len(boxes) for boxes in truth))
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _overlaps(box: detector.Box, truth: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(truth):
        return np.zeros(0)
    wide = np.minimum(box.right, truth[:, 2]) - np.maximum(box.left, truth[:, 0])
    high = np.minimum(box.bottom, truth[:, 3]) - np.maximum(box.top, truth[:, 1])
    shared = wide.clip(0) * high.clip(0)
    own = (box.right - box.left) * (box.bottom - box.top)
    areas = (truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1])
    return np.asarray(shared / (own + areas - shared))


def generated(
    weights: Path, image_text: ImageText, finder: detector.Detector, num: int
) -> tuple[float, float, list[Card]]:
    """Share of the asked colour, share with a vehicle, and the first images with their prompts."""
    pipeline = load_pipeline(str(weights / "text_to_image"))
    asked = drawings_of_test_world(num)
    images: list[Pixels] = []
    for start in range(0, num, 16):
        prompts = [prompt for prompt, _ in asked[start : start + 16]]
        seeds = list(range(start, start + len(prompts)))
        made = generate(pipeline, prompts, seeds, guidance_scale=GUIDANCE, steps=STEPS,
                        image_size=(64, 64))  # fmt: skip
        # The model of this package has no safety checker.
        images += [image for image in made if image is not None]
    colours = named_colours(image_text, images)
    right = np.mean([name == colour for name, (_, colour) in zip(colours, asked, strict=True)])
    boxes = finder.detect(images, 0.65)
    seen = np.mean([any(box.label in VEHICLES for box in one) for one in boxes])
    cards = [
        Card(image, prompt.removeprefix("a ").partition(" driving")[0])
        for image, (prompt, _) in zip(images[:NUM_SHOWN], asked, strict=False)
    ]
    return float(right), float(seen), cards


def drawings_of_test_world(num: int) -> list[tuple[str, str]]:
    """Prompt and colour of vehicles that no model was trained on."""
    from ray_reid.miniature.vehicles import vehicle_identities

    return [(one.caption, one.colour) for one in vehicle_identities(num, TEST_WORLD)]


def write(weights: Path, cache: Path) -> bool:
    """Measure, write `README.md` and a contact sheet into `weights`; False if a bar fails."""
    found, cards = measure(weights, cache)
    of_clothes, dressed = card_clothes.measure(weights, cache)
    found += of_clothes
    introduction, sheets = (
        INTRODUCTION,
        [
            f"![Generated images of drawn vehicles in a studio, above what was asked]({SHEET})",
            f"![Drawn people: as they were, and painted in other clothes]({DRESSED})",
        ],
    )
    if (weights / card_people.MODEL).is_dir():
        of_people, people = card_people.measure(weights)
        found += of_people
        figures.save(figures.contact_sheet(people, card_people.COLUMNS), weights / PEOPLE)
        introduction += OF_PEOPLE
        sheets.append(f"![Generated images of drawn people, above what was asked]({PEOPLE})")
    figures.save(figures.contact_sheet({"generated, nobody picked them": cards}), weights / SHEET)
    figures.save(figures.contact_sheet(dressed, card_clothes.COLUMNS), weights / DRESSED)
    sizes = {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in sorted(weights.iterdir())
        if folder.is_dir()
    }
    rows = [f"| {one.what} | {one.value:.1%} | {_bar(one)} |" for one in found]
    lines = [
        *introduction.splitlines(),
        "",
        "| measured on drawings of another world | value | bar |",
        "|---|--:|--:|",
        *rows,
        "",
        "| model | size |",
        "|---|--:|",
        *(f"| {name} | {size / 1e6:.1f} MB |" for name, size in sizes.items()),
        f"| together | {sum(sizes.values()) / 1e6:.1f} MB |",
        "",
        *(line for sheet in sheets for line in (sheet, "")),
    ]
    (weights / "README.md").write_text("\n".join(lines))
    log.info("\n%s", "\n".join(lines))
    return all(one.holds for one in found)


def _bar(one: Measure) -> str:
    if one.bar is None:
        return "-"
    return f"{one.bar:.0%}, {'holds' if one.holds else 'FAILS'}"
