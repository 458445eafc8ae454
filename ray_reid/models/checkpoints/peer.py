"""What a peer's checkpoint is: names of weights, and the network that they belong to."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Rules = Sequence[tuple[str, str | None]]
"""Pattern of a peer's name and ours in its place; null where no embedding needs the weight."""


@dataclass
class Converted:
    """A checkpoint in our names."""

    weights: dict[str, Tensor]
    """By our name; what no rule knows keeps the peer's."""
    names: dict[str, str]
    """The peer's name of each."""
    left_out: list[str]
    """The peer's names of what no embedding needs."""
    num_classes: int
    """One stands for all where there is no classifier."""
    train: dict[str, Any] = field(default_factory=dict)
    """What the weights say of the recipe's section `train`."""


@dataclass(frozen=True)
class Peer:
    """A toolkit whose checkpoints can be imported."""

    title: str
    train: Mapping[str, Any]
    """The recipe's section `train` of its published models."""
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    """Of its normalisation, for pixels in [0, 1]."""
    convert: Callable[[Mapping[str, Tensor]], Converted]
    """Weights without wrappers to our names; raises ValueError where they have no equal."""


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

CLASSIFIERS = (
    "classifier.weight",
    "classifier.classifier.weight",
    "heads.weight",
    "heads.classifier.weight",
)


def rename(weights: Mapping[str, Tensor], rules: Rules) -> Converted:
    """Name weights by the first rule that knows them; the first classifier counts identities."""
    classifier = next((weights[name] for name in CLASSIFIERS if name in weights), None)
    found = Converted({}, {}, [], 1 if classifier is None else len(classifier))
    for name, tensor in weights.items():
        new: str | None = name
        for pattern, ours in rules:
            match = re.fullmatch(pattern, name)
            if match is not None:
                new = ours if ours is None else match.expand(ours)
                break
        if new is None:
            found.left_out.append(name)
        else:
            found.weights[new] = tensor
            found.names[new] = name
    return found


def plain_neck(width: int) -> dict[str, Tensor]:
    """A neck that changes no direction, for peers whose embedding is the feature before theirs."""
    return {f"neck.{name}": value for name, value in nn.BatchNorm1d(width).state_dict().items()}


def plain_head(num_classes: int, width: int) -> dict[str, Tensor]:
    """A head for peers whose classifier sees other features than the embedding."""
    return {"head.weight": torch.zeros(num_classes, width)}
