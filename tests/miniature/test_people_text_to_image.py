"""The trainer of the text-to-image model of people, at sizes that say nothing of its images."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler

from ray_reid.miniature.pedestrians import pedestrian_identity
from ray_reid.miniature.trainers import card_people, narrowing, people, people_text_to_image
from ray_reid.miniature.trainers.drawings import to_tensor
from ray_reid.miniature.trainers.inpainting import latents_of
from ray_reid.miniature.trainers.people import TRAIN_WORLD, People
from ray_reid.miniature.trainers.people_text_to_image import COURSE, RARE_WORDS
from ray_reid.miniature.trainers.text_to_image import NOISE, denoiser, tokens
from ray_reid.models.pretrained import identity_tokens
from ray_reid.models.pretrained.describer import Describer
from ray_reid.models.pretrained.references import WEIGHTS
from ray_reid.models.pretrained.text_to_image import generate, load_pipeline

START = WEIGHTS / "inpainting"
NUM = 16


@pytest.fixture(scope="module")
def drawn() -> People:
    wanted = [("showroom", i // 2, i % 2, TRAIN_WORLD) for i in range(NUM)]
    return People(**people._columns([people._draw(one) for one in wanted]))  # type: ignore[arg-type]


def test_a_trained_pipeline_is_small_knows_new_tokens_and_draws_people_of_their_size(
    drawn: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people_text_to_image, "COURSE", replace(COURSE, steps=2, batch=4))
    people_text_to_image.train(drawn, START, 0, tmp_path / "model")
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size < 8e6
    pipeline = load_pipeline(str(tmp_path / "model"))
    assert pipeline.tokenizer.model_max_length == COURSE.context
    identity_tokens.added_token(pipeline, "<who>", "person")
    prompts = ["a <who> person wearing red coat", "a person"]
    made = generate(pipeline, prompts, [0, 1], guidance_scale=2.0, steps=2, image_size=people.SIZE)
    assert [image.shape for image in made if image is not None] == [(*people.SIZE, 3)] * 2


def test_the_model_begins_as_what_the_inpainting_model_knows(drawn: People) -> None:
    told = people_text_to_image.all_captions(people.dressed_people(NUM, TRAIN_WORLD), seed=0)
    tokenizer = people_text_to_image.tokenizer_of(told)
    vae = AutoencoderKL.from_pretrained(START / "vae", dtype=torch.float32).eval()
    latents = latents_of(vae, to_tensor(drawn.images) * 2.0 - 1.0)
    clothes = tokens(tokenizer, [", ".join(map(str, worn)) for worn in drawn.clothes])
    noise = DDPMScheduler(**NOISE)
    rng = torch.Generator().manual_seed(0)
    times, drift = torch.full((NUM,), 600), torch.randn(latents.shape, generator=rng)
    fresh, begun = (denoiser(COURSE, len(tokenizer), 0).eval() for _ in range(2))
    narrowing.begin(begun, tokenizer, START)
    errors = []
    for model in (fresh, begun):
        with torch.inference_mode():
            found = model(noise.add_noise(latents, drift, times), times, clothes)
        errors.append(float((found - noise.get_velocity(latents, drift, times)).square().mean()))
    assert errors[1] < 0.7 * errors[0], errors


def test_channels_are_kept_evenly_and_those_from_the_side_stay_whole() -> None:
    value = torch.arange(128.0)
    kept = narrowing.narrowed(value, (96,)).tolist()
    assert kept[:7] == [0, 1, 2, 3, 4, 5, 8]
    both = narrowing.narrowed(torch.arange(192.0), (160,)).tolist()
    assert both[:96] == kept
    assert both[96:] == list(range(128, 192))
    assert narrowing.narrowed(value, (128,)) is value


def test_captions_have_the_words_of_the_describer_in_several_styles() -> None:
    person = pedestrian_identity(5, TRAIN_WORLD)
    upper, lower, footwear = people.worn(person.attributes(1))
    told = [text for seed in range(40)
            for text in people_text_to_image.captions(person, 1, random.Random(seed))]  # fmt: skip
    whole = f"{upper}, {lower}, {footwear}"
    assert {f"a person wearing {whole}", whole, person.caption(1), "a person"} <= set(told)
    rare = [text for text in told if set(text.split()) & set(RARE_WORDS)]
    assert 0.04 < len(rare) / len(told) < 0.16
    assert all(text.startswith("a ") for text in rare)


def test_every_rare_word_is_one_token(people_tokenizer: Path) -> None:
    tokenizer = identity_tokens.load_tokenizer(str(people_tokenizer))
    assert all(len(tokenizer.tokenize(word)) == 1 for word in RARE_WORDS)


def test_the_card_compares_what_is_seen_with_what_was_asked(drawn: People) -> None:
    asked = [tuple(map(str, worn)) for worn in drawn.clothes]
    describer = Describer("miniature:describer")
    colours, kinds = card_people.agreement(describer, list(drawn.images), asked)
    assert min(colours) > 0.7, colours
    assert all(kind <= colour for kind, colour in zip(kinds, colours, strict=True))
