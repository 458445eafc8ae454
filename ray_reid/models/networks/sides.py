"""Side information: one learned vector per camera and view (TransReID, He et al., ICCV 2021).

A camera's light and a view's shape are no marks of an identity. Where they are known, a vector of
their own takes them up, and the rest of the network need not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_reid.models.networks.facts import packed, unpacked

UNKNOWN = 0
"""The code of an image whose camera is null or was never trained on."""


@dataclass(frozen=True)
class Sides:
    """Cameras and views of the training images; a camera's name is unique over all sources."""

    cameras: tuple[str, ...] = ()
    views: tuple[str, ...] = ()

    @property
    def num_codes(self) -> int:
        """Codes: unknown, then every camera with each view and with none."""
        return 1 + len(self.cameras) * (len(self.views) + 1)


def known_sides(cameras: Iterable[str | None], views: Iterable[str | None]) -> Sides:
    """The cameras and views of the training images, in the order of their names."""
    return Sides(_names(cameras), _names(views))


def side_codes(
    cameras: Sequence[str | None], views: Sequence[str | None], known: Sides
) -> NDArray[np.int64]:
    """Codes of images by camera and view.

    A null or unseen camera is `UNKNOWN`, whatever the view; a known camera with a null or unseen
    view has a code of its own.

    Returns:
        (N,) int64 in [0, known.num_codes).

    Raises:
        ValueError: If cameras and views differ in length.
    """
    if len(cameras) != len(views):
        raise ValueError(f"there are {len(cameras)} cameras but {len(views)} views")
    camera_of = {name: number for number, name in enumerate(known.cameras)}
    view_of = {name: number for number, name in enumerate(known.views, start=1)}
    width = len(known.views) + 1
    codes = [
        1 + camera_of[camera] * width + view_of.get(view or "", 0)
        if camera in camera_of
        else UNKNOWN
        for camera, view in zip(cameras, views, strict=True)
    ]
    return np.array(codes, dtype=np.int64)


class SideEmbedding(nn.Module):
    """Add `weight` times the vector of an image's camera and view to its feature.

    All vectors begin at zero, so one that training never met adds nothing.
    """

    known: Tensor

    def __init__(self, sides: Sides, width: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.vectors = nn.Embedding(sides.num_codes, width)
        nn.init.zeros_(self.vectors.weight)
        self.register_buffer("known", packed([sides.cameras, sides.views]))

    @property
    def sides(self) -> Sides:
        """What the codes stand for."""
        return known_in(self.known)

    def forward(self, features: Tensor, codes: Tensor | None) -> Tensor:
        """Features (B, D) and codes (B,) int64, or none for all unknown, to features (B, D)."""
        if codes is None:
            codes = torch.full((len(features),), UNKNOWN, device=features.device)
        return features + self.weight * self.vectors(codes)


def known_in(buffer: Tensor) -> Sides:
    """The sides that a network's weights were trained with."""
    cameras, views = unpacked(buffer)
    return Sides(tuple(cameras), tuple(views))


def _names(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value is not None}))
