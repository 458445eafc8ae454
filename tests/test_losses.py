"""Losses against explicit loops."""

import math
from typing import Literal

import pytest
import torch

from ray_reid import config
from ray_reid.losses import ReidLoss


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=generator)
    logits = torch.randn(12, 4, generator=generator)
    return features, logits, torch.arange(4).repeat_interleave(3)


def test_triplet_is_the_batch_hard_loss_of_a_loop(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, logits, labels = batch
    found = ReidLoss(config.Loss(metric="triplet", margin=0.5))(features, logits, labels)
    losses = []
    for i in range(12):
        distance = [math.dist(features[i].tolist(), other.tolist()) for other in features]
        positive = max(distance[j] for j in range(12) if labels[j] == labels[i] and j != i)
        negative = min(distance[j] for j in range(12) if labels[j] != labels[i])
        losses.append(max(positive - negative + 0.5, 0.0))
    # The library averages over the triplets that still violate the margin.
    violated = [loss for loss in losses if loss > 0]
    assert found["metric"].item() == pytest.approx(sum(violated) / len(violated), rel=1e-5)


def test_circle_is_the_formula_of_a_loop(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, logits, labels = batch
    margin, gamma = 0.25, 16.0
    spec = config.Loss(metric="circle", margin=margin, gamma=gamma)
    found = ReidLoss(spec)(features, logits, labels)
    unit = torch.nn.functional.normalize(features, dim=1)
    similarity = unit @ unit.T
    losses = []
    for i in range(12):
        positive = negative = 0.0
        for j in range(12):
            s = similarity[i, j].item()
            if j != i and labels[j] == labels[i]:
                positive += math.exp(-gamma * max(1 + margin - s, 0) * (s - (1 - margin)))
            elif labels[j] != labels[i]:
                negative += math.exp(gamma * max(s + margin, 0) * (s - margin))
        losses.append(math.log1p(positive * negative))
    assert found["metric"].item() == pytest.approx(sum(losses) / 12, rel=1e-4)


def test_cross_entropy_is_smoothed_and_the_sum_is_weighted(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, logits, labels = batch
    spec = config.Loss(label_smoothing=0.2, weight=0.5)
    found = ReidLoss(spec)(features, logits, labels)
    log_p = logits.log_softmax(dim=1)
    target = torch.full((12, 4), 0.2 / 4)
    target[torch.arange(12), labels] += 0.8
    expected = -(target * log_p).sum(dim=1).mean()
    assert torch.allclose(found["cross_entropy"], expected)
    assert torch.allclose(found["loss"], expected + 0.5 * found["metric"])


@pytest.mark.parametrize("metric", ["circle", "triplet", "none"])
def test_an_auxiliary_classifier_adds_its_weighted_losses(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], metric: Literal["circle"]
) -> None:
    features, logits, labels = batch
    # Of other widths, as an earlier feature map gives them.
    auxiliary = [torch.cat([features.flip(0), features], dim=1), logits.flip(1)]
    spec = config.Loss(metric=metric, weight=0.5, auxiliary=0.3, gamma=16.0)
    loss = ReidLoss(spec)
    primary, other = loss(features, logits, labels), loss(*auxiliary, labels)
    found = loss(features, logits, labels, auxiliary)
    expected = sum(
        share * (losses["cross_entropy"] + 0.5 * losses["metric"])
        for share, losses in ((1.0, primary), (0.3, other))
    )
    assert torch.allclose(found["loss"], expected)
    assert found["cross_entropy"] == primary["cross_entropy"]
    assert found["metric"] == primary["metric"]


def test_without_a_metric_loss_only_cross_entropy_is_left(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    found = ReidLoss(config.Loss(metric="none"))(*batch)
    assert found["metric"].item() == 0
    assert torch.equal(found["loss"], found["cross_entropy"])
