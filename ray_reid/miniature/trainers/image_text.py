"""The miniature image-text model, in open_clip's format: a small ResNet and a small transformer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ray_reid.miniature.trainers.drawings import Drawings, to_tensor, vary
from ray_reid.miniature.trainers.steps import batches, minimise

NAME = "ray-reid-miniature"
BATCH = 64
STEPS = 2000
CONTEXT = 32
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    # open_clip's own tokenizer has 49,408 words, so a wide text tower would be all table.
    "text_cfg": {
        "context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic",
    "resize_mode": "squash",
}  # fmt: skip


def train(drawn: Drawings, seed: int, out: Path) -> None:
    """Train on varied showroom drawings with the contrastive loss (Radford et al., 2021).

    Batches repeat texts, so the target of an image is every equal text, not its own alone.
    """
    torch.manual_seed(seed)
    open_clip.factory._MODEL_CONFIGS[NAME] = MODEL
    model = open_clip.create_model(NAME)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    rng = torch.Generator().manual_seed(seed)
    chance = np.random.default_rng(seed)
    boxes = torch.from_numpy(drawn.boxes)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for rows in batches(len(drawn), BATCH, STEPS, seed):
            images = vary(to_tensor(drawn.images[rows.numpy()]), boxes[rows], rng)
            texts = [_text(drawn, int(row), chance) for row in rows]
            yield lambda images=images, texts=texts: _loss(model, images, tokenizer(texts), texts)  # type: ignore[misc]

    model.train()
    minimise("image_text", model.parameters(), losses(), STEPS, 2e-3, weight_decay=0.05)
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors")
    config: dict[str, Any] = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _text(drawn: Drawings, row: int, chance: np.random.Generator) -> str:
    """One of several ways to speak of a drawing, so that short prompts work as well as long."""
    colour, kind = drawn.colours[row], drawn.kinds[row]
    ways = [
        f"a {colour} vehicle", f"a {colour} {kind}", f"a {kind}", "a vehicle",
        str(drawn.captions[row]),
    ]  # fmt: skip
    return ways[int(chance.choice(5, p=[0.3, 0.25, 0.15, 0.05, 0.25]))]


def _loss(model: Any, images: Tensor, tokens: Tensor, texts: list[str]) -> Tensor:
    mean, std = (torch.tensor(PREPROCESS[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    image, text, scale = model((images - mean) / std, tokens)
    names = np.array(texts)
    same = torch.from_numpy(names[:, None] == names).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2.0
