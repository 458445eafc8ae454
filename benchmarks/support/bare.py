"""Training as one writes it by hand: PIL and torchvision in a DataLoader, then plain PyTorch."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ray_reid import schema, storage
from ray_reid.models.networks import ReidNetwork
from ray_reid.models.networks.precision import autocast, autocast_dtype
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Train
from ray_reid.training import fit, loader
from ray_reid.training.optimizers import OPTIMIZERS
from support.turns import Step

Batches = Iterator[tuple[Tensor, Tensor]]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class JpegImages(Dataset[tuple[Tensor, int]]):
    """Encoded images in memory, decoded and augmented one by one."""

    def __init__(self, encoded: Sequence[bytes], labels: NDArray[Any], transform: Any) -> None:
        self.encoded, self.labels, self.transform = encoded, labels.tolist(), transform

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = Image.open(io.BytesIO(self.encoded[row])).convert("RGB")
        return self.transform(image), self.labels[row]

    def __len__(self) -> int:
        return len(self.encoded)


class Planned:
    """The batches of our plan, epoch after epoch: both sides train on the same images."""

    def __init__(self, recipe: Recipe, chosen: loader.TrainingLabels) -> None:
        self.recipe, self.chosen, self.epoch = recipe, chosen, 0

    def __iter__(self) -> Iterator[list[int]]:
        yield from fit.plan(self.recipe, self.chosen, self.epoch)[:, 0].tolist()
        self.epoch += 1


def images(recipe: Recipe, table: Path, transform: Any) -> tuple[JpegImages, loader.TrainingLabels]:
    """The images of a table, in the order of our labels."""
    chosen = loader.labels([table], recipe.train)
    columns = [schema.OBSERVATION_ID, schema.IMAGE]
    rows = storage.read(table, columns, storage.TRAINABLE).sort_by(schema.OBSERVATION_ID)
    return JpegImages(rows[schema.IMAGE].to_pylist(), chosen.labels, transform), chosen


def transforms(spec: Train, normalise: bool = False) -> Any:
    """The recipe's augmentation in torchvision's words, image by image."""
    augment, steps = spec.augment, [v2.Resize(spec.image_size)]
    if augment.pad:
        steps += [v2.Pad(augment.pad), v2.RandomCrop(spec.image_size)]
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.scale or augment.rotate or augment.translate:
        shift, zoom = (augment.translate,) * 2, (1 - augment.scale, 1 + augment.scale)
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(augment.rotate, shift, zoom, interpolation=bilinear))
    if augment.brightness or augment.contrast or augment.saturation or augment.hue:
        colours = augment.brightness, augment.contrast, augment.saturation, augment.hue
        steps.append(v2.ColorJitter(*colours))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if normalise:
        steps.append(v2.Normalize(MEAN, STD))
    if augment.erase:
        steps.append(v2.RandomErasing(augment.erase, scale=(0.02, 0.25)))
    return v2.Compose(steps)


def batches(recipe: Recipe, table: Path, processes: int, normalise: bool = False) -> Batches:
    """Augmented batches without end: images (B, 3, H, W) and labels (B,)."""
    found, chosen = images(recipe, table, transforms(recipe.train, normalise))
    loaded = DataLoader(
        found,
        batch_sampler=Planned(recipe, chosen),
        num_workers=processes,
        persistent_workers=processes > 0,
        pin_memory=torch.cuda.is_available(),
    )
    while True:
        yield from loaded


def network(spec: Train, num_classes: int, device: torch.device) -> nn.Module:
    """The same network, with its channels last and, where the recipe asks for it, compiled."""
    built = ReidNetwork(spec, num_classes).to(device).train()
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    built = built.to(memory_format=layout)
    return torch.compile(built) if spec.compile else built  # type: ignore[return-value]


def optimizer(spec: Train, of: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in of.parameters() if parameter.requires_grad]
    return OPTIMIZERS[spec.optimizer](
        trained, lr=spec.learning_rate, weight_decay=spec.weight_decay
    )


def loop(recipe: Recipe, table: Path, device: torch.device, processes: int) -> Step:
    """One batch of a training with cross-entropy and triplet loss."""
    spec, loaded = recipe.train, batches(recipe, table, processes)
    num_classes = len(loader.labels([table], spec).identities)
    built = network(spec, num_classes, device)
    update, dtype = optimizer(spec, built), autocast_dtype(spec.precision, device)
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=spec.loss.label_smoothing)
    euclidean = LpDistance(normalize_embeddings=False)
    triplet = TripletMarginLoss(margin=spec.loss.margin, distance=euclidean)
    miner = BatchHardMiner(distance=euclidean)

    def step() -> float:
        pixels, labels = next(loaded)
        pixels = pixels.to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(device, non_blocking=True)
        with autocast(dtype, device):
            features, logits = built(pixels)
        features = features.float()
        loss = cross_entropy(logits.float(), labels)
        loss = loss + triplet(features, labels, miner(features, labels))
        update.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        update.step()
        # Reading the loss waits for the device, as every loop that logs it does.
        return float(loss.detach())

    return step


def fixed(
    recipe: Recipe, pixels: Tensor, labels: Tensor, num_classes: int, device: torch.device
) -> Step:
    """Forward, cross-entropy, backward and optimiser on a batch that never leaves memory."""
    built = network(recipe.train, num_classes, device)
    update, dtype = optimizer(recipe.train, built), autocast_dtype(recipe.train.precision, device)

    def step() -> float:
        with autocast(dtype, device):
            _, logits = built(pixels)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        update.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        update.step()
        return float(loss.detach())

    return step
