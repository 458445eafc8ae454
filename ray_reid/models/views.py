"""Test-time views of an image: mirrored and resized (VehicleNet; Zheng et al., TMM 2020)."""

from collections.abc import Callable, Sequence

import timm
import torch.nn.functional as F
from torch import Tensor


def average(
    embed: Callable[[Tensor], Tensor], pixels: Tensor, flip: bool, scales: Sequence[float]
) -> Tensor:
    """The mean direction of the embeddings of all views.

    Args:
        embed: Images (B, 3, H, W) to unit-norm embeddings (B, D), whatever their size.
        pixels: (B, 3, H, W).
        flip: Whether each scale is also mirrored.
        scales: Factors of height and width.

    Returns:
        (B, D) float32, unit norm.
    """
    found = []
    for scale in scales:
        size = [max(1, round(side * scale)) for side in pixels.shape[2:]]
        # At its own size an image stays as it is, to the last bit.
        view = (
            pixels if scale == 1 else F.interpolate(pixels, size, mode="bilinear", antialias=True)
        )
        found += [embed(view), embed(view.flip(3))] if flip else [embed(view)]
    return F.normalize(sum(found[1:], found[0]).float(), dim=1)


def check_scales(backbone: str, scales: Sequence[float]) -> None:
    """Refuse to resize the input of a backbone that is built for one size.

    Raises:
        ValueError: If a scale is out of range, or not 1 although the backbone has windows or
            position embeddings.
    """
    if not scales or not all(0 < scale <= 4 for scale in scales):
        raise ValueError(f"scales are {list(scales)}, but must be one or more numbers in (0, 4]")
    if set(scales) == {1}:
        return
    expected = timm.models.get_pretrained_cfg(backbone)
    if expected and expected.fixed_input_size:
        raise ValueError(
            f"embed.scales are {list(scales)}, but backbone {backbone!r} is built for one size of "
            "image; set them to [1]"
        )
