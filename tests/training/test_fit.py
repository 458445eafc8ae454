"""The training loop: it learns, and an interrupted training is the same training."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_reid import images, schema, storage
from ray_reid.models.networks.starting import Start
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Train
from ray_reid.training import loader
from ray_reid.training.fit import Fit
from ray_reid.training.loader import TrainingRows
from ray_reid.training.optimizers import schedule


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six identities of six noisy images, each a colour of its own, and one image to ignore."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for identity in range(6):
        colour = rng.uniform(40, 215, 3)
        for index in range(6):
            pixels = (colour + rng.normal(0, 25, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            rows.append(_row(f"{identity}-{index}", images.encode(pixels), f"s:{identity}"))
    rows.append(_row("broken", b"?", "s:0") | {schema.DROP_REASON: "corrupt image: ?"})
    rows.append(_row("query", b"?", "s:9") | {schema.SPLIT: "query"})
    path = tmp_path_factory.mktemp("table") / "observations"
    storage.write(path, schema.observations(rows))
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five synthetic identities of ten images, and one image that a filter has marked."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for identity in range(5):
        colour = rng.uniform(40, 215, 3)
        for index in range(10):
            pixels = (colour + rng.normal(0, 25, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            rows.append(_row(f"g{identity}-{index}", images.encode(pixels), f"g:{identity}"))
    rows.append(_row("marked", b"?", "g:0") | {schema.DROP_REASON: "colour"})
    path = tmp_path_factory.mktemp("generated") / "observations"
    synthetic = {schema.ORIGIN: "synthetic"}
    storage.write(path, schema.observations([row | synthetic for row in rows]))
    return path


def _row(name: str, image: bytes, identity: str) -> dict[str, Any]:
    return {
        schema.OBSERVATION_ID: schema.observation_id("s", name),
        schema.IMAGE: image,
        schema.IDENTITY: identity,
        schema.SOURCE: "s",
        schema.SPLIT: "train",
    }


def _recipe(*overrides: str) -> Recipe:
    small = [
        "train.backbone=resnet10t",
        "train.image_size=[32, 32]",
        "train.sampler={num_identities: 4, num_instances: 3}",
        "train.epochs=3",
        "train.precision=fp32",
    ]
    return recipes.load("baseline", None, [*small, *overrides])


def _fit(table: Path, recipe: Recipe, *others: Path) -> Fit:
    rows = TrainingRows([table, *others], recipe.train)
    return Fit(recipe, rows, device=torch.device("cpu"))


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    loaded: dict[str, Any] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return loaded


def test_labels_are_the_sorted_identities_of_the_trainable_rows(table: Path) -> None:
    chosen = loader.labels([table], Train())
    assert chosen.identities == [f"s:{identity}" for identity in range(6)]
    assert np.bincount(chosen.labels).tolist() == [6] * 6
    assert not chosen.synthetic.any()


def test_the_loader_gives_the_planned_rows_with_their_labels(table: Path) -> None:
    rows = TrainingRows([table], Train(image_size=(32, 32)))
    plan = np.array([[[3, 1], [5, 0]], [[2, 2], [7, 8]]])
    stored = storage.read(table, [schema.IMAGE, schema.IDENTITY], storage.TRAINABLE)
    encoded = stored[schema.IMAGE].to_pylist()
    for worker in range(2):
        batches = list(loader.execute(rows, plan, worker))
        for (pixels, labels), wanted in zip(batches, plan[:, worker], strict=True):
            expected = np.stack([images.decode(encoded[row]) for row in wanted])
            assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), expected)
            assert labels.tolist() == rows.chosen.labels[wanted].tolist()
    resumed = list(loader.execute(rows, plan, 0, start=1))
    assert len(resumed) == 1
    assert torch.equal(resumed[0][0], list(loader.execute(rows, plan, 0))[1][0])


def test_decoding_processes_give_the_same_batches(table: Path) -> None:
    rows = TrainingRows([table], Train(image_size=(32, 32)))
    plan = np.arange(24).reshape(4, 1, 6)
    here = list(loader.execute(rows, plan, 0))
    beside = list(loader.execute(rows, plan, 0, processes=2))
    for (a, b), (c, d) in zip(here, beside, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_training_learns_to_tell_colours_apart(table: Path) -> None:
    fit = _fit(table, _recipe("train.epochs=12"))
    history = list(fit.run())[-1].history
    assert len(history) == 12
    assert history[-1]["cross_entropy"] < 0.7 * history[0]["cross_entropy"]
    # Chance is one of six.
    assert history[-1]["accuracy"] > max(history[0]["accuracy"], 3 / 6)


MIXED = ["train.mixing=balanced", "train.loss.auxiliary=0.5", "train.batches_per_epoch=2"]


@pytest.mark.parametrize(
    ("stop", "changes"),
    [(1, []), (2, []), (3, []), (3, MIXED)],
    ids=["1", "2", "3", "balanced with an auxiliary classifier"],
)
def test_a_training_resumed_at_any_batch_ends_with_the_same_weights(
    table: Path, generated: Path, stop: int, changes: list[str]
) -> None:
    recipe = _recipe(*changes)
    whole = _fit(table, recipe, generated)
    for _ in whole.run():
        pass
    first = _fit(table, recipe, generated)
    for done, _ in enumerate(first.run(), start=1):
        if done == stop:
            break
    second = _fit(table, recipe, generated)
    second.restore(_through_a_file(first.state()))
    for _ in second.run():
        pass
    assert second.progress.history == whole.progress.history
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_a_finished_training_has_nothing_left_to_do(table: Path) -> None:
    fit = _fit(table, _recipe("train.epochs=1"))
    steps = sum(1 for _ in fit.run())
    assert steps == fit.batches_per_epoch == fit.batches_done
    assert list(fit.run()) == []


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    spec = Train(epochs=10, warmup_epochs=2)
    rates = [schedule(spec, epochs) for epochs in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.01, 0.505, 1, 0.5, 0])


def test_a_multistep_schedule_falls_at_its_milestones() -> None:
    spec = Train(epochs=12, warmup_epochs=1, schedule="multistep", milestones=(4, 8), decay=0.1)
    rates = [schedule(spec, epochs) for epochs in (0.5, 1, 3.9, 4, 8, 11)]
    assert rates == pytest.approx([0.505, 1, 1, 0.1, 0.01, 0.01])
    with pytest.raises(ValueError, match="multistep needs milestones"):
        Train(schedule="multistep")
    with pytest.raises(ValueError, match="multistep needs milestones, and nothing else has them"):
        Train(milestones=(4,))
    with pytest.raises(ValueError, match=r"milestones \[8.0, 4.0\] must increase"):
        Train(schedule="multistep", milestones=(8, 4))


def test_parts_of_a_batch_give_the_gradient_of_the_whole(table: Path) -> None:
    found = []
    for accumulate in (1, 2):
        changes = [f"train.accumulate={accumulate}", "train.loss.metric=none"]
        fit = _fit(table, _recipe(*changes, "train.precision=fp32"))
        # Batch norm would see other images.
        fit.network.eval()
        rng = torch.Generator().manual_seed(0)
        images, labels = (
            torch.rand(12, 3, 32, 32, generator=rng),
            torch.arange(4).repeat_interleave(3),
        )
        parts = fit._parts(12)
        assert sorted(torch.cat(parts).tolist()) == list(range(12))
        # No identity is divided.
        assert sum(len(set(labels[part].tolist())) for part in parts) == 4
        for rows in parts:
            fit._backward((images[rows],), labels[rows], labels[rows], len(parts))
        found.append([p.grad.clone() for p in fit.network.parameters() if p.grad is not None])
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, atol=1e-6)


def test_a_batch_that_cannot_be_parted_is_refused() -> None:
    with pytest.raises(ValueError, match="16 must be a multiple of num_workers 1 and accumulate 3"):
        Train(accumulate=3)
    with pytest.raises(ValueError, match="and accumulate 16 leaves 1 identity in each part"):
        Train(accumulate=16)


def test_a_gradient_is_clipped_to_its_norm(table: Path) -> None:
    norms = []
    for clip in ("null", "1.0e-3"):
        fit = _fit(table, _recipe(f"train.clip_norm={clip}", "train.optimizer=sgd"))
        next(iter(fit.run()))
        gradients = [p.grad for p in fit.network.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0] > 0.1


def test_the_backbone_may_learn_more_slowly(table: Path) -> None:
    fit = _fit(table, _recipe("train.backbone_rate=0.0", "train.warmup_epochs=0"))
    before = {name: tensor.clone() for name, tensor in fit.network.named_parameters()}
    next(iter(fit.run()))
    moved = {
        name
        for name, tensor in fit.network.named_parameters()
        if not torch.equal(tensor, before[name])
    }
    assert moved
    assert not any(name.startswith("backbone.") for name in moved)


@pytest.mark.parametrize(
    "changes",
    [
        ["train.precision=fp16"],
        ["train.accumulate=2"],
        ["train.augment.mixup=0.8", "train.augment.cutmix=1.0", "train.loss.metric=none"],
        ["train.augment.rand_augment=2", "train.clip_norm=1.0", "train.optimizer=sgd"],
    ],
    ids=["fp16", "accumulate", "mixup", "rand_augment"],
)
def test_whatever_is_switched_on_resumes_bit_for_bit(table: Path, changes: list[str]) -> None:
    recipe = _recipe("train.epochs=2", *changes)
    whole = _fit(table, recipe)
    for _ in whole.run():
        pass
    first = _fit(table, recipe)
    next(iter(first.run()))
    second = _fit(table, recipe)
    second.restore(_through_a_file(first.state()))
    for _ in second.run():
        pass
    assert second.progress.history == whole.progress.history
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name


def test_images_too_few_for_a_batch_are_refused(table: Path) -> None:
    with pytest.raises(ValueError, match="num_identities is 8 but only 6 identities"):
        _fit(table, _recipe("train.sampler.num_identities=8"))


def test_a_table_with_one_identity_is_refused(tmp_path: Path) -> None:
    one = schema.observations([_row("a", b"", "s:1"), _row("b", b"", "s:1")])
    assert isinstance(one, pa.Table)
    storage.write(tmp_path / "one", one)
    with pytest.raises(ValueError, match="needs at least 2 identities; the table has 1"):
        loader.labels([tmp_path / "one"], Train())


def test_a_training_that_diverges_stops_with_its_cause(table: Path) -> None:
    fit = _fit(table, _recipe("train.learning_rate=1e20", "train.warmup_epochs=0"))
    with pytest.raises(ValueError, match="diverged in epoch 0: its mean loss is nan"):
        list(fit.run())


def test_a_training_keeps_the_arithmetic_it_began_with(table: Path) -> None:
    first = _fit(table, _recipe("train.precision=bf16"))
    next(iter(first.run()))
    second = _fit(table, _recipe("train.precision=fp32"))
    second.restore(_through_a_file(first.state()))
    assert second.dtype == torch.bfloat16


def _chosen(tables: list[Path], **changes: Any) -> loader.TrainingLabels:
    return loader.labels(tables, Train(**changes))


def _ids(tables: list[Path], chosen: loader.TrainingLabels) -> list[str]:
    """The observation ids of the chosen rows, read by their places."""
    columns = [schema.OBSERVATION_ID]
    read = [storage.read(table, columns, storage.TRAINABLE) for table in tables]
    return [read[table][columns[0]][row].as_py() for table, row in chosen.places.tolist()]


def test_tables_that_differ_in_what_may_be_null_are_trained_on_together(
    table: Path, generated: Path, tmp_path: Path
) -> None:
    rows = storage.read(generated, schema.OBSERVATION.names)
    loose = pa.schema([field.with_nullable(True) for field in rows.schema])
    storage.write(tmp_path / "loose", rows.cast(loose))
    mixed, plain = _chosen([table, tmp_path / "loose"]), _chosen([table, generated])
    assert mixed.labels.tolist() == plain.labels.tolist()
    assert mixed.counts() == plain.counts()


def test_cameras_can_be_what_is_learned(tmp_path: Path) -> None:
    rows = [
        _row(f"{source}{n}", b"?", f"{source}:{n % 2}")
        | {schema.SOURCE: source, schema.CAMERA: None if n == 5 else f"c{n % 3}"}
        for source in ("a", "b")
        for n in range(6)
    ]
    storage.write(tmp_path / "cameras", schema.observations(rows))
    chosen = _chosen([tmp_path / "cameras"], target="camera")
    # Of two sources cameras are never the same one; the image without a camera is left out.
    assert chosen.identities == ["a:c0", "a:c1", "a:c2", "b:c0", "b:c1", "b:c2"]
    assert [chosen.identities[label] for label in chosen.labels] == chosen.cameras
    assert len(chosen.labels) == 10
    storage.write(tmp_path / "none", schema.observations([_row("x", b"?", "s:1")]))
    with pytest.raises(ValueError, match="none of 1 training images has a camera"):
        _chosen([tmp_path / "none"], target="camera")
    with pytest.raises(ValueError, match=r"validation 0\.1 searches"):
        Train(target="camera", validation=0.1)


def test_real_rows_come_first_and_each_kind_is_in_the_order_of_its_ids(
    table: Path, generated: Path
) -> None:
    tables = [table, generated]
    chosen = _chosen(tables, mixing="shuffled")
    assert chosen.synthetic.tolist() == [False] * 36 + [True] * 50
    ids = _ids(tables, chosen)
    assert ids[:36] == sorted(ids[:36])
    assert ids[36:] == sorted(ids[36:])
    assert chosen.counts() == {
        "real": {"images": 36, "identities": 6},
        "synthetic": {"images": 50, "identities": 5},
    }
    # The order of the tables and which of them holds an image decide nothing.
    swapped = _chosen(tables[::-1], mixing="shuffled")
    assert _ids(tables[::-1], swapped) == ids
    assert swapped.labels.tolist() == chosen.labels.tolist()


@pytest.mark.parametrize(
    ("mixing", "kinds"),
    [("real", "s"), ("synthetic", "g"), ("shuffled", "gs"), ("balanced", "gs")],
)
def test_mixing_says_which_images_are_trained_on(
    table: Path, generated: Path, mixing: str, kinds: str
) -> None:
    chosen = _chosen([table, generated], mixing=mixing)
    assert sorted({name[0] for name in chosen.identities}) == sorted(kinds)
    assert set(chosen.labels.tolist()) == set(range(len(chosen.identities)))


def test_a_batch_of_two_tables_has_the_images_of_its_rows(table: Path, generated: Path) -> None:
    tables = [table, generated]
    spec = Train(mixing="shuffled", synthetic_fraction=0.3, image_size=(32, 32))
    rows = TrainingRows(tables, spec)
    assert len(rows) == 36 + 5 * 3
    ids = _ids(tables, loader.labels(tables, spec))
    stored = {
        row[schema.OBSERVATION_ID]: row
        for path in tables
        for row in storage.read(
            path, [schema.OBSERVATION_ID, schema.IMAGE, schema.IDENTITY]
        ).to_pylist()
    }
    picked = [0, 35, 36, 50, 40]
    pixels, labels = rows[picked]
    for number, row in enumerate(picked):
        expected = images.decode(stored[ids[row]][schema.IMAGE])
        assert np.array_equal(pixels[number].permute(1, 2, 0).numpy(), expected)
        assert rows.chosen.identities[labels[number]] == stored[ids[row]][schema.IDENTITY]


def test_a_table_that_is_not_trained_on_is_not_copied(
    table: Path, generated: Path, tmp_path: Path
) -> None:
    TrainingRows([table, generated], Train())
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
    TrainingRows([table, generated], Train(mixing="balanced", real_fraction=0.5))
    TrainingRows([table, generated], Train(mixing="shuffled", synthetic_fraction=0.5))
    # All shares of a table have one copy in common.
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2


def test_the_origin_decides_and_not_the_table(table: Path, tmp_path: Path) -> None:
    """A synthetic set of somebody else's is read as a source, beside real ones."""
    rows = [_row(f"v{n}", b"", f"v:{n % 3}") | {schema.ORIGIN: "synthetic"} for n in range(9)]
    rows += [_row(f"r{n}", b"", f"r:{n % 2}") for n in range(4)]
    storage.write(tmp_path / "mixed", schema.observations(rows))
    for mixing, identities in (("real", 2), ("synthetic", 3), ("balanced", 5)):
        assert len(_chosen([tmp_path / "mixed"], mixing=mixing).identities) == identities


