"""One engine for comparisons and sweeps: what has no result yet is trained, embedded and scored.

Ray Tune starts the trials, shares out the cluster and stops the weaker ones; what is finished is
kept in a file of our own for each trial, named by the content of its recipe, seed and tables, so
that the experiments of a run share it. Its own snapshots of an experiment know a trial by its
number in the search space, so a sweep file that has grown could not go on from them; they are
written late; and a restored function trainable counts its epochs from one again. So every attempt
is a fresh experiment of what is left.
"""

import gc
import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from ray_reid import places
from ray_reid.experiments import in_process, trial_checks, trials
from ray_reid.experiments.in_process import METRICS, TrialScores
from ray_reid.experiments.trials import AP, HISTORY, VALIDATION, Task, Trial
from ray_reid.places import Place
from ray_reid.recipe import sweeps
from ray_reid.recipe.sweeps import Sweep
from ray_reid.runtime import stage
from ray_reid.runtime.cluster import alive_nodes
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.progress import beside_driver, watched
from ray_reid.runtime.tracking import Tracker

log = logging.getLogger(__name__)

# Times that a trial is begun again when its process dies, as one short of memory does.
RETRIES = 2
EPOCH, FAILED = "epoch", "failed"
# Ray Tune's own talk, and files that nobody would read.
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Recipes may name files by relative paths.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


Train = Callable[
    [Task, Callable[[int], None], Callable[[int, Mapping[str, float]], None]], TrialScores
]
"""Does a task; tells the batches done and, where identities are held out, each epoch's figures."""


class Tally:
    """How many batches all trials have done; they say it, and the driver's bar reads it."""

    def __init__(self, done: int, total: int) -> None:
        """Start with what an earlier attempt had `done`."""
        self._before, self._total = done, total
        self._done: dict[str, int] = {}

    def set(self, trial: str, done: int) -> None:
        """Say how much a trial has done."""
        self._done[trial] = done

    def get(self) -> tuple[int, int]:
        """What is done in all, and of how much."""
        return self._before + sum(self._done.values()), self._total


def perform(
    title: str,
    sweep: Sweep,
    every: Mapping[tuple[str, int], Trial],
    folder: Place,
    train: Train | None = None,
    tracker: Tracker | None = None,
) -> dict[tuple[str, int], str]:
    """Do the trials that have no result yet.

    Args:
        title: What the bar is called.
        every: All trials, by setting and seed.
        folder: Of the experiment; holds what Ray Tune needs meanwhile.
        train: Does a trial; null trains, embeds and scores.
        tracker: Gets an MLflow run for each trial that ends.

    Returns:
        Why trials failed, by setting and seed.
    """
    # Two settings may come to the same recipe: its trial is done once.
    unique = {trial.key: trial for trial in every.values()}
    left = _trainings_first({key: one for key, one in unique.items() if not one.is_over})
    if len(left) < len(unique):
        log.info("%d of %d trials were done before", len(unique) - len(left), len(unique))
    if not left:
        return {}
    _check_room(sweep, left)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    total = sum(trial.batches for trial in unique.values())
    tally = beside_driver(Tally, total - sum(trial.batches for trial in left.values()), total)
    # The bar's thread must not wait for an actor that has yet to start when all is over.
    ray.get(tally.get.remote())
    # Nothing in it outlives the attempt, so it need not be in a bucket.
    beside = folder.resolve() if isinstance(folder, Path) else Path(tempfile.mkdtemp())
    aside = beside / ".ray"
    shutil.rmtree(aside, ignore_errors=True)
    record = TrialRecorder(sweep, left, tracker, tally)
    try:
        with watched(title, "batch", lambda: ray.get(tally.get.remote())):
            _fit(sweep, unique, left, train or train_task, record, aside)
    finally:
        ray.kill(tally)
        shutil.rmtree(aside if isinstance(folder, Path) else beside, ignore_errors=True)
    return {
        place: record.failed[one.key] for place, one in every.items() if one.key in record.failed
    }


def train_task(
    task: Task,
    report: Callable[[int], None],
    validate: Callable[[int, Mapping[str, float]], None],
) -> TrialScores:
    """Train, embed and score in this process."""
    import torch

    # An earlier trial of this process may have left more than the next one beside it can spare.
    gc.collect()
    torch.cuda.empty_cache()
    # Trials side by side must not fight for the cores.
    torch.set_num_threads(max(1, int(task.num_cpus)))
    return in_process.run_trial(
        task.recipe,
        [places.place(table) for table in task.tables],
        torch.device("cuda" if task.num_gpus else "cpu"),
        report,
        task.held_out,
        validate if task.held_out or task.recipe.train.validation else None,
        task.source,
        places.place(task.shared) if task.shared else None,
        places.place(task.variants) if task.variants else None,
        places.place(task.folder) if task.folder else None,
        places.place(task.pretrained) if task.pretrained else None,
    )


