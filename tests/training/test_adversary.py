"""The clothes-adversarial loss: what it is, whom it moves, and that trainings with it resume."""

import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import ray_reid
from ray_reid import images, schema
from ray_reid import storage as tables
from ray_reid.experiments import in_process
from ray_reid.miniature import street_observations
from ray_reid.models import package
from ray_reid.models.networks.starting import Start
from ray_reid.recipe import recipes
from ray_reid.recipe.augment import Augment
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Clothes, Loss, Train
from ray_reid.training import adversary, fit, loader
from ray_reid.training.adversary import Adversary
from ray_reid.training.fit import Fit
from ray_reid.training.losses import ReidLoss, clothes_adversarial

CPU = torch.device("cpu")
ON = "train.clothes.weight=1.0"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight people of two outfits and six images, two versions of each, one of unknown clothes.

    Outfits are called `A` and `B` whoever wears them; those of versions `C0` and `C1`.
    """
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for person in range(8):
        for index in range(6):
            real = f"{person}-{index}"
            rows.append(_row(rng, real, person, "A" if index < 3 else "B"))
            for version in range(2):
                made = {
                    schema.ORIGIN: "synthetic",
                    schema.PARENT: schema.observation_id("s", real),
                }
                rows.append(_row(rng, f"{real}-{version}", person, f"C{version}") | made)
    rows[0][schema.CLOTHES] = None
    path = tmp_path_factory.mktemp("table") / "observations"
    tables.write(path, schema.observations(rows))
    return path


def _row(rng: np.random.Generator, name: str, person: int, clothes: str) -> dict[str, Any]:
    """A person's colour above that of the outfit."""
    seeds = [person], [person, *clothes.encode()]
    colours = np.stack([np.random.default_rng(seed).uniform(30, 225, 3) for seed in seeds])
    pixels = colours.repeat(16, axis=0)[:, None] + rng.normal(0, 10, (32, 32, 3))
    return {
        schema.OBSERVATION_ID: schema.observation_id("s", name),
        schema.IMAGE: images.encode(pixels.clip(0, 255).astype(np.uint8)),
        schema.IDENTITY: f"s:{person}",
        schema.CLOTHES: clothes,
        schema.SOURCE: "s",
        schema.SPLIT: "train",
    }


def _recipe(*overrides: str) -> Recipe:
    small = [
        "train.backbone=resnet10t",
        "train.image_size=[32, 32]",
        "train.sampler={num_identities: 4, num_instances: 2}",
        "train.epochs=2",
        "train.batches_per_epoch=2",
        "train.precision=fp32",
    ]
    return recipes.load("baseline", None, [*small, *overrides])


def _fit(table: Path, *overrides: str) -> Fit:
    recipe = _recipe(*overrides)
    return Fit(recipe, loader.TrainingRows([table], recipe.train), device=CPU)


def _loop(logits: Tensor, clothes: list[int], wearers: list[int], epsilon: float) -> Tensor:
    """The loss as the paper writes it, a term at a time."""
    losses = []
    for row, worn in zip(logits, clothes, strict=True):
        own = [c for c in range(len(row)) if wearers[c] == wearers[worn]]
        others = [c for c in range(len(row)) if c not in own]
        loss = torch.zeros((), dtype=logits.dtype)
        for c in own:
            target = epsilon / len(own) + (1 - epsilon) * (c == worn)
            rivals = sum((row[j].exp() for j in others), row[c].exp())
            loss = loss - target * (row[c].exp() / rivals).log()
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_the_adversarial_loss_is_that_of_a_loop(epsilon: float) -> None:
    logits = 5 * torch.randn(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wearers, clothes = [0, 0, 0, 1, 2, 2, 3], [0, 1, 2, 3, 4, 5, 6, 0, 5]
    owned = torch.tensor(wearers)
    own = owned == owned[torch.tensor(clothes)][:, None]
    found = clothes_adversarial(logits, torch.tensor(clothes), own, epsilon)
    assert torch.allclose(found, _loop(logits, clothes, wearers, epsilon), rtol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    own = torch.tensor([[True, True, False]])
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    clothes_adversarial(logits, torch.tensor([1]), own, 0.1).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, pytest.approx(-0.95), pytest.approx(0.95)]]


def _opponent(table: Path, *overrides: str) -> tuple[Adversary, loader.TrainingLabels]:
    started = _fit(table, ON, "train.optimizer=sgd", *overrides)
    assert started.adversary is not None
    return started.adversary, started.rows.chosen


