"""CLIP-SENet: encoders, semantic extraction, fine-grained enhancement."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

import ray_reid
from ray_reid.models import package
from ray_reid.models.networks import ReidNetwork, Sides
from ray_reid.models.networks.encoders import load_encoder
from ray_reid.models.networks.senet import FineGrainedEnhancement
from ray_reid.recipe import recipes
from ray_reid.recipe.train import Train

VISION: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8, "projection_dim": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of open_clip."""
    return tiny_models.image_text(tmp_path_factory.mktemp("models") / "image_text")


def _spec(folder: Path | str, **changes: Any) -> Train:
    semantic = {"encoder": str(folder), "width": 24, "groups": 4, **changes.pop("semantic", {})}
    return Train(
        backbone="resnet10t", image_size=(32, 32), precision="fp32", semantic=semantic, **changes
    )


@pytest.mark.parametrize("weights", ["element", "group"])
def test_afem_adds_weighted_groups_of_phi_to_phi(weights: str) -> None:
    torch.manual_seed(0)
    module = FineGrainedEnhancement(12, 3, weights).train()
    semantics = torch.randn(5, 12)
    found = module(semantics)
    linear, norm, _ = module.phi
    mapped = semantics @ linear.weight.T + linear.bias
    expected = torch.empty(5, 12)
    for column in range(12):
        values = mapped[:, column]
        scaled = (values - values.mean()) / (values.var(correction=0) + norm.eps) ** 0.5
        active = (scaled * norm.weight[column] + norm.bias[column]).clamp(min=0)
        group, place = divmod(column, 12 // 3)
        weight = module.weights[group, place if weights == "element" else 0]
        expected[:, column] = weight * active + active
    assert torch.allclose(found, expected, atol=1e-5)
    # The feature itself is no branch: what phi shuts off comes to nothing.
    nn.init.constant_(norm.bias, -9.0)
    assert not module(semantics).any()


def test_the_number_of_groups_matters_only_where_a_group_shares_a_weight() -> None:
    semantics = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))

    def enhanced(groups: int, weights: str) -> torch.Tensor:
        torch.manual_seed(0)
        found: torch.Tensor = FineGrainedEnhancement(12, groups, weights)(semantics)
        return found

    assert torch.equal(enhanced(3, "element"), enhanced(6, "element"))
    assert not torch.allclose(enhanced(3, "group"), enhanced(6, "group"))


def test_afem_begins_with_one_weight_a_group_of_a_normal_distribution() -> None:
    torch.manual_seed(0)
    weights = FineGrainedEnhancement(1024, 512).weights
    assert weights.shape == (512, 1)
    assert abs(weights.mean().item()) < 0.15
    assert weights.std().item() == pytest.approx(1, abs=0.1)
    assert FineGrainedEnhancement(1024, 512, "element").weights.shape == (512, 2)


def test_groups_that_do_not_divide_the_width_are_refused_with_those_that_do(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"groups 5 does not divide .* 12; .* \[1, 2, 3, 4, 6, 12"):
        FineGrainedEnhancement(12, 5)
    with pytest.raises(ValueError, match=r"groups 32 does not divide the encoder's width 8"):
        ReidNetwork(_spec(folder, semantic={"groups": 32}), 2)


def test_an_encoder_of_open_clip_is_the_image_side_of_the_model(folder: Path) -> None:
    encoder = load_encoder(str(folder)).eval()
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(encoder(images), model.encode_image((images - 0.5) / 0.5), atol=1e-6)
    assert encoder.width == 8
    assert not any("text" in name or "token_" in name for name in encoder.state_dict())


@pytest.mark.parametrize("kind", ["whole", "projected", "plain"])
def test_an_encoder_of_transformers_is_the_vision_model(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**VISION)
    if kind == "whole":
        text = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        text |= {"num_hidden_layers": 1, "vocab_size": 20, "projection_dim": 6}
        whole = CLIPModel.config_class(text_config=text, vision_config=VISION, projection_dim=6)
        model: Any = CLIPModel(whole)
    else:
        model = (CLIPVisionModelWithProjection if kind == "projected" else CLIPVisionModel)(vision)
    model.save_pretrained(tmp_path)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size=size, image_mean=mean, image_std=std).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path)).eval()
    images = torch.rand(2, 3, 16, 16)
    pixels = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    model.eval()
    with torch.inference_mode():
        if kind == "whole":
            inner = model.vision_model(pixel_values=pixels).pooler_output
            expected = model.visual_projection(inner)
        else:
            found = model(pixel_values=pixels)
            expected = found.image_embeds if kind == "projected" else found.pooler_output
        assert torch.allclose(encoder(images), expected, atol=1e-6)
    assert encoder.width == (8 if kind == "plain" else 6)
    assert not any("text" in name for name in encoder.state_dict())


def test_a_named_model_of_open_clip_takes_weights_of_a_file(folder: Path, tmp_path: Path) -> None:
    model = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-clip.json").write_text(json.dumps(model))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    named = load_encoder(f"tiny-clip/{folder / 'open_clip_model.safetensors'}").eval()
    from_folder = load_encoder(str(folder)).eval()
    for name, part in from_folder.tower.state_dict().items():
        assert torch.equal(named.tower.state_dict()[name], part), name
    assert named.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    with pytest.raises(ValueError, match=r"no weights 'gone' of 'tiny-clip'; choose from \[\]"):
        load_encoder("tiny-clip/gone")


