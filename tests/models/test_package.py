"""Networks and the packages that hold them."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import ray_reid
from ray_reid.evaluation import embed
from ray_reid.models import card, package
from ray_reid.models.networks import ReidNetwork
from ray_reid.models.networks.pooling import GeneralizedMean
from ray_reid.recipe import recipes
from ray_reid.recipe.train import Loss, Train


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = recipes.load(
        "baseline",
        None,
        [
            "train.backbone=resnet10t",
            "train.image_size=[32, 48]",
            "train.precision=fp32",
            "train.embedding_dim=24",
        ],
    )
    torch.manual_seed(0)
    network = ReidNetwork(recipe.train, 3)
    path = tmp_path_factory.mktemp("package") / "model"
    package.save(path, recipe, ["s:a", "s:b", "s:c"], network.state_dict())
    return path


def _jpegs(count: int) -> list[bytes]:
    rng = np.random.default_rng(1)
    encoded = []
    for _ in range(count):
        buffer = io.BytesIO()
        pixels = np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def test_a_package_embeds_bytes_paths_and_pictures_alike(saved: Path, tmp_path: Path) -> None:
    model = ray_reid.load(saved)
    encoded = _jpegs(5)
    embeddings = model.embed(encoded)
    assert embeddings.shape == (5, 24)
    assert embeddings.dtype == np.float32
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    (tmp_path / "0.png").write_bytes(encoded[0])
    assert np.allclose(model.embed([tmp_path / "0.png"]), embeddings[:1], atol=1e-5)
    picture = Image.open(io.BytesIO(encoded[1]))
    pixels = np.asarray(picture)
    for inputs in ([picture], [pixels], pixels[None], torch.from_numpy(pixels.copy())[None]):
        assert np.allclose(model.embed(inputs), embeddings[1:2], atol=1e-5)


def test_boxes_of_an_image_are_embedded_as_their_crops(saved: Path) -> None:
    model = ray_reid.load(saved, "cpu")
    (encoded,) = _jpegs(1)
    picture = Image.open(io.BytesIO(encoded))
    boxes = [[3.4, 2, 20.6, 30], [-5, 10, 12, 99]]
    crops = [picture.crop((3, 2, 21, 30)), picture.crop((0, 10, 12, 32))]
    expected = model.embed(crops)
    assert np.allclose(model.embed_boxes(encoded, boxes), expected, atol=1e-5)
    detections = SimpleNamespace(xyxy=np.array(boxes, dtype=np.float32))
    assert np.allclose(model.embed_boxes(picture, detections), expected, atol=1e-5)
    assert np.allclose(model.embed_boxes(picture, torch.tensor(boxes)), expected, atol=1e-5)
    pixels = np.asarray(picture.convert("RGB"))
    assert np.allclose(model.embed_boxes(pixels, boxes), expected, atol=1e-5)
    joined = ray_reid.load([saved, saved], "cpu").embed_boxes(picture, boxes)
    assert np.allclose(joined @ joined.T, expected @ expected.T, atol=1e-5)
    assert model.embed_boxes(picture, SimpleNamespace(xyxy=np.empty((0, 4)))).shape == (0, 24)
    assert model.embed_boxes(picture, []).shape == (0, 24)


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[0, 0, 9, 9], [48, 0, 60, 9]], r"box 1 is \[48\.0, .*no pixel of the image of 48 x 32"),
        ([[5, 5, 5, 9]], r"box 0 is \[5\.0, 5\.0, 5\.0, 9\.0\] \(left, top"),
        ([[float("nan"), 0, 9, 9]], r"box 0 is \[nan, .*no pixel"),
        ([1, 2, 3, 4], r"shape \[4\], but \(N, 4\) is needed"),
        ("all", r"boxes are not \(N, 4\) numbers"),
    ],
)
def test_a_box_without_pixels_is_named(saved: Path, boxes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ray_reid.load(saved, "cpu").embed_boxes(_jpegs(1)[0], boxes)


def test_flip_averaging_makes_mirrored_images_equal(saved: Path) -> None:
    model = ray_reid.load(saved)
    picture = Image.open(io.BytesIO(_jpegs(1)[0]))
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    both = model.embed([picture, mirrored], flip=True)
    assert np.allclose(both[0], both[1], atol=1e-5)
    apart = model.embed([picture, mirrored], flip=False)
    assert not np.allclose(apart[0], apart[1], atol=1e-3)


def test_scales_average_the_embeddings_of_resized_inputs(saved: Path) -> None:
    model = ray_reid.load(saved, "cpu")
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    pictures = [
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in pixels
    ]
    pixels = torch.stack([torch.tensor(np.asarray(one)).permute(2, 0, 1) for one in pictures]) / 255
    summed = torch.zeros(2, 24)
    with torch.inference_mode():
        for size in ((32, 48), (29, 43), (26, 38)):
            view = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
            summed += model.network.embed(view) + model.network.embed(view.flip(3))
    expected = summed / summed.norm(dim=1, keepdim=True)
    found = model.embed(pictures, flip=True, scales=(1, 0.9, 0.8))
    assert np.allclose(found, expected, atol=1e-5)
    assert not np.allclose(model.embed(pictures, flip=True), found, atol=1e-4)
    for scales in ((), (0.0,), (5,)):
        with pytest.raises(ValueError, match="must be one or more numbers in"):
            model.embed(pictures, scales=scales)


def test_the_recipe_says_which_scales_are_averaged(saved: Path, tmp_path: Path) -> None:
    recipe = recipes.override(ray_reid.load(saved).recipe, {"embed.scales": [1, 0.8]})
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text(recipes.dump(recipe))
    model = ray_reid.load(tmp_path / "model", "cpu")
    encoded = _jpegs(2)
    assert np.array_equal(model.embed(encoded), model.embed(encoded, scales=(1, 0.8)))
    assert not np.allclose(model.embed(encoded), model.embed(encoded, scales=(1,)), atol=1e-4)


def test_scales_are_refused_before_training_where_the_backbone_has_one_size() -> None:
    changes = {"train.backbone": "swin_tiny_patch4_window7_224", "embed.scales": [1, 0.9]}
    recipe = recipes.override(recipes.load("baseline"), changes)
    with pytest.raises(ValueError, match=r"embed\.scales are \[1\.0, 0\.9\], but backbone 'swin_"):
        embed.check(recipe)
    embed.check(recipes.override(recipe, {"embed.scales": [1]}))
    with pytest.raises(ValueError, match=r"embed\.scales"):
        recipes.override(recipe, {"embed.scales": [0]})


def test_an_ensemble_joins_embeddings_so_that_similarities_are_their_mean(
    saved: Path, tmp_path: Path
) -> None:
    recipe = recipes.override(ray_reid.load(saved).recipe, {"train.embedding_dim": 16})
    torch.manual_seed(1)
    other = ReidNetwork(recipe.train, 2).state_dict()
    package.save(tmp_path / "other", recipe, ["t:a", "t:b"], other)
    encoded = _jpegs(4)
    both = ray_reid.load([saved, str(tmp_path / "other")], "cpu")
    found = both.embed(encoded)
    assert found.shape == (4, 40)
    assert found.dtype == np.float32
    parts = [ray_reid.load(path, "cpu").embed(encoded) for path in (saved, tmp_path / "other")]
    similarity = [part @ part.T for part in parts]
    assert np.allclose(found @ found.T, (similarity[0] + similarity[1]) / 2, atol=1e-5)
    assert both.embed([]).shape == (0, 40)
    with pytest.raises(ValueError, match="needs one model or more"):
        ray_reid.load([])


def test_the_package_says_what_it_is_without_our_code(saved: Path) -> None:
    assert json.loads((saved / "labels.json").read_text()) == ["s:a", "s:b", "s:c"]
    preprocessing = json.loads((saved / "preprocessing.json").read_text())
    assert preprocessing["size"] == [32, 48]
    assert preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert preprocessing["std"] == [0.229, 0.224, 0.225]
    assert {file.name for file in saved.iterdir()} == {
        "model.safetensors",
        "recipe.yaml",
        "labels.json",
        "preprocessing.json",
    }


def test_activation_maps_lie_between_zero_and_one(saved: Path) -> None:
    maps = ray_reid.load(saved).activation_maps(_jpegs(2))
    assert maps.ndim == 3
    assert maps.min() == 0
    assert maps.max() == 1


def test_batches_change_nothing(saved: Path) -> None:
    model = ray_reid.load(saved)
    encoded = _jpegs(5)
    assert np.allclose(model.embed(encoded, batch_size=2), model.embed(encoded), atol=1e-5)
    maps = model.activation_maps(encoded, batch_size=2)
    assert np.allclose(maps, model.activation_maps(encoded), atol=1e-4)


def test_no_images_are_no_rows_of_the_usual_width(saved: Path) -> None:
    model = ray_reid.load(saved)
    nothing = model.embed([])
    assert nothing.shape == (0, 24)
    assert nothing.dtype == np.float32
    assert model.activation_maps([]).shape == (0, *model.activation_maps(_jpegs(1)).shape[1:])


def test_one_image_in_the_place_of_a_list_is_refused(saved: Path) -> None:
    model = ray_reid.load(saved)
    encoded = _jpegs(1)[0]
    for one in (
        encoded,
        "x.jpg",
        Path("x.jpg"),
        Image.open(io.BytesIO(encoded)),
        np.zeros((8, 6, 3)),
    ):
        with pytest.raises(ValueError, match="give a list of images, not one "):
            model.embed(one)
        with pytest.raises(ValueError, match="give a list of images, not one "):
            model.activation_maps(one)
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.embed([encoded], batch_size=0)


def test_pretrained_weights_keep_the_input_they_were_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model
    # What a download would bring, without the weights.
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **given: create(*args, **{**given, "pretrained": False})
    )
    changes = ["train.backbone=test_resnet.r160_in1k", "train.image_size=[32, 32]"]
    recipe = recipes.load("baseline", None, [*changes, "train.pretrained=true"])
    network = ReidNetwork(recipe.train, 2)
    assert network.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert network.std.flatten().tolist() == [0.5, 0.5, 0.5]
    package.save(tmp_path / "model", recipe, ["a", "b"], network.state_dict())
    preprocessing = json.loads((tmp_path / "model" / "preprocessing.json").read_text())
    assert preprocessing["mean"] == preprocessing["std"] == [0.5, 0.5, 0.5]
    model = package.load(tmp_path / "model", "cpu")
    assert torch.equal(model.network.mean, network.mean)
    scratch = recipes.load("baseline", None, [*changes, "train.pretrained=false"])
    assert ReidNetwork(scratch.train, 2).mean.flatten().tolist() != [0.5, 0.5, 0.5]


def test_a_directory_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model package at"):
        ray_reid.load(tmp_path)


def test_an_unreadable_image_is_refused_with_its_name(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"x\.jpg.*not a readable image"):
        ray_reid.load(saved).embed([tmp_path / "x.jpg"])
    with pytest.raises(ValueError, match="cannot read image"):
        ray_reid.load(saved).embed([tmp_path / "nothing.jpg"])


def test_an_unknown_backbone_names_those_near_it() -> None:
    with pytest.raises(ValueError, match=r"timm has no model 'resnet19'; near it: \["):
        ReidNetwork(Train(backbone="resnet19"), 2)


def test_networks_whose_maps_have_channels_last_pool_over_space() -> None:
    spec = Train(backbone="swinv2_cr_tiny_ns_224", image_size=(224, 224))
    torch.manual_seed(0)
    network = ReidNetwork(spec, 2).eval()
    with torch.inference_mode():
        assert network.feature_map(torch.rand(1, 3, 224, 224)).shape[1] == network.neck.num_features


def test_networks_for_one_size_of_image_are_built_for_ours() -> None:
    small = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4}
    changes = {"backbone": "swinv2_tiny_window8_256", "backbone_params": small}
    network = ReidNetwork(Train(**changes, image_size=(64, 32)), 2).eval()
    with torch.inference_mode():
        assert network.feature_map(torch.rand(1, 3, 64, 32)).shape == (1, 96, 2, 1)
        assert network.embed(torch.rand(2, 3, 64, 32)).shape == (2, 96)
    # What the recipe says itself stands.
    own = {**small, "img_size": (32, 32)}
    with pytest.raises(AssertionError, match="doesn't match model"):
        ReidNetwork(Train(**{**changes, "backbone_params": own}, image_size=(64, 32)), 2)


AUXILIARY: list[tuple[str, dict[str, Any], int]] = [
    ("resnet10t", {"output_stride": 16}, 256),
    ("convnext_atto", {}, 160),
    (
        "swinv2_tiny_window8_256",
        {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4},
        48,
    ),
]


@pytest.mark.parametrize(("backbone", "params", "width"), AUXILIARY)
def test_an_auxiliary_classifier_sees_the_last_map_but_one_and_changes_nothing_else(
    backbone: str, params: dict[str, Any], width: int
) -> None:
    shared: dict[str, Any] = {"backbone": backbone, "backbone_params": params, "pooling": "gem"}
    shared["image_size"] = (64, 64)
    networks = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        spec = Train(**shared, loss=Loss(auxiliary=weight))
        networks.append(ReidNetwork(spec, 5).eval())
    plain, auxiliary = networks
    weights = auxiliary.state_dict()
    added = set(weights) - set(plain.state_dict())
    assert {name.split(".")[0] for name in added} == {"auxiliary"}
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        features, logits, earlier, others = auxiliary(images)
        assert earlier.shape == (3, width)
        assert others.shape == logits.shape == (3, 5)
        for found, expected in zip((features, logits), plain(images), strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(auxiliary.embed(images), plain.embed(images))


def test_a_package_with_an_auxiliary_classifier_loads(tmp_path: Path) -> None:
    changes = ["train.backbone=resnet10t", "train.image_size=[32, 32]", "train.loss.auxiliary=0.5"]
    recipe = recipes.load("baseline", None, changes)
    network = ReidNetwork(recipe.train, 2)
    package.save(tmp_path / "model", recipe, ["a", "b"], network.state_dict())
    assert ray_reid.load(tmp_path / "model").embed(_jpegs(2)).shape == (2, 512)


def test_gem_lies_between_the_mean_and_the_maximum() -> None:
    maps = torch.rand(2, 5, 4, 3)
    pooled = GeneralizedMean()(maps)
    assert (pooled >= maps.mean(dim=(2, 3)) - 1e-6).all()
    assert (pooled <= maps.amax(dim=(2, 3)) + 1e-6).all()
    assert torch.allclose(GeneralizedMean(1.0)(maps), maps.mean(dim=(2, 3)), atol=1e-5)


def test_the_shift_of_the_neck_stays_zero() -> None:
    network = ReidNetwork(Train(backbone="resnet10t"), 2)
    assert not network.neck.bias.requires_grad
    assert network.neck.bias.abs().sum() == 0


def test_the_card_names_terms_figures_and_the_stamp_that_they_hold_for() -> None:
    recipe = recipes.override(recipes.load("baseline"), {"train.image_size": [256, 128]})
    sources = [
        card.Source("shop|one", "real", 1200, 30, "CC BY 4.0"),
        card.Source("street", "real", 5, 2, None),
    ]
    side = {"images": 3400, "identities": 750}
    result = {
        "metrics": {"mAP": 0.81234, "rank-1": 0.9, "cases_mAP": 0.5},
        "reference": {"mAP": 0.1, "rank-1": 0.25},
        "stamp": {
            "protocol": "market",
            "scales": [1.0, 0.9],
            "postprocess": [],
            "query": side,
            "gallery": {**side, "images": 15913},
        },
    }
    page = card.write(recipe, sources, result, picture="ranked_list.jpg")
    for line in (
        "![queries and the images found for them](ranked_list.jpg)",
        "| shop\\|one | real | 1,200 | 30 | CC BY 4.0 |",
        "| street | real | 5 | 2 | unknown: ask those who gave the images |",
        "| mAP | 0.8123 | 0.1000 |",
        "| cases_mAP | 0.5000 | - |",
        "| protocol | market |",
        "| scales | 1.0, 0.9 |",
        "| postprocess | none |",
        "| gallery | 15,913 images, 750 identities |",
    ):
        assert line in page.splitlines(), line
    assert "256 x 128 pixels" in page


def test_the_card_says_whose_weights_the_network_began_with() -> None:
    plain = recipes.load("baseline", None, [])
    assert "began with" not in card.write(plain, [])
    page = card.write(plain, [], weights=("w.pth", "runs/other"))
    said = "The network began with the weights of `w.pth`, `runs/other`. Their terms hold too."
    assert said in page
    begun = recipes.override(plain, {"train.start": "pretrain"})
    assert "with the weights of a pre-training on images of this table." in card.write(begun, [])
    page = card.write(begun, [], weights=("w.pth",))
    assert "images of this table, `w.pth`. Their terms hold too." in page


def test_the_code_on_the_card_loads_the_package(saved: Path, tmp_path: Path) -> None:
    page = card.write(ray_reid.load(saved).recipe, [])
    code = page.partition("```python\n")[2].partition("```")[0]
    for name, encoded in zip(("query.jpg", "other.jpg"), _jpegs(2), strict=True):
        (tmp_path / name).write_bytes(encoded)
        code = code.replace(name, str(tmp_path / name))
    found: dict[str, Any] = {}
    exec(code.replace("path/of/this/folder", str(saved)), found)
    assert found["similarity"].shape == (1, 1)
