"""Keep images on which a parser finds clothes where they were painted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.generation.filters.marking import Verdict, made_rows, marked, pixels_of
from ray_reid.generation.generators.clothes import MASK, mask_of
from ray_reid.schema import Batch


class ClothesFilter:
    """Mark images on which less than `threshold` of the painted pixels is clothes."""

    ROLE = "parser"

    def __init__(self, model: str, precision: str = "auto", threshold: float = 0.6) -> None:
        """Load the human parser once per actor.

        Args:
            model: Reference of the parser.
            precision: Of its weights.
            threshold: Least share of the pixels.
        """
        from ray_reid.models.pretrained.parser import Parser

        self.model, self.threshold = Parser(model, precision), threshold

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Mark a batch.

        Raises:
            ValueError: If nothing says where the images were painted.
        """
        from ray_reid.models.pretrained.parser import worn

        if MASK not in batch:
            raise ValueError(
                "filter clothes: these images have no mask of what was painted; the filter goes "
                "with the recipe 'dlcr'"
            )
        rows = made_rows(batch)
        if not rows:
            return dict(batch)
        found = pixels_of(batch, rows)
        verdicts = []
        for row, pixels, parts in zip(rows, found, self.model.parse(found), strict=True):
            share = float(np.mean(worn(parts[mask_of(batch[MASK][row], pixels)])))
            few = f"clothes: on {share:.2f} of what was painted, below {self.threshold:g}"
            verdicts.append(Verdict({"clothes": share}, few if share < self.threshold else None))
        return marked(batch, rows, verdicts, "clothes")
