"""The training loop in plain PyTorch: any device, any number of workers, resumable at any batch.

It knows nothing of Ray; `train.py` runs it on Ray Train and keeps its checkpoints. All
randomness of a batch is seeded by its place in the plan, so a resumed run is the same run: to
the last bit on a CPU, up to the order in which its kernels add on a GPU.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ray_reid import config, samplers
from ray_reid.augment import augment, mix
from ray_reid.config import Recipe
from ray_reid.loader import Labels, Rows
from ray_reid.losses import ReidLoss
from ray_reid.networks import ReidNetwork
from ray_reid.networks.precision import use_bf16
from ray_reid.sampling import P_X_K

log = logging.getLogger(__name__)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda groups, **params: torch.optim.SGD(groups, momentum=0.9, **params),
}


MEASURED = ("loss", "cross_entropy", "metric", "accuracy")


@dataclass
class Progress:
    """Where training stands: the next batch to do, and what was measured."""

    epoch: int = 0
    batch: int = 0
    sums: list[float] = field(default_factory=list)
    """Sums of `MEASURED` over the batches of the unfinished epoch and over all workers."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Means of each finished epoch."""


class Fit:
    """Network, optimiser and progress of one training."""

    def __init__(
        self,
        recipe: Recipe,
        rows: Rows,
        *,
        device: torch.device,
        worker: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        """Build everything from the recipe; `wrap` makes the network distributed."""
        self.recipe, self.spec, self.rows = recipe, recipe.train, rows
        self.device, self.worker, self.world_size = device, worker, world_size
        torch.manual_seed(recipe.seed)
        network = ReidNetwork(self.spec, len(rows.chosen.identities))
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.wrapped = wrap(self.network)
        self.optimizer = _optimizer(self.spec, self.network)
        self.loss = ReidLoss(self.spec.loss)
        self.bf16 = use_bf16(self.spec.precision, device)
        self.progress = Progress()
        self.batches_per_epoch = len(self.plan(0))

    @property
    def batches_done(self) -> int:
        """Batches since the beginning, over all epochs."""
        return self.progress.epoch * self.batches_per_epoch + self.progress.batch

    def plan(self, epoch: int) -> samplers.Plan:
        """The plan of an epoch, the same on every worker."""
        return plan(self.recipe, self.rows.chosen, epoch, self.world_size)

    def run(self) -> Iterator[Progress]:
        """Train to the end, yielding after every batch; the last batch of an epoch closes it."""
        self.wrapped.train()
        progress = self.progress
        # On the device: reading a value in every batch would make a GPU wait.
        self._sums = torch.tensor(progress.sums or [0.0] * len(MEASURED), dtype=torch.float64)
        self._sums = self._sums.to(self.device)
        while progress.epoch < self.spec.epochs:
            plan = self.plan(progress.epoch)
            for images, labels in self.rows.batches(plan, self.worker, progress.batch):
                self._sums += self._step(images, labels)
                progress.batch += 1
                if progress.batch == len(plan):
                    self._close_epoch()
                yield progress

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs: tensors and plain values only."""
        self.progress.sums = self._sums.tolist() if self.progress.batch else []
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
            "precision": "bf16" if self.bf16 else "fp32",
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        # Another node may have other hardware; the training goes on as it began.
        self.bf16 = state["precision"] == "bf16"

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch; returns `MEASURED` as float64, averaged over the workers."""
        progress = self.progress
        place = (self.recipe.seed, progress.epoch, progress.batch, self.worker)
        torch.manual_seed(mix(place))
        self._set_learning_rate()
        images = images.to(self.device, non_blocking=True).float() / 255
        images = augment(images, self.spec.augment, place)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features, logits, *auxiliary = self.wrapped(images)
        losses = self.loss(features, logits, labels, auxiliary)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self.optimizer.step()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        found = {**losses, "accuracy": accuracy}
        values = torch.stack([found[name].detach() for name in MEASURED]).double()
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values / self.world_size

    def _set_learning_rate(self) -> None:
        epochs = self.batches_done / self.batches_per_epoch
        rate = self.spec.learning_rate * schedule(self.spec, epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _close_epoch(self) -> None:
        progress = self.progress
        totals = dict(zip(MEASURED, self._sums.tolist(), strict=True))
        means = {name: total / progress.batch for name, total in totals.items()}
        rate = self.optimizer.param_groups[0]["lr"]
        if not math.isfinite(means["loss"]):
            raise ValueError(
                f"the training diverged in epoch {progress.epoch}: its mean loss is "
                f"{means['loss']} at learning rate {rate:.3g}; lower train.learning_rate"
            )
        progress.history.append({"epoch": progress.epoch, **means, "learning_rate": rate})
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, []
        self._sums.zero_()


def plan(recipe: Recipe, rows: Labels, epoch: int, world_size: int = 1) -> samplers.Plan:
    """The batches of an epoch, as `train.sampler` and `train.mixing` make them of the rows.

    Raises:
        ValueError: If the rows cannot fill a batch, or the workers cannot share it.
    """
    spec = recipe.train
    shared: dict[str, Any] = {
        "epoch": epoch,
        "seed": recipe.seed,
        "world_size": world_size,
        "repeats": spec.repeats,
        "num_batches": spec.batches_per_epoch,
    }
    if spec.sampler.kind in P_X_K:
        shared["num_identities"] = spec.sampler.num_identities
        shared["num_instances"] = spec.sampler.num_instances
    else:
        shared["batch_size"] = spec.sampler.batch_size
    return PLANS[spec.sampler.kind](spec, rows, shared)


def _identity(spec: config.Train, rows: Labels, shared: dict[str, Any]) -> samplers.Plan:
    if spec.mixing == "balanced":
        return samplers.balanced(rows.labels, rows.synthetic, **shared)
    return samplers.identity_balanced(rows.labels, **shared)


def _naive(spec: config.Train, rows: Labels, shared: dict[str, Any]) -> samplers.Plan:
    if spec.mixing == "balanced":
        # The two origins are balanced as any two sources are.
        return samplers.source_balanced(rows.synthetic.astype(np.int64), **shared)
    return samplers.naive(len(rows.labels), **shared)


def _progressive(spec: config.Train, rows: Labels, shared: dict[str, Any]) -> samplers.Plan:
    kinship = rows.labels, rows.synthetic, rows.parents
    return samplers.progressive_pairs(*kinship, widen_every=spec.sampler.widen_every, **shared)


PLANS: dict[str, Callable[[config.Train, Labels, dict[str, Any]], samplers.Plan]] = {
    "identity": _identity,
    "naive": _naive,
    "class_balanced": lambda _, rows, shared: samplers.class_balanced(rows.labels, **shared),
    "source_balanced": lambda _, rows, shared: samplers.source_balanced(rows.sources, **shared),
    "progressive": _progressive,
}


def schedule(spec: config.Train, epochs: float) -> float:
    """Share of the learning rate after `epochs` (fractional): linear warm-up, cosine to zero."""
    if epochs < spec.warmup_epochs:
        return 0.01 + 0.99 * epochs / spec.warmup_epochs
    length = max(spec.epochs - spec.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min((epochs - spec.warmup_epochs) / length, 1.0)))


def _optimizer(spec: config.Train, network: nn.Module) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only, not on biases and norms."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[spec.optimizer](groups, lr=spec.learning_rate)
