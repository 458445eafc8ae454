"""Human parsers of transformers: which pixels are clothes, and of which part of the body."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from ray_reid.images import Pixels
from ray_reid.models import references

Parts = NDArray[np.uint8]
OTHER, UPPER, LOWER, FOOTWEAR = range(4)
# As the models that are trained on LIP, ATR, CIHP, PASCAL-Person-Part and ours call them; what is
# one garment for both halves counts as upper.
NAMES: Mapping[int, frozenset[str]] = {
    UPPER: frozenset({
        "upper-clothes", "upperclothes", "top", "shirt", "coat", "jacket", "dress", "jumpsuits",
        "jumpsuit", "vest", "sweater", "torso-clothes",
    }),
    LOWER: frozenset({"pants", "skirt", "lower-clothes", "trousers", "shorts", "jeans"}),
    FOOTWEAR: frozenset({
        "shoes", "shoe", "left-shoe", "right-shoe", "socks", "sock", "boots", "footwear",
    }),
}  # fmt: skip


class Parser:
    """Tell clothes from everything else: face, hair, skin and background are `OTHER`."""

    def __init__(self, reference: str, precision: str = "auto") -> None:
        """Load a model of semantic segmentation.

        Raises:
            ValueError: If there is none, or none of its labels is clothes.
        """
        references.quiet()
        found = references.resolve(reference)
        with references.refusing("parser", reference):
            references.knock(found)
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
            (H, W) uint8 each: OTHER, UPPER, LOWER or FOOTWEAR.
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


def parts_of(names: Mapping[int, str]) -> Parts:
    """The part of every label of a model, by its number.

    Raises:
        ValueError: If no label is clothes.
    """
    part_of = np.full(max(names) + 1, OTHER, dtype=np.uint8)
    for number, name in names.items():
        plain = name.strip().lower().replace("_", "-").replace(" ", "-")
        for part, known in NAMES.items():
            if plain in known:
                part_of[number] = part
    if not part_of.any():
        raise ValueError(f"none of its labels is clothes: {[names[n] for n in sorted(names)]}")
    return part_of
