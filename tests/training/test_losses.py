"""Losses against explicit loops."""

import math
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

from ray_reid.recipe.train import Loss, Train
from ray_reid.training.losses import ReidLoss, gather, pairs_of


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
    found = ReidLoss(Loss(metric="triplet", margin=0.5))([(features, logits)], labels)
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
    spec = Loss(metric="circle", margin=margin, gamma=gamma)
    found = ReidLoss(spec)([(features, logits)], labels)
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
    spec = Loss(label_smoothing=0.2, weight=0.5)
    found = ReidLoss(spec)([(features, logits)], labels)
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
    auxiliary = (torch.cat([features.flip(0), features], dim=1), logits.flip(1))
    spec = Loss(metric=metric, weight=0.5, auxiliary=0.3, gamma=16.0)
    loss = ReidLoss(spec)
    both = [(features, logits), auxiliary]
    alone = ReidLoss(spec.model_copy(update={"auxiliary": 0.0}))
    primary, other = alone(both[:1], labels), alone(both[1:], labels)
    found = loss(both, labels)
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
    features, logits, labels = batch
    found = ReidLoss(Loss(metric="none"))([(features, logits)], labels)
    assert found["metric"].item() == 0
    assert torch.equal(found["loss"], found["cross_entropy"])


def test_supcon_is_the_formula_of_a_loop(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, logits, labels = batch
    temperature = 0.2
    spec = Loss(metric="supcon", temperature=temperature)
    found = ReidLoss(spec)([(features, logits)], labels)
    unit = torch.nn.functional.normalize(features, dim=1)
    similarity = (unit @ unit.T / temperature).tolist()
    losses = []
    for i in range(12):
        others = [j for j in range(12) if j != i]
        total = sum(math.exp(similarity[i][j]) for j in others)
        positives = [j for j in others if labels[j] == labels[i]]
        logs = [math.log(math.exp(similarity[i][j]) / total) for j in positives]
        losses.append(-sum(logs) / len(positives))
    assert found["metric"].item() == pytest.approx(sum(losses) / 12, rel=1e-5)


def _distances(features: torch.Tensor, i: int) -> list[float]:
    return [math.dist(features[i].tolist(), other.tolist()) for other in features]


def test_soft_triplet_is_the_batch_hard_loss_of_a_loop_with_a_soft_margin(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, logits, labels = batch
    # One identity has one image, which is no anchor but a negative.
    labels = torch.cat([labels[:-1], torch.tensor([9])])
    loss = ReidLoss(Loss(metric="soft_triplet"))
    losses = []
    for i in range(11):
        distance = _distances(features, i)
        positive = max(distance[j] for j in range(12) if labels[j] == labels[i] and j != i)
        negative = min(distance[j] for j in range(12) if labels[j] != labels[i])
        losses.append(math.log1p(math.exp(positive - negative)))
    found = loss([(features, None)], labels)["metric"].item()
    assert found == pytest.approx(sum(losses) / 11, rel=1e-5)
    assert loss([(features[:3], None)], labels[:3])["metric"].item() == 0
    assert loss([(features, logits)], labels.clamp(max=3))["loss"].isfinite()


def test_weighted_triplet_is_the_formula_of_a_loop(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, _, labels = batch
    labels = torch.cat([labels[:-1], torch.tensor([9])])
    losses = []
    for i in range(11):
        distance = _distances(features, i)
        positives = [distance[j] for j in range(12) if labels[j] == labels[i] and j != i]
        negatives = [distance[j] for j in range(12) if labels[j] != labels[i]]
        far = sum(math.exp(d) * d for d in positives) / sum(map(math.exp, positives))
        near = sum(math.exp(-d) * d for d in negatives) / sum(math.exp(-d) for d in negatives)
        losses.append(math.log1p(math.exp(far - near)))
    features.requires_grad_()
    found = ReidLoss(Loss(metric="weighted_triplet"))([(features, None)], labels)
    assert found["metric"].item() == pytest.approx(sum(losses) / 11, rel=1e-5)
    found["loss"].backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_cosines_get_the_margins_and_the_scale_of_the_circle_loss(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, logits, labels = batch
    cosines = logits.tanh()
    spec = Loss(metric="none", label_smoothing=0, softmax_margin=0.2, softmax_scale=8.0)
    found = ReidLoss(spec, cosines=True)([(features, cosines)], labels)
    total = 0.0
    for i in range(12):
        scaled = []
        for c in range(4):
            s = cosines[i, c].item()
            own = max(1.2 - s, 0) * (s - 0.8)
            other = max(s + 0.2, 0) * (s - 0.2)
            scaled.append(8 * (own if c == labels[i] else other))
        total += math.log(sum(map(math.exp, scaled))) - scaled[labels[i]]
    assert found["cross_entropy"].item() == pytest.approx(total / 12, rel=1e-5)
    shares = torch.nn.functional.one_hot(labels, 4).float()
    assert ReidLoss(spec, cosines=True)([(None, cosines)], shares)["loss"].item() == pytest.approx(
        total / 12, rel=1e-5
    )


def test_losses_of_several_features_are_added_and_their_logits_too(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, logits, labels = batch
    loss = ReidLoss(Loss(weight=0.5))
    pairs = [(features, logits), (None, logits.flip(1)), (features.sin(), None)]
    found, each = loss(pairs, labels), [loss([pair], labels) for pair in pairs]
    for name in ("loss", "cross_entropy", "metric"):
        assert torch.allclose(found[name], sum(part[name] for part in each))
    assert each[1]["metric"] == each[2]["cross_entropy"] == 0
    assert torch.equal(loss.logits(pairs), logits + logits.flip(1))
    assert pairs_of([features, logits, None, logits]) == [(features, logits), (None, logits)]


METRICS: tuple[Literal["triplet", "circle", "supcon"], ...] = ("triplet", "circle", "supcon")


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of two workers, of which each has identities that the other has too."""
    images = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    return images, weights, torch.tensor([0, 0, 1, 2, 2, 1, 3, 3])


def _losses(
    images: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor, gathered: bool
) -> dict[str, dict[str, torch.Tensor]]:
    """Losses and gradients of a linear network with two classifiers, by metric loss."""
    found = {}
    for metric in METRICS:
        leaf = weights.clone().requires_grad_()
        features = images @ leaf
        loss = ReidLoss(Loss(metric=metric, gather=gathered, auxiliary=0.5, gamma=8.0))
        pairs = [(features, features[:, :4]), (features.sin(), features[:, 1:])]
        losses = loss(pairs, labels)
        losses["loss"].backward()
        assert leaf.grad is not None
        values = {name: value.detach() for name, value in losses.items()}
        found[metric] = {**values, "gradient": leaf.grad}
    return found


def _worker(rank: int, folder: str) -> None:
    store, limit = f"file://{folder}/store", timedelta(seconds=60)
    dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=2)
    images, weights, labels = _inputs()
    share = slice(4 * rank, 4 * rank + 4)
    found = _losses(images[share], weights, labels[share], gathered=True)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gathered_losses_of_two_workers_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    other = torch.multiprocessing.get_context("spawn").Process(
        target=_worker, args=(1, str(tmp_path))
    )
    other.start()
    _worker(0, str(tmp_path))
    other.join()
    workers = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = _losses(*_inputs(), gathered=False)
    for metric in METRICS:
        first, second = (found[metric] for found in workers)
        assert torch.equal(first["metric"], second["metric"])
        assert torch.allclose(first["metric"], whole[metric]["metric"])
        # Data-parallel training takes the mean of the workers' gradients.
        for name in ("loss", "cross_entropy", "gradient"):
            mean = (first[name] + second[name]) / 2
            assert torch.allclose(mean, whole[metric][name], atol=1e-5), (metric, name)


def test_one_worker_gathers_nothing(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, _, labels = batch
    found = gather(features, labels)
    assert found[0] is features
    assert found[1] is labels


def test_a_worker_may_have_one_identity_where_losses_are_gathered() -> None:
    spread: dict[str, Any] = {"num_workers": 4, "sampler": {"num_identities": 4}}
    with pytest.raises(ValueError, match=r"leaves 1 identity in each part, .* or loss\.gather"):
        Train(**spread)
    Train(**spread, loss={"gather": True})