def test_the_classifier_learns_from_embeddings_and_only_embeddings_feel_the_loss(
    table: Path,
) -> None:
    against, chosen = _opponent(table, "train.clothes.epsilon=0.2")
    rows = torch.from_numpy(np.flatnonzero(chosen.clothes >= 0)[::5])
    embeddings = torch.randn(len(rows), 512, generator=torch.Generator().manual_seed(0))
    embeddings.requires_grad_()
    before = against.directions.detach().clone()
    found = against.oppose(embeddings, rows, epoch=0)
    assert not torch.equal(against.directions, before)
    # The classifier's cross-entropy has reached no embedding.
    assert embeddings.grad is None
    learned, moved = against.directions.grad, against.directions.detach().clone()
    assert learned is not None
    learned = learned.clone()
    found["adversarial"].backward()  # type: ignore[no-untyped-call]
    assert torch.equal(against.directions, moved)
    assert torch.equal(against.directions.grad, learned)  # type: ignore[arg-type]
    _check_gradients(against, chosen, rows, embeddings, before, found)


def _check_gradients(
    against: Adversary,
    chosen: loader.TrainingLabels,
    rows: Tensor,
    embeddings: Tensor,
    before: Tensor,
    found: dict[str, Tensor],
) -> None:
    """Compare with cosines in float64: the classifier learned first, then was answered."""
    clothes, wearers = chosen.clothes[rows].tolist(), chosen.wearers.tolist()
    leaf = embeddings.detach().double().requires_grad_()
    fixed = against.directions.detach().double()
    cosines = torch.stack([
        torch.stack([torch.cosine_similarity(one, other, dim=0) for other in fixed])
        for one in leaf
    ])  # fmt: skip
    expected = _loop(16 * cosines, clothes, wearers, 0.2).mean()
    expected.backward()
    assert torch.allclose(found["adversarial"].double(), expected, rtol=1e-5)
    assert leaf.grad is not None
    assert embeddings.grad is not None
    assert torch.allclose(embeddings.grad.double(), leaf.grad, atol=1e-7)
    old = before.double().requires_grad_()
    told = 16 * torch.cosine_similarity(leaf.detach()[:, None], old[None], dim=2)
    loss = torch.nn.functional.cross_entropy(told, torch.tensor(clothes))
    (gradient,) = torch.autograd.grad(loss, old)
    assert torch.allclose(found["clothes"].double(), loss, rtol=1e-5)
    assert against.directions.grad is not None
    assert torch.allclose(against.directions.grad.double(), gradient, atol=1e-6)
    right = (told.argmax(dim=1) == torch.tensor(clothes)).float().mean()
    assert found["clothes_accuracy"] == pytest.approx(right.item())


def test_images_of_unknown_clothes_are_left_out_of_the_loss(table: Path) -> None:
    against, chosen = _opponent(table)
    (unknown,) = np.flatnonzero((chosen.clothes == -1) & ~chosen.synthetic).tolist()
    known = int(np.flatnonzero(chosen.clothes >= 0)[0])
    embeddings = torch.randn(2, 512, generator=torch.Generator().manual_seed(0)).requires_grad_()
    against.oppose(embeddings, torch.tensor([unknown, known]), 0)["adversarial"].backward()  # type: ignore[no-untyped-call]
    assert embeddings.grad is not None
    assert not embeddings.grad[0].any()
    assert embeddings.grad[1].any()
    nothing = against.oppose(embeddings.detach(), torch.tensor([unknown, unknown]), 0)
    assert [float(value) for value in nothing.values()] == [0, 0, 0]


def test_clothes_are_numbered_person_by_person(table: Path) -> None:
    chosen = loader.labels([table], Train())
    assert chosen.wearers.tolist() == np.repeat(np.arange(8), 2).tolist()
    learned = chosen.clothes >= 0
    # All but the image of unknown clothes; `A` of two people are two.
    assert learned.sum() == 47
    assert np.array_equal(chosen.wearers[chosen.clothes[learned]], chosen.labels[learned])
    assert sorted(np.bincount(chosen.clothes[learned]).tolist()) == [2] + [3] * 15


def test_generated_images_join_the_losses_of_clothes_where_the_recipe_says_so(
    table: Path,
) -> None:
    found = {}
    for which in ("identity_only", "all"):
        clothes = Clothes(weight=1, synthetic=which)
        spec = Train(mixing="shuffled", clothes=clothes)
        found[which] = loader.labels([table], spec)
    plain, joined = found["identity_only"], found["all"]
    assert (plain.clothes[plain.synthetic] == -1).all()
    assert (joined.clothes[joined.synthetic] >= 0).all()
    assert (len(plain.wearers), len(joined.wearers)) == (16, 32)
    rows = torch.tensor([0, 47, 48, 143])
    for which, expected in (("identity_only", [True, True, False, False]), ("all", None)):
        mixed = ["train.mixing=shuffled", f"train.clothes.synthetic={which}"]
        compared = _opponent(table, *mixed)[0].compared(rows)
        assert (None if compared is None else compared.tolist()) == expected


