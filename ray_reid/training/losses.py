"""Training losses: label-smoothed cross-entropy on the head, a metric loss on the features."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from pytorch_metric_learning.losses import CircleLoss, SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn

from ray_reid.recipe.train import Loss

LEFT_OUT = -1
"""Label of an image that is not compared."""


class ReidLoss(nn.Module):
    """Cross-entropy after the neck plus a metric loss before it (Luo et al., 2019).

    Triplet: batch-hard with Euclidean distance on the raw features (Hermans et al., 2017).
    Circle: cosine similarity (Sun et al., CVPR 2020).
    SupCon: cosine similarity over a temperature (Khosla et al., NeurIPS 2020).
    An auxiliary classifier has the same losses (Vehicle-Diff, section III-D).
    """

    def __init__(self, spec: Loss) -> None:
        super().__init__()
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=spec.label_smoothing)
        self.weight = spec.weight if spec.metric != "none" else 0.0
        self.auxiliary = spec.auxiliary
        self.miner: BatchHardMiner | None = None
        self.metric: nn.Module | None = None
        if spec.metric == "triplet":
            self.metric = _euclidean(TripletMarginLoss, margin=spec.margin)
            self.miner = _euclidean(BatchHardMiner)
        elif spec.metric == "circle":
            self.metric = CircleLoss(m=spec.margin, gamma=spec.gamma)
        elif spec.metric == "supcon":
            self.metric = SupConLoss(temperature=spec.temperature)
        self.gather = spec.gather

    def forward(
        self,
        features: Tensor,
        logits: Tensor,
        labels: Tensor,
        auxiliary: Sequence[Tensor] = (),
        compared: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            features: (B, D) before the neck.
            logits: (B, classes) of the head.
            labels: (B,) int64.
            auxiliary: Features and logits of the auxiliary classifier, if there is one.
            compared: (B,) bool, the rows that the metric loss sees; all without it.

        Returns:
            Scalars `loss` (the sum to minimise, with the auxiliary's share), `cross_entropy`
            and `metric` (both of the primary classifier).
        """
        found = self._of(features, logits, labels, compared)
        if auxiliary:
            other = self._of(auxiliary[0], auxiliary[1], labels, compared)
            found["loss"] = found["loss"] + self.auxiliary * other["loss"]
        return found

    def _of(
        self, features: Tensor, logits: Tensor, labels: Tensor, compared: Tensor | None
    ) -> dict[str, Tensor]:
        """Losses of one classifier."""
        cross_entropy = self.cross_entropy(logits.float(), labels)
        metric = torch.zeros_like(cross_entropy)
        if self.metric is not None:
            metric = self._metric(features.float(), labels, compared)
        loss = cross_entropy + self.weight * metric
        return {"loss": loss, "cross_entropy": cross_entropy, "metric": metric}

    def _metric(self, features: Tensor, labels: Tensor, compared: Tensor | None) -> Tensor:
        assert self.metric is not None
        if compared is not None:
            # Marked first and left out last: workers gather equally many rows.
            labels = labels.where(compared, LEFT_OUT)
        if self.gather:
            features, labels = gather(features, labels)
        if compared is not None:
            features, labels = features[labels != LEFT_OUT], labels[labels != LEFT_OUT]
            if not len(labels):
                return features.sum()
        hard = self.miner(features, labels) if self.miner is not None else None
        metric: Tensor = self.metric(features, labels, hard)
        return metric


def clothes_adversarial(logits: Tensor, clothes: Tensor, own: Tensor, epsilon: float) -> Tensor:
    """Clothes-based adversarial loss of each image (CAL; Gu et al., CVPR 2022).

    Each clothes c of the image's own identity competes with the clothes of all others, never with
    its identity's other clothes: p(c) = exp(c) / (exp(c) + sum of exp over the others). A feature
    that can be any of them, and none of the others, has the least loss.

    Args:
        logits: (B, C) of a classifier of clothes, which is held fixed.
        clothes: (B,) int64, the clothes that the images show.
        own: (B, C) bool, True where clothes are of the image's identity; not all of a row.
        epsilon: Share of the target that is spread over the own clothes.

    Returns:
        (B,) losses.
    """
    others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1, keepdim=True)
    shown = nn.functional.one_hot(clothes, logits.shape[1]).to(logits.dtype)
    target = (1 - epsilon) * shown + epsilon * own.to(logits.dtype) / own.sum(dim=1, keepdim=True)
    # log p = logit - log(exp(logit) + exp(others)), without an overflow.
    return -(target * nn.functional.logsigmoid(logits - others)).sum(dim=1)


def gather(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features and labels of all workers, each of equally many rows, in the workers' order.

    A loss on them is the same number on every worker, and the mean of the workers' gradients,
    which data-parallel training takes, is the gradient of that loss on the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features, labels
    return _Gathered.apply(features), _all(labels)


class _Gathered(torch.autograd.Function):
    """Concatenation over the workers; backward gives each the gradients of its own rows."""

    @staticmethod
    def forward(_: Any, features: Tensor) -> Tensor:
        return _all(features)

    @staticmethod
    def backward(_: Any, gradients: Tensor) -> Tensor:
        workers = dist.get_world_size()
        # Every worker has the same loss, so the sum of their gradients is a multiple of one.
        return gradients.chunk(workers)[dist.get_rank()] * workers


def _all(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _euclidean(kind: type[nn.Module], **params: float) -> nn.Module:
    from pytorch_metric_learning.distances import LpDistance

    return kind(distance=LpDistance(normalize_embeddings=False), **params)
