"""Trains the miniature models one after the other, and writes their card."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from ray_reid.models.pretrained.references import WEIGHTS

SEED = 0
NUM_VEHICLES, NUM_PEOPLE = 16_000, 16_000
log = logging.getLogger(__name__)


def main(description: str) -> int:
    """Train what the command line asks for; returns 1 if the models miss what the card asks for.

    Args:
        description: What `--help` says.
    """
    trainers: dict[str, Callable[[Path, Path], None]] = {
        "image_text": image_text,
        "captioner": captioner,
        "detector": detector,
        "autoencoder": autoencoder,
        "text_to_image": text_to_image,
        "parser": parser,
        "describer": describer,
        "inpainting": inpainting,
        "people_text_to_image": people_text_to_image,
    }
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--out", type=Path, default=WEIGHTS, help="default: %(default)s")
    arguments.add_argument("--cache", type=Path, default=Path("runs/miniature"), help="drawings")
    arguments.add_argument(
        "--only", nargs="+", choices=[*trainers, "card"], help="default: all, and the card"
    )
    options = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    import torch

    # Layers this small are slower on two threads than on one.
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    for name, trainer in trainers.items():
        if options.only is None or name in options.only:
            log.info("%s: started", name)
            trainer(options.out, options.cache)
    if options.only is not None and "card" not in options.only:
        return 0
    from ray_reid.miniature.trainers import card

    return 0 if card.write(options.out, options.cache) else 1


def image_text(out: Path, cache: Path) -> None:
    """Train the image-text model."""
    from ray_reid.miniature.trainers import image_text
    from ray_reid.miniature.trainers.drawings import training_set

    image_text.train(training_set(NUM_VEHICLES, cache), SEED, out / "image_text")


def captioner(out: Path, cache: Path) -> None:
    """Train the captioner."""
    from ray_reid.miniature.trainers import captioner
    from ray_reid.miniature.trainers.drawings import training_set

    captioner.train(training_set(NUM_VEHICLES, cache), SEED, out / "captioner")


def detector(out: Path, cache: Path) -> None:
    """Train the detector."""
    from ray_reid.miniature.trainers import detector

    detector.train(SEED, cache, out / "detector")


def autoencoder(_: Path, cache: Path) -> None:
    """Train the autoencoder of the text-to-image model."""
    from ray_reid.miniature.trainers import autoencoder
    from ray_reid.miniature.trainers.drawings import training_set

    autoencoder.train(training_set(NUM_VEHICLES, cache), SEED, cache / "autoencoder")


def text_to_image(out: Path, cache: Path) -> None:
    """Train the text-to-image model."""
    from ray_reid.miniature.trainers import text_to_image
    from ray_reid.miniature.trainers.drawings import training_set

    if not (cache / "autoencoder").is_dir():
        autoencoder(out, cache)
    drawn = training_set(NUM_VEHICLES, cache)
    text_to_image.train(drawn, cache / "autoencoder", SEED, out / "text_to_image")


def parser(out: Path, cache: Path) -> None:
    """Train the human parser."""
    from ray_reid.miniature.trainers import parser
    from ray_reid.miniature.trainers.people import TRAIN_WORLD, people, training_set

    street = people("street", NUM_PEOPLE, TRAIN_WORLD, cache)
    parser.train(training_set(NUM_PEOPLE, cache), street, SEED, out / "parser")


def describer(out: Path, cache: Path) -> None:
    """Train the describer of clothes."""
    from ray_reid.miniature.trainers import describer
    from ray_reid.miniature.trainers.people import training_set

    describer.train(training_set(NUM_PEOPLE, cache), SEED, out / "describer")


def inpainting(out: Path, cache: Path) -> None:
    """Train the inpainting model."""
    from ray_reid.miniature.trainers import inpainting
    from ray_reid.miniature.trainers.people import training_set

    start = out / "text_to_image"
    inpainting.train(training_set(NUM_PEOPLE, cache), start, SEED, out / "inpainting")


def people_text_to_image(out: Path, cache: Path) -> None:
    """Train the text-to-image model of people, with the autoencoder of the inpainting model."""
    from ray_reid.miniature.trainers import people_text_to_image
    from ray_reid.miniature.trainers.people import TRAIN_WORLD, people

    drawn = people("showroom", NUM_PEOPLE // 2, TRAIN_WORLD, cache)
    people_text_to_image.train(drawn, out / "inpainting", SEED, out / "people_text_to_image")
