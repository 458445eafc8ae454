"""Which parameters of a network learn, and how fast: optimisers, learning rates, frozen parts."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ray_reid.models.networks import ReidNetwork
from ray_reid.recipe.train import Train

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def schedule(spec: Train, epochs: float) -> float:
    """Share of the learning rate after `epochs` (fractional): linear warm-up, then the schedule."""
    if epochs < spec.warmup_epochs:
        return 0.01 + 0.99 * epochs / spec.warmup_epochs
    if spec.schedule == "multistep":
        return float(spec.decay ** sum(epochs >= milestone for milestone in spec.milestones))
    length = max(spec.epochs - spec.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min((epochs - spec.warmup_epochs) / length, 1.0)))


def set_learning_rate(
    spec: Train, optimizer: torch.optim.Optimizer, epoch: int, epochs: float
) -> None:
    """Give every group of `build` its learning rate for the next batch.

    Args:
        spec: Section of the recipe.
        optimizer: What `build` returned.
        epoch: Number of the current epoch, from 0.
        epochs: Epochs done, with the done share of the current one.
    """
    rate = spec.learning_rate * schedule(spec, epochs)
    head_alone = epoch < spec.finetune.head_epochs
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if head_alone and group["encodes"] else rate * group["share"]


def drop_idle_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Forget the gradients of groups without a learning rate.

    They would count in the norm that is clipped, and gather as momentum.
    """
    for group in optimizer.param_groups:
        if group["lr"] == 0:
            for parameter in group["params"]:
                parameter.grad = None


def freeze(spec: Train, network: ReidNetwork) -> None:
    """Switch off the gradients of the parameters that never learn.

    Call it before the network is made distributed, which counts the parameters that learn.
    """
    if spec.finetune.norms == "fixed":
        for norm in _norms(network):
            norm.requires_grad_(False)
    if spec.labels == "clusters":
        network.classifiers.requires_grad_(False)
    if spec.backbone_rate == 0:
        for part in (network.backbone, *network.tails):
            part.requires_grad_(False)
    if network.semantic is not None and spec.semantic_rate == 0:
        network.semantic.encoder.requires_grad_(False)


def hold_statistics(spec: Train, network: ReidNetwork, epoch: int) -> None:
    """Let the batch norms of backbone and encoder keep their statistics in an epoch, or not.

    It holds until the network's `train` is called again.
    """
    held = spec.finetune.norms != "train" or epoch < spec.finetune.head_epochs
    for norm in _norms(network):
        norm.train(not held)


def build(spec: Train, network: ReidNetwork) -> torch.optim.Optimizer:
    """Make the optimiser of a network.

    Weight decay is on matrices and kernels only, unless `decay_biases` has it on biases and norms
    too. Each group has its `share` of the learning rate, and `encodes` is true of the backbone and
    the semantic encoder.

    Raises:
        ValueError: If `train.finetune` protects batch norms, or divides layers, that there are not.
    """
    if spec.finetune.norms != "train" and not any(True for _ in _norms(network)):
        raise ValueError(
            f"train.finetune.norms is {spec.finetune.norms!r}, but the network of "
            f"{spec.backbone!r} has no batch norms; set it to 'train'"
        )
    shares = _shares(spec, network)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            share = shares.get(id(parameter), 1.0)
            kind = id(parameter) in shares, share, parameter.ndim > 1 or spec.decay_biases
            groups.setdefault(kind, []).append(parameter)
    return of_groups(
        spec,
        [
            {
                "params": chosen,
                "weight_decay": spec.weight_decay if decayed else 0.0,
                "share": share,
                "encodes": encodes,
            }
            for (encodes, share, decayed), chosen in groups.items()
        ],
    )


def of_groups(spec: Train, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make the recipe's optimiser of groups of parameters."""
    own = {"momentum": spec.momentum} if spec.optimizer == "sgd" else {}
    return OPTIMIZERS[spec.optimizer](groups, lr=spec.learning_rate, **own)


def _shares(spec: Train, network: ReidNetwork) -> dict[int, float]:
    """Share of the learning rate by id, of each parameter of backbone and semantic encoder."""
    shares = {id(parameter): spec.backbone_rate for parameter in network.backbone.parameters()}
    decay = spec.finetune.layer_decay
    if decay < 1:
        layers = _layers(network.backbone, spec)
        for name, parameter in network.backbone.named_parameters():
            shares[id(parameter)] *= decay ** (max(layers.values()) - layers[name])
    # Copies of the last layers, which are not decayed.
    for tail in network.tails:
        shares |= {id(parameter): spec.backbone_rate for parameter in tail.parameters()}
    if network.semantic is not None:
        encoder = network.semantic.encoder.parameters()
        shares |= {id(parameter): spec.semantic_rate for parameter in encoder}
    return shares


def _layers(backbone: Any, spec: Train) -> dict[str, int]:
    """Number of the layer of each parameter, from the input on, as timm counts them."""
    layers: dict[str, int] = {}
    if hasattr(backbone, "group_matcher"):
        layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    if len(set(layers.values())) < 2:
        raise ValueError(
            f"train.finetune.layer_decay is {spec.finetune.layer_decay:g}, but timm divides the "
            f"backbone {spec.backbone!r} into no layers; set it to 1"
        )
    return layers


def _norms(network: ReidNetwork) -> Iterator[nn.Module]:
    """Batch norms of backbone and semantic encoder; those of the neck are always new."""
    encoders: list[nn.Module] = [network.backbone, *network.tails]
    if network.semantic is not None:
        encoders.append(network.semantic.encoder)
    for encoder in encoders:
        yield from (layer for layer in encoder.modules() if isinstance(layer, _BatchNorm))
