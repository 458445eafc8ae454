"""Drawn pedestrians in memory, with the truth: what the models of clothes are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ray_reid.miniature.drawing import Domain, Drawing, draw
from ray_reid.miniature.paint import CLOTHES_PARTS
from ray_reid.miniature.pedestrians import NUM_OUTFITS, Pedestrian, pedestrian_identity
from ray_reid.miniature.trainers.drawings import TRAIN_WORLD, WORD, drawn_once

__all__ = [
    "SIZE", "TEST_WORLD", "TRAIN_WORLD", "People", "dressed_people", "people", "training_set",
    "worn",
]  # fmt: skip

SIZE = (96, 48)
# 70_104 is that of the vehicles' models; trainers were looked at on 70_055 and 70_056.
TEST_WORLD = 70_105


@dataclass(frozen=True)
class People:
    """Drawings of one pedestrian each.

    Attributes:
        images: (N, H, W, 3) uint8.
        parts: (N, H, W) index into `paint.PARTS`; every pixel that any ray of clothes meets
            has a part of clothes.
        clothes: (N, 3) what is worn above, below and on the feet, such as `red hoodie`.
    """

    images: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    clothes: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.images)

    def masks(self) -> NDArray[np.bool_]:
        """(N, H, W) True where clothes or shoes are."""
        return np.isin(self.parts, CLOTHES_PARTS)


def people(domain: Domain, num: int, world: int, cache: Path) -> People:
    """Draw `num` pedestrians, two pictures of each, or read them from `cache`."""
    file = cache / f"pedestrian-{domain}-{num}-{world}.npz"
    wanted = [(domain, i // 2, i % 2, world) for i in range(num)]
    return People(**drawn_once(file, wanted, _draw, _columns))


def training_set(num: int, cache: Path) -> People:
    """Pedestrians that the models learn from: half in the studio, half in streets.

    Published models of clothes have seen photographs of streets, so these know both domains;
    the people are of a world that no recipe and no test draws.
    """
    halves = [people(domain, num // 2, TRAIN_WORLD, cache) for domain in ("showroom", "street")]
    return People(
        *(np.concatenate([getattr(half, name) for half in halves])
          for name in ("images", "parts", "clothes"))
    )  # fmt: skip


def dressed_people(num: int, world: int) -> list[tuple[Pedestrian, int]]:
    """Who is in each of the `num` drawings of `people`, and the number of the outfit."""
    return [_dressed(i // 2, i % 2, world) for i in range(num)]


def _dressed(number: int, index: int, world: int) -> tuple[Pedestrian, int]:
    return pedestrian_identity(number, world), (number + index) % NUM_OUTFITS


def _draw(wanted: tuple[Domain, int, int, int]) -> Drawing:
    domain, number, index, world = wanted
    person, outfit = _dressed(number, index, world)
    return draw(person, domain=domain, index=index, seed=world, size=SIZE, outfit=outfit)


def _columns(drawn: Sequence[Drawing]) -> dict[str, Any]:
    return {
        "images": np.stack([one.image for one in drawn]),
        "parts": np.stack([_whole_parts(one) for one in drawn]),
        "clothes": np.array([worn(one.attributes) for one in drawn], dtype=WORD),
    }


def worn(attributes: dict[str, str]) -> tuple[str, str, str]:
    """Upper, lower and footwear of a drawing as a describer should name them."""
    upper, lower, footwear = (
        f"{attributes[f'{part}_colour']} {attributes[part]}"
        for part in ("upper", "lower", "footwear")
    )
    return upper, lower, footwear


def _whole_parts(drawing: Drawing) -> NDArray[np.uint8]:
    """Parts by most rays, but clothes wherever any ray meets them: the nearest such part."""
    assert drawing.parts is not None, "pedestrians have parts"
    assert drawing.clothes_mask is not None, "and a mask"
    dressed = np.isin(drawing.parts, CLOTHES_PARTS)
    if not dressed.any():
        return drawing.parts
    nearest = distance_transform_edt(~dressed, return_distances=False, return_indices=True)
    parts: NDArray[np.uint8] = np.where(
        drawing.clothes_mask, drawing.parts[tuple(nearest)], drawing.parts
    )
    return parts
