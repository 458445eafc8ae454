"""The Frechet distance between two sets of images, and the features that it is measured on.

Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash
equilibrium", NeurIPS 2017, equation 6. Distances of other features, or of another number of
images, are not to be compared.
"""

import importlib.util
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.images import Pixels
from ray_reid.recipe.frechet import Frechet

Extract = Callable[[Sequence[Pixels]], NDArray[np.float32]]
"""Images, each (H, W, 3), to their features (N, D)."""

IMAGE_TEXT, INCEPTION = "image_text", "inception"


def frechet_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Distance between the Gaussians fitted to two sets of features; 0 for equal sets.

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)), C being covariances over N - 1.

    Args:
        a: (N, D) features of one set.
        b: (M, D) of the other; N and M may be smaller than D.

    Raises:
        ValueError: If a set has fewer than 2 rows, the widths differ, or a value is not finite.
    """
    for features in (a, b):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"features of shape {features.shape} have no covariance; "
                "a set must be (N, D) with N of 2 or more"
            )
        if not np.isfinite(features).all():
            raise ValueError("features must be finite numbers; the extractor gave others")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and {b.shape[1]} columns must be equally wide")
    mean_a, root_a = _gaussian(a)
    mean_b, root_b = _gaussian(b)
    # With C = R^T R the eigenvalues of C_a C_b are the squares of the singular values of
    # R_a R_b^T: no root of a matrix that is not symmetric, hence nothing complex.
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum()
    # Of equal sets, rounding may leave a little less than nothing.
    return max(0.0, float(np.square(mean_a - mean_b).sum() + spread - 2 * cross))


def extractor(spec: Frechet, image_text: str, precision: str = "auto") -> Extract:
    """Load what turns images into features.

    Args:
        spec: Names the extractor: `image_text`, `inception`, or `inception:FILE` with a local
            file of the weights that torch-fidelity distributes.
        image_text: Reference of the image-text model, as in `Models.image_text`.
        precision: Of that model, as in `Models.precision`; Inception-v3 always runs in fp32.

    Raises:
        ValueError: If there is no such extractor, or its package or weights are missing.
    """
    check(spec)
    if spec.extractor == IMAGE_TEXT:
        from ray_reid.models.pretrained.image_text import ImageText

        return ImageText(image_text, precision).embed_images
    return _inception(spec.extractor.partition(":")[2], spec.layer)


def check(spec: Frechet) -> None:
    """Refuse an extractor that cannot be loaded, before anything is generated for it.

    Raises:
        ValueError: If there is no such extractor, or its package or file is missing.
    """
    name, _, file = spec.extractor.partition(":")
    if spec.extractor == IMAGE_TEXT:
        return
    if name != INCEPTION:
        raise ValueError(
            f"unknown frechet.extractor {spec.extractor!r}; "
            f"choose from {[IMAGE_TEXT, INCEPTION, f'{INCEPTION}:FILE']}"
        )
    missing = [n for n in ("torchmetrics", "torch_fidelity") if not importlib.util.find_spec(n)]
    if missing:
        raise ValueError(
            f"frechet.extractor {INCEPTION!r} needs the package {missing[0]!r}; install "
            f"'ray-reid[fid]' or choose {IMAGE_TEXT!r}"
        )
    if file:
        _check_weights(Path(file))


def _gaussian(features: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and R (min(N, D), D) with R^T R = the covariance."""
    exact = features.astype(np.float64)
    mean = exact.mean(axis=0)
    root = np.linalg.qr(exact - mean, mode="r") / np.sqrt(len(exact) - 1)
    return mean, root


def _inception(file: str, layer: str) -> Extract:
    """Inception-v3 of the published FID; weights from a file, torch.hub's cache or its address."""
    import torch
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        # The published figures rest on TensorFlow 1's resize, which does not smooth first.
        network = NoTrainInceptionV3("fid", [layer], file or None, antialias=False)
    except (OSError, RuntimeError) as error:
        where = repr(file) if file else "torch.hub's cache, and they cannot be downloaded"
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"no weights of Inception-v3 in {where} ({reason}); name a local file with "
            f"--set frechet.extractor={INCEPTION}:FILE"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)

    def extract(pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        rows = []
        # One by one: the images may differ in size until the network has resized them.
        for pixels in pictures:
            planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            with torch.inference_mode():
                rows.append(network(planes[None].to(device)).float().cpu().numpy()[0])
        return np.stack(rows).astype(np.float32)

    return extract


def _check_weights(file: Path) -> None:
    """Refuse a file that holds anything but tensors: the library would run code found in it."""
    import torch

    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read weights {str(file)!r}: {error.strerror}") from error
    except (RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise ValueError(f"{str(file)!r} is not a file of weights in PyTorch's format") from error
