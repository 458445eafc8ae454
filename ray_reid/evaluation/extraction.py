"""Images to all the embeddings that `embed` of a recipe asks for (VehicleNet, section IV-C)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_reid import images, places, schema
from ray_reid.images import Pixels
from ray_reid.models import package as packages
from ray_reid.models.package import REGISTERED, Model, Names
from ray_reid.models.pretrained import references
from ray_reid.models.pretrained.detector import Box
from ray_reid.recipe.embed import Crop, Embed
from ray_reid.recipe.models import Models

Vectors = NDArray[np.float32]
PLACELESS = (REGISTERED, references.PACKAGE)
"""How references begin that mean the same in any working directory."""


@dataclass(frozen=True, eq=False)
class Extracted:
    """Embeddings of N images, each of unit norm."""

    embedding: Vectors
    """(N, D) of the model alone, as its package gives them."""
    test_embedding: Vectors | None = None
    """(N, E) with crops and further models, where there are any."""
    camera_embedding: Vectors | None = None
    """(N, C) of a camera classifier."""
    cropped: NDArray[np.bool_] | None = None
    """(N,) whether the detector found the object."""


class Extractor:
    """Embeds with a model, and beside it with all else that the recipe names."""

    def __init__(self, model: Model, spec: Embed, models: Models | None) -> None:
        """Load the further models onto the device of the model.

        Args:
            model: The trained one.
            spec: Section of the recipe.
            models: Section of the recipe; only crops need it.

        Raises:
            ValueError: If there is no package, or the detector knows none of the classes.
        """
        self.spec = spec
        device = str(model.device)
        self._models = [model, *(packages.load(path, device) for path in spec.ensemble)]
        self._camera = (
            None if spec.camera_model is None else packages.load(spec.camera_model, device)
        )
        self._finder = None
        if spec.crop is not None:
            assert models is not None, "crops need the detector"
            self._finder = Finder(spec.crop, models)

    def __call__(self, encoded: Sequence[Any], sides: tuple[Names, Names]) -> Extracted:
        """Embed images.

        Args:
            encoded: The bytes of each.
            sides: Their cameras (`source:camera`) and views.
        """
        parts = [self._embed(model, encoded, sides) for model in self._models]
        embedding, cropped = parts[0], None
        if self._finder is not None:
            cropped = np.zeros(len(encoded), dtype=bool)
            parts = [part.copy() for part in parts]
            for rows, crops in self._crops(encoded):
                cropped[rows] = True
                cameras, views = ([names[row] for row in rows] for names in sides)
                for model, part in zip(self._models, parts, strict=True):
                    found = self._embed(model, crops, (cameras, views))
                    part[rows] = _unit(np.add(part[rows], found))
        changed = cropped is not None or len(parts) > 1
        joined = np.concatenate(parts, axis=1) / np.float32(len(parts) ** 0.5)
        return Extracted(
            embedding,
            joined if changed else None,
            None if self._camera is None else self._camera.embed(encoded),
            cropped,
        )

    def _embed(self, model: Model, inputs: Sequence[Any], sides: tuple[Names, Names]) -> Vectors:
        # The recipe's own views, also of a model that was trained with others.
        return model.embed(inputs, flip=self.spec.flip, scales=self.spec.scales, sides=sides)

    def _crops(self, encoded: Sequence[Any]) -> Iterator[tuple[list[int], list[Image.Image]]]:
        """Rows in which an object is found, and the objects, some images at a time."""
        assert self._finder is not None, "asked for only where there is one"
        for start in range(0, len(encoded), packages.BATCH_SIZE):
            pixels = [images.decode(one) for one in encoded[start : start + packages.BATCH_SIZE]]
            found = self._finder(pixels)
            rows = [row for row, crop in enumerate(found) if crop is not None]
            if rows:
                crops = [Image.fromarray(crop) for crop in found if crop is not None]
                yield [start + row for row in rows], crops


class Finder:
    """Cuts out the object of an image, the largest box that is sure enough."""

    def __init__(self, spec: Crop, models: Models) -> None:
        """Load the detector.

        Raises:
            ValueError: If it knows none of the classes.
        """
        from ray_reid.models.pretrained import detector

        self.spec = spec
        self._detector = detector.load(models.detector, models.precision)
        known = self._detector.labels()
        if spec.classes and not set(spec.classes) & set(known):
            raise ValueError(
                f"embed.crop.classes: the detector knows none of {list(spec.classes)}; choose from "
                f"{known}"
            )

    def __call__(self, pixels: Sequence[Pixels]) -> list[Pixels | None]:
        """The object of each image; null where none is found."""
        found = self._detector.detect(pixels, self.spec.threshold)
        return [self._cut(*pair) for pair in zip(pixels, found, strict=True)]

    def _cut(self, pixels: Pixels, boxes: Sequence[Box]) -> Pixels | None:
        height, width = pixels.shape[:2]
        wanted = [box for box in boxes if not self.spec.classes or box.label in self.spec.classes]
        if not wanted:
            return None
        box = max(wanted, key=lambda box: (box.right - box.left) * (box.bottom - box.top))
        x, y = (self.spec.margin * side for side in (box.right - box.left, box.bottom - box.top))
        left, top = max(0, round(box.left - x)), max(0, round(box.top - y))
        right, bottom = min(width, round(box.right + x)), min(height, round(box.bottom + y))
        # A box outside the image, or thinner than a pixel, holds nothing.
        return pixels[top:bottom, left:right] if right > left and bottom > top else None


def check(spec: Embed) -> None:
    """Refuse packages that are not there or do not fit, before anything is trained.

    Raises:
        ValueError: Names the key of the recipe.
    """
    used = {f"embed.ensemble.{n}": path for n, path in enumerate(spec.ensemble)}
    if spec.camera_model is not None:
        used["embed.camera_model"] = spec.camera_model
    for key, path in used.items():
        try:
            target = packages.recipe_of(path).train.target
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        wanted = "camera" if key == "embed.camera_model" else "identity"
        if target != wanted:
            raise ValueError(
                f"{key} {path!r} was trained with train.target {target!r}, but {wanted!r} is needed"
            )


def fingerprint(spec: Embed, models: Models) -> str:
    """Hash of the models beside the trained one."""
    used = [*spec.ensemble, *([] if spec.camera_model is None else [spec.camera_model])]
    # An alias of a registered model moves: its content counts too, not its name.
    digests = [references.fingerprint(str(packages.fetched(path))) for path in used]
    detector = [] if spec.crop is None else [references.fingerprint(models.detector)]
    return schema.observation_id(*digests, *detector)


def placed(reference: str) -> str:
    """Return a reference of a package or run that holds in any working directory."""
    return reference if reference.startswith(PLACELESS) else str(places.place(reference).resolve())


def resolved(spec: Embed) -> Embed:
    """The same with paths that hold in any working directory, for workers elsewhere."""
    camera = None if spec.camera_model is None else placed(spec.camera_model)
    ensemble = tuple(map(placed, spec.ensemble))
    return spec.model_copy(update={"ensemble": ensemble, "camera_model": camera})


def _unit(rows: Vectors) -> Vectors:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Vectors = rows / np.maximum(norm, np.float32(1e-12))
    return unit
