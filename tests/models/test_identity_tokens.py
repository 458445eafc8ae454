"""Tokens of identities: rare words, new words, and prompts that fit the tokenizer."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ray_reid.models.pretrained import identity_tokens
from ray_reid.models.pretrained.text_to_image import load_pipeline
from ray_reid.recipe.enhance import IdentityToken


@pytest.fixture(scope="module")
def tokenizer(people_tokenizer: Path) -> Any:
    return identity_tokens.load_tokenizer(str(people_tokenizer))


@pytest.fixture
def pipeline(tiny_models: ModuleType, tmp_path: Path) -> Any:
    return load_pipeline(str(tiny_models.stable_diffusion(tmp_path / "sd")))


def test_a_rare_word_is_chosen_by_its_rank_and_stays_whole(tokenizer: Any) -> None:
    rare = identity_tokens.rare_tokens(tokenizer)
    assert len(rare) >= 10
    for rank in (0, 3):
        token = identity_tokens.identity_token(tokenizer, IdentityToken(rank=rank))
        assert token == rare[rank]
        assert len(tokenizer.tokenize(f"a {token} person")) == 3
    numbers = [tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in rare]
    assert numbers == sorted(numbers, reverse=True)


def test_the_rarest_words_are_no_words_of_captions(tokenizer: Any) -> None:
    from ray_reid.miniature.trainers.people_text_to_image import RARE_WORDS

    assert set(identity_tokens.rare_tokens(tokenizer)[:10]) <= set(RARE_WORDS)


def test_a_word_that_the_tokenizer_splits_is_refused_in_one_sentence(tokenizer: Any) -> None:
    refused = r"token 'brontosaurus' is split .* into \d+ tokens"
    with pytest.raises(ValueError, match=refused) as told:
        identity_tokens.identity_token(tokenizer, IdentityToken(text="brontosaurus"))
    assert "\n" not in str(told.value)


def test_a_rank_beyond_the_vocabulary_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="rank 9999 is more than the"):
        identity_tokens.identity_token(tokenizer, IdentityToken(rank=9999))


def test_a_word_of_the_vocabulary_is_no_new_token(tokenizer: Any) -> None:
    for text in ("red", "coat"):
        with pytest.raises(ValueError, match=f"{text}' is in the tokenizer's vocabulary"):
            identity_tokens.identity_token(tokenizer, IdentityToken(kind="new", text=text))


def test_a_new_token_is_one_token_with_the_mean_embedding_of_its_words(pipeline: Any) -> None:
    spec = IdentityToken(kind="new", text="<who>")
    with pytest.raises(ValueError, match="is split"):
        identity_tokens.identity_token(pipeline.tokenizer, IdentityToken(text="<who>"))
    before = pipeline.text_encoder.get_input_embeddings().weight.detach().clone()
    words = pipeline.tokenizer("a b", add_special_tokens=False)["input_ids"]
    token = identity_tokens.identity_token(pipeline.tokenizer, spec)
    (begun,) = identity_tokens.added_token(pipeline, token, "a b")
    torch.testing.assert_close(begun, before[words].mean(dim=0))
    assert pipeline.tokenizer.tokenize(f"a {token} b") == ["a</w>", "<who>", "b</w>"]
    # The other embeddings are as they were.
    after = pipeline.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(after[: len(before)], before)


def test_a_token_that_is_there_begins_anew(pipeline: Any) -> None:
    (first,) = identity_tokens.added_token(pipeline, "<who>", "a")
    table = pipeline.text_encoder.get_input_embeddings().weight
    rows = len(table)
    with torch.no_grad():
        table[-1] += 1.0
    (again,) = identity_tokens.added_token(pipeline, "<who>", "a")
    torch.testing.assert_close(first, again)
    assert len(pipeline.text_encoder.get_input_embeddings().weight) == rows


def test_the_embedding_of_a_token_comes_back_from_its_file(
    pipeline: Any, tiny_models: ModuleType, tmp_path: Path
) -> None:
    identity_tokens.added_token(pipeline, "<who>", "a")
    table = pipeline.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[-1] = torch.arange(table.shape[1], dtype=table.dtype)
    identity_tokens.save_token(pipeline, "<who>", tmp_path)
    other = load_pipeline(str(tmp_path / "sd"))
    identity_tokens.load_token(other, "<who>", tmp_path)
    found = identity_tokens.token_embedding(other.tokenizer, other.text_encoder, "<who>")
    torch.testing.assert_close(found, table[-1].detach())
    wide = load_pipeline(str(tiny_models.stable_diffusion(tmp_path / "wide", width=32)))
    with pytest.raises(ValueError, match="has 16 dimensions, but the text encoder has 32"):
        identity_tokens.load_token(wide, "<who>", tmp_path)
    with pytest.raises(ValueError, match="no embedding of a token"):
        identity_tokens.load_token(other, "<who>", tmp_path / "sd")


def test_diffusers_reads_the_file_of_a_token(pipeline: Any, tmp_path: Path) -> None:
    identity_tokens.added_token(pipeline, "<who>", "a")
    file = identity_tokens.save_token(pipeline, "<who>", tmp_path)
    other = load_pipeline(str(tmp_path / "sd"))
    other.load_textual_inversion(str(tmp_path), weight_name=file.name, token="<who>")
    found = identity_tokens.token_embedding(other.tokenizer, other.text_encoder, "<who>")
    expected = identity_tokens.token_embedding(pipeline.tokenizer, pipeline.text_encoder, "<who>")
    torch.testing.assert_close(found, expected)


def test_a_pipeline_of_two_text_encoders_gets_the_token_in_both(
    tiny_models: ModuleType, tmp_path: Path
) -> None:
    pipeline = load_pipeline(str(tiny_models.stable_diffusion_xl(tmp_path / "xl")))
    assert len(identity_tokens.added_token(pipeline, "<who>", "a")) == 2
    identity_tokens.save_token(pipeline, "<who>", tmp_path)
    identity_tokens.load_token(pipeline, "<who>", tmp_path)


def test_words_are_cut_from_the_description_until_the_prompt_fits(tokenizer: Any) -> None:
    template = "a sks person wearing {description}"
    whole = ("red hoodie, blue trousers, white boots, " * 4).split()
    left, cut = identity_tokens.fitted(tokenizer, template, whole)
    assert cut > 0
    assert left.split() == " ".join(whole[: len(whole) - cut]).rstrip(",").split()
    tokens = tokenizer(template.replace("{description}", left))["input_ids"]
    assert len(tokens) <= tokenizer.model_max_length
    assert tokenizer.convert_tokens_to_ids("sks</w>") in tokens
    longer = " ".join(whole[: len(whole) - cut + 1])
    more = tokenizer(template.replace("{description}", longer))["input_ids"]
    assert len(more) > tokenizer.model_max_length
    short = ("red hoodie, blue trousers", 0)
    assert identity_tokens.fitted(tokenizer, template, whole[:4]) == short


def test_a_template_that_is_too_long_by_itself_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="more than the 32 tokens"):
        identity_tokens.fitted(tokenizer, "a person " * 20 + "{description}", ["red"])
