"""The training loop in plain PyTorch: any device, any number of workers, resumable at any batch.

It knows nothing of Ray; `worker.py` runs it on Ray Train and keeps its checkpoints. All
randomness of a batch is seeded by its place in the plan, so a resumed run is the same run: to
the last bit on a CPU, up to the order in which its kernels add on a GPU.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_reid.models.networks import ReidNetwork, known_sides, side_codes, starting
from ray_reid.models.networks.precision import autocast, autocast_dtype
from ray_reid.models.networks.starting import Start
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.sampler import P_X_K
from ray_reid.recipe.train import Train
from ray_reid.training import adversary, optimizers, samplers
from ray_reid.training.adversary import Adversary
from ray_reid.training.augment import augment, blend, mix
from ray_reid.training.clusters import ClusterLabels
from ray_reid.training.loader import Rows, TrainingLabels
from ray_reid.training.losses import ReidLoss, pairs_of

log = logging.getLogger(__name__)

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
MEASURED = ("loss", "cross_entropy", "metric", "accuracy")


@dataclass
class Progress:
    """Where training stands: the next batch to do, and what was measured."""

    epoch: int = 0
    batch: int = 0
    sums: list[float] = field(default_factory=list)
    """Sums of what is measured over the batches of the unfinished epoch and over all workers."""
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
        start: Start | None = None,
    ) -> None:
        """Build everything from the recipe.

        Args:
            rows: What is trained on.
            device: Where.
            worker: This worker's number of `world_size`.
            wrap: Makes the network distributed.
            start: Weights of an earlier stage or of another training, which are kept where they
                fit.
        """
        self.recipe, self.spec, self.rows = recipe, recipe.train, rows
        self.device, self.worker, self.world_size = device, worker, world_size
        torch.manual_seed(recipe.seed)
        network = _network(self.spec, rows.chosen, start)
        self.layout = torch.channels_last if self.spec.channels_last else torch.contiguous_format
        self.network = network.to(device).to(memory_format=self.layout)
        optimizers.freeze(self.spec, self.network)
        self.wrapped: Any = wrap(self.network)
        if self.spec.compile:
            self.wrapped = torch.compile(self.wrapped)
        self.codes: NDArray[np.int64] | None = None
        if self.network.side is not None:
            chosen, known = rows.chosen, self.network.side.sides
            self.codes = side_codes(chosen.cameras, chosen.views, known)
        self.optimizer = optimizers.build(self.spec, self.network)
        self.loss = ReidLoss(self.spec.loss, self.network.cosines)
        # Built last: without it, everything else begins with the same random numbers.
        self.adversary = _adversary(self.spec, rows.chosen, self.network, device)
        self.measured = MEASURED + (adversary.MEASURED if self.adversary is not None else ())
        self._compute_in(autocast_dtype(self.spec.precision, device))
        self.progress = Progress()
        clustered = self.spec.labels == "clusters"
        self.clusters = ClusterLabels(self.spec.clusters, rows.chosen) if clustered else None
        self.batches_per_epoch = (self.spec.batches_per_epoch if clustered else None) or len(
            self.plan(0)
        )

    @property
    def batches_done(self) -> int:
        """Batches since the beginning, over all epochs."""
        return self.progress.epoch * self.batches_per_epoch + self.progress.batch

    def plan(self, epoch: int) -> samplers.Plan:
        """The plan of an epoch, the same on every worker; of clusters, that of this epoch alone."""
        if self.clusters is not None:
            return self.clusters.plan(plan, self.recipe, epoch, self.world_size)
        return plan(self.recipe, self.rows.chosen, epoch, self.world_size)

    def run(self) -> Iterator[Progress]:
        """Train to the end, yielding after every batch; the last batch of an epoch closes it."""
        self.wrapped.train()
        progress = self.progress
        # On the device: reading a value in every batch would make a GPU wait.
        self._sums = torch.tensor(progress.sums or [0.0] * len(self.measured), dtype=torch.float64)
        self._sums = self._sums.to(self.device)
        while progress.epoch < self.spec.epochs:
            if self.clusters is not None and not progress.batch:
                self.clusters.begin(self)
            optimizers.hold_statistics(self.spec, self.network, progress.epoch)
            plan = self.plan(progress.epoch)
            for images, labels in self.rows.batches(plan, self.worker, progress.batch):
                self._sums += self._step(images, labels, plan[progress.batch, self.worker])
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
            "adversary": self.adversary.state() if self.adversary is not None else None,
            # Between epochs they are found anew.
            "clusters": self.clusters.state() if self.clusters and self.progress.batch else None,
            "progress": vars(self.progress),
            "scaler": self.scaler.state_dict(),
            "precision": PRECISIONS[self.dtype],
        }

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's, which stays as it is while the training goes on."""
        return {name: tensor.cpu().clone() for name, tensor in self.network.state_dict().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary is not None:
            self.adversary.restore(state["adversary"])
        if self.clusters is not None and state["clusters"] is not None:
            self.clusters.restore(state["clusters"], self.device)
        self.progress = Progress(**state["progress"])
        # Another node may have other hardware; the training goes on as it began.
        self._compute_in(autocast_dtype(state["precision"], self.device))
        self.scaler.load_state_dict(state["scaler"])

    def _compute_in(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        # Gradients of small losses vanish in float16 alone.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    def _step(self, images: Tensor, labels: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Train on one batch; returns what is `measured` as float64, averaged over the workers."""
        progress = self.progress
        place = (self.recipe.seed, progress.epoch, progress.batch, self.worker)
        torch.manual_seed(mix(place))
        self._set_learning_rate()
        images = images.to(self.device, non_blocking=True)
        images = augment(images, self.spec.augment, place)
        if self.clusters is not None:
            labels = torch.from_numpy(self.clusters.labels[rows])
        labels = labels.to(self.device, non_blocking=True)
        images, shares = blend(
            images, labels, len(self.rows.chosen.identities), self.spec.augment, place
        )
        images = images.contiguous(memory_format=self.layout)
        self.optimizer.zero_grad(set_to_none=True)
        side = None if self.codes is None else torch.from_numpy(self.codes[rows]).to(self.device)
        parts = self._parts(len(images))
        numbers = torch.from_numpy(rows).to(self.device, non_blocking=True)
        values = torch.zeros(len(self.measured), dtype=torch.float64, device=self.device)
        for number, part in enumerate(parts):
            seen = (images[part],) if side is None else (images[part], side[part])
            with self._synchronised(number == len(parts) - 1):
                targets = shares[part], labels[part], len(parts)
                values += self._backward(seen, *targets, numbers[part])
        self._update()
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values / self.world_size

    def _backward(
        self,
        seen: tuple[Tensor, ...],
        shares: Tensor,
        labels: Tensor,
        parts: int,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Add the gradients of one part of a batch; returns its share of what is measured."""
        losses, logits = self._losses(seen, shares, rows)
        self.scaler.scale(losses["loss"] / parts).backward()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        found = {**losses, "accuracy": accuracy}
        return torch.stack([found[name].detach() for name in self.measured]).double() / parts

    def _losses(
        self, seen: tuple[Tensor, ...], shares: Tensor, rows: Tensor | None
    ) -> tuple[dict[str, Any], Tensor]:
        """Losses of some images by name, and their logits."""
        against, epoch = self.adversary, self.progress.epoch
        with autocast(self.dtype, self.device):
            wanted = against is not None or self.clusters is not None
            made = self.wrapped(*seen, embeddings=wanted)
        if self.clusters is not None:
            return self.clusters.losses(made[-1], shares)
        if against is None:
            pairs = pairs_of(made)
            return self.loss(pairs, shares), self.loss.logits(pairs)
        assert rows is not None, "clothes are known by row"
        pairs, embeddings = pairs_of(made[:-1]), made[-1]
        found = self.loss(pairs, shares, against.compared(rows))
        found |= against.oppose(embeddings, rows, epoch)
        if against.begun(epoch):
            found["loss"] = found["loss"] + self.spec.clothes.weight * found["adversarial"]
        return found, self.loss.logits(pairs)

    def _parts(self, size: int) -> list[Tensor]:
        """Rows of a worker's batch that are computed together; identities go round the parts."""
        sampler, count = self.spec.sampler, self.spec.accumulate
        each = sampler.num_instances if sampler.kind in P_X_K and count > 1 else 1
        groups = torch.arange(size, device=self.device).view(-1, each)
        return [groups[n::count].flatten() for n in range(count)]

    def _synchronised(self, last: bool) -> Any:
        """Workers exchange gradients once a batch, with its last part."""
        wait = getattr(self.wrapped, "no_sync", nullcontext)
        return nullcontext() if last else wait()

    def _update(self) -> None:
        optimizers.drop_idle_gradients(self.optimizer)
        if self.spec.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.spec.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _set_learning_rate(self) -> None:
        epochs = self.batches_done / self.batches_per_epoch
        optimizers.set_learning_rate(self.spec, self.optimizer, self.progress.epoch, epochs)

    def _close_epoch(self) -> None:
        progress = self.progress
        totals = dict(zip(self.measured, self._sums.tolist(), strict=True))
        means = {name: total / progress.batch for name, total in totals.items()}
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        if not math.isfinite(means["loss"]):
            raise ValueError(
                f"the training diverged in epoch {progress.epoch}: its mean loss is "
                f"{means['loss']} at learning rate {rate:.3g}; lower train.learning_rate"
            )
        counts = self.clusters.counts() if self.clusters is not None else {}
        progress.history.append({"epoch": progress.epoch, **means, "learning_rate": rate, **counts})
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, []
        self._sums.zero_()


def _network(spec: Train, chosen: TrainingLabels, start: Start | None) -> ReidNetwork:
    """A new network, or one that begins with the weights of another where they fit."""
    known = known_sides(chosen.cameras, chosen.views)
    if start is None:
        return ReidNetwork(spec, len(chosen.identities), known)
    return starting.begin(spec, chosen.identities, start, known)[0]


def _adversary(
    spec: Train, chosen: TrainingLabels, network: ReidNetwork, device: torch.device
) -> Adversary | None:
    if not spec.clothes.weight:
        return None
    rate = spec.learning_rate * spec.clothes.classifier_rate

    def optimize(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        group = {"params": parameters, "weight_decay": spec.weight_decay, "lr": rate}
        return optimizers.of_groups(spec, [group])

    return Adversary(spec.clothes, chosen, network.width, device, optimize)


def plan(recipe: Recipe, rows: TrainingLabels, epoch: int, world_size: int = 1) -> samplers.Plan:
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


def _identity(spec: Train, rows: TrainingLabels, shared: dict[str, Any]) -> samplers.Plan:
    if spec.mixing == "balanced":
        return samplers.balanced(rows.labels, rows.synthetic, **shared)
    return samplers.identity_balanced(rows.labels, **shared)


def _naive(spec: Train, rows: TrainingLabels, shared: dict[str, Any]) -> samplers.Plan:
    if spec.mixing == "balanced":
        # The two origins are balanced as any two sources are.
        return samplers.source_balanced(rows.synthetic.astype(np.int64), **shared)
    return samplers.naive(len(rows.labels), **shared)


def _progressive(spec: Train, rows: TrainingLabels, shared: dict[str, Any]) -> samplers.Plan:
    kinship = rows.labels, rows.synthetic, rows.parents
    shared |= {name: getattr(spec.sampler, name) for name in ("widen_every", "partitions")}
    return samplers.progressive_pairs(*kinship, **shared)


PLANS: dict[str, Callable[[Train, TrainingLabels, dict[str, Any]], samplers.Plan]] = {
    "identity": _identity,
    "naive": _naive,
    "class_balanced": lambda _, rows, shared: samplers.class_balanced(rows.labels, **shared),
    "source_balanced": lambda _, rows, shared: samplers.source_balanced(rows.sources, **shared),
    "progressive": _progressive,
}
