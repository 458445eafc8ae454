"""Chat models of transformers that make one description of many (LLaMA and its kin)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from ray_reid.models.pretrained import references

PROMPT = (
    "Below are descriptions of the same clothes in several images, each behind the number of "
    "images that it was given for. Some are wrong. Answer with one line of the form upper | lower "
    "| footwear that describes the clothes best, and nothing else.\n{answers}"
)
MAX_ANSWERS = 50
"""Most different answers that are summarised, the most frequent ones: a context has an end."""
PREAMBLE = 40
"""Tokens left for what chat models say before the line that they are asked for."""


class Summariser:
    """Summarise the answers that were given for the images of one clothes id."""

    def __init__(self, reference: str, precision: str = "auto") -> None:
        """Load a causal language model."""
        # Here, because it takes seconds, and most commands never load such a model.
        from transformers import AutoModelForCausalLM, AutoTokenizer

        references.quiet()
        with references.refusing("models.summariser", reference):
            found = references.locate(reference)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(found)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                found, dtype=references.dtype(precision), use_safetensors=True
            )
        self.model.eval().to(references.device())

    def summarise(self, answers: Sequence[str], max_words: int) -> str:
        """What the model says to the answers, by greedy decoding; several lines perhaps."""
        text = asked(answers)
        chats = self.tokenizer.chat_template is not None
        if chats:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
        # A chat template writes the signs that begin a text itself.
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=not chats)
        inputs = inputs.to(self.model.device)
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs, max_new_tokens=max_words + PREAMBLE, do_sample=False
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        told: str = self.tokenizer.decode(new, skip_special_tokens=True)
        return told.strip()


def asked(answers: Sequence[str]) -> str:
    """The prompt: different answers, the most frequent first, with how often each was given."""
    counts = sorted(Counter(answers).items(), key=lambda one: (-one[1], one[0]))
    lines = [f"{count} x {answer}" for answer, count in counts[:MAX_ANSWERS]]
    return PROMPT.format(answers="\n".join(lines))
