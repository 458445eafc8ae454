"""A model package: one directory with weights, recipe, label map, preprocessing and metrics.

model = ray_reid.load("runs/demo")
embeddings = model.embed(["query.jpg", "other.jpg"])
similarity = embeddings @ embeddings.T
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_reid import images, places
from ray_reid.models import views
from ray_reid.models.boxes import cut
from ray_reid.models.networks import ReidNetwork, side_codes
from ray_reid.models.networks.precision import autocast, autocast_dtype
from ray_reid.models.pretrained import references
from ray_reid.places import Place
from ray_reid.ranking import open_set
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import mlflow_store, tracking
from ray_reid.runtime.results import POINTER, RunState, check_layout

WEIGHTS, RECIPE, LABELS, PREPROCESSING, METRICS = (
    "model.safetensors",
    "recipe.yaml",
    "labels.json",
    "preprocessing.json",
    "metrics.json",
)

LAST = RECIPE
"""What of a package is written last, in the order of the names."""
BATCH_SIZE = 128
REGISTERED = "models:/"
"""Begins the URI of a model that is registered in MLflow."""
Names = Sequence[str | None]


class Model:
    """A trained network with its preprocessing."""

    def __init__(self, path: Place, device: str | None = None) -> None:
        """Load a package onto `device` (default: the GPU if there is one)."""
        self.path = path
        """Where it is; one of a bucket is copied to this machine once."""
        path = places.fetched(path)
        self.recipe = recipes.validate(recipes.read_yaml(path / RECIPE))
        self.identities: list[str] = json.loads((path / LABELS).read_text())
        metrics = path / METRICS
        self.metrics: dict[str, Any] = json.loads(metrics.read_text()) if metrics.exists() else {}
        thresholds = path / open_set.FILE
        self.thresholds = open_set.parse(thresholds.read_text()) if thresholds.exists() else None
        """What a similarity means: match, possible or unknown; null if never calibrated."""
        self.image_size = self.recipe.train.image_size
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        weights = load_file(path / WEIGHTS)
        self.network = ReidNetwork.restored(self.recipe.train, len(self.identities), weights)
        self.network.eval().to(self.device).to(memory_format=torch.channels_last)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras (`source:camera`) of which the network learned a vector."""
        return () if self.network.side is None else self.network.side.sides.cameras

    def embed(
        self,
        inputs: Sequence[Any],
        flip: bool | None = None,
        batch_size: int = BATCH_SIZE,
        scales: Sequence[float] | None = None,
        sides: tuple[Names, Names] | None = None,
    ) -> NDArray[np.float32]:
        """Embed images.

        Args:
            inputs: Encoded bytes, paths, PIL images, or arrays (H, W, 3) uint8 of RGB (NumPy or
                PyTorch); the same picture gives the same embedding by each way.
            flip: Average with the mirrored image; null does what the recipe says.
            batch_size: Images decoded and on the device at a time.
            scales: Average over the input resized by each of these; null does what the recipe says.
            sides: Cameras (`source:camera`) and views of the images, for a network that learned a
                vector of each; null, like a camera that it never saw, is unknown.

        Returns:
            (N, D) float32, unit norm: the dot product is the cosine similarity.

        Raises:
            ValueError: If an image cannot be decoded, one is given instead of a list, or the
                backbone takes one size of image and `scales` asks for others.
        """
        flip = self.recipe.embed.flip if flip is None else flip
        scales = self.recipe.embed.scales if scales is None else scales
        views.check_scales(self.recipe.train.backbone, scales)
        codes = None
        if sides is not None and self.network.side is not None:
            codes = torch.from_numpy(side_codes(*sides, self.network.side.sides)).to(self.device)

        def embeddings(pixels: Tensor, rows: slice) -> Tensor:
            side = None if codes is None else codes[rows]
            return views.average(lambda one: self.network.embed(one, side), pixels, flip, scales)

        return self._over(embeddings, inputs, batch_size)

    def embed_boxes(
        self,
        image: Any,
        boxes: Any,
        flip: bool | None = None,
        batch_size: int = BATCH_SIZE,
        scales: Sequence[float] | None = None,
        sides: tuple[Names, Names] | None = None,
    ) -> NDArray[np.float32]:
        """Embed the boxes of one image, such as the objects that a detector found in a frame.

        Args:
            image: One of what `embed` takes a list of.
            boxes: (N, 4) left, top, right and bottom in pixels, NumPy or PyTorch, or an object that
                has them as `xyxy`, such as `supervision.Detections`; clipped to the image.
            flip: As in `embed`.
            batch_size: Boxes on the device at a time.
            scales: As in `embed`.
            sides: Cameras and views of the boxes, as in `embed`.

        Returns:
            (N, D) float32, unit norm, in the order of the boxes.

        Raises:
            ValueError: If the image cannot be decoded, or a box holds no pixel of it.
        """
        return self.embed(cut(_decode(image), boxes), flip, batch_size, scales, sides)

    def probabilities(
        self, inputs: Sequence[Any], batch_size: int = BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Say which of the identities that the model was trained on an image shows.

        Args:
            inputs: As in `embed`; nothing is mirrored or scaled.
            batch_size: Images on the device at a time.

        Returns:
            (N, C) float32: softmax of the classifier, or of the sum of those of all branches, in
            the order of `identities`.

        Raises:
            ValueError: If an image cannot be decoded, or one is given instead of a list.
        """
        scale = self.recipe.train.loss.softmax_scale if self.network.cosines else 1.0

        def shares(pixels: Tensor, _: slice) -> Tensor:
            told = self.network(pixels)[1::2]
            # Last comes what the auxiliary classifier says, which only helps the training.
            told = told if self.network.auxiliary is None else told[:-1]
            logits = torch.stack([one.float() for one in told if one is not None]).sum(dim=0)
            return (scale * logits).softmax(dim=1)

        return self._over(shares, inputs, batch_size)

    def activation_maps(
        self, inputs: Sequence[Any], batch_size: int = BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Where the backbone responds: norms of the feature map, (N, h, w) scaled to [0, 1].

        Raises:
            ValueError: If an image cannot be decoded, or one is given instead of a list.
        """

        def maps(pixels: Tensor, _: slice) -> Tensor:
            norms = self.network.feature_map(pixels).float().norm(dim=1)
            low, high = norms.amin(dim=(1, 2), keepdim=True), norms.amax(dim=(1, 2), keepdim=True)
            return (norms - low) / (high - low).clamp(min=1e-9)

        return self._over(maps, inputs, batch_size)

    def _over(
        self, forward: Callable[[Tensor, slice], Tensor], inputs: Sequence[Any], batch_size: int
    ) -> NDArray[np.float32]:
        """Apply `forward` to the images of some rows at a time; none give its shape."""
        one = isinstance(inputs, (str, bytes, bytearray, Path, Image.Image))
        if one or getattr(inputs, "ndim", 1) in (2, 3):
            raise ValueError(f"give a list of images, not one {type(inputs).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        with torch.inference_mode(), self._autocast():
            starts = range(0, len(inputs), batch_size)
            parts = [slice(start, min(start + batch_size, len(inputs))) for start in starts]
            results = [forward(self._pixels(inputs[rows]), rows).cpu() for rows in parts]
            if not results:
                black = torch.zeros((0, 3, *self.image_size), device=self.device)
                results = [forward(black, slice(0, 0)).cpu()]
        joined: NDArray[np.float32] = torch.cat(results).numpy()
        return joined

    def _pixels(self, inputs: Sequence[Any]) -> Tensor:
        batch = np.stack([_decode(item, self.image_size) for item in inputs])
        tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).to(self.device)
        return tensor.float() / 255

    def _autocast(self) -> torch.autocast:
        dtype = autocast_dtype(self.recipe.train.precision, self.device)
        return autocast(dtype, self.device)


class Ensemble:
    """Several models as one: their embeddings side by side (VehicleNet; Zheng et al., 2020)."""

    def __init__(self, models: Sequence[Model]) -> None:
        """Join models, which may differ in all but the images that they take.

        Raises:
            ValueError: If there are none.
        """
        if not models:
            raise ValueError("an ensemble needs one model or more, and none are given")
        self.models = tuple(models)

    def embed(
        self,
        inputs: Sequence[Any],
        flip: bool | None = None,
        batch_size: int = BATCH_SIZE,
        scales: Sequence[float] | None = None,
        sides: tuple[Names, Names] | None = None,
    ) -> NDArray[np.float32]:
        """Embed images as `Model.embed` does, D being the sum of the models' widths."""
        found = [model.embed(inputs, flip, batch_size, scales, sides) for model in self.models]
        # Each part has unit norm.
        joined: NDArray[np.float32] = np.concatenate(found, axis=1) / np.float32(len(found) ** 0.5)
        return joined

    def embed_boxes(
        self,
        image: Any,
        boxes: Any,
        flip: bool | None = None,
        batch_size: int = BATCH_SIZE,
        scales: Sequence[float] | None = None,
        sides: tuple[Names, Names] | None = None,
    ) -> NDArray[np.float32]:
        """Embed boxes of one image as `Model.embed_boxes` does."""
        return self.embed(cut(_decode(image), boxes), flip, batch_size, scales, sides)


@overload
def load(path: str | Place, device: str | None = None) -> Model: ...


@overload
def load(path: list[Any] | tuple[Any, ...], device: str | None = None) -> Ensemble: ...


def load(
    path: str | Place | list[Any] | tuple[Any, ...], device: str | None = None
) -> Model | Ensemble:
    """Load a model package, or several as an ensemble.

    Args:
        path: A package or a run, on a disk or in a bucket (`s3://...`); a registered model
            `models:/NAME@ALIAS` (in the store of `MLFLOW_TRACKING_URI` or `runs/mlflow.db`); or
            `package:NAME/FOLDER` of an installed Python package. A list of these is an ensemble.
        device: Default: the GPU if there is one.

    Raises:
        ValueError: If there is no package.
    """
    if isinstance(path, (list, tuple)):
        return Ensemble([load(one, device) for one in path])
    return Model(_located(path), device)


def find(path: str | Place) -> Place:
    """The package at a place: itself, or that of a run.

    Args:
        path: A directory, or `package:NAME/FOLDER` of an installed Python package.

    Raises:
        ValueError: If there is none.
    """
    if str(path).startswith(references.PACKAGE):
        path = Path(references.resolve(str(path)))
        # A Python package may be named alone if it carries one file of weights.
        path = path.parent if path.name == WEIGHTS else path
    root = places.place(path)
    known = [root, root / "model"]
    if (root / POINTER).exists():
        state = RunState.read(root)
        known = [state.folder(job) / "model" for job in ("evaluate", "train") if job in state]
        if not known:
            raise ValueError(f"run {str(root)!r} has no model: its job 'train' is not done")
    elif isinstance(root, Path) and root.is_file():
        raise ValueError(
            f"{str(root)!r} is a file, not a model package; `ray-reid import` makes one of a "
            "checkpoint"
        )
    check_layout(root)
    for folder in known:
        if (folder / WEIGHTS).is_file():
            return folder
    raise ValueError(f"no model package at {str(root)!r}: none of {list(map(str, known))} is one")


def recipe_of(path: str | Place) -> Recipe:
    """The recipe of a package, without its weights; `load` says what may be given.

    Raises:
        ValueError: If there is no package.
    """
    return recipes.validate(recipes.read_yaml(places.fetched(_located(path) / RECIPE)))


def fetched(path: str | Place) -> Path:
    """The folder of a package on this machine; `load` says what may be given.

    Raises:
        ValueError: If there is no package.
    """
    return places.fetched(_located(path))


def _located(path: str | Place) -> Place:
    if str(path).startswith(REGISTERED):
        return tracking.download_model(str(path), mlflow_store.RUNS)
    return find(path)


def save(
    path: Place, recipe: Recipe, identities: Sequence[str], weights: Mapping[str, Tensor]
) -> None:
    """Write a package directory, replacing what a killed attempt left there."""
    preprocessing = {
        "size": list(recipe.train.image_size),
        "resize": "bilinear",
        "channels": "RGB",
        "scale": 1 / 255,
        "mean": _numbers(weights["mean"]),
        "std": _numbers(weights["std"]),
    }
    with places.written(path) as folder:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
        (folder / LABELS).write_text(json.dumps(list(identities)) + "\n")
        (folder / PREPROCESSING).write_text(json.dumps(preprocessing, indent=2) + "\n")
        (folder / RECIPE).write_text(recipes.dump(recipe))


def unsaved(
    recipe: Recipe, identities: Sequence[str], weights: Mapping[str, Tensor], device: str
) -> Model:
    """The model that a package of these weights would be: what is measured is what is served."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        save(path, recipe, identities, weights)
        return load(path, device)


def _numbers(values: Tensor) -> list[float]:
    """The values as a person would write them: 0.485, not 0.48500001430511475."""
    return [float(str(value)) for value in values.float().cpu().numpy().ravel()]


def _decode(item: Any, size: tuple[int, int] | None = None) -> images.Pixels:
    """The pixels of an image, at its own size or resized to height and width."""
    if isinstance(item, (str, Path)):
        return images.read(Path(item), size)
    return images.decode(item, size)
