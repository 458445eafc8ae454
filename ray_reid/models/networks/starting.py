"""Weights that a whole network begins with: those of a stage before, or of another training.

The backbone must fit weight by weight. Semantics, sides and the head are kept part by part where
all of their weights fit; a head of another kind begins anew. Classifiers are kept where they tell
the same identities apart.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ray_reid import places
from ray_reid.models.networks import initial_weights
from ray_reid.models.networks.network import ReidNetwork
from ray_reid.models.networks.sides import Sides
from ray_reid.places import Place
from ray_reid.recipe.train import HEAD, Train

BODY = ("backbone", "mean", "std", "semantic")
"""Parts that no change of the head touches; of another normalisation the old one is kept."""
CLASSIFIERS = ("head.", "auxiliary.head.", "branches.classifiers.")
"""How the names of the classifiers' weights begin."""


@dataclass(frozen=True)
class Start:
    """Weights of a network, and what made them."""

    spec: Train
    weights: Mapping[str, Tensor]
    identities: Sequence[str] = ()
    """Of the classifiers; empty gives these to nobody."""

    @property
    def num_classes(self) -> int:
        """Identities that the classifiers tell apart."""
        return next(
            len(tensor) for name, tensor in self.weights.items() if name.startswith(CLASSIFIERS)
        )


@dataclass(frozen=True)
class Begun:
    """What a network has taken of the weights that it began with: weights of each part by name."""

    kept: Mapping[str, int]
    left_out: Mapping[str, int]
    """Of what was given."""
    new: Mapping[str, int]
    """Of the network, with random weights."""


def begin(
    spec: Train, identities: Sequence[str], start: Start, sides: Sides | None = None
) -> tuple[ReidNetwork, Begun]:
    """Build a network that begins with given weights where they fit.

    Args:
        spec: The recipe's section.
        identities: That it is to tell apart.
        start: The weights.
        sides: Cameras and views of the training images, where none come with the weights.

    Returns:
        The network, and what it has taken.

    Raises:
        ValueError: If the backbone does not fit. The message continues a sentence that begins with
            the name of the weights.
    """
    same_head = all(getattr(spec, name) == getattr(start.spec, name) for name in HEAD)
    num_classes = start.num_classes if same_head else len(identities)
    network = ReidNetwork.shaped(spec, num_classes, start.weights, sides)
    own, given = _parts(network.state_dict()), _parts(start.weights)
    initial_weights.place(
        network.backbone, initial_weights.parted(start.weights).weights, spec.backbone
    )
    kept = [
        part
        for part in own
        if (part in BODY or same_head) and _shapes(own[part]) == _shapes(given.get(part, {}))
    ]
    found = {name: start.weights[name] for part in kept for name in own[part]}
    network.load_state_dict(found, strict=False)
    if network.branches is not None and "branches" not in kept:
        network.branches.begin_like(network.backbone)
    classifiers = {name for name in found if name.startswith(CLASSIFIERS)}
    if num_classes != len(identities) or list(start.identities) != list(identities):
        # Also of new ones, whose number was that of the given weights.
        network.replace_classifier(len(identities))
        found = {name: tensor for name, tensor in found.items() if name not in classifiers}
    every = network.state_dict()
    return network, Begun(
        _counts(found),
        _counts({name: one for name, one in start.weights.items() if name not in found}),
        _counts({name: one for name, one in every.items() if name not in found}),
    )


def save(start: Start, file: Place) -> None:
    """Write what `read` reads, whole or not at all; plain values and tensors only."""
    import torch

    values = {
        "weights": dict(start.weights),
        "train": json.dumps(start.spec.model_dump(mode="json")),
        "identities": list(start.identities),
    }
    with places.created(file) as sink:
        torch.save(values, sink)


def parse(values: Mapping[str, object]) -> Start:
    """Make of the values in a file of `save` what was saved."""
    spec = Train.model_validate_json(str(values["train"]))
    weights, identities = values["weights"], values["identities"]
    assert isinstance(weights, dict), "as `save` writes it"
    assert isinstance(identities, list), "as `save` writes it"
    return Start(spec, weights, identities)


def _parts(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Weights by the first name of each."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        found.setdefault(name.partition(".")[0], {})[name] = tensor
    return found


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _counts(weights: Mapping[str, Tensor]) -> dict[str, int]:
    return {part: len(inside) for part, inside in _parts(weights).items()}
