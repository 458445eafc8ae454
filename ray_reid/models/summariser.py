"""Chat models of transformers that make one description of many (LLaMA and its kin)."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_reid.models import references

PROMPT = (
    "Below are descriptions of the same clothes in several images, each as upper | lower | "
    "footwear. Some are wrong. Answer with one line in the same form that describes the clothes "
    "best, and nothing else.\n{answers}"
)


class Summariser:
    """Summarise the answers that were given for the images of one clothes id."""

    def __init__(self, reference: str, precision: str = "auto") -> None:
        """Load a causal language model."""
        references.quiet()
        found = references.resolve(reference)
        with references.refusing("summariser", reference):
            references.knock(found)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(found)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                found, dtype=references.dtype(precision), use_safetensors=True
            )
        self.model.eval().to(references.device())

    def summarise(self, answers: Sequence[str], max_words: int) -> str:
        """The first line of what the model says to the answers, by greedy decoding."""
        text = PROMPT.format(answers="\n".join(answers))
        if self.tokenizer.chat_template is not None:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
        inputs = self.tokenizer(text, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=max_words, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        told = self.tokenizer.decode(new, skip_special_tokens=True).strip()
        return " ".join(told.splitlines()[0].split()) if told else ""
