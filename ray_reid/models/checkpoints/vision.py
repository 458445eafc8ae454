"""Vision transformers of TransReID and CLIP-ReID: their class token is the embedding.

Both are tested on features before the neck, as their configurations say (`NECK_FEAT: before`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ray_reid.models.checkpoints.peer import HALF, Converted, Peer, plain_head, plain_neck, rename

BLOCK = r"backbone.blocks.\1"


def convert_transreid(weights: Mapping[str, Tensor]) -> Converted:
    """Convert the plain transformer (`vit_base.yml`), whose blocks are named as timm's.

    The jigsaw branches (`b1`, `b2`) and side information (`base.sie_embed`) have no place.
    """
    found = rename(
        weights,
        (
            (r"base\.fc\..+", None),
            (r"base\.(.+)", r"backbone.\1"),
            (r"(?:bottleneck|classifier)(?:_\d)?\..+", None),
        ),
    )
    width = _width(weights, "base.cls_token")
    found.weights |= plain_neck(width) | plain_head(found.num_classes, width)
    return found


def convert_clipreid(weights: Mapping[str, Tensor]) -> Converted:
    """Convert ViT-B-16: the embedding is the token beside its projection to the space of CLIP.

    Side information (`cv_embed`) and the ResNet of CLIP have no place.
    """
    block = r"image_encoder\.transformer\.resblocks\.(\d+)\."
    found = rename(
        weights,
        (
            (r"image_encoder\.class_embedding", "backbone.cls_token"),
            (r"image_encoder\.positional_embedding", "backbone.pos_embed"),
            (r"image_encoder\.conv1\.weight", "backbone.patch_embed.proj.weight"),
            (r"image_encoder\.ln_pre\.(.+)", r"backbone.norm_pre.\1"),
            (r"image_encoder\.ln_post\.(.+)", r"backbone.norm.\1"),
            (r"image_encoder\.proj", "project.weight"),
            (rf"{block}ln_(\d)\.(.+)", rf"{BLOCK}.norm\2.\3"),
            (rf"{block}attn\.in_proj_(.+)", rf"{BLOCK}.attn.qkv.\2"),
            (rf"{block}attn\.out_proj\.(.+)", rf"{BLOCK}.attn.proj.\2"),
            (rf"{block}mlp\.c_fc\.(.+)", rf"{BLOCK}.mlp.fc1.\2"),
            (rf"{block}mlp\.c_proj\.(.+)", rf"{BLOCK}.mlp.fc2.\2"),
            (r"(?:text_encoder|prompt_learner)\..+", None),
            (r"(?:bottleneck|classifier)(?:_proj)?\..+", None),
        ),
    )
    width = _width(weights, "image_encoder.class_embedding")
    ours = found.weights
    ours["backbone.cls_token"] = ours["backbone.cls_token"].reshape(1, 1, -1)
    if "backbone.pos_embed" in ours:
        ours["backbone.pos_embed"] = ours["backbone.pos_embed"].unsqueeze(0)
    if "project.weight" in ours:
        beside = ours["project.weight"].T
        ours["project.weight"] = torch.cat([torch.eye(width, dtype=beside.dtype), beside])
        width = found.train["embedding_dim"] = width + len(beside)
    found.weights |= plain_neck(width) | plain_head(found.num_classes, width)
    return found


def _width(weights: Mapping[str, Tensor], token: str) -> int:
    if token not in weights:
        raise ValueError(
            f"has no class token {token!r}, so it is not a vision transformer; no other network "
            "is read"
        )
    return weights[token].shape[-1]


TRANSREID = Peer(
    "TransReID",
    {"backbone": "vit_base_patch16_224", "image_size": (256, 128), "pooling": "token"},
    convert=convert_transreid,
    **HALF,
)
CLIPREID = Peer(
    "CLIP-ReID",
    {
        "backbone": "vit_base_patch16_clip_quickgelu_224",
        "image_size": (256, 128),
        "pooling": "token",
    },
    convert=convert_clipreid,
    **HALF,
)
