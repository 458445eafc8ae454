"""The stages that dress people otherwise: parse what they wear, paint it over, keep the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import images, places, schema, storage
from ray_reid.generation.generators.settings import UNSAFE
from ray_reid.images import Pixels
from ray_reid.recipe.models import Models
from ray_reid.recipe.outfits import Outfits
from ray_reid.schema import Batch

NO_CLOTHES, ALL_CLOTHES, NO_IMAGE = "no_clothes", "all_clothes", "unreadable"
"""Begin the reasons why an image has no outfits."""
ROW, MASK = "row", "mask"
"""Columns of a plan and of the stream: number of the source, and where it is painted."""

_REAL = pc.field(schema.ORIGIN) == "real"
DRESSED: Mapping[str, pc.Expression] = {
    "train": storage.TRAINABLE & _REAL,
    "query": (pc.field(schema.SPLIT) == "query") & _REAL,
}
"""Rows of a table that may be dressed; a plan numbers them in the order of their ids."""


@dataclass(frozen=True)
class Settings:
    """How a pipeline paints; see `models.inpainting.inpaint`."""

    guidance_scale: float
    steps: int
    image_size: tuple[int, int]
    negative_prompt: str = ""


class Masks:
    """The mask of what a person wears, or why there is none to paint."""

    def __init__(self, model: str, precision: str, outfits: Outfits) -> None:
        """Load the human parser."""
        from ray_reid.models.pretrained.parser import Parser

        self.parser = Parser(model, precision)
        self.spec = outfits

    def __call__(self, pixels: Sequence[Pixels]) -> "list[NDArray[np.bool_] | str]":
        """(H, W) bool for each image, True on clothes, widened by the margin; or a reason."""
        from ray_reid.models.pretrained.parser import body, worn

        if not pixels:
            return []
        return [self._checked(worn(parts), body(parts)) for parts in self.parser.parse(pixels)]

    def _checked(self, worn: NDArray[np.bool_], body: NDArray[np.bool_]) -> NDArray[np.bool_] | str:
        share, spec = float(worn.mean()), self.spec
        if share < spec.min_mask:
            return f"{NO_CLOTHES}: {share:.1%} of the image, less than {spec.min_mask:.1%}"
        if share > spec.max_mask:
            return f"{ALL_CLOTHES}: {share:.1%} of the image, more than {spec.max_mask:.1%}"
        if spec.method == "image_to_image":
            return np.ones_like(worn)
        return widened(worn, spec.margin) & ~body


def widened(mask: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """A mask and all pixels within `margin` of it, in either direction."""
    from scipy.ndimage import maximum_filter

    wide: NDArray[np.bool_] = maximum_filter(mask, 2 * margin + 1) if margin else mask
    return wide


class Parse:
    """Add the source's `pixels` and the `mask` of its clothes to rows of a plan.

    A plan names the source of a row by `row`, its number in the table in the order of the ids; a
    row whose source cannot be dressed gets a `drop_reason`.
    """

    def __init__(self, table: str, rows: str, models: Models, outfits: Outfits) -> None:
        """Open the images of a table, and load the parser once per actor.

        Args:
            table: Folder of the table.
            rows: Which of its rows a plan numbers, one of `DRESSED`.
            models: Section of the recipe.
            outfits: Section of the recipe.
        """
        self.cache = storage.RowCache(table, places.node_cache(), DRESSED[rows])
        self.masks = Masks(models.parser, models.precision, outfits)

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Parse every source of the batch once, however many of its outfits are in it."""
        wanted = sorted({int(row) for row in batch[ROW]})
        found: dict[int, Pixels] = {}
        reasons: dict[int, str] = {}
        for row in wanted:
            try:
                found[row] = images.decode(self.cache.image(row))
            except ValueError as error:
                reasons[row] = f"{NO_IMAGE}: {error}"
        worn: dict[int, NDArray[np.bool_]] = {}
        for row, mask in zip(found, self.masks(list(found.values())), strict=True):
            if isinstance(mask, str):
                reasons[row] = mask
            else:
                worn[row] = mask
        size = len(batch[ROW])
        columns = {name: np.empty(size, dtype=object) for name in (schema.PIXELS, MASK)}
        reason = np.array(batch[schema.DROP_REASON], dtype=object)
        for place, row in enumerate(map(int, batch[ROW])):
            pixels = found.get(row, np.zeros((1, 1, 3), np.uint8))
            columns[schema.PIXELS][place] = images.pack(pixels)
            columns[MASK][place] = worn.get(row, np.zeros(pixels.shape[:2], np.bool_)).tobytes()
            reason[place] = reasons.get(row)
        rest = {name: values for name, values in batch.items() if name != ROW}
        return {**rest, **columns, schema.DROP_REASON: reason}


def mask_of(packed: bytes, pixels: Pixels) -> NDArray[np.bool_]:
    """The mask of a row, (H, W) as its pixels."""
    return np.frombuffer(packed, np.bool_).reshape(pixels.shape[:2])