def test_images_that_the_mixing_needs_and_nobody_has_are_refused(
    table: Path, generated: Path
) -> None:
    for mixing in ("synthetic", "shuffled", "balanced"):
        with pytest.raises(
            ValueError, match=rf"train\.mixing is '{mixing}', .* 36 real and 0 synth"
        ):
            _chosen([table], mixing=mixing)
    with pytest.raises(ValueError, match=r"'real', which needs real images, .* 0 real and 50 synt"):
        _chosen([generated])


def _many(path: Path, origin: str = "real") -> Path:
    """40 identities of 10 images each."""
    rows = [_row(f"{n}", b"", f"s:{n % 40}") | {schema.ORIGIN: origin} for n in range(400)]
    storage.write(path, schema.observations(rows))
    return path


@pytest.mark.parametrize("of", ["identities", "images"])
def test_a_share_of_the_real_images_is_part_of_every_larger_one(tmp_path: Path, of: str) -> None:
    table = _many(tmp_path / "many")
    smaller: set[str] = set()
    for fraction in (0.001, 0.01, 0.1, 0.3, 0.77, 1.0):
        chosen = _chosen([table], real_fraction=fraction, real_fraction_of=of)
        ids = set(_ids([table], chosen))
        assert smaller <= ids
        smaller = ids
        if fraction >= 0.1:
            assert len(ids) == round(400 * (fraction if of == "images" else _whole(fraction)))
        assert len(chosen.identities) >= 2
    assert len(smaller) == 400


