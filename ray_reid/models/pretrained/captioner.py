"""Captioners of transformers: images to sentences (BLIP, BLIP-2 and their kin)."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ray_reid.images import Pixels
from ray_reid.models.pretrained import references


class Captioner:
    """Say what an image shows."""

    def __init__(self, reference: str, precision: str = "auto") -> None:
        # Here, because it takes seconds, and most commands never load such a model.
        from transformers import AutoModelForImageTextToText, AutoProcessor

        references.quiet()
        with references.refusing("models.captioner", reference):
            found = references.locate(reference)
            self.processor: Any = AutoProcessor.from_pretrained(found)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                found, dtype=references.dtype(precision), use_safetensors=True
            )
        self.model.eval().to(references.device())

    def caption(self, images: Sequence[Pixels], prefix: str = "", max_words: int = 30) -> list[str]:
        """Caption images by greedy decoding.

        Args:
            images: (H, W, 3) uint8 each.
            prefix: Text to go on from; it begins the caption.
            max_words: Most new tokens.
        """
        pictures = [Image.fromarray(image) for image in images]
        text = [prefix] * len(pictures) if prefix else None
        inputs = self.processor(images=pictures, text=text, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=max_words, do_sample=False)
        told = self.processor.batch_decode(tokens, skip_special_tokens=True)
        captions = [" ".join(caption.split()) for caption in told]
        # Some models repeat what they were given, others do not.
        return [c if c.startswith(prefix) else f"{prefix} {c}" for c in captions]
