"""Human parsers of transformers: which pixels are clothes, and of which part of the body."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from ray_reid.images import Pixels
from ray_reid.models.pretrained import references

log = logging.getLogger(__name__)

Parts = NDArray[np.uint8]
OTHER, UPPER, LOWER, FOOTWEAR, BODY = range(5)
# As the models that are trained on LIP, ATR, CIHP, Fashionpedia and ours call them; what is one
# garment for both halves counts as upper.
NAMES: Mapping[int, frozenset[str]] = {
    UPPER: frozenset({
        "upper-clothes", "upperclothes", "top", "shirt", "t-shirt", "blouse", "sweatshirt",
        "sweater", "hoodie", "cardigan", "coat", "jacket", "vest", "cape", "dress", "jumpsuits",
        "jumpsuit", "torso-clothes", "sleeve", "collar", "lapel", "hood", "neckline", "pocket",
    }),
    LOWER: frozenset({
        "lower-clothes", "pants", "trousers", "jeans", "shorts", "skirt", "tights", "stockings",
        "leggings", "leg-warmer",
    }),
    FOOTWEAR: frozenset({
        "shoes", "shoe", "left-shoe", "right-shoe", "socks", "sock", "boots", "footwear",
    }),
    BODY: frozenset({
        "hair", "face", "skin", "head", "neck", "arm", "arms", "left-arm", "right-arm", "leg",
        "legs", "left-leg", "right-leg", "hand", "hands", "left-hand", "right-hand", "torso-skin",
        "hat", "headband", "glasses", "sunglasses",
    }),
}  # fmt: skip
_WORN = {UPPER: "upper", LOWER: "lower", FOOTWEAR: "footwear"}


class Parser:
    """Tell clothes from the body of who wears them, and both from everything else."""

    def __init__(self, reference: str, precision: str = "auto") -> None:
        """Load a model of semantic segmentation.

        Raises:
            ValueError: If there is none, or none of its labels is clothes.
        """
        # Here, because it takes seconds, and most commands never load such a model.
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        references.quiet()
        with references.refusing("models.parser", reference):
            found = references.locate(reference)
            self.processor: Any = AutoImageProcessor.from_pretrained(found)
            self.model: Any = AutoModelForSemanticSegmentation.from_pretrained(
                found, dtype=references.dtype(precision), use_safetensors=True
            )
            names = {int(n): name for n, name in self.model.config.id2label.items()}
            self.part_of = parts_of(names)
        self.model.eval().to(references.device())

    def parse(self, images: Sequence[Pixels]) -> list[Parts]:
        """Label every pixel of (H, W, 3) uint8 images of any sizes.

        Returns:
            (H, W) uint8 each: OTHER, UPPER, LOWER, FOOTWEAR or BODY.
        """
        inputs = self.processor([Image.fromarray(image) for image in images], return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()
        found = []
        for one, image in zip(logits, images, strict=True):
            whole = F.interpolate(one[None], image.shape[:2], mode="bilinear", align_corners=False)
            found.append(self.part_of[whole[0].argmax(dim=0).cpu().numpy()])
        return found


def worn(parts: Parts) -> NDArray[np.bool_]:
    """True on clothes."""
    return np.isin(parts, list(_WORN))


def body(parts: Parts) -> NDArray[np.bool_]:
    """True on face, hair, skin and what is worn there: what is never painted over."""
    return parts == BODY


def parts_of(names: Mapping[int, str]) -> Parts:
    """The part of every label of a model, by its number; a label may list names with commas.

    A part that no label is for is warned of: its clothes are never found.

    Raises:
        ValueError: If no label is clothes.
    """
    part_of = np.full(max(names) + 1, OTHER, dtype=np.uint8)
    for number, name in names.items():
        plain = {one.strip().replace("_", "-").replace(" ", "-") for one in name.lower().split(",")}
        for part, known in NAMES.items():
            if plain & known:
                part_of[number] = part
    labels = [names[n] for n in sorted(names)]
    if not worn(part_of).any():
        raise ValueError(f"none of its labels is clothes: {labels}")
    missing = [name for part, name in _WORN.items() if part not in part_of]
    if missing:
        log.warning("parser: no label is %s, which is never painted: %s", missing, labels)
    return part_of
