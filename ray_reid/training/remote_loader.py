"""The loader that decodes on any free CPUs of the cluster and hands over batches by the plan.

Each worker reads its column of a plan through a Ray Data pipeline of its own: row numbers in,
decoded batches out, in order, with a bounded number of them ahead. The nodes that decode keep
the row caches, so a worker's node holds no copy of the images. Batches equal those of `loader`
to the last bit, whatever the number of nodes.

Decoding runs in tasks, not in a pool of actors: a pool takes seconds to start, in every epoch,
while the processes of tasks are kept and used again, and with them the tables they have opened.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import ExecutionResources
from torch import Tensor

from ray_reid.places import Place
from ray_reid.recipe.train import Train
from ray_reid.runtime import cluster
from ray_reid.training.loader import TrainingRows, labels, to_tensors
from ray_reid.training.samplers import Plan

log = logging.getLogger(__name__)

# A task decodes about this much: fewer bytes and its start weighs, more and others wait for it.
TASK_BYTES = 32 * 2**20
# What a worker's pipeline may hold beyond the batch in use.
AHEAD_BYTES = 512 * 2**20


class RemoteRows:
    """The rows of some tables that are trained on, decoded elsewhere; a `loader.Rows`."""

    def __init__(
        self, tables: Sequence[str | Place], spec: Train, held_out: Collection[str] = ()
    ) -> None:
        """Read which rows they are, `held_out` being left out; no image is opened here."""
        cluster.configure()
        self.chosen = labels(tables, spec, held_out)
        self._tables, self._held_out = tuple(map(str, tables)), tuple(sorted(held_out))
        self._spec = spec.model_dump_json()
        self._image_bytes = 3 * spec.image_size[0] * spec.image_size[1]

    def batches(self, plan: Plan, worker: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """A worker's batches of a plan in order, from batch `start` on."""
        planned = plan[start:, worker]
        if not len(planned):
            return
        per_task = max(1, TASK_BYTES // (planned.shape[1] * self._image_bytes))
        blocks = [planned[first : first + per_task] for first in range(0, len(planned), per_task)]
        dataset = ray.data.from_numpy(blocks)
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(object_store_memory=AHEAD_BYTES)
        decode: Any = partial(
            _decode, tables=self._tables, spec=self._spec, held_out=self._held_out
        )
        decoded = dataset.map_batches(decode, batch_size=None, num_cpus=1)
        found = decoded.iter_batches(batch_size=1, batch_format="numpy")
        for rows, batch in zip(planned, found, strict=True):
            # A copy, because what Ray hands over is read-only.
            pixels, targets = to_tensors(batch["pixels"][0].copy(), self.chosen.labels[rows])
            yield (pixels.pin_memory(), targets) if torch.cuda.is_available() else (pixels, targets)


def check_free(spec: Train) -> None:
    """Look for a CPU that the workers leave, without which nobody would decode.

    A cluster of several nodes may grow: there it is only said.

    Raises:
        ValueError: If one machine is not enough.
    """
    nodes = cluster.alive_nodes()
    has = sum(node.num_cpus for node in nodes)
    taken = spec.num_workers * spec.cpus_per_worker
    if taken + 1 <= has:
        return
    found = (
        f"train.loader 'ray_data' decodes on CPUs beside the workers, but train.num_workers "
        f"{spec.num_workers} of {spec.cpus_per_worker:g} CPUs each leave less than 1 of the "
        f"{has:g} CPUs that Ray has"
    )
    if len(nodes) == 1:
        raise ValueError(f"{found}; lower one of them or choose 'local'")
    log.warning("%s; waiting for a node to join", found)


def _decode(
    batch: Mapping[str, NDArray[Any]],
    tables: tuple[str, ...],
    spec: str,
    held_out: tuple[str, ...],
) -> dict[str, Any]:
    """Planned rows (batches, B) to images (batches, B, H, W, 3)."""
    rows = _open(tables, spec, held_out)
    return {"pixels": np.stack([rows.decode(planned) for planned in batch["data"]])}


@lru_cache(maxsize=1)
def _open(tables: tuple[str, ...], spec: str, held_out: tuple[str, ...]) -> TrainingRows:
    """The rows as this process opened them for an earlier task."""
    return TrainingRows(tables, Train.model_validate_json(spec), held_out)