@pytest.mark.parametrize("seed", [0, 1])
def test_few_shot_takes_a_share_of_each_identitys_images(tmp_path: Path, seed: int) -> None:
    table = _many(tmp_path / "many")
    smaller: set[str] = set()
    for fraction, each in ((0.001, 1), (0.1, 1), (0.3, 3), (0.5, 5), (0.9, 9), (1.0, 10)):
        asked = {"real_fraction": fraction, "real_fraction_of": "images_of_each"}
        chosen = _chosen([table], **asked, fraction_seed=seed)
        assert np.bincount(chosen.labels).tolist() == [each] * 40
        ids = set(_ids([table], chosen))
        assert smaller <= ids
        smaller = ids


def test_another_seed_draws_another_share(tmp_path: Path) -> None:
    table = _many(tmp_path / "many")
    for of in ("identities", "images", "images_of_each"):
        asked = {"real_fraction": 0.3, "real_fraction_of": of}
        drawn = [
            frozenset(_ids([table], _chosen([table], **asked, fraction_seed=seed)))
            for seed in range(3)
        ]
        assert len(set(drawn)) == 3
        assert len({len(one) for one in drawn}) == 1


def test_a_share_of_the_generated_identities_keeps_them_whole(tmp_path: Path) -> None:
    table = _many(tmp_path / "many", "synthetic")
    smaller: set[str] = set()
    for fraction, number in ((0.01, 2), (0.125, 5), (0.25, 10), (0.5, 20), (1.0, 40)):
        asked = {"synthetic_fraction": fraction, "synthetic_fraction_of": "identities"}
        chosen = _chosen([table], mixing="synthetic", **asked)
        assert np.bincount(chosen.labels).tolist() == [10] * number
        ids = set(_ids([table], chosen))
        assert smaller <= ids
        smaller = ids


