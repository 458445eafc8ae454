"""Training losses: label-smoothed cross-entropy on the head, a metric loss on the features."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pytorch_metric_learning.losses import CircleLoss, SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn

from ray_reid.recipe.train import Loss

Pair = tuple[Tensor | None, Tensor | None]
"""Features (B, D) and logits (B, classes) of images; None takes no part in its loss."""
LEFT_OUT = -1
"""Label of an image that is not compared."""


class ReidLoss(nn.Module):
    """Cross-entropy after the neck plus a metric loss before it (Luo et al., 2019).

    Triplet: batch-hard with Euclidean distance on the raw features (Hermans et al., 2017).
    Soft triplet: the same with log(1 + exp) in place of the margin.
    Weighted triplet: that of AGW, over all positives and negatives (Ye et al., TPAMI 2021).
    Circle: cosine similarity (Sun et al., CVPR 2020).
    SupCon: cosine similarity over a temperature (Khosla et al., NeurIPS 2020).
    Several features of an image have the same losses, which are added; so has an auxiliary
    classifier (Vehicle-Diff, section III-D).
    """

    def __init__(self, spec: Loss, cosines: bool = False) -> None:
        """Make the losses of a recipe.

        Args:
            spec: The recipe's section.
            cosines: Whether the logits are cosines: the cross-entropy then has the scale and the
                margins that the circle loss has with labels of classes.
        """
        super().__init__()
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=spec.label_smoothing)
        self.weight = spec.weight if spec.metric != "none" else 0.0
        self.auxiliary = spec.auxiliary
        self.miner: BatchHardMiner | None = None
        self.metric: Callable[..., Any] | None = None
        if spec.metric == "triplet":
            self.metric = _euclidean(TripletMarginLoss, margin=spec.margin)
            self.miner = _euclidean(BatchHardMiner)
        elif spec.metric == "soft_triplet":
            self.metric = soft_triplet
        elif spec.metric == "weighted_triplet":
            self.metric = weighted_triplet
        elif spec.metric == "circle":
            self.metric = CircleLoss(m=spec.margin, gamma=spec.gamma)
        elif spec.metric == "supcon":
            self.metric = SupConLoss(temperature=spec.temperature)
        self.gather = spec.gather
        self.cosines, self.margin, self.scale = cosines, spec.softmax_margin, spec.softmax_scale

    def forward(
        self, pairs: Sequence[Pair], labels: Tensor, compared: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            pairs: Features (B, D) before the neck and logits (B, classes), one pair or several;
                None takes no part in its loss. Where `loss.auxiliary` is above 0, the last pair is
                the auxiliary classifier's.
            labels: (B,) int64, or (B, classes) shares of each label.
            compared: (B,) bool, the rows that the metric loss sees; all without it.

        Returns:
            Scalars `loss` (the sum to minimise, with the auxiliary's share), `cross_entropy`
            and `metric` (both of the primary classifiers).
        """
        primary = self.primary(pairs)
        parts = [self._of(*pair, labels, compared, self.cosines) for pair in primary]
        found = {name: _sum([part[name] for part in parts]) for name in parts[0]}
        if self.auxiliary:
            other = self._of(*pairs[-1], labels, compared, cosines=False)
            found["loss"] = found["loss"] + self.auxiliary * other["loss"]
        return found

    def primary(self, pairs: Sequence[Pair]) -> Sequence[Pair]:
        """The pairs without the auxiliary classifier's."""
        return pairs[:-1] if self.auxiliary else pairs

    def logits(self, pairs: Sequence[Pair]) -> Tensor:
        """What the primary classifiers say together: the sum of their logits, (B, classes)."""
        return _sum([logits for _, logits in self.primary(pairs) if logits is not None])

    def _of(
        self,
        features: Tensor | None,
        logits: Tensor | None,
        labels: Tensor,
        compared: Tensor | None,
        cosines: bool,
    ) -> dict[str, Tensor]:
        """Losses of one classifier."""
        cross_entropy = metric = torch.zeros((), device=labels.device)
        if logits is not None:
            logits = logits.float()
            if cosines:
                logits = circle_logits(logits, labels, self.margin, self.scale)
            cross_entropy = self.cross_entropy(logits, labels)
        if self.metric is not None and features is not None:
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
        if self.miner is not None:
            return self.metric(features, labels, self.miner(features, labels))
        return self.metric(features, labels)


def pairs_of(found: Sequence[Tensor | None]) -> list[Pair]:
    """Features and logits that follow each other, as a network gives them, two by two."""
    return list(zip(found[::2], found[1::2], strict=True))


def circle_logits(cosines: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Cosines with the margins and the scale of the circle loss (Sun et al., CVPR 2020).

    Args:
        cosines: (B, classes).
        labels: (B,) int64, or (B, classes) shares of each label, which blend both cases.
        margin: m; the optimum is 1 + m of the own class and -m of the others.
        scale: gamma.
    """
    own = labels
    if labels.ndim == 1:
        own = nn.functional.one_hot(labels, cosines.shape[1])
    fixed = cosines.detach()
    positive = (1 + margin - fixed).relu() * (cosines - (1 - margin))
    negative = (fixed + margin).relu() * (cosines - margin)
    return scale * (own * positive + (1 - own) * negative)


def soft_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Batch-hard triplets with a soft margin: mean of log(1 + exp(d_ap - d_an)) over anchors.

    Anchors without a positive or a negative are left out.

    Args:
        features: (B, D).
        labels: (B,) int64.
    """
    distance, positive, negative = _pairwise(features, labels)
    farthest = distance.masked_fill(~positive, -torch.inf).amax(dim=1)
    nearest = distance.masked_fill(~negative, torch.inf).amin(dim=1)
    return _mean_of_anchors(farthest - nearest, positive, negative, features)


def weighted_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Weighted regularised triplet loss of AGW (Ye et al., TPAMI 2021).

    log(1 + exp(sum_j w_ij d_ij - sum_k w_ik d_ik)), the weights being a softmax of the distances
    over the positives j of an anchor i, and of their negatives over the negatives k. An image is
    no positive of itself. Anchors without a positive or a negative are left out.

    Args:
        features: (B, D).
        labels: (B,) int64.
    """
    distance, positive, negative = _pairwise(features, labels)
    least = torch.finfo(distance.dtype).min
    far = distance.masked_fill(~positive, least).softmax(dim=1) * distance
    near = (-distance).masked_fill(~negative, least).softmax(dim=1) * distance
    return _mean_of_anchors(far.sum(dim=1) - near.sum(dim=1), positive, negative, features)


def _pairwise(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Euclidean distances (B, B), and which pairs are positive and which negative."""
    distance = torch.cdist(features, features)
    same = labels[:, None] == labels[None]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return distance, same & ~itself, ~same


def _mean_of_anchors(
    difference: Tensor, positive: Tensor, negative: Tensor, features: Tensor
) -> Tensor:
    whole = positive.any(dim=1) & negative.any(dim=1)
    if not whole.any():
        # Part of the graph, so that every worker has gradients to exchange.
        return 0 * features.sum()
    return nn.functional.softplus(difference[whole]).mean()


def _sum(values: Sequence[Tensor]) -> Tensor:
    first, *others = values
    for other in others:
        first = first + other
    return first


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
