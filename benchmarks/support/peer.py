"""A step of torchreid (KaiyangZhou/deep-person-reid), its own where it is installed.

Its engine trains in float32, channels first, with Adam, a smoothed cross-entropy on the pooled
features and a batch-hard triplet loss on them.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ray_reid.recipe.recipe import Recipe
from ray_reid.training import loader
from support import bare
from support.turns import Step

LEARNING_RATE = 3e-4


def step(recipe: Recipe, table: Path, device: torch.device, processes: int) -> tuple[str, Step]:
    """What is measured, and one batch of it; its images come from a DataLoader, as torchreid's."""
    loaded = bare.batches(recipe, table, processes, normalise=True)
    classes = len(loader.labels([table], recipe.train).identities)
    if importlib.util.find_spec("torchreid"):
        return "torchreid", _engine(recipe, loaded, classes, device)
    return "torchreid's step, reproduced", _reproduced(recipe, loaded, classes, device)


def _engine(recipe: Recipe, loaded: bare.Batches, classes: int, device: torch.device) -> Step:
    torchreid: Any = importlib.import_module("torchreid")
    use_gpu = device.type == "cuda"
    network = torchreid.models.build_model(
        recipe.train.backbone, classes, loss="triplet", pretrained=False, use_gpu=use_gpu
    ).to(device)
    optimizer = torchreid.optim.build_optimizer(network, optim="adam", lr=LEARNING_RATE)
    # All that the engine asks of its data manager when it is given batches.
    data = SimpleNamespace(train_loader=None, test_loader=None, num_train_pids=classes)
    engine = torchreid.engine.ImageTripletEngine(data, network, optimizer, use_gpu=use_gpu)
    engine.set_model_mode("train")

    def one() -> object:
        pixels, labels = next(loaded)
        return engine.forward_backward({"img": pixels, "pid": labels})

    return one


def _reproduced(recipe: Recipe, loaded: bare.Batches, classes: int, device: torch.device) -> Step:
    backbone: Any = timm.create_model(recipe.train.backbone, num_classes=0).to(device).train()
    head = nn.Linear(backbone.num_features, classes).to(device)
    trained = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE, weight_decay=5e-4)
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=recipe.train.loss.label_smoothing)

    def one() -> float:
        pixels, labels = (part.to(device) for part in next(loaded))
        features = backbone(pixels)
        loss = cross_entropy(head(features), labels)
        loss = loss + _triplet(features, labels, recipe.train.loss.margin)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return float(loss.detach())

    return one


def _triplet(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    distances = torch.cdist(features, features)
    same = labels[:, None] == labels
    farthest = distances.masked_fill(~same, 0).amax(dim=1)
    nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
    return (farthest - nearest + margin).clamp(min=0).mean()