def _whole(fraction: float) -> float:
    """The share that is nearest in whole identities of 40."""
    return round(40 * fraction) / 40


def test_a_share_of_the_synthetic_images_is_taken_from_every_identity(tmp_path: Path) -> None:
    table = _many(tmp_path / "many", "synthetic")
    smaller: set[str] = set()
    for fraction, each in ((0.01, 1), (0.1, 1), (0.25, 2), (0.5, 5), (1.0, 10)):
        chosen = _chosen([table], mixing="synthetic", synthetic_fraction=fraction)
        assert np.bincount(chosen.labels).tolist() == [each] * 40
        ids = set(_ids([table], chosen))
        assert smaller <= ids
        smaller = ids


def test_trainings_on_unlike_amounts_take_equally_many_steps(table: Path, generated: Path) -> None:
    for changes in (["train.real_fraction=0.7"], ["train.mixing=shuffled"]):
        fit = _fit(table, _recipe("train.batches_per_epoch=5", *changes), generated)
        assert fit.batches_per_epoch == 5


def test_balanced_batches_need_an_even_number_of_identities(table: Path, generated: Path) -> None:
    recipe = _recipe("train.mixing=balanced", "train.sampler.num_identities=5")
    with pytest.raises(ValueError, match="num_identities 5 must be even"):
        _fit(table, recipe, generated)


