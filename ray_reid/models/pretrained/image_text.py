"""Image-text models of open_clip: images and sentences in one space."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from ray_reid.images import Pixels
from ray_reid.models.pretrained import clip_models, references


class ImageText:
    """Embed images and texts; their dot product is the cosine similarity."""

    def __init__(self, reference: str, precision: str = "auto") -> None:
        """Load `miniature:NAME`, a folder, a hub id, or `NAME/PRETRAINED` of open_clip."""
        from open_clip import get_tokenizer

        self.model: Any
        with references.refusing("models.image_text", reference):
            self.model, self.preprocess, name = clip_models.load(reference)
            self.tokenizer = get_tokenizer(name)
        self.model.eval().to(references.device(), references.dtype(precision))

    @property
    def scale(self) -> float:
        """What the model multiplies cosines with before a softmax over texts."""
        return float(self.model.logit_scale.detach().exp())

    def embed_images(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Embed (H, W, 3) uint8 images: (N, D) float32, unit norm."""
        parameter = next(self.model.parameters())
        pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in images])
        with torch.inference_mode():
            found = self.model.encode_image(pixels.to(parameter.device, parameter.dtype))
        return _unit(found)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed sentences: (N, D) float32, unit norm."""
        parameter = next(self.model.parameters())
        with torch.inference_mode():
            found = self.model.encode_text(self.tokenizer(list(texts)).to(parameter.device))
        return _unit(found)


def _unit(found: torch.Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = F.normalize(found.float(), dim=1).cpu().numpy()
    return unit
