"""What is embedded beside the model's own view of an image: crops, further models, cameras."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ray_reid
from ray_reid import schema
from ray_reid.evaluation import embed, extraction
from ray_reid.evaluation.extraction import Extractor
from ray_reid.experiments import compare
from ray_reid.models import package
from ray_reid.models.networks import ReidNetwork
from ray_reid.models.pretrained import detector
from ray_reid.models.pretrained.detector import Box
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import tracking


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of three small networks; the last one tells cameras apart."""
    root = tmp_path_factory.mktemp("packages")
    for seed, (name, target, width) in enumerate(
        [("one", "identity", 16), ("two", "identity", 24), ("cameras", "camera", 8)]
    ):
        recipe = small(f"train.target={target}", f"train.embedding_dim={width}")
        torch.manual_seed(seed)
        weights = ReidNetwork(recipe.train, 3).state_dict()
        package.save(root / name, recipe, ["s:a", "s:b", "s:c"], weights)
    return root


def small(*overrides: str) -> Recipe:
    shared = ["train.backbone=resnet10t", "train.image_size=[32, 32]", "train.precision=fp32"]
    return recipes.load("baseline", None, [*shared, *overrides])


def pictures(count: int = 4) -> list[bytes]:
    chance = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        buffer = io.BytesIO()
        pixels = np.kron(chance.integers(0, 255, (5, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


NOTHING = ([None] * 4, [None] * 4)


class FakeDetector:
    """Sees a small car and a larger bus in all images but the second, and a tree outside."""

    def labels(self) -> list[str]:
        return ["car", "bus", "tree"]

    def detect(self, images, threshold):
        boxes = [
            Box("car", 0.9, 8, 8, 20, 20),
            Box("bus", 0.6, 4, 8, 30, 36),
            Box("tree", 0.6, 50, 0, 99, 40),
        ]
        found = [box for box in boxes if box.confidence >= threshold]
        return [[] if place == 1 else found for place in range(len(images))]


@pytest.fixture(autouse=True)
def fake_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "load", lambda reference, precision: FakeDetector())


def extracted(home: Path, **spec) -> extraction.Extracted:
    model = ray_reid.load(home / "one", "cpu")
    recipe = recipes.validate({"name": "one", "embed": spec})
    return Extractor(model, recipe.embed, recipe.models)(pictures(), NOTHING)


def test_without_wishes_there_is_the_embedding_alone(home: Path) -> None:
    found = extracted(home)
    np.testing.assert_array_equal(
        found.embedding, ray_reid.load(home / "one", "cpu").embed(pictures())
    )
    assert found.test_embedding is found.camera_embedding is found.cropped is None


@pytest.mark.parametrize(
    ("spec", "box"),
    [
        ({"classes": ["car", "bus"]}, (4, 8, 30, 36)),
        ({"classes": ["car"]}, (8, 8, 20, 20)),
        ({"classes": ["car"], "margin": 1.0}, (0, 0, 32, 32)),
        ({"classes": ["car", "bus"], "threshold": 0.7}, (8, 8, 20, 20)),
    ],
)
def test_an_image_is_averaged_with_the_largest_object_in_it(home: Path, spec, box) -> None:
    found = extracted(home, crop=spec)
    model = ray_reid.load(home / "one", "cpu")
    whole = [Image.open(io.BytesIO(one)) for one in pictures()]
    both = model.embed(whole) + model.embed([one.crop(box) for one in whole])
    expected = both / np.linalg.norm(both, axis=1, keepdims=True)
    expected[1] = found.embedding[1]
    np.testing.assert_allclose(found.test_embedding, expected, atol=1e-5)
    np.testing.assert_array_equal(found.cropped, [True, False, True, True])
    np.testing.assert_allclose(found.embedding, model.embed(whole), atol=1e-5)


def test_a_box_outside_the_image_is_no_object(home: Path) -> None:
    found = extracted(home, crop={"classes": ["tree"]})
    assert not found.cropped.any()
    np.testing.assert_array_equal(found.test_embedding, found.embedding)


def test_an_ensemble_puts_unit_embeddings_side_by_side(home: Path) -> None:
    found = extracted(home, ensemble=[str(home / "two")], crop={"classes": ["bus"]})
    alone = extracted(home, crop={"classes": ["bus"]})
    assert found.test_embedding.shape == (4, 40)
    np.testing.assert_allclose(np.linalg.norm(found.test_embedding, axis=1), 1, atol=1e-5)
    first = found.test_embedding[:, :16] * np.sqrt(np.float32(2))
    np.testing.assert_allclose(first, alone.test_embedding, atol=1e-5)


def test_the_stage_adds_a_column_for_each_that_is_asked_for(home: Path) -> None:
    recipe = recipes.validate(
        {
            "name": "one",
            "embed": {"ensemble": [str(home / "two")], "camera_model": str(home / "cameras")},
        }
    )
    stage = embed.EmbedImages(str(home / "one"), recipe.embed, recipe.models)
    empty = np.array([None] * 4, dtype=object)
    batch = {schema.IMAGE: np.array(pictures(), dtype=object), schema.CAMERA: empty}
    found = stage({**batch, schema.VIEW: empty, schema.SOURCE: np.array(["s"] * 4, dtype=object)})
    widths = {
        name: found[name].shape[1]
        for name in (schema.EMBEDDING, schema.TEST_EMBEDDING, schema.CAMERA_EMBEDDING)
    }
    assert widths == {"embedding": 16, "test_embedding": 40, "camera_embedding": 8}
    assert schema.CROPPED not in found
    camera = ray_reid.load(home / "cameras", "cpu").embed(pictures())
    np.testing.assert_allclose(found[schema.CAMERA_EMBEDDING], camera, atol=1e-5)


def test_models_that_do_not_fit_are_refused_before_anything_is_trained(home: Path) -> None:
    for spec, rule in (
        (
            {"camera_model": str(home / "one")},
            r"embed\.camera_model .* train\.target 'identity', but 'camera'",
        ),
        ({"ensemble": [str(home / "cameras")]}, r"embed.ensemble.0 .* 'camera', but 'identity'"),
        ({"ensemble": [str(home / "none")]}, r"embed.ensemble.0: no model package at"),
    ):
        with pytest.raises(ValueError, match=rule):
            embed.check(recipes.validate({"name": "one", "embed": spec}))
    with pytest.raises(
        ValueError, match=r"embed.crop.classes: the detector knows none of \['dog'\]"
    ):
        extracted(home, crop={"classes": ["dog"]})


def test_a_python_package_may_carry_the_models(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "cameras", tmp_path / "carrier")
    about = tmp_path / "carrier-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    records = [f"carrier/{file.name},," for file in (tmp_path / "carrier").iterdir()]
    (about / "RECORD").write_text("\n".join(records) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = ray_reid.load(home / "cameras", "cpu").embed(pictures())
    for reference in ("package:carrier", "package:carrier/carrier"):
        recipe = recipes.validate({"name": "one", "embed": {"camera_model": reference}})
        embed.check(recipe)
        assert extraction.resolved(recipe.embed) == recipe.embed
        assert embed.outside(recipe) == embed.outside(
            recipes.override(recipe, {"embed.camera_model": str(tmp_path / "carrier")})
        )
        found = extracted(home, camera_model=reference)
        np.testing.assert_allclose(found.camera_embedding, expected, atol=1e-5)
    recipe = recipes.validate({"name": "one", "embed": {"ensemble": ["package:no-such"]}})
    with pytest.raises(
        ValueError, match=r"^embed\.ensemble\.0: .*needs the Python package 'no-such'"
    ):
        embed.check(recipe)


def test_a_registered_model_is_named_by_its_content_and_checked(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.validate({"name": "one", "embed": {"ensemble": ["models:/reid@newest"]}})
    names = []
    for version in ("one", "two"):
        monkeypatch.setattr(tracking, "download_model", lambda *_, to=home / version: to)
        embed.check(recipe)
        names.append(embed.outside(recipe))
    assert names[0] != names[1]
    monkeypatch.setattr(tracking, "download_model", lambda *_: home / "cameras")
    with pytest.raises(ValueError, match=r"^embed\.ensemble\.0 'models:/reid@newest' was trained"):
        embed.check(recipe)


def test_the_models_beside_the_trained_one_are_part_of_a_results_name(home: Path) -> None:
    def named(**spec) -> str:
        return embed.outside(recipes.validate({"name": "one", "embed": spec}))

    names = {
        named(),
        named(ensemble=[str(home / "two")]),
        named(camera_model=str(home / "cameras")),
        named(crop={}),
    }
    assert len(names) == 4
    arm = {"embed.ensemble": [str(home / "two")]}
    compared = [
        compare.outside(recipes.validate({"name": "one", "compare": {"arms": arms}}))
        for arms in ({"a": {}}, {"a": arm})
    ]
    assert compared[0] != compared[1]
