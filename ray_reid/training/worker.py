"""What a worker of Ray Train does: restore the last checkpoint, train, report."""

import io
import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import Checkpoint

from ray_reid import places
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Train

# Ray Train's controller imports this module too; it has no use for torch and waits for it.
if TYPE_CHECKING:
    from ray_reid.training.fit import Fit, Progress
    from ray_reid.training.loader import Rows

log = logging.getLogger(__name__)

STATE = "state.pt"
SCORE = "score"
"""Name of the figure by which the checkpoint to keep is chosen."""


def train_worker(arguments: Mapping[str, Any]) -> None:
    """One worker of Ray Train: restore the last checkpoint, then train and report."""
    from ray.train.torch import get_device, prepare_model

    from ray_reid.models.networks import starting
    from ray_reid.training import validation
    from ray_reid.training.fit import Fit

    recipe: Recipe = arguments["recipe"]
    tables, held_out = arguments["tables"], arguments["held_out"]
    context = ray.train.get_context()
    fit = Fit(
        recipe,
        open_rows(tables, recipe.train, held_out),
        device=get_device(),
        worker=context.get_world_rank(),
        world_size=context.get_world_size(),
        wrap=prepare_model,
        start=None if arguments["start"] is None else starting.parse(load(arguments["start"])),
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        fit.restore(read_checkpoint(checkpoint))
        log.info("resumed at epoch %d, batch %d", fit.progress.epoch, fit.progress.batch)
    leader = context.get_world_rank() == 0
    search = None
    if leader and held_out:
        search = validation.Validation(tables[0], held_out, recipe.evaluate)
    for progress in fit.run():
        if search is not None and progress.batch == 0:
            # The others wait for the leader's report.
            search.follow(fit)
        if leader:
            total = fit.spec.epochs * fit.batches_per_epoch
            note = validation.note(progress.history)
            arguments["meter"].set.remote(fit.batches_done, total, note)
        if _is_due(fit, progress):
            _report(fit, leader)


def open_rows(tables: Sequence[str | Place], spec: Train, held_out: Collection[str]) -> "Rows":
    """The rows to train on, decoded where `train.loader` says."""
    from ray_reid.training import loader, remote_loader

    kinds: dict[str, Callable[..., Rows]] = {
        "local": loader.TrainingRows,
        "ray_data": remote_loader.RemoteRows,
    }
    return kinds[spec.loader](tables, spec, held_out)


def load_state(directory: Place) -> dict[str, Any]:
    """Read the state in the directory of a checkpoint."""
    return load(directory / STATE)


def load(file: Place) -> dict[str, Any]:
    """Read what `save` wrote; tensors and plain values only, never arbitrary pickles."""
    import torch

    source = file if isinstance(file, Path) else io.BytesIO(file.read_bytes())
    found: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    return found


def save(values: Mapping[str, Any], file: Place) -> None:
    """Write tensors and plain values, whole or not at all."""
    import torch

    with places.created(file) as sink:
        torch.save(dict(values), sink)


def _is_due(fit: "Fit", progress: "Progress") -> bool:
    every = fit.spec.checkpoint_batches
    return progress.batch == 0 or (every is not None and progress.batch % every == 0)


def _score(progress: "Progress") -> int:
    """Puts the checkpoint to keep above all others: that of an epoch as good as none before it.

    Without a validation that is every epoch, so the last.
    """
    from ray_reid.training import validation

    finished = progress.batch == 0 and progress.epoch > 0
    best = finished and validation.kept(progress.history, "best") == progress.epoch - 1
    return progress.epoch if best else 0


def _report(fit: "Fit", leader: bool) -> None:
    progress = fit.progress
    metrics = {"epoch": progress.epoch, "batch": progress.batch, SCORE: _score(progress)}
    if not leader:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        save(fit.state(), Path(directory) / STATE)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the state in a checkpoint of Ray Train."""
    with checkpoint.as_directory() as directory:
        return load_state(Path(directory))