SMALL_SWIN = "{embed_dim: 12, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2], window_size: 4}"


def test_a_swin_transformer_trains_with_an_auxiliary_classifier(table: Path) -> None:
    fit = _fit(
        table,
        _recipe(
            "train.backbone=swinv2_tiny_window8_256",
            f"train.backbone_params={SMALL_SWIN}",
            "train.loss.auxiliary=0.5",
            "train.epochs=4",
        ),
    )
    history = list(fit.run())[-1].history
    assert history[-1]["loss"] < history[0]["loss"]
    for name, parameter in fit.network.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name


def test_a_second_stage_keeps_everything_but_the_classifiers(table: Path, generated: Path) -> None:
    recipe = _recipe("train.mixing=shuffled", "train.loss.auxiliary=0.5", "train.head=vehiclenet")
    first = _fit(table, recipe, generated)
    next(iter(first.run()))
    weights = first.state()["network"]
    real = _recipe("train.mixing=real", "train.loss.auxiliary=0.5", "train.head=vehiclenet")
    rows = TrainingRows([table, generated], real.train)
    second = Fit(real, rows, device=torch.device("cpu"), start=Start(first.spec, weights))
    assert len(rows.chosen.identities) < len(first.rows.chosen.identities)
    for name, tensor in second.network.state_dict().items():
        if "head" not in name:
            assert torch.equal(tensor, weights[name]), name
        else:
            assert len(tensor) == len(rows.chosen.identities)
    list(second.run())


