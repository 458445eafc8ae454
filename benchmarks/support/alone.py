"""A training in a process of its own, which does a step whenever it is told to.

The process is this file, run; it answers each line that it reads with a line of JSON: `step`
trains on a batch, `unshared` does without exchanging gradients, `peak` tells its memory.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe


class Alone:
    """The other end: one such process."""

    def __init__(
        self,
        side: str,
        recipe: Recipe,
        table: Path,
        threads: int,
        worker: int = 0,
        workers: int = 1,
    ) -> None:
        """Start it; `side` is `ours` or `bare`."""
        asked = {
            "side": side,
            "recipe": recipe.model_dump(mode="json"),
            "table": str(table),
            "threads": threads,
            "worker": worker,
            "workers": workers,
        }
        self.started = time.time()
        root = Path(__file__).resolve().parent.parent
        paths = [str(root), str(root.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asked)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, what: str) -> None:
        """Have it do something, without waiting."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait until what it was told is done."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has said on stderr why it ended"
        return json.loads(line)

    def ask(self, what: str) -> Any:
        """Have it do something and wait for it."""
        self.tell(what)
        return self.answer()

    def end(self) -> None:
        """Let it go, and with it what it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def alone(
    side: str, recipe: Recipe, table: Path, threads: int, workers: int = 1
) -> Iterator[list[Alone]]:
    """Processes that train together, each with as many threads."""
    started = [Alone(side, recipe, table, threads, number, workers) for number in range(workers)]
    try:
        yield started
    finally:
        for one in started:
            one.end()


def all_do(processes: list[Alone], what: str) -> None:
    """Have each do it at the same time."""
    for process in processes:
        process.tell(what)
    for process in processes:
        process.answer()


def _ours(asked: Mapping[str, Any], recipe: Recipe) -> dict[str, Callable[[], object]]:
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from ray_reid.training.fit import Fit
    from ray_reid.training.loader import TrainingRows
    from support import cases

    place, worker, workers = cases.device(), asked["worker"], asked["workers"]
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network  # noqa: E731
    if workers > 1:
        meet = Path(asked["table"]).parent / f"meet-{os.getppid()}"
        dist.init_process_group("gloo", f"file://{meet}", rank=worker, world_size=workers)
        wrap = DistributedDataParallel
    fit = Fit(
        recipe,
        TrainingRows([asked["table"]], recipe.train),
        device=place,
        worker=worker,
        world_size=workers,
        wrap=wrap,
    )
    run = fit.run()

    def unshared() -> None:
        with fit.wrapped.no_sync():
            next(run)

    return {"step": partial(next, run), "unshared": unshared}


def _bare(asked: Mapping[str, Any], recipe: Recipe) -> dict[str, Callable[[], object]]:
    from support import bare, cases

    processes = recipe.train.loader_processes
    return {"step": bare.loop(recipe, Path(asked["table"]), cases.device(), processes)}


def _peak() -> float:
    """MB of memory that the process held at most; getrusage would count the parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return float(found) * 1024 / 1e6


def main() -> None:
    asked = json.loads(sys.argv[1])
    import torch

    torch.set_num_threads(asked["threads"])
    recipe = recipes.validate(asked["recipe"])
    does = {"ours": _ours, "bare": _bare}[asked["side"]](asked, recipe)
    for line in sys.stdin:
        what = line.strip()
        told = _peak() if what == "peak" else None
        if told is None:
            does[what]()
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
