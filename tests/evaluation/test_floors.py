"""Pretrained features without a training: what a training must beat."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import ray_reid
from ray_reid import schema, storage
from ray_reid.evaluation import floors, given
from ray_reid.models import card
from ray_reid.models.networks import backbones
from ray_reid.runtime.results import RunState

WORLD = {"reader": "miniature", "num_train": 3, "num_test": 4, "cameras_per_identity": 2}
SMALL: dict[str, Any] = {
    "ingest.stage.actors": 1,
    "embed.stage.actors": 1,
    "evaluate.num_maps": 0,
    "evaluate.max_tsne": 0,
    "train.image_size": [32, 32],
    "train.precision": "fp32",
    "train.ibn": "a",
    "train.pretrained": False,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a backbone's weights, the only ones that need no hub."""
    torch.manual_seed(0)
    backbone = timm.create_model("resnet10t", num_classes=0)
    backbones.add_ibn(backbone, "resnet10t")
    file = tmp_path_factory.mktemp("weights") / "resnet10t_ibn_a.safetensors"
    save_file({name: part.contiguous() for name, part in backbone.state_dict().items()}, file)
    return file


@pytest.mark.slow
def test_a_floor_is_the_pooled_feature_map_of_the_pretrained_backbone(
    weights: Path, tmp_path: Path, ray_local: None
) -> None:
    settings = {**SMALL, "train.ibn_weights": str(weights)}
    figures = ray_reid.evaluate(
        "pretrained:resnet10t", WORLD, run=tmp_path / "floor", settings=settings
    )
    assert 0 < figures["mAP"] <= 1
    model = ray_reid.load(tmp_path / "floor", "cpu")
    state = RunState.read(tmp_path / "floor")
    images = storage.read(state.folder("ingest") / "observations", [schema.IMAGE])[schema.IMAGE]
    two = images.to_pylist()[:2]
    with torch.inference_mode():
        pooled = model.network.feature_map(model._pixels(two)).mean((2, 3))
    expected = torch.nn.functional.normalize(pooled, dim=1)
    assert np.allclose(model.embed(two, flip=False), expected, atol=1e-5)
    own, wanted = model.network.backbone.state_dict(), load_file(weights)
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)
    page = (state.folder("evaluate") / "model" / card.FILE).read_text()
    assert "Nobody has trained this model" in page


def test_a_floor_has_no_layer_that_nobody_has_trained(weights: Path) -> None:
    def check(package: str, **settings: Any) -> None:
        values = {f"train.{name}": value for name, value in settings.items()}
        floors.check(given.recipe_of([package], {**SMALL, **values}, data=WORLD))

    check("pretrained:resnet10t", ibn_weights=str(weights))
    with pytest.raises(ValueError, match="'pretrained:resnet10t' without weights is random"):
        check("pretrained:resnet10t")
    with pytest.raises(ValueError, match=r"train\.embedding_dim adds a layer to 'pretrained:"):
        check("pretrained:resnet10t", ibn_weights=str(weights), embedding_dim=64)
    with pytest.raises(ValueError, match="timm has no model 'resnet10x'"):
        check("pretrained:resnet10x", ibn_weights=str(weights))
    with pytest.raises(ValueError, match="'pretrained:' names no backbone"):
        check("pretrained:", ibn_weights=str(weights))
