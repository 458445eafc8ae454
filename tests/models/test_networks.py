"""Backbones, IBN-a, heads and side information."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from ray_reid.models.networks import ReidNetwork, Sides, known_sides, side_codes
from ray_reid.models.networks.backbones import InstanceBatchNorm, add_ibn, load_ibn_weights
from ray_reid.models.networks.sides import SideEmbedding
from ray_reid.recipe.train import Train

SHALLOW = {"layers": [1, 1, 1, 1]}
WINDOWS = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}


def _spec(backbone: str = "resnet10t", size: tuple[int, int] = (64, 64), **more: Any) -> Any:
    return Train(backbone=backbone, image_size=size, **more)


@pytest.mark.parametrize(
    ("backbone", "params", "width"),
    [
        ("resnet50", SHALLOW, 2048),
        ("resnet101", SHALLOW, 2048),
        ("resnext101_32x4d", SHALLOW, 2048),
        ("seresnext101_32x4d", SHALLOW, 2048),
        ("seresnext101_32x8d", SHALLOW, 2048),
        ("legacy_senet154", SHALLOW, 2048),
        ("densenet121", {"block_config": [1, 1, 1, 1]}, 68),
        ("swin_tiny_patch4_window7_224", WINDOWS, 96),
        ("swinv2_tiny_window8_256", WINDOWS, 96),
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24}, 24),
    ],
)
def test_every_family_of_backbones_gives_maps_and_embeddings(
    backbone: str, params: dict[str, Any], width: int
) -> None:
    network = ReidNetwork(_spec(backbone, backbone_params=params), 3).eval()
    with torch.inference_mode():
        maps = network.feature_map(torch.rand(2, 3, 64, 64))
        embeddings = network.embed(torch.rand(2, 3, 64, 64))
    assert maps.ndim == 4
    assert maps.shape[1] == width
    assert embeddings.shape == (2, width)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-5)


def test_maps_of_a_vision_transformer_are_its_patches_where_they_lie() -> None:
    params = {"depth": 1, "embed_dim": 24}
    spec = _spec("vit_tiny_patch16_224", (64, 32), backbone_params=params)
    network = ReidNetwork(spec, 2).eval()
    with torch.inference_mode():
        images = torch.rand(1, 3, 64, 32)
        maps = network.feature_map(images)
        tokens = network.backbone((images - network.mean) / network.std)
        assert maps.shape == (1, 24, 4, 2)
        # The first token is the class token; the patches follow row by row.
        for row in range(4):
            for column in range(2):
                assert torch.equal(maps[0, :, row, column], tokens[0, 1 + 2 * row + column])


def test_a_backbone_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="backbone 'gmlp_ti16_224' gives no feature map"):
        ReidNetwork(_spec("gmlp_ti16_224", (224, 224)), 2)


def test_a_vision_transformer_has_an_auxiliary_classifier() -> None:
    params = {"depth": 2, "embed_dim": 24}
    spec = _spec("vit_tiny_patch16_224", backbone_params=params, loss={"auxiliary": 1})
    features, logits, earlier, others = ReidNetwork(spec, 3)(torch.rand(2, 3, 64, 64))
    assert features.shape == earlier.shape == (2, 24)
    assert logits.shape == others.shape == (2, 3)


def test_ibn_normalises_half_of_the_channels_by_image_and_the_rest_by_batch() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(7)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    maps = 3 * torch.randn(4, 7, 5, 6) + 2
    found = InstanceBatchNorm(norm).train()(maps)
    for image in range(4):
        for channel in range(7):
            seen = maps[image : image + 1, channel] if channel < 3 else maps[:, channel]
            scaled = (maps[image, channel] - seen.mean()) / (seen.var(correction=0) + 1e-5).sqrt()
            expected = scaled * norm.weight[channel] + norm.bias[channel]
            assert torch.allclose(found[image, channel], expected, atol=1e-5)


def test_ibn_uses_the_running_statistics_of_its_batch_half_only() -> None:
    norm = nn.BatchNorm2d(4)
    norm.running_mean = torch.tensor([9.0, 9, 1, 2])
    maps = torch.randn(2, 4, 3, 3)
    found = InstanceBatchNorm(norm).eval()(maps)
    assert torch.allclose(found[:, :2].mean(dim=(2, 3)), torch.zeros(2, 2), atol=1e-5)
    shifted = maps[:, 2:] - torch.tensor([1.0, 2]).view(1, 2, 1, 1)
    assert torch.allclose(found[:, 2:], shifted, atol=1e-4)


@pytest.mark.parametrize(
    "backbone", ["resnet50", "resnext101_32x4d", "seresnext101_32x4d", "legacy_seresnet50"]
)
def test_ibn_is_the_first_norm_of_the_blocks_of_three_stages(backbone: str) -> None:
    params = {"layers": [2, 1, 1, 1]}
    network = ReidNetwork(_spec(backbone, backbone_params=params, ibn="a"), 2)
    names = {
        name
        for name, part in network.backbone.named_modules()
        if isinstance(part, InstanceBatchNorm)
    }
    assert names == {"layer1.0.bn1", "layer1.1.bn1", "layer2.0.bn1", "layer3.0.bn1"}
    features, logits = network.train()(torch.rand(2, 3, 64, 64))
    (features.sum() + logits.sum()).backward()
    assert all(
        parameter.grad is not None
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    )


@pytest.mark.parametrize("backbone", ["densenet121", "vit_tiny_patch16_224"])
def test_ibn_where_there_are_no_residual_blocks_is_refused(backbone: str) -> None:
    with pytest.raises(ValueError, match=rf"backbone '{backbone}' has no residual blocks .* null"):
        add_ibn(timm.create_model(backbone), backbone)


def _published(
    width: int = 64, excited: bool = False, grouped: bool = False
) -> dict[str, torch.Tensor]:
    """Names and shapes as IBN-Net publishes them, of one bottleneck in each stage.

    `grouped` is its ResNeXt of 32 groups of 4 channels.
    """
    generator = torch.Generator().manual_seed(0)

    def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
        parts = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{part}": (size,) for part in parts}

    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, 3, 7, 7)} | norm("bn1", width)
    before = width
    for stage in range(1, 5):
        inner, after, block = width * 2 ** (stage - 1), width * 2 ** (stage + 1), f"layer{stage}.0"
        inner *= 2 if grouped else 1
        shapes[f"{block}.conv1.weight"] = (inner, before, 1, 1)
        if stage < 4:
            shapes |= {f"{block}.bn1.IN.{part}": (inner // 2,) for part in ("weight", "bias")}
            shapes |= norm(f"{block}.bn1.BN", inner // 2)
        else:
            shapes |= norm(f"{block}.bn1", inner)
        shapes[f"{block}.conv2.weight"] = (inner, inner // 32 if grouped else inner, 3, 3)
        shapes[f"{block}.conv3.weight"] = (after, inner, 1, 1)
        shapes |= norm(f"{block}.bn2", inner) | norm(f"{block}.bn3", after)
        shapes[f"{block}.downsample.0.weight"] = (after, before, 1, 1)
        shapes |= norm(f"{block}.downsample.1", after)
        if excited:
            shapes[f"{block}.se.fc.0.weight"] = (after // 16, after)
            shapes[f"{block}.se.fc.2.weight"] = (after, after // 16)
        before = after
    shapes |= {"fc.weight": (1000, before), "fc.bias": (1000,)}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("backbone", "suffix"), [("resnet50", ".pth"), ("resnext101_32x4d", ".safetensors")]
)
def test_weights_of_ibn_net_are_taken_by_name(tmp_path: Path, backbone: str, suffix: str) -> None:
    given = _published(grouped=backbone != "resnet50")
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(given, path)
    spec = _spec(backbone, backbone_params=SHALLOW, ibn="a", ibn_weights=str(path))
    found = ReidNetwork(spec, 2).backbone.state_dict()
    compared = {name for name in given if not name.startswith("fc.")}
    assert {name for name in found if not name.endswith("num_batches_tracked")} == compared
    for name in compared:
        assert torch.equal(found[name], given[name]), name


def test_weights_of_an_excited_ibn_net_become_kernels_without_a_shift(tmp_path: Path) -> None:
    given = _published(excited=True)
    torch.save(given, tmp_path / "weights.pth")
    params = {"num_classes": 0, "global_pool": ""}
    backbone = timm.create_model("seresnet50", layers=[1, 1, 1, 1], **params)
    add_ibn(backbone, "seresnet50")
    load_ibn_weights(backbone, "seresnet50", tmp_path / "weights.pth")
    excite = backbone.layer2[0].se
    maps = torch.randn(2, 512, 3, 3)
    pooled = maps.mean(dim=(2, 3))
    squeezed = (pooled @ given["layer2.0.se.fc.0.weight"].T).relu()
    expected = (squeezed @ given["layer2.0.se.fc.2.weight"].T).sigmoid()
    assert torch.allclose(excite(maps), maps * expected[:, :, None, None], atol=1e-5)


def test_weights_that_are_not_those_of_the_backbone_are_refused(tmp_path: Path) -> None:
    def refused(changed: object, reason: str) -> None:
        torch.save(changed, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=reason):
            load_ibn_weights(backbone, "resnet50", tmp_path / "weights.pth")

    backbone = timm.create_model("resnet50", layers=(1, 1, 1, 1), num_classes=0)
    add_ibn(backbone, "resnet50")
    given = _published()
    lacking = {name: part for name, part in given.items() if name != "layer2.0.bn1.IN.bias"}
    refused(lacking, r"1 are missing \['layer2\.0\.bn1\.IN\.bias'\], 0 are left over")
    refused(
        {**given, "layer9.weight": torch.zeros(1)}, r"0 are missing \[\], 1 are left over \['lay"
    )
    short = {**given, "bn1.bias": torch.zeros(3)}
    refused(short, r"bn1\.bias is \[3\], but must be \[64\]")
    refused([1, 2], r"weights\.pth' holds a list, not a state dict")
    # A pickle that would run code is not opened.
    refused(Path("/"), "could run any code")
    with pytest.raises(ValueError, match=r"none\.pth' cannot be read"):
        load_ibn_weights(backbone, "resnet50", tmp_path / "none.pth")


@pytest.mark.parametrize("changes", [{}, {"ibn": "a", "pretrained": True}])
def test_weights_of_ibn_net_are_for_an_ibn_without_others(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ibn_weights 'x\.pth' need ibn 'a' and pretrained false"):
        _spec("resnet50", ibn_weights="x.pth", **changes)


def test_the_shift_of_the_neck_is_learned_where_the_recipe_says_so() -> None:
    for learned in (False, True):
        network = ReidNetwork(_spec(neck_bias=learned), 2).train()
        network(torch.rand(4, 3, 64, 64))[1].square().sum().backward()
        assert (network.neck.bias.grad is not None) == learned


def test_the_head_of_vehiclenet_is_a_layer_with_a_norm_before_the_classifier() -> None:
    torch.manual_seed(0)
    network = ReidNetwork(_spec(head="vehiclenet"), 5)
    images = torch.rand(4, 3, 64, 64)
    assert network.embed(images).shape == (4, 512)
    assert network.neck.bias.requires_grad
    nn.init.normal_(network.neck.bias)
    network.train()
    features, logits = network(images)
    pooled = network.feature_map(images).mean(dim=(2, 3))
    embedded = pooled @ network.project.weight.T + network.project.bias
    assert torch.allclose(features, embedded, atol=1e-4)
    scaled = (embedded - embedded.mean(dim=0)) / (embedded.var(0, correction=0) + 1e-5).sqrt()
    expected = scaled * network.neck.weight + network.neck.bias
    assert torch.allclose(logits, expected @ network.head.weight.T, atol=1e-4)
    assert ReidNetwork(_spec(head="vehiclenet", embedding_dim=16), 5).neck.num_features == 16


@pytest.mark.parametrize("head", ["vehiclenet", "bnneck"])
def test_a_second_stage_has_another_classifier_and_everything_else(head: str) -> None:
    network = ReidNetwork(_spec(head=head, loss={"auxiliary": 0.5}), 5).eval()
    before = {name: part.clone() for name, part in network.state_dict().items()}
    network.replace_classifier(3)
    after = network.state_dict()
    changed = {"head.weight", "auxiliary.head.weight"}
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in set(before) - changed)
    assert [len(after[name]) for name in changed] == [3, 3]
    _, logits, _, others = network(torch.rand(2, 3, 64, 64))
    assert logits.shape == others.shape == (2, 3)


def test_codes_of_sides_tell_every_camera_and_view_apart() -> None:
    known = known_sides(["c2", "c1", None, "c2"], ["rear", None, "front", "rear"])
    assert known == Sides(("c1", "c2"), ("front", "rear"))
    pairs = [(camera, view) for camera in ("c1", "c2") for view in (None, "front", "rear")]
    codes = side_codes(*zip(*pairs, strict=True), known)
    assert codes.dtype == np.int64
    assert sorted(codes.tolist()) == list(range(1, known.num_codes))
    # A camera that is null or was never seen is unknown, with whatever view.
    assert side_codes([None, "c9", None], ["front", "rear", None], known).tolist() == [0, 0, 0]
    # An unseen view is no view.
    unseen, none = side_codes(["c2", "c2"], ["top", None], known)
    assert unseen == none
    assert side_codes(["c1"], ["rear"], Sides()).tolist() == [0]
    assert side_codes([], [], known).shape == (0,)
    with pytest.raises(ValueError, match="2 cameras but 1 views"):
        side_codes(["c1", "c2"], ["front"], known)


def test_a_side_adds_its_weighted_vector_to_the_feature() -> None:
    known = Sides(("c1", "c2"), ("front",))
    side = SideEmbedding(known, 3, weight=2.0)
    features = torch.randn(4, 3)
    # Before training no camera changes anything.
    assert torch.equal(side(features, torch.tensor([0, 1, 4, 2])), features)
    nn.init.normal_(side.vectors.weight)
    found = side(features, torch.tensor([0, 1, 4, 1]))
    for row, code in enumerate([0, 1, 4, 1]):
        assert torch.allclose(found[row], features[row] + 2 * side.vectors.weight[code])
    assert torch.equal(side(features, None), side(features, torch.zeros(4, dtype=torch.int64)))
    assert side.sides == known


@pytest.mark.parametrize("auxiliary", [0.0, 0.5])
def test_the_network_adds_sides_in_training_and_in_embedding(auxiliary: float) -> None:
    known = Sides(("c1", "c2"))
    spec = _spec(side_weight=0.5, embedding_dim=16, loss={"auxiliary": auxiliary})
    network = ReidNetwork(spec, 3, known).eval()
    assert network.side is not None
    nn.init.normal_(network.side.vectors.weight)
    images = torch.rand(2, 3, 64, 64)
    plain, codes = network(images), torch.tensor([0, 2])
    found = network(images, codes)
    added = 0.5 * (network.side.vectors.weight[2] - network.side.vectors.weight[0])
    assert torch.allclose(found[0] - plain[0], torch.stack([torch.zeros(16), added]), atol=1e-5)
    difference = network.embed(images, codes) - network.embed(images)
    assert difference[0].abs().max() < 1e-6
    assert difference[1].abs().max() > 1e-3
    network.train()
    network(images, codes)[1].square().sum().backward()
    assert network.side.vectors.weight.grad is not None
    assert network.side.vectors.weight.grad[2].abs().sum() > 0
    assert network.side.vectors.weight.grad[1].abs().sum() == 0


def test_a_network_is_restored_with_the_cameras_that_it_knew() -> None:
    known = Sides(("c1", "c2"), ("rear",))
    spec = _spec(side_weight=1.0, ibn="a", pretrained=False)
    network = ReidNetwork(spec, 3, known).eval()
    assert network.side is not None
    nn.init.normal_(network.side.vectors.weight)
    # What training fetched is not fetched again.
    asked = spec.model_copy(update={"pretrained": True, "ibn_weights": "gone.pth"})
    restored = ReidNetwork.restored(asked, 3, network.state_dict()).eval()
    assert restored.side is not None
    assert restored.side.sides == known
    images, codes = torch.rand(2, 3, 64, 64), torch.tensor([4, 1])
    assert torch.equal(restored.embed(images, codes), network.embed(images, codes))