class InpaintClothes:
    """Replace `pixels` by the same person in the clothes of the row's prompt."""

    def __init__(
        self,
        models: Models,
        outfits: Outfits,
        settings: Mapping[str, Any],
        discriminator: str | None = None,
        weight: float = 0.0,
    ) -> None:
        """Load the inpainting pipeline once per actor.

        Args:
            models: Section of the recipe.
            outfits: Section of the recipe.
            settings: Fields of `Settings`.
            discriminator: Folder of one that guides the pipeline, if there is one.
            weight: Of its guidance.
        """
        self.painter = Painter(models, outfits, settings)
        if discriminator is not None:
            from ray_reid.generation import guidance
            from ray_reid.models.pretrained import references

            found = guidance.load(places.place(discriminator)).to(references.device())
            guidance.guide(self.painter.pipeline, found, weight)

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Dress the rows that nothing has dropped; drop what the pipeline itself refuses."""
        rows = [row for row, reason in enumerate(batch[schema.DROP_REASON]) if reason is None]
        sources = [images.unpack(batch[schema.PIXELS][row]) for row in rows]
        made = self.painter(
            sources,
            [mask_of(batch[MASK][row], source) for row, source in zip(rows, sources, strict=True)],
            [batch[schema.PROMPT][row] for row in rows],
            [int(batch[schema.SEED][row]) for row in rows],
        )
        pixels, reason = (
            np.array(batch[name], dtype=object) for name in (schema.PIXELS, schema.DROP_REASON)
        )
        for row, image in zip(rows, made, strict=True):
            if image is None:
                reason[row] = UNSAFE
            else:
                pixels[row] = images.pack(image)
        return {**batch, schema.PIXELS: pixels, schema.DROP_REASON: reason}


class Painter:
    """An inpainting pipeline with the settings of a recipe."""

    def __init__(
        self,
        models: Models,
        outfits: Outfits,
        settings: Mapping[str, Any],
    ) -> None:
        """Load the pipeline; the arguments are those of `InpaintClothes`."""
        from ray_reid.models.pretrained import inpainting

        self.pipeline = inpainting.load_pipeline(models.inpainting, models.precision)
        self.settings = Settings(**settings)
        self.strength = outfits.strength if outfits.method == "image_to_image" else 1.0

    def __call__(
        self,
        sources: Sequence[Pixels],
        masks: Sequence[NDArray[np.bool_]],
        prompts: Sequence[str],
        seeds: Sequence[int],
    ) -> list[Pixels | None]:
        """Paint images of any sizes; see `models.inpainting.inpaint`."""
        from ray_reid.models.pretrained.inpainting import inpaint

        if not sources:
            return []
        return inpaint(
            self.pipeline,
            sources,
            masks,
            prompts,
            seeds,
            guidance_scale=self.settings.guidance_scale,
            steps=self.settings.steps,
            image_size=self.settings.image_size,
            negative_prompt=self.settings.negative_prompt,
            strength=self.strength,
        )


class ClothesChanger:
    """Parser and painter together: images in, the same people in other clothes out."""

    def __init__(self, models: Models, outfits: Outfits, settings: Mapping[str, Any]) -> None:
        """Load both models; the arguments are those of `InpaintClothes`."""
        self.masks = Masks(models.parser, models.precision, outfits)
        self.painter = Painter(models, outfits, settings)

    def change(
        self,
        pixels: Sequence[Pixels],
        prompts: Sequence[Sequence[str]],
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Pixels] | str]:
        """The variants of every image, one a prompt, or why it has none."""
        found = self.masks(pixels)
        jobs = [
            (image, mask, prompt, seed)
            for image, mask, own, numbers in zip(pixels, found, prompts, seeds, strict=True)
            if not isinstance(mask, str)
            for prompt, seed in zip(own, numbers, strict=True)
        ]
        made = iter(self.painter(*map(list, zip(*jobs, strict=True))) if jobs else [])
        return [
            mask if isinstance(mask, str) else _whole([next(made) for _ in own])
            for mask, own in zip(found, prompts, strict=True)
        ]


def _whole(variants: Sequence[Pixels | None]) -> list[Pixels] | str:
    """All variants of an image, or why it has none."""
    made = [image for image in variants if image is not None]
    return made if len(made) == len(variants) else UNSAFE


def encode(batch: Batch) -> dict[str, NDArray[Any]]:
    """Turn the packed pixels into the lossless `image` of a whole record.

    What is not painted keeps its value to the bit; JPEG would change it.
    """
    encoded = np.empty(len(batch[schema.PIXELS]), dtype=object)
    encoded[:] = [images.encode_png(images.unpack(packed)) for packed in batch[schema.PIXELS]]
    filled = {**batch, schema.IMAGE: encoded}
    return {name: filled[name] for name in schema.OBSERVATION.names}
