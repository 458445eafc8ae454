"""Checkpoints of peers: their features from references in plain torch, under their names."""

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import ray_reid
from ray_reid import cli
from ray_reid.models import checkpoints, package
from ray_reid.models.networks import ReidNetwork
from ray_reid.recipe.train import Train

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
SMALL = ("train.image_size=[64, 32]", "train.precision=fp32")
TINY_VIT = {"patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}


def randomise(module: nn.Module) -> nn.Module:
    """Weights, statistics and shifts that no mistake could hide behind."""
    chance = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        fan = max(tensor[0].numel(), 1) if tensor.ndim > 1 else 1
        noise = torch.randn(tensor.shape, generator=chance)
        if "running_var" in name or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(1 + 0.2 * noise.clamp(-2, 2))
        else:
            tensor.copy_(noise * (1.4 / fan) ** 0.5 if tensor.ndim > 1 else 0.1 * noise)
    return module.eval()


def normalised(pixels: Tensor, numbers: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in numbers)
    return (pixels - mean) / std


class Trunk(nn.Module):
    """torchvision's ResNet without its pooling and classifier."""

    def __init__(self, name: str = "resnet18", last_stride: int = 1, ceil: bool = False) -> None:
        super().__init__()
        found = torchvision.models.get_model(name)
        for part in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(part, getattr(found, part))
        if last_stride == 1:
            for part in self.layer4[0].modules():
                if isinstance(part, nn.Conv2d):
                    part.stride = (1, 1)
        self.pool = nn.MaxPool2d(3, 2, **({"ceil_mode": True} if ceil else {"padding": 1}))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(F.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(maps))))


class FastReid(nn.Module):
    def __init__(self, name: str = "resnet18", width: int = 512, dim: int = 0, gem: bool = False):
        super().__init__()
        self.backbone = Trunk(name, ceil=True)
        self.heads = nn.Module()
        self.heads.pool_layer = nn.Module()
        if gem:
            self.heads.pool_layer.p = nn.Parameter(torch.ones(1) * 2.5)
        reduce = [nn.Conv2d(width, dim, 1, bias=False)] if dim else []
        self.heads.bottleneck = nn.Sequential(*reduce, nn.BatchNorm2d(dim or width))
        self.heads.weight = nn.Parameter(torch.zeros(5, dim or width))
        mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
        self.kept = {"pixel_mean": mean, "pixel_std": std}

    def forward(self, pixels: Tensor) -> Tensor:
        images = (255 * pixels - self.kept["pixel_mean"]) / self.kept["pixel_std"]
        maps = self.backbone(images)
        if hasattr(self.heads.pool_layer, "p"):
            p = self.heads.pool_layer.p
            pooled = F.adaptive_avg_pool2d(maps.clamp(min=1e-6).pow(p), 1).pow(1.0 / p)
        else:
            pooled = F.adaptive_avg_pool2d(maps, 1)
        return self.heads.bottleneck(pooled)[..., 0, 0]


class TorchReid(Trunk):
    def __init__(self) -> None:
        super().__init__(last_stride=2)
        self.classifier = nn.Linear(512, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(normalised(pixels, IMAGENET)).mean(dim=(2, 3))


class Cal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        trunk = Trunk()
        layers = [getattr(trunk, f"layer{place}") for place in range(1, 5)]
        self.base = nn.Sequential(trunk.conv1, trunk.bn1, nn.ReLU(), trunk.pool, *layers)
        self.bn = nn.BatchNorm1d(1024)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.base(normalised(pixels, IMAGENET))
        both = F.adaptive_max_pool2d(maps, 1), F.adaptive_avg_pool2d(maps, 1)
        return self.bn(torch.cat(both, dim=1).flatten(1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        split = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class TransReidBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, 3)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(tokens))))