def test_sources_say_whose_images_are_trained_on(
    table: Path, generated: Path, tmp_path: Path
) -> None:
    rows = storage.read(generated, schema.OBSERVATION.names)
    place = rows.column_names.index(schema.SOURCE)
    storage.write(
        tmp_path / "g", rows.set_column(place, schema.SOURCE, pa.array(["g"] * len(rows)))
    )
    both = _chosen([table, tmp_path / "g"], mixing="shuffled")
    assert len(both.identities) == 11
    one = _chosen([table, tmp_path / "g"], mixing="synthetic", sources=["g"])
    assert one.identities == [f"g:{number}" for number in range(5)]
    with pytest.raises(ValueError, match=r"train\.sources names 'x', which has no train images"):
        _chosen([table], sources=["x"])


def test_side_information_reaches_the_network(table: Path, tmp_path: Path) -> None:
    rows = storage.read(table, schema.OBSERVATION.names)
    cameras = pa.array([None if n % 4 == 0 else f"c{n % 4}" for n in range(len(rows))], pa.string())
    rows = rows.set_column(rows.column_names.index(schema.CAMERA), schema.CAMERA, cameras)
    storage.write(tmp_path / "sided", rows)
    fit = _fit(tmp_path / "sided", _recipe("train.side_weight=1.0"))
    assert fit.network.side is not None
    assert fit.network.side.sides.cameras == ("s:c1", "s:c2", "s:c3")
    assert fit.codes is not None
    assert set(fit.codes) == {0, 1, 2, 3}
    list(fit.run())
    vectors = fit.network.side.vectors.weight
    assert (vectors[1:].abs().sum(dim=1) > 0).all()


def test_weight_decay_leaves_biases_and_norms_alone_unless_it_is_told_to(table: Path) -> None:
    def decayed(**changes: Any) -> tuple[int, int]:
        """Biases and scales that are decayed, and how many there are."""
        sampler = {"num_identities": 3, "num_instances": 2}
        train = {"backbone": "resnet10t", "image_size": (32, 32), "sampler": sampler, **changes}
        recipe = recipes.validate({"name": "x", "train": train})
        fit = Fit(recipe, TrainingRows([table], recipe.train), device=torch.device("cpu"))
        groups = [group for group in fit.optimizer.param_groups if group["weight_decay"]]
        sizes = [parameter.ndim for group in groups for parameter in group["params"]]
        every = [one.ndim for one in fit.network.parameters() if one.requires_grad]
        assert sum(size > 1 for size in sizes) == sum(size > 1 for size in every)
        return sum(size == 1 for size in sizes), sum(size == 1 for size in every)

    none, some = decayed()
    assert none == 0 < some
    all_of_them, there = decayed(decay_biases=True)
    assert all_of_them == there
