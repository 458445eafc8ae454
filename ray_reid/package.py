"""A model package: one directory with weights, recipe, label map, preprocessing and metrics.

model = ray_reid.load("runs/demo")
embeddings = model.embed(["query.jpg", "other.jpg"])
similarity = embeddings @ embeddings.T
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_reid import config, images, tracking
from ray_reid.config import Recipe
from ray_reid.networks import ReidNetwork
from ray_reid.networks.bnneck import MEAN, STD
from ray_reid.networks.precision import use_bf16

WEIGHTS, RECIPE, LABELS, PREPROCESSING, METRICS = (
    "model.safetensors",
    "recipe.yaml",
    "labels.json",
    "preprocessing.json",
    "metrics.json",
)


class Model:
    """A trained network with its preprocessing."""

    def __init__(self, path: Path, device: str | None = None) -> None:
        """Load a package directory onto `device` (default: the GPU if there is one)."""
        self.path = path
        self.recipe = config.validate(config.read_yaml(path / RECIPE))
        self.identities: list[str] = json.loads((path / LABELS).read_text())
        metrics = path / METRICS
        self.metrics: dict[str, Any] = json.loads(metrics.read_text()) if metrics.exists() else {}
        self.image_size = self.recipe.train.image_size
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # The weights are in the package: nothing is to be fetched again.
        spec = self.recipe.train.model_copy(update={"pretrained": False})
        self.network = ReidNetwork(spec, len(self.identities))
        self.network.load_state_dict(load_file(path / WEIGHTS))
        self.network.eval().to(self.device).to(memory_format=torch.channels_last)

    def embed(self, inputs: Sequence[Any], flip: bool | None = None) -> NDArray[np.float32]:
        """Embed images.

        Args:
            inputs: Encoded bytes, paths or PIL images.
            flip: Average with the mirrored image; null does what the recipe says.

        Returns:
            (N, D) float32, unit norm: the dot product is the cosine similarity.

        Raises:
            ValueError: If an image cannot be decoded.
        """
        flip = self.recipe.embed.flip if flip is None else flip
        pixels = self._pixels(inputs)
        with torch.inference_mode(), self._autocast():
            embeddings = self.network.embed(pixels)
            if flip:
                embeddings = embeddings + self.network.embed(pixels.flip(3))
            embeddings = torch.nn.functional.normalize(embeddings.float(), dim=1)
        result: NDArray[np.float32] = embeddings.cpu().numpy()
        return result

    def activation_maps(self, inputs: Sequence[Any]) -> NDArray[np.float32]:
        """Where the backbone responds: norms of the feature map, (N, h, w) scaled to [0, 1]."""
        with torch.inference_mode(), self._autocast():
            maps = self.network.feature_map(self._pixels(inputs)).float().norm(dim=1)
        low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
        result: NDArray[np.float32] = ((maps - low) / (high - low).clamp(min=1e-9)).cpu().numpy()
        return result

    def _pixels(self, inputs: Sequence[Any]) -> Tensor:
        batch = np.stack([_decode(item, self.image_size) for item in inputs])
        tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).to(self.device)
        return tensor.float() / 255

    def _autocast(self) -> torch.autocast:
        bf16 = use_bf16(self.recipe.train.precision, self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)


def load(path: str | Path, device: str | None = None) -> Model:
    """Load a model package.

    Args:
        path: A package directory, a run directory, or a registered model `models:/NAME@ALIAS`
            (in the store of `MLFLOW_TRACKING_URI` or `runs/mlflow.db`).

    Raises:
        ValueError: If there is no package.
    """
    if str(path).startswith("models:/"):
        return Model(tracking.download_model(str(path), Path("runs")), device)
    root = Path(path)
    places = [root, root / "evaluate" / "model", root / "train" / "model", root / "model"]
    for place in places:
        if (place / WEIGHTS).is_file():
            return Model(place, device)
    raise ValueError(
        f"no model package at {str(root)!r}: none of {[str(p) for p in places]} is one"
    )


def save(
    path: Path, recipe: Recipe, identities: Sequence[str], weights: Mapping[str, Tensor]
) -> None:
    """Write a package directory, replacing what a killed attempt left there."""
    path.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path / WEIGHTS)
    (path / RECIPE).write_text(config.dump(recipe))
    (path / LABELS).write_text(json.dumps(list(identities)) + "\n")
    preprocessing = {
        "size": list(recipe.train.image_size),
        "resize": "bilinear",
        "channels": "RGB",
        "scale": 1 / 255,
        "mean": MEAN,
        "std": STD,
    }
    (path / PREPROCESSING).write_text(json.dumps(preprocessing, indent=2) + "\n")


def _decode(item: Any, size: tuple[int, int]) -> images.Pixels:
    if isinstance(item, (str, Path)):
        return images.read(Path(item), size)
    if isinstance(item, Image.Image):
        resized = item.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized)
    return images.decode(item, size)
