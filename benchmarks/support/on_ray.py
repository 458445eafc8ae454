"""A training on Ray Train, as the train job runs it, and when each of its batches was done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.resources import Resources
from ray_reid.runtime.cluster import Cluster
from ray_reid.runtime.job import Work
from ray_reid.training import train


@dataclass(frozen=True)
class Stamps:
    """In place of the progress meter, whose `set.remote` the first worker calls after a batch."""

    file: Path

    @property
    def set(self) -> "Stamps":
        return self

    def remote(self, *_: int) -> None:
        with self.file.open("a") as sink:
            sink.write(f"{time.time()}\n")


def batch_times(recipe: Recipe, table: Path, out: Path, threads: int) -> tuple[float, list[float]]:
    """When Ray began to start for the train job, and when each batch of it was done."""
    file = out / "stamps"
    out.mkdir()

    @contextmanager
    def stamped(*_: Any) -> Iterator[Stamps]:
        yield Stamps(file)

    work = Work(recipe, out, {"ingest": table.parent}, {})
    resources = Resources(num_cpus=threads * recipe.train.num_workers)
    started = time.time()
    with Cluster(resources) as cluster, mock.patch.object(train, "metered", stamped):
        cluster.start()
        train.train_job(work)
    return started, [float(line) for line in file.read_text().splitlines()]