def test_an_encoder_sees_the_whole_image_at_the_size_that_it_was_trained_on(folder: Path) -> None:
    encoder = load_encoder(str(folder)).eval()
    images = torch.rand(2, 3, 40, 24)
    resized = F.interpolate(images, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(encoder(images), encoder(resized))


def test_models_that_are_no_encoders_are_refused(tmp_path: Path) -> None:
    for reference, reason in (
        (str(tmp_path), r"none of \['open_clip_config\.json', 'config\.json'\]"),
        ("./nowhere", "is not there"),
        ("miniature:nothing", "unknown model"),
        ("miniature:captioner", "it is a 'blip', but must be a CLIP"),
        ("ViT-B-32/never", r"no weights 'never' of 'ViT-B-32'; choose from \[.*'openai'"),
    ):
        with pytest.raises(ValueError, match=rf"train\.semantic\.encoder.*{reason}"):
            load_encoder(reference)


@pytest.mark.parametrize("join", ["add", "concatenate"])
def test_features_are_the_fused_feature_and_the_enhanced_semantics(folder: Path, join: str) -> None:
    torch.manual_seed(0)
    network = ReidNetwork(_spec(folder, semantic={"join": join}), 3).train()
    images = torch.rand(4, 3, 32, 32)
    semantic = network.semantic
    assert semantic is not None
    assert semantic.enhance is not None
    features, logits = network(images)
    assert logits.shape == (4, 3)
    appearance = network.feature_map(images).mean(dim=(2, 3))
    semantics = semantic.encoder(images)
    semantics = (semantics - semantics.mean(1, keepdim=True)) / (
        semantics.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    fused = torch.cat([appearance, semantics], 1) @ semantic.fuse.weight.T + semantic.fuse.bias
    assert fused.shape == (4, 24)
    enhanced = semantic.enhance(semantics)
    if join == "concatenate":
        expected = torch.cat([fused, enhanced], dim=1)
    else:
        expected = fused + enhanced @ semantic.project.weight.T
    assert torch.allclose(features, expected, atol=1e-4)
    # A width of the recipe's own projects what both make.
    changes = {"embedding_dim": 16, "semantic": {"join": join}}
    narrow = ReidNetwork(_spec(folder, **changes), 3).eval()
    assert narrow.project.weight.shape == (16, 24 if join == "add" else 24 + 8)
    assert narrow.embed(images).shape == (4, 16)


def test_semantics_of_the_width_of_the_fused_feature_are_added_as_they_are(folder: Path) -> None:
    network = ReidNetwork(_spec(folder, semantic={"width": 8}), 3)
    assert network.semantic is not None
    assert isinstance(network.semantic.project, nn.Identity)
    assert network.semantic.width == 8


def test_long_semantics_do_not_starve_the_appearance(folder: Path) -> None:
    torch.manual_seed(0)
    network = ReidNetwork(_spec(folder), 3).eval()
    semantic = network.semantic
    assert semantic is not None
    images, appearance = torch.rand(4, 3, 32, 32), torch.rand(4, 512)
    before = semantic(images, appearance)
    for scale in (10.0, 100.0):
        lengthened = semantic.encoder.register_forward_hook(lambda _, __, out, by=scale: out * by)
        # Only the epsilon of the norm tells features of any length apart.
        assert torch.allclose(semantic(images, appearance), before, atol=1e-2)
        lengthened.remove()


def test_a_package_of_the_former_network_is_refused_in_one_sentence(
    folder: Path, tmp_path: Path
) -> None:
    recipe = recipes.validate({"name": "x", "train": _spec(folder).model_dump(mode="json")})
    weights = ReidNetwork(recipe.train, 2).state_dict()
    former = {name: part for name, part in weights.items() if "semantic.norm" not in name}
    package.save(tmp_path / "package", recipe, ["a", "b"], former)
    with pytest.raises(ValueError, match=r"former reading of CLIP-SENet, .* train it again"):
        ray_reid.load(tmp_path / "package", "cpu")


def test_without_groups_the_fused_feature_is_all(folder: Path) -> None:
    network = ReidNetwork(_spec(folder, semantic={"groups": None}), 3).eval()
    assert network.embed(torch.rand(2, 3, 32, 32)).shape == (2, 24)


def test_every_part_of_the_network_learns(folder: Path) -> None:
    spec = _spec(folder, side_weight=1.0, loss={"auxiliary": 0.5}, ibn="a")
    network = ReidNetwork(spec, 3, Sides(("c1",))).train()
    outputs = network(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
    sum(part.square().sum() for part in outputs).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for name in ("semantic.enhance.weights", "semantic.encoder.tower.conv1.weight"):
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0, name


def test_a_package_loads_where_its_encoder_does_not_lie(
    tiny_models: ModuleType, tmp_path: Path
) -> None:
    folder = tiny_models.image_text(tmp_path / "model")
    recipe = recipes.validate({"name": "x", "train": _spec(folder).model_dump(mode="json")})
    network = ReidNetwork(recipe.train, 2).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None
            nn.init.normal_(norm.running_mean)
    package.save(tmp_path / "package", recipe, ["a", "b"], network.state_dict())
    shutil.rmtree(folder)
    loaded = ray_reid.load(tmp_path / "package", "cpu").network.eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(loaded.embed(images), network.embed(images), atol=1e-6)


def test_the_miniature_image_text_model_is_an_encoder() -> None:
    encoder = load_encoder("miniature:image_text").eval()
    assert encoder.width == 128
    assert encoder(torch.rand(1, 3, 32, 32)).shape == (1, 128)
