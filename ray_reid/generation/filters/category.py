"""Keep images that show the category at all (the CLIP filter of Diffusion-ReID, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.generation.filters.marking import Verdict, made_rows, marked, pixels_of
from ray_reid.schema import Batch

OTHERS = ("a vehicle", "an animal", "a building", "an empty street")


class CategoryFilter:
    """Mark images in which an image-text model is not sure of the category.

    The confidence is the softmax of the model's scaled similarities to the prompt of the category
    and to those of other things.
    """

    ROLE = "image_text"

    def __init__(
        self,
        model: str,
        precision: str = "auto",
        category: str = "a person",
        others: Sequence[str] = OTHERS,
        threshold: float = 0.5,
    ) -> None:
        """Load the image-text model once per actor and embed the prompts.

        Args:
            model: Reference of the image-text model.
            precision: Of its weights.
            category: Prompt of what the images are to show.
            others: Prompts of what else they may show.
            threshold: Least confidence. The paper gives none: 0.5 asks that the category is
                likelier than all other prompts together.

        Raises:
            ValueError: If there is no other prompt, or the category is among them.
        """
        from ray_reid.models.pretrained.image_text import ImageText

        if not others or category in others:
            raise ValueError(
                f"filter category: {category!r} must be compared with other prompts, but others is "
                f"{list(others)}"
            )
        self.model, self.threshold = ImageText(model, precision), threshold
        self.prompts = (category, *others)
        self.texts = self.model.embed_texts(self.prompts)
        self.scale = self.model.scale

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Mark a batch."""
        rows = made_rows(batch)
        if not rows:
            return dict(batch)
        logits = self.scale * (self.model.embed_images(pixels_of(batch, rows)) @ self.texts.T)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        verdicts = []
        for row in shares:
            sure, best = float(row[0]), self.prompts[int(row.argmax())]
            reason = (
                f"category: {sure:.2f} sure of {self.prompts[0]!r}, below {self.threshold:g}; "
                f"likeliest is {best!r}"
            )
            verdicts.append(Verdict({"category": sure}, reason if sure < self.threshold else None))
        return marked(batch, rows, verdicts, "category")
