"""The token that stands for an identity in a prompt: one of the vocabulary, or a new one.

DreamBooth (Ruiz et al., CVPR 2023, section 3.1) takes rare tokens; Textual Inversion (Gal et al.,
ICLR 2023) adds a token whose embedding is trained. Diffusion-ReID calls it the identity
information representer (section 3.1), "a meaningless text".
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ray_reid.models.pretrained import references
from ray_reid.recipe.enhance import IdentityToken

NEW_TOKEN = "<identity>"
EMBEDDING = "learned_embeds.safetensors"
"""A file with the embedding of a new token, as `load_textual_inversion` of diffusers reads it."""
_CANDIDATE = re.compile(r"[a-z]{3,4}</w>")
_ENCODERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
SHOWN = 5


def load_tokenizer(reference: str) -> Any:
    """Load the tokenizer of a text-to-image pipeline, without the rest of it.

    Raises:
        ValueError: If there is no such model, or it has no tokenizer.
    """
    # Here, because it takes seconds.
    from transformers import CLIPTokenizer

    references.quiet()
    with references.refusing("models.text_to_image", reference):
        return CLIPTokenizer.from_pretrained(references.locate(reference), subfolder="tokenizer")


def identity_token(tokenizer: Any, spec: IdentityToken) -> str:
    """Choose the token of the identities and check that a tokenizer keeps it whole.

    A new token is added to the tokenizer; its embedding comes with `added_token`.

    Args:
        tokenizer: Of the text-to-image model.
        spec: Section `enhance.token` of the recipe.

    Raises:
        ValueError: If the token becomes several, a new one is not new, or no token has the rank.
    """
    if spec.kind == "new":
        text = spec.text or NEW_TOKEN
        known = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
        if known & {text, f"{text}</w>"}:
            raise ValueError(
                f"enhance.token.text {text!r} is in the tokenizer's vocabulary, so it is no new "
                "word; choose another, or set enhance.token.kind to 'rare'"
            )
        if text not in tokenizer.get_vocab():
            tokenizer.add_tokens([text])
    elif spec.text is not None:
        text = spec.text
    else:
        rare = rare_tokens(tokenizer)
        if spec.rank >= len(rare):
            raise ValueError(
                f"enhance.token.rank {spec.rank} is more than the {len(rare)} rare words of the "
                "tokenizer allow; lower it, or set enhance.token.kind to 'new'"
            )
        text = rare[spec.rank]
    pieces = tokenizer.tokenize(text)
    if len(pieces) != 1:
        raise ValueError(
            f"the identity token {text!r} is split by the tokenizer into {len(pieces)} tokens, "
            f"{pieces}; choose a word that stays whole, such as {rare_tokens(tokenizer)[:SHOWN]}, "
            "or set enhance.token.kind to 'new'"
        )
    return text


def rare_tokens(tokenizer: Any) -> list[str]:
    """Whole words of three or four letters, the rarest first.

    Byte-pair encoding numbers its tokens by how often they occur where it was learned, so a high
    number is a rare word. Words that the tokenizer would not give back as one token are left out.
    """
    numbers = tokenizer.get_vocab()
    found = sorted(
        (token for token in numbers if _CANDIDATE.fullmatch(token)),
        key=lambda token: -numbers[token],
    )
    words = [token.removesuffix("</w>") for token in found]
    return [word for word in words if len(tokenizer.tokenize(word)) == 1]


def added_token(pipeline: Any, token: str, initialise_from: str) -> list[torch.Tensor]:
    """Give a new token an embedding in every text encoder of a pipeline.

    The embedding begins as the mean of those of some words, also where the pipeline has the token
    already.

    Args:
        pipeline: Of diffusers, on its device; changed in place. Copy its weights after this.
        token: The new token.
        initialise_from: Words that the tokenizer knows.

    Returns:
        The embedding, (D,) of each text encoder, detached and cloned.

    Raises:
        ValueError: If there are no words to begin with.
    """
    if not initialise_from.strip():
        raise ValueError("a new token must be initialised from at least one word, not from ''")
    begun = []
    for tokenizer, encoder in text_encoders(pipeline):
        words = tokenizer(initialise_from, add_special_tokens=False)["input_ids"]
        if token not in tokenizer.get_vocab():
            tokenizer.add_tokens([token])
        if encoder.get_input_embeddings().num_embeddings < len(tokenizer):
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings().weight
        with torch.no_grad():
            table[tokenizer.convert_tokens_to_ids(token)] = table[words].mean(dim=0)
        begun.append(token_embedding(tokenizer, encoder, token))
    return begun


def token_embedding(tokenizer: Any, encoder: Any, token: str) -> torch.Tensor:
    """The embedding of a token as it is now, (D,)."""
    number = tokenizer.convert_tokens_to_ids(token)
    found: torch.Tensor = encoder.get_input_embeddings().weight[number].detach().clone()
    return found


def save_token(pipeline: Any, token: str, folder: Path) -> Path:
    """Write the embedding of a new token beside an adapter; `load_token` reads it.

    A pipeline with one text encoder writes what `load_textual_inversion` of diffusers reads.
    """
    from safetensors.torch import save_file

    pairs = list(text_encoders(pipeline))
    names = [token] if len(pairs) == 1 else ["clip_l", "clip_g"]
    state = {
        name: token_embedding(tokenizer, encoder, token)[None].cpu().contiguous()
        for name, (tokenizer, encoder) in zip(names, pairs, strict=True)
    }
    file = folder / EMBEDDING
    save_file(state, file)
    return file


def load_token(pipeline: Any, token: str, folder: Path) -> None:
    """Give a pipeline a new token with the embedding that `save_token` wrote.

    Raises:
        ValueError: If there is none, or it was made for another text encoder.
    """
    from safetensors.torch import load_file

    file = folder / EMBEDDING
    if not file.is_file():
        raise ValueError(f"no embedding of a token in {str(folder)!r}: it has no {EMBEDDING}")
    state = load_file(file)
    pairs = list(text_encoders(pipeline))
    if [len(one) for one in state.values()] != [1] * len(pairs):
        raise ValueError(
            f"{str(file)!r} holds {len(state)} embeddings, but the pipeline has {len(pairs)} text "
            "encoders; it was made for another model"
        )
    added_token(pipeline, token, "a")
    names = [next(iter(state))] if len(pairs) == 1 else ["clip_l", "clip_g"]
    for name, (tokenizer, encoder) in zip(names, pairs, strict=True):
        table = encoder.get_input_embeddings().weight
        if state[name].shape[1] != table.shape[1]:
            raise ValueError(
                f"{str(file)!r} has {state[name].shape[1]} dimensions, but the text encoder has "
                f"{table.shape[1]}; it was made for another model"
            )
        with torch.no_grad():
            table[tokenizer.convert_tokens_to_ids(token)] = state[name][0].to(table)


def text_encoders(pipeline: Any) -> Iterator[tuple[Any, Any]]:
    """Every tokenizer of a pipeline with its text encoder."""
    for tokenizer, encoder in _ENCODERS:
        pair = getattr(pipeline, tokenizer, None), getattr(pipeline, encoder, None)
        if None not in pair:
            yield pair


def num_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a prompt, with those of its begin and end."""
    return len(tokenizer(text, truncation=False)["input_ids"])


def fitted(tokenizer: Any, template: str, description: Sequence[str]) -> tuple[str, int]:
    """Cut words off the end of a description until a prompt fits the tokenizer's limit.

    Args:
        tokenizer: Of the text-to-image model; its `model_max_length` is the limit.
        template: The prompt; `{description}` stands for the description.
        description: Its words.

    Returns:
        The description that is left, and the number of words that were cut.

    Raises:
        ValueError: If the prompt does not fit without any description.
    """
    limit = tokenizer.model_max_length
    for kept in range(len(description), -1, -1):
        left = " ".join(description[:kept]).rstrip(" ,;")
        if num_tokens(tokenizer, template.replace("{description}", left)) <= limit:
            return left, len(description) - kept
    raise ValueError(
        f"the prompt {template.replace('{description}', '')!r} has more than the {limit} tokens "
        "that the tokenizer allows, with no description in it; shorten enhance.template"
    )