def _trainings_first(left: Mapping[str, Trial]) -> dict[str, Trial]:
    """In an order in which nothing that others have trained is trained beside them."""
    seen: Counter[Place] = Counter()
    rank = {}
    for key, trial in left.items():
        rank[key] = 0
        if trial.shared is not None:
            rank[key] = seen[trial.shared]
            seen[trial.shared] += 1
    return {key: left[key] for key in sorted(left, key=lambda key: rank[key])}


def _fit(
    sweep: Sweep,
    unique: Mapping[str, Trial],
    left: Mapping[str, Trial],
    train: Train,
    record: "TrialRecorder",
    aside: Path,
) -> None:
    """One experiment of Ray Tune with the trials that are left."""
    tasks = {key: trials.task(sweep, trial) for key, trial in left.items()}
    function = tune.with_parameters(
        _trainable, tasks=tasks, tally=record.tally, train=train, metric=sweep.metric
    )
    tuner = tune.Tuner(
        tune.with_resources(function, {"cpu": sweep.num_cpus, "gpu": sweep.num_gpus}),
        param_space={"trial": tune.grid_search(list(left))},
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(sweep, unique),
            # Trials of several workers would start all at once and wait for each other's CPUs.
            max_concurrent_trials=1 if _in_parallel(left) else None,
            # A process imports torch for seconds.
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=aside.name,
            storage_path=str(aside.parent),
            verbose=0,
            callbacks=[record],
            # When its process dies, as one short of memory does.
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    tuner.fit()
    for key, trial in record.broken.items():
        record.fail(key, stage.reason(trial.get_pickled_error()))
    for key, mine in left.items():
        if not mine.is_over and key not in record.failed:
            record.fail(key, "Ray Tune gave it up without a reason")


def _in_parallel(left: Mapping[str, Trial]) -> bool:
    """Whether a trial is trained by several workers of Ray Train."""
    return any(trial_checks.has_workers(trial.resolved.recipe) for trial in left.values())


def _check_room(sweep: Sweep, left: Mapping[str, Trial]) -> None:
    """Refuse trainings of several workers that one machine cannot hold beside their trial."""
    nodes = alive_nodes()
    for trial in left.values():
        spec = trial.resolved.recipe.train
        if len(nodes) > 1 or not trial_checks.has_workers(trial.resolved.recipe):
            continue
        # Who decodes beside the workers takes a CPU more.
        decoding = spec.loader == "ray_data"
        cpus = spec.num_workers * spec.cpus_per_worker + sweep.num_cpus + decoding
        gpus = spec.num_workers * spec.use_gpu + sweep.num_gpus
        if cpus > nodes[0].num_cpus or gpus > nodes[0].num_gpus:
            raise ValueError(
                f"{trial.name}: train.num_workers {spec.num_workers} and the trial itself need "
                f"{cpus:g} CPUs and {gpus:g} GPUs, more than the {nodes[0].num_cpus:g} and "
                f"{nodes[0].num_gpus:g} that Ray has; lower num_workers or cpus_per_worker"
            )


def _trainable(
    chosen: Mapping[str, str], *, tasks: Mapping[str, Task], tally: Any, train: Train, metric: str
) -> None:
    """A trial as Ray Tune runs it: reports after every epoch that is validated, and at the end."""
    # A training that is stopped within an epoch ends with it; the next one waits for that.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    task = tasks[chosen["trial"]]
    history: list[dict[str, float]] = []
    epochs = task.recipe.train.epochs
    started = time.monotonic()

    def validate(epoch: int, found: Mapping[str, float]) -> None:
        history.append({EPOCH: epoch, **{f"{VALIDATION} {name}": found[name] for name in METRICS}})
        # The last epoch's figures go with those of the test: nothing is left to be stopped.
        if epoch + 1 < epochs:
            tune.report({EPOCH: epoch + 1, VALIDATION: found[metric], HISTORY: list(history)})

    def report(batches: int) -> None:
        tally.set.remote(task.name, batches)

    try:
        scores = train(task, report, validate)
    except ValueError as error:
        # A training that diverges would do so again; Ray Tune would try.
        tune.report({FAILED: str(error)})
        return
    seconds = round(time.monotonic() - started, 3)
    last = {VALIDATION: history[-1][f"{VALIDATION} {metric}"]} if history else {}
    scored = {"metrics": scores.metrics, AP: scores.ap}
    tune.report({EPOCH: epochs, **last, HISTORY: history, **scored, "seconds": seconds})


def _scheduler(sweep: Sweep, unique: Mapping[str, Trial]) -> TrialScheduler | None:
    """The scheduler of an attempt; it is told what earlier attempts had seen."""
    if sweep.scheduler.kind == "none":
        return None
    scheduler = ASHAScheduler(
        time_attr=EPOCH,
        metric=VALIDATION,
        mode="max",
        max_t=max(trial.resolved.recipe.train.epochs for trial in unique.values()),
        grace_period=sweep.scheduler.grace,
        reduction_factor=sweep.scheduler.reduction,
        stop_last_trials=False,
    )
    controller: Any = None
    for key, trial in unique.items():
        past: Any = SimpleNamespace(trial_id=f"past-{key}")
        if trial.is_over:
            scheduler.on_trial_add(controller, past)
            for step in trial.read()[HISTORY]:
                seen = {EPOCH: step[EPOCH] + 1, VALIDATION: step[f"{VALIDATION} {sweep.metric}"]}
                scheduler.on_trial_result(controller, past, seen)
    return scheduler


class TrialRecorder(tune.Callback):
    """Keeps every trial that ends, at once: a killed sweep does not lose it."""

    def __init__(
        self, sweep: Sweep, left: Mapping[str, Trial], tracker: Tracker | None, tally: Any
    ) -> None:
        """Watch the trials of an attempt, by key."""
        self.tally = tally
        self.failed: dict[str, str] = {}
        self.broken: dict[str, Any] = {}
        self._sweep, self._trials, self._tracker = sweep, left, tracker
        self._last: dict[str, Mapping[str, Any]] = {}

    def on_trial_result(self, *_: Any, **told: Any) -> None:
        """Keep a result that is whole; remember how far the others are."""
        key, result = told["trial"].config["trial"], told["result"]
        self._last[key] = result
        if FAILED in result:
            self.fail(key, result[FAILED])
        elif "metrics" in result:
            kept = {name: result[name] for name in ("metrics", "seconds", HISTORY, AP)}
            self._keep(self._trials[key], self._trials[key].file, kept)

    def on_trial_complete(self, *_: Any, **told: Any) -> None:
        """Keep what the scheduler has stopped."""
        key = told["trial"].config["trial"]
        mine = self._trials[key]
        if key not in self.failed and not mine.file.exists():
            last = self._last[key]
            self.tally.set.remote(key, mine.batches)
            log.info("%s: stopped after epoch %d", mine.name, last[EPOCH])
            kept = {"metrics": {}, "stopped": last[EPOCH], HISTORY: last[HISTORY]}
            self._keep(mine, mine.stopped, kept)

    def on_trial_error(self, *_: Any, **told: Any) -> None:
        """Remember a trial that Ray Tune gave up; its error is not written yet."""
        self.broken[told["trial"].config["trial"]] = told["trial"]

    def fail(self, key: str, reason: str) -> None:
        """Say in the log and in MLflow why a trial failed; it leaves no file."""
        log.warning("%s failed: %s", self._trials[key].name, reason)
        self.failed[key] = reason
        with suppress(_FailedError):
            self._log(self._trials[key], {}, _FailedError(reason))

    def _keep(self, trial: Trial, file: Place, kept: Mapping[str, Any]) -> None:
        setting = trial.resolved.setting
        values = {"setting": setting.name, "seed": trial.seed, "changes": dict(setting.changes)}
        # First, so that a result that is kept is in MLflow.
        self._log(trial, kept)
        places.write_text(file, json.dumps({**values, **kept}, indent=2) + "\n")
        places.remove(trial.folder)

    def _log(self, trial: Trial, kept: Mapping[str, Any], error: Exception | None = None) -> None:
        if self._tracker is None:
            return
        setting = trial.resolved.setting
        name = f"tune-{self._sweep.name}: {setting.name}, seed {trial.seed}"
        params = {key: sweeps.spell(value) for key, value in setting.changes.items()}
        metrics = dict(kept.get("metrics", {}))
        if "stopped" in kept:
            metrics["stopped_epoch"] = kept["stopped"]
        facts = Facts(
            metrics=metrics,
            history=tuple(kept.get(HISTORY, ())),
            params={"seed": trial.seed, **params},
        )
        with self._tracker.job(name, trial.key, trial.inputs.fingerprints) as child:
            child.log(facts, trial.file.parent)
            if error is not None:
                raise error


class _FailedError(Exception):
    """Ends the MLflow run of a failed trial."""
