"""The loader executes any plan: rows of a memory-mapped cache, decoded and stacked into batches."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ray_reid import images, schema, storage
from ray_reid.samplers import Plan

TRAINABLE = storage.TRAINABLE


class TrainingRows(Dataset[tuple[Tensor, Tensor]]):
    """The labelled training rows of a table, numbered in the order of their observation ids."""

    def __init__(self, table: str | Path, image_size: tuple[int, int]) -> None:
        self.identities, self.labels = labels(table)
        self._cache = storage.RowCache(table, cache_directory(), TRAINABLE)
        self._size = image_size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch: images (B, 3, H, W) uint8 and labels (B,) int64."""
        encoded = [self._cache.image(int(row)) for row in rows]
        pixels = images.decode_batch(encoded, self._size)
        # Channels last in memory, which is what both CPU and GPU convolutions like.
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(self.labels[rows])


def labels(table: str | Path) -> tuple[list[str], NDArray[np.int64]]:
    """Identities in the order of their labels, and the label (N,) of every training row.

    Raises:
        ValueError: If there are fewer than two identities.
    """
    identity = storage.read(table, [schema.IDENTITY], TRAINABLE)[schema.IDENTITY].to_pylist()
    names = sorted(set(identity))
    if len(names) < 2:
        raise ValueError(f"training needs at least 2 identities; the table has {len(names)}")
    label_of = {name: label for label, name in enumerate(names)}
    return names, np.array([label_of[name] for name in identity], dtype=np.int64)


def execute(
    rows: TrainingRows, plan: Plan, worker: int, start: int = 0, processes: int = 0
) -> "DataLoader[tuple[Tensor, Tensor]]":
    """Iterate over a worker's batches of a plan, from batch `start` on.

    Args:
        processes: Decoding processes beside this one; 0 decodes here.
    """
    return DataLoader(
        rows,
        # A sampler of whole batches: one `__getitem__` per batch, no collation.
        sampler=plan[start:, worker].tolist(),
        batch_size=None,
        num_workers=processes,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if processes else None,
    )


def cache_directory() -> Path:
    """Where this node keeps row caches: `RAY_REID_CACHE`, else the system's temporary folder."""
    default = Path(tempfile.gettempdir()) / f"ray-reid-rows-{os.getuid()}"
    return Path(os.environ.get("RAY_REID_CACHE", default))
