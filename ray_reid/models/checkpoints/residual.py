"""Residual networks of fast-reid, torchreid and CAL (Simple-CCReID): our network, other names."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from ray_reid.models.checkpoints.peer import IMAGENET, Converted, Peer, plain_neck, rename


def convert_fastreid(weights: Mapping[str, Tensor]) -> Converted:
    """Convert BoT and SBS models: backbone, pooling, neck after an optional projection, head.

    Names of releases 1.x; `heads.classifier.weight` is what 0.x had, from memory. The first
    max-pooling has no padding. GeM with a fixed exponent leaves no weight to tell it by: such a
    model needs `--set train.pooling=gem`.
    """
    projects = weights.get("heads.bottleneck.0.weight", Tensor()).ndim == 4
    neck = 1 if projects else 0
    found = rename(
        weights,
        (
            (r"pixel_(mean|std)", r"\1"),
            (rf"heads\.bottleneck\.{neck}\.(.+)", r"neck.\1"),
            (r"heads\.bottleneck\.0\.weight", "project.weight"),
            (r"heads\.pool_layer\.p", "pool.p"),
            (r"heads\.(?:classifier\.)?weight", "head.weight"),
            (r"heads\.cls_layer\..+", None),
        ),
    )
    ours = found.weights
    if projects:
        ours["project.weight"] = ours["project.weight"].flatten(1)
        found.train["embedding_dim"] = len(ours["project.weight"])
    if "pool.p" in ours:
        ours["pool.p"] = ours["pool.p"].reshape(())
        found.train["pooling"] = "gem"
    for name in {"mean", "std"} & ours.keys():
        # Its pixels are bytes.
        ours[name] = ours[name].reshape(1, 3, 1, 1) / 255
    return found


def convert_torchreid(weights: Mapping[str, Tensor]) -> Converted:
    """Convert the models `resnet*`: no neck, the embedding is the pooled feature.

    The bias of the classifier has no place. `resnet50_fc512` ends in a ReLU and has none at all.
    """
    found = rename(
        weights,
        (
            (r"classifier\.weight", "head.weight"),
            (r"classifier\.bias", None),
            (r"((?:conv1|bn1|layer\d)\..+)", r"backbone.\1"),
        ),
    )
    width = _width(weights, "layer4.0.bn3.bias", "layer4.0.bn2.bias")
    found.weights |= plain_neck(width)
    return found


def convert_cal(weights: Mapping[str, Tensor]) -> Converted:
    """Convert image models: a torchvision ResNet-50 by position, pooled to maximum and mean.

    Maximum and mean are told by the width of the neck; of one width, the mean is assumed. The
    cosine classifier lies beside the model in the checkpoint; its rows are normalised here, so
    that our head ranks the identities as it did.
    """
    found = rename(
        weights,
        (
            (r"base\.0\.(.+)", r"backbone.conv1.\1"),
            (r"base\.1\.(.+)", r"backbone.bn1.\1"),
            *((rf"base\.{place + 3}\.(.+)", rf"backbone.layer{place}.\1") for place in range(1, 5)),
            (r"bn\.(.+)", r"neck.\1"),
            (r"classifier\.(?:classifier\.)?weight", "head.weight"),
            (r"classifier\.(?:classifier\.)?bias", None),
        ),
    )
    if "head.weight" in found.weights:
        found.weights["head.weight"] = F.normalize(found.weights["head.weight"], dim=1)
    width = _width(weights, "base.7.0.bn3.bias", "base.7.0.bn2.bias")
    if len(weights.get("bn.weight", ())) == 2 * width:
        found.train["pooling"] = "max_avg"
    return found


def _width(weights: Mapping[str, Tensor], *names: str) -> int:
    """Channels of the last stage.

    Raises:
        ValueError: If the weights have no such stage.
    """
    for name in names:
        if name in weights:
            return len(weights[name])
    raise ValueError(f"has no weight {names[0]!r}, so it is not a ResNet; no other network is read")


FASTREID = Peer(
    "fast-reid",
    {"backbone": "resnet50", "image_size": (256, 128), "last_stride": 1, "stem_pool": "ceil"},
    convert=convert_fastreid,
    **IMAGENET,
)
# torchreid's ResNet-50 keeps the last stride of 2.
TORCHREID = Peer(
    "torchreid",
    {"backbone": "resnet50", "image_size": (256, 128)},
    convert=convert_torchreid,
    **IMAGENET,
)
CAL = Peer(
    "CAL",
    {"backbone": "resnet50", "image_size": (384, 192), "last_stride": 1},
    convert=convert_cal,
    **IMAGENET,
)