@pytest.mark.parametrize("metric", ["triplet", "circle", "supcon"])
def test_the_metric_loss_compares_some_rows_as_if_there_were_no_others(metric: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    features, logits = (torch.randn(12, width, generator=generator) for width in (5, 4))
    labels, some = torch.arange(4).repeat(3), torch.arange(12) < 8
    loss = ReidLoss(Loss(metric=metric))
    pairs = [(features, logits)]
    found = loss(pairs, labels, some)
    whole, part = loss(pairs, labels), loss([(features[some], logits[some])], labels[some])
    assert found["metric"] == part["metric"] != whole["metric"]
    assert found["cross_entropy"] == whole["cross_entropy"]
    assert loss(pairs, labels, torch.zeros(12, dtype=torch.bool))["metric"] == 0


def test_before_its_first_epoch_the_loss_changes_nothing(table: Path) -> None:
    plain, opposed = _fit(table), _fit(table, ON, "train.clothes.start_epoch=1")
    assert opposed.adversary is not None
    begun = opposed.adversary.directions.detach().clone()
    for (a, b), epoch in zip(
        zip(plain.run(), opposed.run(), strict=True), (0, 0, 1, 1), strict=True
    ):
        same = [torch.equal(x, y) for x, y in zip(_weights(plain), _weights(opposed), strict=True)]
        assert all(same) == (epoch == 0)
        assert torch.equal(opposed.adversary.directions, begun) == (epoch == 0)
        assert a.epoch == b.epoch
    assert set(plain.progress.history[0]) == {"epoch", *fit.MEASURED, "learning_rate"}
    first, second = opposed.progress.history
    assert set(first) == {*plain.progress.history[0], *adversary.MEASURED}
    assert first["loss"] == plain.progress.history[0]["loss"]
    parts = second["cross_entropy"] + second["metric"] + second["adversarial"]
    assert second["loss"] == pytest.approx(parts, rel=1e-6)


def _weights(fit: Fit) -> list[Tensor]:
    return list(fit.network.state_dict().values())


def test_the_classifier_learns_clothes_at_a_rate_of_its_own(table: Path) -> None:
    changes = ["train.clothes.classifier_rate=10", "train.epochs=4", "train.batches_per_epoch=8"]
    trained = _fit(table, ON, *changes, "train.learning_rate=2.0e-3")
    assert trained.adversary is not None
    rates = set()
    for _ in trained.run():
        rates.add(trained.adversary.optimizer.param_groups[0]["lr"])
    assert rates == {2e-2}
    history = trained.progress.history
    assert history[-1]["clothes"] < history[0]["clothes"]
    # Chance is one of 16.
    assert history[-1]["clothes_accuracy"] > 3 / 16


PAIRS = [
    "train.mixing=shuffled",
    "train.sampler={kind: progressive, num_identities: 4, num_instances: 2, partitions: 2}",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        [],
        [*PAIRS, "train.accumulate=2"],
        [*PAIRS, "train.clothes.synthetic=all", "train.loss.auxiliary=0.5"],
        ["train.precision=fp16", "train.clip_norm=1.0", "train.clothes.start_epoch=1"],
        ["train.optimizer=sgd", "train.clothes.classifier_rate=0.5", "train.head=vehiclenet"],
    ],
    ids=["plain", "pairs in parts", "generated clothes", "fp16", "sgd"],
)
def test_a_training_against_clothes_resumes_bit_for_bit(table: Path, changes: list[str]) -> None:
    whole = _fit(table, ON, *changes)
    for _ in whole.run():
        pass
    for stop in (1, 3):
        first = _fit(table, ON, *changes)
        for done, _ in enumerate(first.run(), start=1):
            if done == stop:
                break
        buffer = io.BytesIO()
        torch.save(first.state(), buffer)
        second = _fit(table, ON, *changes)
        second.restore(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        for _ in second.run():
            pass
        assert second.progress.history == whole.progress.history
        assert all(map(torch.equal, _weights(whole), _weights(second)))
        assert whole.adversary is not None
        assert second.adversary is not None
        assert torch.equal(whole.adversary.directions, second.adversary.directions)


def _worker(rank: int, folder: str, table: str) -> None:
    store, limit = f"file://{folder}/store", timedelta(seconds=60)
    dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=2)
    recipe = _recipe(
        ON,
        *PAIRS,
        "train.sampler.num_identities=8",
        "train.num_workers=2",
        "train.accumulate=2",
        "train.loss.gather=true",
        "train.clothes.start_epoch=1",
    )
    rows = loader.TrainingRows([table], recipe.train)
    place: dict[str, Any] = {"worker": rank, "world_size": 2, "wrap": DistributedDataParallel}
    fit = Fit(recipe, rows, device=CPU, **place)
    assert fit.adversary is not None
    begun = fit.adversary.directions.detach().clone()
    for _ in fit.run():
        pass
    # One image of the first worker is of clothes that are learned, and none or all of the other.
    each = [adversary._mean_count(torch.arange(4) < (most if rank else 1)) for most in (0, 4)]
    torch.save({**fit.state(), "begun": begun, "each": each}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_have_one_classifier(table: Path, tmp_path: Path) -> None:
    arguments = str(tmp_path), str(table)
    context = torch.multiprocessing.get_context("spawn")
    other = context.Process(target=_worker, args=(1, *arguments))
    other.start()
    _worker(0, *arguments)
    other.join()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    directions = [state["adversary"]["directions"] for state in (first, second)]
    assert torch.equal(*directions)
    assert torch.equal(first["begun"], second["begun"])
    assert not torch.equal(directions[0], first["begun"])
    learned = [name for name in first["network"] if "running" not in name]
    assert all(torch.equal(first["network"][name], second["network"][name]) for name in learned)
    assert first["progress"]["history"] == second["progress"]["history"]
    assert first["each"] == second["each"] == [0.5, 2.5]


def test_the_next_stage_and_the_package_have_the_network_alone(table: Path, tmp_path: Path) -> None:
    first = _fit(table, ON)
    for _ in first.run():
        pass
    recipe = _recipe(ON, *PAIRS, "train.clothes.synthetic=all")
    rows = loader.TrainingRows([table], recipe.train)
    second = Fit(recipe, rows, device=CPU, start=Start(first.spec, first.weights()))
    assert second.adversary is not None
    assert len(second.adversary.wearers) == 32
    for _ in second.run():
        pass
    package.save(tmp_path / "model", recipe, rows.chosen.identities, second.weights())
    photograph = images.encode(np.zeros((32, 32, 3), np.uint8))
    assert ray_reid.load(tmp_path / "model", "cpu").embed([photograph]).shape == (1, 512)


def test_a_trial_of_a_comparison_trains_against_clothes(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"images_per_camera": 2, "cameras_per_identity": 2, "size": (32, 32)}
    drawn = street_observations("pedestrian", num_train=6, num_test=4, seed=0, **shared)
    tables.write(tmp_path / "drawn", schema.observations(list(drawn)))
    stages = "train.stages=[{name: I}, {name: II, changes: {clothes.weight: 0.5, epochs: 1}}]"
    arguments = _recipe(ON, stages), [tmp_path / "drawn"], CPU
    found = in_process.run_trial(*arguments, shared=tmp_path / "model")
    assert set(found.metrics) == set(in_process.METRICS)
    # The model that it leaves is taken, and is the same.
    assert in_process.run_trial(*arguments, shared=tmp_path / "model") == found


def test_what_cannot_be_learned_of_clothes_is_refused(table: Path, tmp_path: Path) -> None:
    rows = tables.read(table, schema.OBSERVATION.names).to_pylist()
    bare = [row | {schema.CLOTHES: "A" if row[schema.IDENTITY] == "s:3" else None} for row in rows]
    tables.write(tmp_path / "bare", schema.observations(bare))
    with pytest.raises(ValueError, match=r"clothes\.weight is 1, .* 48 training .* clothes of 1$"):
        _fit(tmp_path / "bare", ON)
    with pytest.raises(ValueError, match=r"the 0 training images .* show known clothes of 0$"):
        _fit(table, ON, "train.mixing=synthetic")
    # Without the loss nobody asks.
    assert len(_fit(tmp_path / "bare").rows.chosen.wearers) == 1
    clothes = Clothes(weight=1)
    with pytest.raises(ValueError, match=r"clothes\.weight 1 needs identities, .* 'camera'"):
        Train(clothes=clothes, target="camera")
    with pytest.raises(ValueError, match="whole clothes, which mixup and cutmix blend"):
        Train(
            clothes=clothes,
            augment=Augment(mixup=0.5),
            loss=Loss(metric="none"),
        )
    with pytest.raises(ValueError, match=r"start_epoch 12 must be less than epochs 12"):
        Train(clothes=Clothes(weight=1, start_epoch=12))
