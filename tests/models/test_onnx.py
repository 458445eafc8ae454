"""Export to ONNX: the gate by a stand-in for the exporter, and the exporter where there is one."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ray_reid
from ray_reid import cli
from ray_reid.models import onnx_export, package
from ray_reid.models.networks import ReidNetwork
from ray_reid.models.package import Model
from ray_reid.recipe import recipes


def make_package(path: Path, **train: Any) -> Path:
    values = {"backbone": "resnet10t", "image_size": [48, 32], "precision": "fp32", **train}
    recipe = recipes.validate({"name": "baseline", "train": values})
    torch.manual_seed(0)
    network = ReidNetwork(recipe.train, 2)
    for tensor in network.state_dict().values():
        # A block that adds nothing would hide a wrong translation of it.
        if tensor.is_floating_point() and not tensor.any():
            tensor.normal_(0, 0.2)
    package.save(path, recipe, ["s:a", "s:b"], network.state_dict())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = make_package(tmp_path_factory.mktemp("package") / "model")
    return ray_reid.load(path, "cpu")


class Exporter:
    """Keeps the module in memory, and gives its embeddings through `change`."""

    def __init__(self, change: Any = lambda embeddings: embeddings) -> None:
        self.change, self.seen = change, []

    def write(self, network: nn.Module, example: Tensor, file: Path) -> None:
        self.network = network
        file.write_bytes(b"onnx")

    def run(self, file: Path, batches: Sequence[Any]) -> list[Any]:
        assert file.read_bytes() == b"onnx"
        self.seen = batches
        with torch.inference_mode():
            return [self.change(self.network(torch.from_numpy(one)).numpy()) for one in batches]


def test_a_faithful_file_is_kept_and_measured(model: Model, tmp_path: Path) -> None:
    fake = Exporter(lambda embeddings: 3 * embeddings)
    done = onnx_export.export(model, tmp_path / "new" / "m.onnx", fake.write, fake.run)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["m.onnx"]
    assert done.cosine == pytest.approx(1)
    assert done.dimension == 512
    assert done.images == sum(len(batch) for batch in fake.seen)
    # Real sizes, more than one number of images, and no two batches alike.
    assert {batch.shape[1:] for batch in fake.seen} == {(3, 48, 32)}
    assert {len(batch) for batch in fake.seen} >= {1, 2}
    assert all(0 <= batch.min() < batch.max() <= 1 for batch in fake.seen)


def test_other_embeddings_are_refused_and_leave_no_file(model: Model, tmp_path: Path) -> None:
    def slightly(embeddings: Any) -> Any:
        # A cosine of 0.9998 in the last image of each batch alone.
        changed = embeddings.copy()
        other = np.roll(changed[-1], 1)
        other -= other @ changed[-1] * changed[-1]
        changed[-1] += 0.02 * other / np.linalg.norm(other)
        return changed

    for change, message in (
        (slightly, r"lowest cosine with PyTorch's is 0\.9998\d\d .*must be 0\.9999"),
        (lambda embeddings: embeddings * np.nan, "lowest cosine with PyTorch's is nan"),
        (lambda embeddings: embeddings[:1], "embeddings of shapes"),
    ):
        fake = Exporter(change)
        with pytest.raises(ValueError, match=message):
            onnx_export.export(model, tmp_path / "m.onnx", fake.write, fake.run)
        assert not list(tmp_path.iterdir())


def test_a_failed_writer_leaves_no_file_and_no_file_is_overwritten(
    model: Model, tmp_path: Path
) -> None:
    def torn(network: nn.Module, example: Tensor, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        onnx_export.export(model, tmp_path / "m.onnx", torn, Exporter().run)
    assert not list(tmp_path.iterdir())
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists; give a new file"):
        onnx_export.export(model, tmp_path / "m.onnx", torn, Exporter().run)


def test_what_is_not_installed_is_named_with_the_extra(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name.startswith("onnx") else find(name, *rest),
    )
    assert cli.main(["export-onnx", str(model.path), str(tmp_path / "m.onnx")]) == cli.MISTAKE
    said = capsys.readouterr().err
    assert "onnx and onnxscript and onnxruntime: pip install 'ray-reid[onnx]'" in said


@pytest.mark.parametrize(
    "train",
    [
        {"pooling": "gem", "embedding_dim": 16, "last_stride": 1},
        {
            "backbone": "vit_tiny_patch16_224",
            "backbone_params": {"depth": 1, "embed_dim": 24, "num_heads": 3},
            "pooling": "token",
        },
        {
            "backbone": "swin_tiny_patch4_window7_224",
            "backbone_params": {"embed_dim": 12, "depths": [2], "num_heads": [1], "window_size": 5},
            "window_pad": "before_shift",
        },
        {"head": "agw", "last_stride": 1},
        {"head": "mgn", "embedding_dim": 16},
        pytest.param({"head": "sbs"}, marks=pytest.mark.slow),
        pytest.param({"head": "bdb", "embedding_dim": 16}, marks=pytest.mark.slow),
        pytest.param(
            {"head": "pcb", "last_stride": 1, "head_params": {"parts": 3}}, marks=pytest.mark.slow
        ),
    ],
)
def test_onnxruntime_gives_our_embeddings_for_any_number_of_images(
    train: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in onnx_export.NEEDED:
        pytest.importorskip(name)
    path = make_package(tmp_path / "model", **train)
    file = tmp_path / "m.onnx"
    assert cli.main(["export-onnx", str(path), str(file)]) == 0
    assert "cosine" in capsys.readouterr().out
    model = ray_reid.load(path, "cpu")
    pixels = np.random.default_rng(1).random((5, 3, 48, 32), dtype=np.float32)
    (found,) = onnx_export.run_onnx(file, [pixels])
    with torch.inference_mode():
        assert np.allclose(found, model.network.embed(torch.from_numpy(pixels)), atol=1e-4)
