"""Image encoders of image-text models: open_clip's and transformers' CLIP, without the text side.

An encoder is built from a description in plain values, which its weights carry. So a package is
loaded where the model that it came from does not lie.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_reid.models.networks.facts import packed
from ray_reid.models.pretrained import clip_models, references

Description = Mapping[str, Any]
"""library, model (arguments of its constructor), mean, std and size of its input in pixels."""

OPEN_CLIP, TRANSFORMERS = "open_clip", "transformers"
CONFIGS = {"open_clip_config.json": OPEN_CLIP, "config.json": TRANSFORMERS}
# No weights from elsewhere, and one vector per image.
PLAIN = {"timm_model_pretrained": False, "output_tokens": False}
# A text side must be built with the image side; this one is thrown away.
NO_TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


class ImageEncoder(nn.Module):
    """Images (B, 3, H, W) in [0, 1] of any size to semantic features (B, D)."""

    description: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, description: Description) -> None:
        """Build the encoder without its weights."""
        super().__init__()
        build = {OPEN_CLIP: _open_clip_tower, TRANSFORMERS: _TransformersTower}
        self.tower: nn.Module = build[description["library"]](description["model"])
        self.size = tuple(description["size"])
        self.register_buffer("description", packed(dict(description)))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(description[name]).view(1, 3, 1, 1))
        with torch.inference_mode():
            self.width: int = self.eval()(torch.zeros(1, 3, *self.size)).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """The whole image, resized to what the encoder was trained on: nothing is cropped."""
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        features: Tensor = self.tower((images - self.mean) / self.std)
        return features


def load_encoder(reference: str) -> ImageEncoder:
    """Load `miniature:NAME`, a folder, a hub id, or `NAME/PRETRAINED` of open_clip.

    A folder is of the library whose configuration it holds. A hub id is of transformers, or with
    `hf-hub:` before it of open_clip.

    Raises:
        ValueError: If there is no such model, or it is neither library's.
    """
    with references.refusing("train.semantic.encoder", reference):
        if reference.startswith(references.HUB) or clip_models.split(reference) is not None:
            return _load_open_clip(reference)
        found = references.locate(reference)
        if Path(found).is_dir() and _library(Path(found)) == OPEN_CLIP:
            return _load_open_clip(reference)
        return _load_transformers(found)


def _library(folder: Path) -> str:
    for file, library in CONFIGS.items():
        if (folder / file).is_file():
            return library
    raise ValueError(f"the folder has none of {list(CONFIGS)}")


def _load_open_clip(reference: str) -> ImageEncoder:
    """A folder or a repository of open_clip, or a model of its own list."""
    import open_clip

    built, _, name = clip_models.load(reference)
    encoder = ImageEncoder(
        _described(open_clip.get_model_config(name), built.visual.preprocess_cfg)
    )
    encoder.tower.load_state_dict(built.visual.state_dict())
    return encoder


def _described(model: Mapping[str, Any], preprocess: Mapping[str, Any]) -> Description:
    import open_clip

    size = model["vision_cfg"].get("image_size", 224)
    return {
        "library": OPEN_CLIP,
        "model": {
            "embed_dim": model["embed_dim"],
            "vision_cfg": {**model["vision_cfg"], **PLAIN},
            "quick_gelu": model.get("quick_gelu", False),
        },
        "mean": list(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": list(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
        "size": [size, size] if isinstance(size, int) else list(size),
    }


def _open_clip_tower(model: Mapping[str, Any]) -> nn.Module:
    import open_clip

    tower: nn.Module = open_clip.CLIP(**model, text_cfg=NO_TEXT).visual
    return tower


class _TransformersTower(nn.Module):
    """CLIP's vision model: projected into the space of image and text where it has a projection."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig

        self.output = "image_embeds" if model["projected"] else "pooler_output"
        self.model: Any = _vision_class(model["projected"])(CLIPVisionConfig(**model["config"]))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = getattr(self.model(pixel_values=pixels), self.output)
        return features


def _vision_class(projected: bool) -> Any:
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection if projected else CLIPVisionModel


def _load_transformers(found: str) -> ImageEncoder:
    """A folder or a repository of transformers' CLIP, TinyCLIP's among them."""
    from transformers import AutoConfig, AutoImageProcessor, CLIPVisionConfig

    whole = AutoConfig.from_pretrained(found)
    if whole.model_type not in ("clip", "clip_vision_model"):
        raise ValueError(f"it is a {whole.model_type!r}, but must be a CLIP or its vision model")
    projected = (whole.architectures or ["CLIPModel"])[0] != "CLIPVisionModel"
    settings = CLIPVisionConfig.from_pretrained(found)
    processor = AutoImageProcessor.from_pretrained(found)
    built, loaded = _vision_class(projected).from_pretrained(
        found, weights_only=True, dtype=torch.float32, output_loading_info=True
    )
    if loaded["missing_keys"]:
        raise ValueError(f"it has no weights {sorted(loaded['missing_keys'])[:3]}")
    encoder = ImageEncoder(
        {
            "library": TRANSFORMERS,
            "model": {"projected": projected, "config": json.loads(settings.to_json_string())},
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "size": [settings.image_size] * 2,
        }
    )
    tower: Any = encoder.tower
    tower.model.load_state_dict(built.state_dict())
    return encoder
