"""A model package as an ONNX file that gives the same embeddings, or no file."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_reid.models.networks import ReidNetwork
from ray_reid.models.package import Model

MIN_COSINE = 0.9999
BATCHES = (1, 2, 7)
"""Batches that are compared: the size is free in the file, and exporters like to freeze it."""
INPUT, OUTPUT = "images", "embeddings"
NEEDED = ("onnx", "onnxscript", "onnxruntime")

Pixels = NDArray[np.float32]
Write = Callable[[nn.Module, Tensor, Path], None]
Run = Callable[[Path, Sequence[Pixels]], list[NDArray[np.float32]]]


@dataclass(frozen=True)
class Exported:
    """What was measured of an exported network."""

    cosine: float
    """The lowest of all compared images."""
    images: int
    dimension: int


class Embedding(nn.Module):
    """The part of a network that makes embeddings, its normalisation included."""

    def __init__(self, network: ReidNetwork) -> None:
        """Wrap a network in evaluation mode."""
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, D), unit norm."""
        return self.network.embed(images)


def export(
    model: Model, file: Path, write: Write | None = None, run: Run | None = None
) -> Exported:
    """Write the embedding network and compare it, in fp32 on the CPU, with PyTorch.

    The file maps `images` (N, 3, H, W) float32 RGB in [0, 1], of the package's size, to
    `embeddings` (N, D) of unit norm. Mirroring and scales are left to the caller.

    Args:
        model: The package.
        file: New file.
        write: Writes a module and an example; null is torch.onnx.
        run: Embeds batches with the file; null is onnxruntime.

    Raises:
        ValueError: If a package is missing, the file exists, or any cosine of the two embeddings
            of an image is below MIN_COSINE.
    """
    if file.exists():
        raise ValueError(f"{str(file)!r} exists; give a new file")
    if write is None or run is None:
        _check_installed()
    network = Embedding(model.network).float().cpu().eval()
    batches = probes(model.image_size)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Of two images: what is seen to be one, exporters take for a constant.
        example = torch.zeros(2, 3, *model.image_size)
        (write or write_onnx)(network, example, aside)
        found = (run or run_onnx)(aside, batches)
        measured = _compare(network, batches, found)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
        network.to(model.device)
    return measured


def probes(size: tuple[int, int]) -> list[Pixels]:
    """Batches of noise, and of pictures with areas and edges, (N, 3, H, W) in [0, 1]."""
    chance = torch.Generator().manual_seed(0)
    batches = []
    for count in BATCHES:
        noise = torch.rand(count, 3, *size, generator=chance)
        coarse = torch.rand(count, 3, 6, 4, generator=chance)
        batches += [noise, F.interpolate(coarse, size), F.interpolate(coarse, size, mode="bicubic")]
    return [batch.clamp(0, 1).numpy() for batch in batches]


def write_onnx(network: nn.Module, example: Tensor, file: Path) -> None:
    """Write with torch.onnx; the number of images is free.

    Raises:
        ValueError: If it has no translation of the network.
    """
    from torch.onnx import OnnxExporterError

    try:
        torch.onnx.export(
            network,
            (example,),
            file,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    except OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"torch.onnx cannot write this network: {reason}") from error


def run_onnx(file: Path, batches: Sequence[Pixels]) -> list[NDArray[np.float32]]:
    """Embed with onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [session.run([OUTPUT], {INPUT: batch})[0] for batch in batches]


def _check_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"export to ONNX needs {' and '.join(missing)}: pip install 'ray-reid[onnx]'"
        )


def _compare(
    network: nn.Module, batches: Sequence[Pixels], found: Sequence[NDArray[np.float32]]
) -> Exported:
    with torch.inference_mode():
        wanted = [network(torch.from_numpy(batch)).numpy() for batch in batches]
    shapes = [embeddings.shape for embeddings in found]
    if shapes != [embeddings.shape for embeddings in wanted]:
        raise ValueError(
            f"the exported network gives embeddings of shapes {shapes} instead of "
            f"{[embeddings.shape for embeddings in wanted]}; no file is written"
        )
    ours, theirs = (np.concatenate(parts).astype(np.float64) for parts in (wanted, found))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(((ours * theirs).sum(axis=1) / lengths).min())
    # What is not a number is not near either.
    if not cosine >= MIN_COSINE:
        raise ValueError(
            f"the exported network gives other embeddings: the lowest cosine with PyTorch's is "
            f"{cosine:.6f} over {len(ours)} images, and must be {MIN_COSINE}; no file is written"
        )
    return Exported(cosine, *ours.shape)
