"""The miniature text-to-image model of people: 96 x 48 pixels, and words that a describer says.

Its autoencoder is that of the inpainting model, and it begins as a narrower copy of that. Its
captions name the clothes in several styles, so that prompts with and without details work, and some
have a rare word before the noun: a token that stands for one identity (Ruiz et al., DreamBooth,
2023) must be one that means nothing yet.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from ray_reid.miniature.pedestrians import Pedestrian
from ray_reid.miniature.trainers.drawings import to_tensor
from ray_reid.miniature.trainers.inpainting import latents_of
from ray_reid.miniature.trainers.narrowing import begin
from ray_reid.miniature.trainers.people import TRAIN_WORLD, People, dressed_people, worn
from ray_reid.miniature.trainers.text_to_image import (
    DROPPED,
    Course,
    denoiser,
    fit,
    learned_tokenizer,
    save,
    tokens,
)

COURSE = Course(
    "people_text_to_image", batch=64, steps=4000, learning_rate=1e-3, channels=(32, 64, 96),
    latent_size=(24, 12), context=32, autocast=True,
)  # fmt: skip
VOCABULARY = 1000
# Captions of every drawing; each step takes one of them.
STYLES = 8
# Rarest last, as byte-pair encoding numbers its tokens: by how often they occur.
RARE_WORDS = (
    "sks", "zwx", "qvk", "xpj", "wqz", "kzf", "jqx", "vkq", "zgx", "fqk", "xzv", "pqj", "kwx",
    "qzb", "jvz", "xqf",
)  # fmt: skip
RARE_SHARE = 0.1


def train(drawn: People, start: Path, seed: int, out: Path) -> None:
    """Train on latents of showroom drawings in one process and save an fp16 pipeline.

    Args:
        drawn: Drawings of TRAIN_WORLD, from `people`.
        start: The inpainting pipeline.
        seed: Of captions, weights, batches and noise.
        out: Folder of the pipeline.
    """
    out.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(start / "vae", dtype=torch.float32).eval()
    pixels = to_tensor(drawn.images) * 2.0 - 1.0
    latents = torch.cat([latents_of(vae, pixels), latents_of(vae, pixels.flip(3))])
    told = all_captions(dressed_people(len(drawn), TRAIN_WORLD), seed)
    tokenizer = tokenizer_of(told)
    known = torch.stack([tokens(tokenizer, style) for style in zip(*told, strict=True)])
    empty = tokens(tokenizer, [""])[0]

    def prompts(rows: Tensor, rng: torch.Generator) -> Tensor:
        style = torch.randint(0, len(known), (len(rows),), generator=rng)
        dropped = torch.rand(len(rows), generator=rng) < DROPPED
        return torch.where(dropped[:, None], empty, known[style, rows % len(drawn)])

    plain = denoiser(COURSE, len(tokenizer), seed)
    begin(plain, tokenizer, start)
    average = fit(COURSE, plain, plain, latents, prompts, seed)
    save(vae, average, tokenizer, out)


def all_captions(people: Sequence[tuple[Pedestrian, int]], seed: int) -> list[list[str]]:
    """`STYLES` captions of each drawing."""
    chance = random.Random(seed)
    return [captions(*one, chance) for one in people]


def tokenizer_of(told: Sequence[Sequence[str]]) -> CLIPTokenizer:
    """Learn a tokenizer on captions; rare words are its last tokens, and stay whole."""
    texts = [text for row in told for text in row]
    return learned_tokenizer([*texts, *RARE_WORDS], VOCABULARY, COURSE.context)


def captions(person: Pedestrian, outfit: int, chance: random.Random) -> list[str]:
    """Say what a drawing shows in `STYLES` ways.

    The describer's words in a sentence, all that a drawing is known by, some of the clothes, the
    describer's words alone, and the person alone.
    """
    clothes = worn(person.attributes(outfit))
    told = []
    for _ in range(STYLES):
        style = chance.choices(range(5), (0.4, 0.25, 0.15, 0.1, 0.1))[0]
        who = chance.choice(("person", person.gender))
        if style == 1:
            who, text = person.gender, person.caption(outfit)
        elif style == 3:
            told.append(", ".join(clothes))
            continue
        elif style == 4:
            text = chance.choice((f"a {who}", f"a {who} with {person.hair_words}"))
        else:
            text = f"a {who} wearing {', '.join(clothes if style == 0 else _some(clothes, chance))}"
        if chance.random() < RARE_SHARE:
            text = text.replace(who, f"{chance.choice(RARE_WORDS)} {who}", 1)
        told.append(text)
    return told


def _some(clothes: Sequence[str], chance: random.Random) -> list[str]:
    """One or two of the clothes, in their order."""
    kept = sorted(chance.sample(range(len(clothes)), chance.choice((1, 2))))
    return [clothes[place] for place in kept]