class TransReid(nn.Module):
    def __init__(self, patches: int = 8) -> None:
        super().__init__()
        self.base = base = nn.Module()
        base.cls_token = nn.Parameter(torch.zeros(1, 1, 24))
        base.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, 24))
        base.patch_embed = nn.Module()
        base.patch_embed.proj = nn.Conv2d(3, 24, 16, 16)
        base.blocks = nn.Sequential(TransReidBlock(24), TransReidBlock(24))
        base.norm = nn.LayerNorm(24, eps=1e-6)
        base.fc = nn.Linear(24, 10)
        self.classifier = nn.Linear(24, 6, bias=False)
        self.bottleneck = nn.BatchNorm1d(24)

    def forward(self, pixels: Tensor) -> Tensor:
        base = self.base
        patches = base.patch_embed.proj(normalised(pixels, HALF)).flatten(2).transpose(1, 2)
        tokens = torch.cat([base.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        return base.norm(base.blocks(tokens + base.pos_embed))[:, 0]


class ClipBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 3, batch_first=True)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = self.ln_1(tokens)
        tokens = tokens + self.attn(seen, seen, seen, need_weights=False)[0]
        hidden = self.mlp.c_fc(self.ln_2(tokens))
        return tokens + self.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class ClipReid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = visual = nn.Module()
        visual.class_embedding = nn.Parameter(torch.zeros(24))
        visual.positional_embedding = nn.Parameter(torch.zeros(9, 24))
        visual.proj = nn.Parameter(torch.zeros(24, 16))
        visual.conv1 = nn.Conv2d(3, 24, 16, 16, bias=False)
        visual.ln_pre, visual.ln_post = nn.LayerNorm(24), nn.LayerNorm(24)
        visual.transformer = nn.Module()
        visual.transformer.resblocks = nn.Sequential(ClipBlock(24), ClipBlock(24))
        self.bottleneck, self.bottleneck_proj = nn.BatchNorm1d(24), nn.BatchNorm1d(16)
        self.classifier = nn.Linear(24, 7, bias=False)
        self.classifier_proj = nn.Linear(16, 7, bias=False)
        self.text_encoder = nn.Linear(3, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        visual = self.image_encoder
        patches = visual.conv1(normalised(pixels, HALF)).flatten(2).transpose(1, 2)
        token = visual.class_embedding.expand(len(pixels), 1, -1)
        tokens = torch.cat([token, patches], dim=1) + visual.positional_embedding
        seen = visual.ln_post(visual.transformer.resblocks(visual.ln_pre(tokens)))[:, 0]
        return torch.cat([seen, seen @ visual.proj], dim=1)


class WindowAttention(Attention):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__(width, heads)
        side = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(side * side, heads))
        places = [(row, column) for row in range(window) for column in range(window)]
        index = [
            [(a[0] - b[0] + window - 1) * side + a[1] - b[1] + window - 1 for b in places]
            for a in places
        ]
        self.register_buffer("relative_position_index", torch.tensor(index))

    def windows(self, tokens: Tensor, mask: Tensor) -> Tensor:
        bias = self.relative_position_bias_table[self.relative_position_index]
        return self(tokens, bias.permute(2, 0, 1) + mask[:, None])


class SoliderBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.Module()
        self.attn.w_msa = WindowAttention(width, heads, window)
        self.ffn = nn.Module()
        first = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.ffn.layers = nn.Sequential(first, nn.Linear(4 * width, width))

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps + self.attend(self.norm1(maps))
        return maps + self.ffn.layers(self.norm2(maps))

    def attend(self, maps: Tensor) -> Tensor:
        window, shift = self.window, self.shift
        height, width = maps.shape[1:3]
        padded = F.pad(maps, (0, 0, 0, -width % window, 0, -height % window))
        rows, columns = padded.shape[1:3]
        moved = torch.roll(padded, (-shift, -shift), (1, 2))
        out = torch.zeros_like(moved)
        # What the shift brought from the other side of the image is not looked at.
        areas = torch.zeros(rows, columns)
        if shift:
            areas[rows - window :] += 1
            areas[rows - shift :] += 1
            areas[:, columns - window :] += 3
            areas[:, columns - shift :] += 3
        for top in range(0, rows, window):
            for left in range(0, columns, window):
                at = slice(top, top + window), slice(left, left + window)
                area = areas[at].flatten()
                mask = -100.0 * (area[:, None] != area).float()[None]
                seen = self.attn.w_msa.windows(moved[:, *at].flatten(1, 2), mask)
                out[:, *at] = seen.unflatten(1, (window, window))
        return torch.roll(out, (shift, shift), (1, 2))[:, :height, :width]


class Merging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        maps = F.pad(maps, (0, 0, 0, maps.shape[2] % 2, 0, maps.shape[1] % 2))
        half = maps.shape[1] // 2, maps.shape[2] // 2
        patches = F.unfold(maps.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        return self.reduction(self.norm(patches)).unflatten(1, half)


class Solider(nn.Module):
    HEADS = (2, 2, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.base = base = nn.Module()
        base.patch_embed = nn.Module()
        base.patch_embed.projection = nn.Conv2d(3, 12, 4, 4)
        base.patch_embed.norm = nn.LayerNorm(12)
        base.stages = nn.ModuleList()
        base.semantic_embed_w, base.semantic_embed_b = nn.ModuleList(), nn.ModuleList()
        for place, heads in enumerate(self.HEADS):
            width = 12 * 2**place
            stage = nn.Module()
            stage.blocks = nn.Sequential(*(SoliderBlock(width, heads, 4, at) for at in (0, 2)))
            if place < 3:
                stage.downsample = Merging(width)
            base.stages.append(stage)
            base.add_module(f"norm{place}", nn.LayerNorm(width))
            for part in (base.semantic_embed_w, base.semantic_embed_b):
                part.append(nn.Linear(2, min(2 * width, 96)))
        self.bottleneck = nn.BatchNorm1d(96)
        self.classifier = nn.Linear(96, 3, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        base = self.base
        maps = base.patch_embed.projection(normalised(pixels, HALF)).permute(0, 2, 3, 1)
        maps = base.patch_embed.norm(maps)
        semantics = torch.tensor([0.2, 0.8])
        for place, stage in enumerate(base.stages):
            maps = stage.blocks(maps)
            if place < 3:
                factor = F.softplus(base.semantic_embed_w[place](semantics))
                maps = stage.downsample(maps) * factor + base.semantic_embed_b[place](semantics)
        return base.norm3(maps).mean(dim=(1, 2))


def set_to(values: dict[str, Any]) -> list[str]:
    return [f"train.{key}={json.dumps(value)}" for key, value in values.items()]


RESNET18 = {"backbone": "resnet18"}
TINY_SWIN = {
    "window_size": 4,
    "embed_dim": 12,
    "depths": [2, 2, 2, 2],
    "num_heads": list(Solider.HEADS),
    "always_partition": True,
}
CASES: list[tuple[str, Callable[[], nn.Module], dict[str, Any]]] = [
    ("fastreid", lambda: FastReid("resnet50", 2048), {}),
    ("fastreid", lambda: FastReid(dim=32, gem=True), RESNET18),
    ("torchreid", TorchReid, RESNET18),
    ("cal", Cal, RESNET18),
    ("transreid", TransReid, {"backbone_params": TINY_VIT}),
    ("clipreid", ClipReid, {"backbone_params": TINY_VIT}),
    ("solider", Solider, {"backbone_params": TINY_SWIN, "image_size": [80, 48]}),
]


def state_of(peer: nn.Module) -> dict[str, Tensor]:
    return {**peer.state_dict(), **getattr(peer, "kept", {})}


@pytest.mark.parametrize(("name", "build", "train"), CASES)
def test_an_imported_package_embeds_as_the_peer_does(
    name: str, build: Callable[[], nn.Module], train: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    peer = randomise(build())
    torch.save(state_of(peer), tmp_path / "peer.pth")
    overrides = [*SMALL, *set_to(train)]
    done = checkpoints.import_checkpoint(tmp_path / "peer.pth", tmp_path / "model", name, overrides)
    model = ray_reid.load(tmp_path / "model", "cpu")
    pixels = torch.rand(3, 3, *model.image_size)
    with torch.inference_mode():
        expected = F.normalize(peer(pixels), dim=1)
        found = model.network.embed(pixels)
    # Images of noise may not be so alike that any network would pass.
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert torch.allclose(found, expected, atol=1e-5)
    assert model.identities == [f"imported:{label}" for label in range(done.identities)]


def saved(peer: nn.Module, file: Path) -> Path:
    torch.save(state_of(peer), file)
    return file


def test_wrappers_and_prefixes_of_checkpoints_are_taken_off(tmp_path: Path) -> None:
    weights = {"bn.weight": torch.ones(2)}
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    for number, found in enumerate(
        (
            weights,
            {"model": weights, "optimizer": {"lr": 1.0}, "epoch": 3},
            {"state_dict": wrapped, "rank1": 0.9},
            {"teacher": {"state_dict": weights}},
        )
    ):
        torch.save(found, tmp_path / f"{number}.pth")
        assert list(checkpoints.read(tmp_path / f"{number}.pth")) == ["bn.weight"]
    apart = {"model_state_dict": weights, "classifier_state_dict": {"weight": torch.eye(2)}}
    torch.save(apart, tmp_path / "cal.pth")
    assert set(checkpoints.read(tmp_path / "cal.pth")) == {"bn.weight", "classifier.weight"}
    save_file(weights, tmp_path / "x.safetensors")
    assert list(checkpoints.read(tmp_path / "x.safetensors")) == ["bn.weight"]


class Payload:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_a_checkpoint_that_needs_a_pickle_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "cfg": Payload()}, "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Payload(), protocol=2))
    for file in ("x.pth", "y.pth"):
        with pytest.raises(
            ValueError, match=rf"fast-reid checkpoint '{file}' .*could run any code"
        ):
            checkpoints.import_checkpoint(Path(file), tmp_path / "model", "fastreid")
    assert not (tmp_path / "executed").exists()
    torch.save([1, 2], "z.pth")
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        checkpoints.read(Path("z.pth"))


def with_more(peer: nn.Module, **parts: nn.Module | nn.Parameter) -> nn.Module:
    for name, part in parts.items():
        place, _, last = name.rpartition("__")
        setattr(peer.get_submodule(place), last, part)
    return peer


@pytest.mark.parametrize(
    ("name", "build", "train", "message"),
    [
        (
            "fastreid",
            lambda: with_more(FastReid(), backbone__NL_2=nn.Linear(2, 2)),
            RESNET18,
            r"no place in the backbone 'resnet18'.*'backbone.NL_2.bias', 'backbone.NL_2.weight'",
        ),
        (
            "transreid",
            lambda: with_more(
                TransReid(), base__sie_embed=nn.Parameter(torch.ones(6, 1, 24)), b1=nn.Linear(2, 2)
            ),
            {"backbone_params": TINY_VIT},
            r"3 weights with no place.*\['b1.bias', 'b1.weight', 'base.sie_embed'\]",
        ),
        (
            "transreid",
            lambda: TransReid(patches=15),
            {"backbone_params": TINY_VIT},
            r"'base.pos_embed' of shape \[1, 16, 24\].*image size \[64, 32\] needs \[1, 9, 24\]",
        ),
        (
            "clipreid",
            lambda: with_more(ClipReid(), cv_embed=nn.Parameter(torch.ones(6, 24))),
            {"backbone_params": TINY_VIT},
            r"1 weights with no place.*\['cv_embed'\]",
        ),
        ("clipreid", lambda: nn.Linear(2, 2), {}, "has no class token 'image_encoder"),
        ("torchreid", lambda: nn.Linear(2, 2), {}, "has no weight 'layer4.0.bn3.bias'"),
        ("solider", lambda: nn.Linear(2, 2), {}, "has no norm 'base.norm3.weight'"),
        ("torchreid", TorchReid, {"backbone": "resnet34"}, "lacks 80 weights of the backbone"),
    ],
)
def test_what_has_no_place_is_named_and_nothing_is_written(
    name: str,
    build: Callable[[], nn.Module],
    train: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    file = saved(build(), tmp_path / "peer.pth")
    with pytest.raises(ValueError, match=message):
        checkpoints.import_checkpoint(file, tmp_path / "model", name, [*SMALL, *set_to(train)])
    assert [path.name for path in tmp_path.iterdir()] == ["peer.pth"]


def test_a_classifier_becomes_the_head_and_ranks_identities_as_it_did(tmp_path: Path) -> None:
    peer = randomise(Cal())
    weight = torch.randn(6, 1024)
    apart = {"weight": weight}
    torch.save(
        {"model_state_dict": state_of(peer), "classifier_state_dict": apart}, tmp_path / "cal.pth"
    )
    overrides = [*SMALL, *set_to(RESNET18)]
    done = checkpoints.import_checkpoint(tmp_path / "cal.pth", tmp_path / "m", "cal", overrides)
    assert done.identities == 6
    model = ray_reid.load(tmp_path / "m", "cpu")
    pixels = torch.rand(4, 3, 64, 32)
    with torch.inference_mode():
        cosine = F.normalize(peer(pixels), dim=1) @ F.normalize(weight, dim=1).T
        assert torch.equal(model.network(pixels)[1].argsort(dim=1), cosine.argsort(dim=1))


def test_the_package_keeps_the_peers_preprocessing_and_what_it_came_from(tmp_path: Path) -> None:
    peer = FastReid()
    peer.kept["pixel_mean"] = torch.full((1, 3, 1, 1), 127.5)
    file = saved(peer, tmp_path / "peer.pth")
    overrides = ["train.backbone=resnet18"]
    checkpoints.import_checkpoint(file, tmp_path / "model", "fastreid", overrides)
    preprocessing = json.loads((tmp_path / "model" / "preprocessing.json").read_text())
    assert preprocessing["size"] == [256, 128]
    assert preprocessing["mean"] == [0.5] * 3
    assert preprocessing["std"] == pytest.approx(IMAGENET[1])
    source = json.loads((tmp_path / "model" / "imported.json").read_text())
    assert source["peer"] == "fast-reid"
    assert len(source["sha256"]) == 64
    card = (tmp_path / "model" / "README.md").read_text()
    assert "from a checkpoint of fast-reid" in card
    assert f"SHA-256 is `{source['sha256']}`" in card
    assert "Not evaluated here." in card
    assert ray_reid.load(tmp_path / "model").embed([np.zeros((0,))][:0]).shape == (0, 512)


def test_the_command_imports_and_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(TorchReid(), tmp_path / "peer.pth")
    command = ["import", str(file), str(tmp_path / "model"), "--from", "torchreid"]
    assert cli.main([*command, "--set", "train.backbone=resnet18"]) == 0
    said = capsys.readouterr().out
    assert "4 identities" in said
    assert "left out: classifier (1)" in said
    assert package.load(tmp_path / "model").identities[-1] == "imported:3"
    assert cli.main(command) == cli.MISTAKE
    assert "exists; give a new folder" in capsys.readouterr().err
    assert cli.main([*command[:2], str(tmp_path / "n"), *command[3:]]) == cli.MISTAKE
    assert "torchreid checkpoint" in capsys.readouterr().err


def test_peers_variants_are_refused_where_the_backbone_has_nothing_to_vary() -> None:
    for key, value, backbone in (
        ("last_stride", 1, "vit_tiny_patch16_224"),
        ("stem_pool", "ceil", "convnext_atto"),
        ("window_pad", "before_shift", "resnet10t"),
        ("pooling", "token", "resnet10t"),
    ):
        spec = Train(backbone=backbone, image_size=(32, 32), **{key: value})
        with pytest.raises(ValueError, match=rf"train\.{key} is .* but backbone '{backbone}'"):
            ReidNetwork(spec, 2)
    dilated = {"backbone_params": {"output_stride": 16}, "last_stride": 1}
    with pytest.raises(ValueError, match="without output_stride"):
        ReidNetwork(Train(**dilated), 2)


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])
def test_the_last_stride_is_not_timms_output_stride(name: str) -> None:
    size = (64, 32)
    spec = Train(backbone=name, image_size=size)
    weights = randomise(ReidNetwork(spec, 2)).state_dict()
    maps = []
    for changes in ({"last_stride": 1}, {"backbone_params": {"output_stride": 16}}):
        spec = Train(backbone=name, image_size=size, **changes)
        network = ReidNetwork(spec, 2).eval()
        network.load_state_dict(weights)
        with torch.inference_mode():
            maps.append(network.feature_map(torch.ones(1, 3, *size)))
    assert maps[0].shape == maps[1].shape == (1, 512, 4, 2)
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)
