"""What the miniature models are trained and measured on: drawings in memory, with the truth."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_reid.miniature.drawing import Domain, Drawing, draw
from ray_reid.miniature.vehicles import vehicle_identity

SIZE = (64, 64)
# Worlds of their own: recipes draw seeds 0, 1, 2 ...
TRAIN_WORLD = 70_001
# Far away: scenes of the detector are numbered world * 1000 + picture, so near worlds share some.
# 70_002 was looked at while the captioner was designed; 70_003 is the tests'.
TEST_WORLD = 70_104
WORD = "<U96"


@dataclass(frozen=True)
class Drawings:
    """Drawings of one vehicle each.

    Attributes:
        images: (N, H, W, 3) uint8.
        boxes: (N, 4) left, top, exclusive right and exclusive bottom in pixels.
        captions: (N,) what a captioner should say.
        colours: (N,) names of their colours.
        kinds: (N,) their body styles.
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    captions: NDArray[np.str_]
    colours: NDArray[np.str_]
    kinds: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.images)


def drawings(domain: Domain, num: int, world: int, cache: Path, images_each: int = 2) -> Drawings:
    """Draw `num` images of `num / images_each` identities, or read them from `cache`."""
    file = cache / f"vehicle-{domain}-{num}-{world}-{images_each}.npz"
    wanted = [(domain, i // images_each, i % images_each, world) for i in range(num)]
    return Drawings(**drawn_once(file, wanted, _draw, _columns))


def drawn_once(
    file: Path,
    wanted: Sequence[Any],
    draw_one: Callable[[Any], Drawing],
    columns: Callable[[Sequence[Drawing]], Mapping[str, Any]],
) -> dict[str, NDArray[Any]]:
    """Columns of drawings from a file, which is made first where there is none.

    Args:
        wanted: What `draw_one` takes, one for each drawing.
        columns: Lays the drawings out.
    """
    if not file.exists():
        # numba and the pool: forked children of a threaded process may hang.
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            drawn = list(pool.map(draw_one, wanted, chunksize=64))
        aside = file.with_name(f".{file.name}")
        with aside.open("wb") as sink:
            np.savez(sink, **columns(drawn))
        aside.rename(file)
    with np.load(file) as found:
        return dict(found)


def training_set(num: int, cache: Path) -> Drawings:
    """The showroom vehicles that the models learn from."""
    return drawings("showroom", num, TRAIN_WORLD, cache)


def _draw(wanted: tuple[Domain, int, int, int]) -> Drawing:
    domain, number, index, world = wanted
    return draw(vehicle_identity(number, world), domain=domain, index=index, size=SIZE)


def _columns(drawn: Sequence[Drawing]) -> dict[str, Any]:
    return {
        "images": np.stack([one.image for one in drawn]),
        "boxes": np.array([one.box for one in drawn], dtype=np.int64),
        "captions": np.array([one.caption for one in drawn], dtype=WORD),
        "colours": np.array([one.attributes["colour"] for one in drawn], dtype=WORD),
        "kinds": np.array([one.attributes["body_style"] for one in drawn], WORD),
    }


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in 0 to 1, channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255.0)


def outside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are not in the box of their image: (N, 4) in pixels to (N, 1, H, W) bool."""
    rows, columns = torch.arange(height), torch.arange(width)
    inside_x = (columns >= boxes[:, :1]) & (columns < boxes[:, 2:3])
    inside_y = (rows >= boxes[:, 1:2]) & (rows < boxes[:, 3:4])
    return ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])


def vary(images: Tensor, boxes: Tensor, rng: torch.Generator) -> Tensor:
    """Change drawings as streets would: showroom pictures alone teach nothing of noise and light.

    Mirrors half of them, paints something else around some boxes, zooms and
    shifts, changes light and tint, adds haze, blurs a third and adds noise.

    Args:
        images: (N, 3, H, W) in 0 to 1.
        boxes: (N, 4) in pixels.
        rng: Chance.
    """
    num, _, height, width = images.shape

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    def spread(low: float, high: float) -> Tensor:
        return low + (high - low) * chance(num, 1, 1, 1)

    around = outside(boxes, height, width)
    coarse = chance(num, 3, 4, 4) * 0.5 + chance(num, 3, 1, 1) * 0.5
    scenery = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images = torch.where(around & (chance(num, 1, 1, 1) < 0.4), scenery, images)
    turn = torch.zeros(num, 2, 3)
    mirror = torch.where(chance(num) < 0.5, -1.0, 1.0)
    zoom = 1.0 + 0.25 * (chance(num) - 0.6)
    turn[:, 0, 0], turn[:, 1, 1] = zoom * mirror, zoom
    turn[:, :, 2] = 0.16 * (chance(num, 2) - 0.5)
    grid = torch.nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
    images = torch.nn.functional.grid_sample(
        images, grid, padding_mode="border", align_corners=False
    )
    small = torch.nn.functional.avg_pool2d(images, 2)
    soft = torch.nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear")
    images = torch.where(chance(num, 1, 1, 1) < 0.33, soft, images)
    tint = 1.0 + 0.16 * (chance(num, 3, 1, 1) - 0.5)
    images = (images * spread(0.72, 1.18) * tint) ** spread(0.87, 1.16)
    # Haze: less contrast towards a grey of its own; most images have little.
    haze = 0.4 * spread(0.0, 1.0).square()
    images = images * (1.0 - haze) + haze * spread(0.2, 0.8)
    noise = torch.randn(images.shape, generator=rng) * spread(0.0, 0.05)
    return (images + noise).clamp(0.0, 1.0).contiguous(memory_format=torch.channels_last)
