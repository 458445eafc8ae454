"""Keep images whose colour is the one that was asked for (Vehicle-Diff, III-C, equation 1)."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ray_reid import schema
from ray_reid.generation.filters.marking import Verdict, made_rows, marked, pixels_of
from ray_reid.schema import Batch

COLOURS = (
    "white", "silver", "grey", "black", "red", "orange", "yellow", "green", "blue", "purple",
    "brown",
)  # fmt: skip


class ColourFilter:
    """Mark images whose nearest colour prompt is not that of the attribute `colour`."""

    ROLE = "image_text"

    def __init__(
        self,
        model: str,
        precision: str = "auto",
        colours: Sequence[str] = COLOURS,
        template: str = "a {colour} vehicle",
    ) -> None:
        """Load the image-text model once per actor and embed the prompts.

        Args:
            model: Reference of the image-text model.
            precision: Of its weights.
            colours: The list to choose from.
            template: Prompt of a colour.
        """
        from ray_reid.models.pretrained.image_text import ImageText

        self.model = ImageText(model, precision)
        self.colours = tuple(colours)
        self.texts = self.model.embed_texts([template.format(colour=name) for name in colours])

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Mark a batch.

        Raises:
            ValueError: If a row's colour is not in the list.
        """
        rows = made_rows(batch)
        if not rows:
            return dict(batch)
        asked = [(batch[schema.ATTRIBUTES][row] or {}).get("colour") for row in rows]
        unknown = [name for name in asked if name not in self.colours]
        if unknown:
            raise ValueError(
                f"filter colour: colour {unknown[0]!r} is not one of {list(self.colours)}; "
                "add it to the filter's params.colours"
            )
        similarity = self.model.embed_images(pixels_of(batch, rows)) @ self.texts.T
        verdicts = []
        for name, row in zip(asked, similarity, strict=True):
            best = int(row.argmax())
            own = float(row[self.colours.index(name)])
            seen = self.colours[best]
            reason = None if seen == name else f"colour: looks {seen}, the prompt says {name}"
            verdicts.append(Verdict({"colour": own, "best_colour": float(row[best])}, reason))
        return marked(batch, rows, verdicts, "colour")
