"""Pseudo-labels: before every epoch all images are embedded and grouped, and groups are labels.

Labels are a pure function of the network's weights at the beginning of an epoch. A checkpoint
within an epoch carries them and the memory, so that a resumed training is the same training.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ray_reid.models.networks.precision import autocast
from ray_reid.ranking import rerank
from ray_reid.recipe.clusters import Clusters
from ray_reid.recipe.recipe import Recipe
from ray_reid.training.losses import gather
from ray_reid.training.memory import ClusterMemory
from ray_reid.training.samplers import Plan

if TYPE_CHECKING:
    from ray_reid.training.fit import Fit
    from ray_reid.training.loader import TrainingLabels

log = logging.getLogger(__name__)

NONE = -1
"""Label of an image that belongs to no cluster: it is not trained on in that epoch."""
# Images that are embedded at a time.
BATCH = 128
Labels = NDArray[np.int64]
PlanOf = Callable[["Recipe", "TrainingLabels", int, int], Plan]


class ClusterLabels:
    """The labels of an epoch, and the memory that is trained with them.

    Images whose source keeps its labels have these in every epoch; clusters are numbered after.
    """

    def __init__(self, spec: Clusters, chosen: "TrainingLabels") -> None:
        """Begin without any cluster; `chosen` has the label -1 where a row is clustered."""
        self.spec, self._chosen = spec, chosen
        self.labels: Labels = chosen.labels.copy()
        """(N,) of the epoch; `NONE` where a row is not trained on in it."""
        self.memory: ClusterMemory | None = None

    def begin(self, fit: "Fit") -> None:
        """Embed all images with the network as it is, cluster them, and fill the memory.

        Raises:
            ValueError: If there is nothing to tell apart.
        """
        vectors = embedded(fit)
        labels, clustered = self._chosen.labels.copy(), self._chosen.labels < 0
        known = int(labels.max()) + 1 if not clustered.all() else 0
        found = grouped(vectors[torch.from_numpy(clustered)].cpu().numpy(), self.spec)
        _check(found, known, self.spec, fit.progress.epoch)
        labels[clustered] = np.where(found < 0, NONE, found + known)
        self.labels = labels
        self.memory = self._filled(vectors)
        log.info(
            "epoch %d: %d clusters of %d images, %d images in none",
            *(fit.progress.epoch, found.max() + 1, np.sum(found >= 0), np.sum(found < 0)),
        )

    def plan(self, of: PlanOf, recipe: Recipe, epoch: int, world_size: int) -> Plan:
        """Plan an epoch of the images that have a label in it, with the recipe's sampler.

        Where there are fewer clusters than identities in a batch, its batches have as many
        identities as there are clusters.
        """
        rows = np.flatnonzero(self.labels >= 0)
        chosen = self._chosen
        part = replace(
            chosen,
            labels=self.labels[rows],
            synthetic=chosen.synthetic[rows],
            sources=chosen.sources[rows],
            parents=chosen.parents[rows],
        )
        fitting = _fitting(recipe, len(np.unique(part.labels)), world_size)
        return rows[of(fitting, part, epoch, world_size)]

    def losses(self, embeddings: Tensor, labels: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Losses of some images by name, and their logits; the memory learns the images."""
        assert self.memory is not None, "an epoch begins with its clusters"
        loss, logits = self.memory.compare(embeddings, labels)
        self.memory.update(embeddings, labels)
        return {"loss": loss, "cross_entropy": loss, "metric": torch.zeros_like(loss)}, logits

    def counts(self) -> dict[str, float]:
        """How many labels the epoch had, and the share of images that had none."""
        known = self.labels >= 0
        return {
            "labels": float(len(np.unique(self.labels[known]))),
            "unlabelled": float(1 - known.mean()),
        }

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint within an epoch needs."""
        assert self.memory is not None, "an epoch begins with its clusters"
        return {"labels": torch.from_numpy(self.labels), "vectors": self.memory.vectors}

    def restore(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Go on within the epoch that `state` was taken in."""
        self.labels = state["labels"].numpy()
        self.memory = self._memory(state["vectors"].to(device))

    def _filled(self, vectors: Tensor) -> ClusterMemory:
        """A memory of the mean embedding of each label."""
        rows = torch.from_numpy(np.flatnonzero(self.labels >= 0)).to(vectors.device)
        labels = torch.from_numpy(self.labels).to(vectors.device)[rows]
        sums = vectors.new_zeros(int(labels.max()) + 1, vectors.shape[1], dtype=torch.float64)
        # In the order of the rows, so that the sums are the same in every run.
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            sums.index_add_(0, labels[part], vectors[rows[part]].double())
        return self._memory(F.normalize(sums, dim=1).float())

    def _memory(self, vectors: Tensor) -> ClusterMemory:
        return ClusterMemory(vectors, self.spec.temperature, self.spec.momentum)


