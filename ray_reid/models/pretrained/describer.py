"""Describers of transformers: an image and a prompt to an answer (LLaVA and its kin, BLIP)."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ray_reid.images import Pixels
from ray_reid.models.pretrained import references


class Describer:
    """Answer one prompt about many images."""

    def __init__(self, reference: str, precision: str = "auto") -> None:
        """Load a model; one that chats is asked in its own chat template."""
        # Here, because it takes seconds, and most commands never load such a model.
        from transformers import AutoModelForImageTextToText, AutoProcessor

        references.quiet()
        with references.refusing("models.describer", reference):
            found = references.locate(reference)
            self.processor: Any = AutoProcessor.from_pretrained(found)
            tokenizer = self.processor.tokenizer
            # Images of several sizes are asked with prompts of several lengths, and an answer
            # begins right behind its prompt.
            tokenizer.padding_side = "left"
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                found, dtype=references.dtype(precision), use_safetensors=True
            )
        self.model.eval().to(references.device())

    def answer(self, images: Sequence[Pixels], prompt: str, max_words: int) -> list[str]:
        """Answer by greedy decoding.

        Args:
            images: (H, W, 3) uint8 each.
            prompt: What is asked of every image.
            max_words: Most new tokens.

        Returns:
            The answers without the prompt, in one line each.
        """
        text = self._asked(prompt)
        inputs = self.processor(
            images=[Image.fromarray(image) for image in images],
            text=[text] * len(images),
            padding=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=max_words, do_sample=False)
        asked = inputs["input_ids"]
        new = [
            told[_repeated(told, own) :] for told, own in zip(tokens, asked, strict=True)
        ]  # fmt: skip
        told = self.processor.batch_decode(new, skip_special_tokens=True)
        return [" ".join(answer.split()) for answer in told]

    def _asked(self, prompt: str) -> str:
        if getattr(self.processor, "chat_template", None) is None:
            return prompt
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text


def _repeated(told: torch.Tensor, asked: torch.Tensor) -> int:
    """Tokens of the prompt that an answer begins with: decoders repeat it, others do not.

    BLIP puts a sign of its own in the first place and leaves the last one out.
    """
    length = min(len(told), len(asked))
    same = told[:length] == asked[:length]
    same[:1] = True
    count = int(same.long().cumprod(0).sum())
    return count if count >= len(asked) - 1 else 0
