"""Object detectors: of transformers, or of ultralytics (AGPL-3.0, an optional package)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ray_reid.images import Pixels
from ray_reid.models.pretrained import references


@dataclass(frozen=True)
class Box:
    """A detected object; left and top inclusive, right and bottom exclusive, in pixels."""

    label: str
    confidence: float
    left: float
    top: float
    right: float
    bottom: float


class Detector:
    """Find objects in images; see `load`."""

    def labels(self) -> list[str]:
        """Names of all classes."""
        raise NotImplementedError

    def detect(self, images: Sequence[Pixels], threshold: float) -> list[list[Box]]:
        """Boxes of each (H, W, 3) uint8 image with at least this confidence, best first."""
        raise NotImplementedError


def load(reference: str, precision: str = "auto") -> Detector:
    """Load a detector of ultralytics (a `.pt` file, a folder with `model.yaml`) or transformers.

    Raises:
        ValueError: If there is none, or the package ultralytics is needed and missing.
    """
    references.quiet()
    with references.refusing("models.detector", reference):
        found = references.locate(reference)
        if found.endswith(".pt") or (Path(found) / "model.yaml").is_file():
            return _Yolo(found)
        return _Transformers(found, references.dtype(precision))


class _Transformers(Detector):
    def __init__(self, found: str, dtype: torch.dtype) -> None:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        self._processor: Any = AutoImageProcessor.from_pretrained(found)
        self._model: Any = AutoModelForObjectDetection.from_pretrained(
            found, dtype=dtype, use_safetensors=True
        )
        self._model.eval().to(references.device())

    def labels(self) -> list[str]:
        return [str(name) for name in self._model.config.id2label.values()]

    def detect(self, images: Sequence[Pixels], threshold: float) -> list[list[Box]]:
        inputs = self._processor([Image.fromarray(image) for image in images], return_tensors="pt")
        with torch.inference_mode():
            raw = self._model(**inputs.to(self._model.device, self._model.dtype))
        sizes = [image.shape[:2] for image in images]
        found = self._processor.post_process_object_detection(
            raw, threshold=threshold, target_sizes=sizes
        )
        names = self._model.config.id2label
        return [
            _sorted(
                Box(str(names[int(label)]), float(score), *(float(edge) for edge in box))
                for score, label, box in zip(
                    one["scores"], one["labels"], one["boxes"], strict=True
                )
            )
            for one in found
        ]


class _Yolo(Detector):
    def __init__(self, found: str) -> None:
        quiet_ultralytics()
        from ultralytics import YOLO

        folder = Path(found)
        self._image_size: int | None = None
        if folder.is_dir():
            from safetensors.torch import load_file

            self._model = YOLO(str(folder / "model.yaml"), task="detect")
            self._model.model.load_state_dict(load_file(folder / "model.safetensors"))
            described = json.loads((folder / "config.json").read_text())
            self._image_size = described["image_size"]
            self._model.model.names = dict(enumerate(described["names"]))
        else:
            self._model = YOLO(found)

    def labels(self) -> list[str]:
        return list(self._model.model.names.values())

    def detect(self, images: Sequence[Pixels], threshold: float) -> list[list[Box]]:
        # Its arrays are BGR, as OpenCV reads them.
        mirrored = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        size = {} if self._image_size is None else {"imgsz": self._image_size}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = self._model.predict(mirrored, conf=threshold, verbose=False, device=device, **size)
        return [
            _sorted(
                Box(one.names[int(label)], float(score), *(float(edge) for edge in box))
                for label, score, box in zip(
                    one.boxes.cls, one.boxes.conf, one.boxes.xyxy, strict=True
                )
            )
            for one in found
        ]


def quiet_ultralytics() -> None:
    """Keep ultralytics to itself: no network, no trackers that it finds, no installing.

    Raises:
        ValueError: If the package is missing.
    """
    import os

    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
    # Its own way of opening images asks for a package where a file is corrupt.
    opens = Image.open
    try:
        from ultralytics import settings
        from ultralytics.utils import patches  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "the package ultralytics (AGPL-3.0) is not installed; install the extra "
            "ray-reid[ultralytics], or give a transformers detector"
        ) from error
    Image.open = opens
    settings.update(sync=False, mlflow=False, raytune=False, clearml=False, comet=False, dvc=False)


def _sorted(boxes: Any) -> list[Box]:
    return sorted(boxes, key=lambda box: -box.confidence)