def grouped(vectors: NDArray[np.float32], spec: Clusters) -> Labels:
    """Cluster (N, D) unit vectors: (N,) numbers of clusters from 0, `NONE` for an image of none."""
    from sklearn.cluster import DBSCAN

    near = rerank.jaccard_within(vectors, spec.eps, spec.k1, spec.k2)
    group = DBSCAN(eps=spec.eps, min_samples=spec.min_samples, metric="precomputed")
    return np.asarray(group.fit_predict(near), dtype=np.int64)


def embedded(fit: "Fit") -> Tensor:
    """Unit embeddings (N, D) of all rows of a training, in the rows' order and on its device.

    The images are as they are, without augmentation; the workers share them, and all get the same.
    """
    size, workers = len(fit.rows.chosen.labels), fit.world_size
    # Whole batches, the last filled up with rows from the beginning.
    length = -(-size // (workers * BATCH))
    plan = np.resize(np.arange(size, dtype=np.int64), (length, workers, BATCH))
    if workers > 1:
        # Each worker has seen other images, and a checkpoint holds the first one's statistics.
        for buffer in fit.network.buffers():
            dist.broadcast(buffer, 0)
    fit.network.eval()
    parts = []
    with torch.no_grad():
        batches = fit.rows.batches(plan, fit.worker)
        for rows, (images, _) in zip(plan[:, fit.worker], batches, strict=True):
            pixels = images.to(fit.device).float().div(255).contiguous(memory_format=fit.layout)
            side = None if fit.codes is None else torch.from_numpy(fit.codes[rows]).to(fit.device)
            with autocast(fit.dtype, fit.device):
                parts.append(fit.network.embed(pixels, side))
        own = torch.cat(parts)
        everyone, _ = gather(own, torch.zeros(len(own), dtype=torch.int64, device=fit.device))
    fit.wrapped.train()
    by_worker = everyone.view(workers, length, BATCH, -1).transpose(0, 1)
    return by_worker.reshape(length * workers * BATCH, -1)[:size]


def _check(found: Labels, known: int, spec: Clusters, epoch: int) -> None:
    number = int(found.max()) + 1
    values = f"train.clusters.eps {spec.eps:g} and min_samples {spec.min_samples}"
    if number == 0:
        raise ValueError(
            f"epoch {epoch}: DBSCAN found no cluster among {len(found)} images with {values}: no "
            "image has that many neighbours so near; raise eps, or begin with weights that tell "
            "the images apart"
        )
    if number + known < 2:
        raise ValueError(
            f"epoch {epoch}: DBSCAN put {np.sum(found == 0)} of {len(found)} images in one cluster "
            f"with {values}, which leaves nothing to tell apart; lower eps"
        )


def _fitting(recipe: Recipe, labels: int, world_size: int) -> Recipe:
    """The recipe with as many identities in a batch as there are labels, if these are fewer."""
    spec = recipe.train
    if spec.sampler.num_identities <= labels:
        return recipe
    pieces = world_size * spec.accumulate
    few = labels // pieces * pieces
    if not few:
        raise ValueError(
            f"{labels} clusters cannot be shared by {world_size} workers and accumulate "
            f"{spec.accumulate}; lower train.clusters.eps or train.num_workers"
        )
    sampler = spec.sampler.model_copy(update={"num_identities": few})
    return recipe.model_copy(update={"train": spec.model_copy(update={"sampler": sampler})})
