"""The loop that the trainers share: one seeded stream of batches, one schedule, one log."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

log = logging.getLogger(__name__)

# Processes, not threads: two threads share layers of this size badly. Their number is part of
# what the seed reproduces.
WORKERS = 2


def batches(
    num: int, size: int, steps: int, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[Tensor]:
    """Yield row numbers of `steps` batches: shuffled passes over `num` rows, whole batches only.

    With `world_size` processes every one takes its share of the same batches.
    """
    rng = torch.Generator().manual_seed(seed)
    rows: Tensor = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(rows) < size:
            rows = torch.randperm(num, generator=rng)
        batch, rows = rows[:size], rows[size:]
        yield batch[rank::world_size]


def minimise(
    name: str,
    parameters: Iterable[Parameter],
    losses: Iterable[Callable[[], Tensor]],
    steps: int,
    learning_rate: float,
    after_step: Callable[[float], None] = lambda _: None,
    weight_decay: float = 0.01,
) -> None:
    """Minimise with AdamW: linear warm-up over 3 % of the steps, then a cosine to zero.

    Args:
        name: For the log.
        losses: One callable a step; its result is minimised.
        after_step: Called with the share of steps done.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.03, cycle_momentum=False
    )
    started, total = time.monotonic(), 0.0
    for step, loss_of in enumerate(losses, start=1):
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        after_step(step / steps)
        total += float(loss.detach())
        if step % 100 == 0:
            pace = (time.monotonic() - started) / step
            log.info("%s: step %d of %d, loss %.4f, %.2f s a step",
                     name, step, steps, total / 100, pace)  # fmt: skip
            total = 0.0


def in_processes(worker: Callable[..., None], *arguments: Any) -> None:
    """Call `worker(rank, *arguments)` in each of `WORKERS` processes; the last is the result file.

    Raises:
        torch.multiprocessing.ProcessRaisedException: If one of them fails.
    """
    store = Path(f"{arguments[-1]}.store")
    store.unlink(missing_ok=True)
    mp.spawn(worker, arguments, nprocs=WORKERS)  # type: ignore[attr-defined, no-untyped-call]
    store.unlink(missing_ok=True)


@contextmanager
def distributed(rank: int, result: Path) -> Iterator[Callable[[nn.Module], nn.Module]]:
    """Join the processes of one training; yields what makes a module average its gradients."""
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    store = dist.FileStore(  # type: ignore[attr-defined]
        f"{result}.store", WORKERS
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    yield DistributedDataParallel
    dist.barrier()
    dist.destroy_process_group()
