"""The train job: `fit.Fit` on Ray Train workers, checkpoints, a model package at the end."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)

from ray_reid import places
from ray_reid.places import Place
from ray_reid.recipe.base import Frozen
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Train
from ray_reid.runtime import figures, stage
from ray_reid.runtime.cluster import check_capacity
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.progress import metered
from ray_reid.runtime.sections import ReportPicture, Section
from ray_reid.training import worker
from ray_reid.training.checks import check, check_network, check_plan

# Ray Train's controller imports this module too; it has no use for torch and waits for it.
if TYPE_CHECKING:
    from torch import Tensor

    from ray_reid.training.loader import TrainingLabels
    from ray_reid.training.validation import Validation

log = logging.getLogger(__name__)

RAY_RUN, START = "ray", "weights.pt"


class RowCounts(Frozen):
    """What is trained on."""

    images: int
    identities: int
    by_origin: dict[str, dict[str, int]]
    """Images and identities, real and synthetic."""


class TrainedStage(RowCounts):
    """One of several trainings in a row."""

    name: str
    epochs: int


class KeptEpoch(Frozen):
    """The epoch whose weights the package has, and the search that chose it."""

    identities: int
    """Held out and searched."""
    images: int
    epoch: int
    """From 0."""
    figures: dict[str, float]
    """What it found, by name."""


class TrainFacts(Facts):
    """What the train job says."""

    validation: KeptEpoch | None = None
    stages: tuple[TrainedStage, ...] = ()
    counts: RowCounts | None = None
    """Of the last stage."""
    precision: str = ""


@dataclass(frozen=True)
class Trained:
    """What a training of all its stages has come to."""

    recipe: Recipe
    """Of the last stage."""
    identities: list[str]
    weights: Mapping[str, "Tensor"]
    """Those of `train.keep`."""
    history: tuple[dict[str, float], ...]
    """Of all stages: one entry an epoch, counted on from stage to stage."""
    kept: int
    """Position in the history of the epoch whose weights these are."""
    stages: tuple[TrainedStage, ...]
    counts: RowCounts
    """Of the last stage."""
    precision: str


def train_job(work: Work) -> TrainFacts:
    """Train on the ingested and the generated table and write the model package `model/`.

    Raises:
        ValueError: If a stage cannot be trained.
    """
    from ray_reid.models import package
    from ray_reid.training import validation

    tables = training_tables(work)
    search = validation.of_recipe(work.recipe, tables)
    held_out = search.held_out if search else frozenset()
    done = trained(work.recipe, tables, held_out, work.out.resolve() / RAY_RUN)
    package.save(work.out / "model", done.recipe, done.identities, done.weights)
    return TrainFacts(
        history=done.history,
        validation=_validated(search, done.history[done.kept], len(done.history))
        if search
        else None,
        stages=done.stages if work.recipe.train.stages else (),
        counts=done.counts,
        metrics={f"final_{name}": done.history[-1][name] for name in ("loss", "accuracy")},
        precision=done.precision,
    )


def trained(
    recipe: Recipe, tables: Sequence[Place], held_out: Collection[str], folder: Place
) -> Trained:
    """Train all stages on Ray Train; a killed training goes on from its last checkpoint.

    Args:
        held_out: Identities that are not trained on.
        folder: Of this training alone, which every node sees; holds its checkpoints.

    Raises:
        ValueError: If a stage cannot be trained, or Ray lacks the resources.
    """
    from ray_reid.training import loader, remote_loader, validation

    spec = recipe.train
    check_network(spec)
    stages = [
        (name, own, loader.labels(tables, own.train, held_out)) for name, own in stages_of(recipe)
    ]
    for _, own, chosen in stages:
        check_plan(own, chosen, own.train.num_workers)
    check_capacity("train.num_workers", spec.num_workers, spec.cpus_per_worker, spec.use_gpu)
    if spec.loader == "ray_data":
        remote_loader.check_free(spec)
    history: list[dict[str, float]] = []
    ended: list[TrainedStage] = []
    state: dict[str, Any] = {}
    before: Place | None = None
    for number, (name, own, chosen) in enumerate(stages):
        place = folder / str(number)
        state = _train(own, tables, held_out, place, name, before)
        before = place / START
        epochs = state["progress"]["history"]
        # Epochs count on, so that one curve shows all stages.
        history += [entry | {"epoch": len(history) + entry["epoch"]} for entry in epochs]
        ended.append(TrainedStage(name=name, epochs=len(epochs), **_count(chosen)))
    assert before is not None, "every training has a stage"
    return Trained(
        own,
        chosen.identities,
        worker.load(before),
        tuple(history),
        len(history) - len(epochs) + validation.kept(epochs, own.train.keep),
        tuple(ended),
        RowCounts(**_count(chosen)),
        state["precision"],
    )


def _validated(search: "Validation", taken: Mapping[str, float], epochs: int) -> KeptEpoch:
    """What was searched, and what the epoch found whose weights the package has."""
    from ray_reid.training import validation

    figures = {name: taken[f"{validation.PREFIX}{name}"] for name in validation.NOTED}
    counts = search.counts()
    log.info(
        "train: took the weights of epoch %d of %d, mAP %.1f %% among %d identities held out",
        *(taken["epoch"] + 1, epochs, 100 * figures["mAP"], counts["identities"]),
    )
    return KeptEpoch(**counts, epoch=int(taken["epoch"]), figures=figures)


def _count(chosen: "TrainingLabels") -> dict[str, Any]:
    return {
        "images": len(chosen.labels),
        "identities": len(chosen.identities),
        "by_origin": chosen.counts(),
    }


def stages_of(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """Every stage of a training by its name, as a recipe of its own."""
    return [
        (name, recipe.model_copy(update={"train": own})) for name, own in recipe.train.trainings()
    ]


def num_batches(recipe: Recipe, tables: Sequence[Place], held_out: Collection[str] = ()) -> int:
    """Batches of all stages and epochs on one worker.

    Raises:
        ValueError: If the rows of a stage cannot fill a batch.
    """
    from ray_reid.training import loader

    return sum(
        check_plan(own, loader.labels(tables, own.train, held_out), own.train.num_workers)
        * own.train.epochs
        for _, own in stages_of(recipe)
    )


def training_tables(work: Work) -> list[Place]:
    """The tables that may be trained on: what was ingested and, if it was, what was generated."""
    jobs = [name for name in ("ingest", "generate", "inpaint") if name in work.inputs]
    return [(work.inputs[name] / "observations").resolve() for name in jobs]


def _train(
    recipe: Recipe,
    tables: Sequence[Place],
    held_out: Collection[str],
    place: Place,
    stage_name: str,
    before: Place | None,
) -> dict[str, Any]:
    """Run or resume one Ray Train run under `place`; returns its last checkpoint's state.

    What comes after starts from the weights that it leaves there, those of `train.keep`.
    """
    done = place / worker.STATE
    if done.is_file():
        return worker.load_state(place)
    state, weights = _run(recipe, tables, held_out, place, stage_name, before)
    place.mkdir(parents=True, exist_ok=True)
    worker.save(weights, place / START)
    # Last: it says that the run is over.
    worker.save(state, done)
    return state


def _run(
    recipe: Recipe,
    tables: Sequence[Place],
    held_out: Collection[str],
    place: Place,
    stage_name: str,
    before: Place | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last checkpoint's state, and the weights to keep."""
    from ray.train.torch import TorchConfig, TorchTrainer

    # The controller polls its workers this often; the default of 2 s delays every report.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    spec = recipe.train
    arguments = {
        "recipe": recipe,
        "tables": list(map(str, tables)),
        "held_out": sorted(held_out),
        "start": before,
    }
    with metered(f"train {stage_name}".strip(), "batch") as meter:
        trainer = TorchTrainer(
            worker.train_worker,
            train_loop_config={**arguments, "meter": meter},
            torch_config=TorchConfig(backend="nccl" if spec.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=spec.num_workers,
                use_gpu=spec.use_gpu,
                resources_per_worker={"CPU": spec.cpus_per_worker, "GPU": int(spec.use_gpu)},
            ),
            run_config=_run_config(place, spec),
        )
        controllers: list[Any] = []
        # In place of its handler of SIGINT, which would outlive the training.
        setattr(trainer, "_register_sigint_handler", controllers.append)  # noqa: B010
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise ValueError(f"train: {_reason(error)}") from error
        except KeyboardInterrupt:
            # It would wait for its workers, and train, for as long as this process lives.
            for controller in controllers:
                ray.kill(controller)
            raise
    assert result.checkpoint is not None, "a finished training has a checkpoint"
    assert result.best_checkpoints, "and one that has scored best"
    state = worker.read_checkpoint(result.checkpoint)
    if spec.keep == "last":
        return state, state["network"]
    return state, worker.read_checkpoint(result.best_checkpoints[-1][0])["network"]


def _run_config(place: Place, spec: Train) -> RunConfig:
    filesystem, folder = places.opened(place.parent)
    return RunConfig(
        # The same name under the same path resumes from the last checkpoint.
        name=place.name,
        storage_path=folder,
        storage_filesystem=None if isinstance(place, Path) else filesystem,
        failure_config=FailureConfig(max_failures=spec.max_failures),
        # One by its score; beside it Ray Train always keeps the last.
        checkpoint_config=CheckpointConfig(
            num_to_keep=1, checkpoint_score_attribute=worker.SCORE, checkpoint_score_order="max"
        ),
    )


def _reason(error: TrainingFailedError) -> str:
    """One line on why the workers failed, where Ray Train knows it."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return stage.reason(next(iter(failures.values()), error))


def outside(recipe: Recipe) -> str:
    """Fingerprint of the weights that the network begins with and that no job made."""
    from ray_reid.models.pretrained import references

    spec = recipe.train
    backbone: bool | str | None = spec.pretrained
    if backbone is True:
        from ray_reid.models.networks import initial_weights

        backbone = initial_weights.hub_id(spec.backbone)
    begins_with = [
        name
        for name in (backbone, spec.ibn_weights, spec.semantic.encoder)
        if isinstance(name, str)
    ]
    return ",".join(map(references.fingerprint, begins_with)) or "none"


def validates_with(recipe: Recipe) -> tuple[str, ...]:
    """Return what decides, besides `train`, which epoch a validation keeps."""
    if not recipe.train.validation:
        return ()
    return ("embed.flip", "embed.scales", "evaluate.average_precision")


def section(facts: TrainFacts) -> Section:
    """Show the curves of the training, and which epoch was taken."""
    if not facts.history:
        return Section()
    caption = "Means over the batches of each epoch."
    if facts.validation is not None:
        taken = facts.validation
        caption += (
            f" The weights are those of epoch {taken.epoch + 1}: validation mAP "
            f"{100 * taken.figures['mAP']:.1f} % among {taken.identities} training identities "
            "held out."
        )
    drawing = figures.png(figures.training_curve(facts.history))
    return Section(drawings=(ReportPicture("Training", caption, drawing),))


JOB = Job(
    "train",
    train_job,
    needs=("ingest",),
    sections=("name", "seed", "train"),
    also=validates_with,
    check=check,
    outside=outside,
    # 2: RandAugment by batches; CLIP-SENet's network.
    format=2,
    scratch=("ray",),
    facts=TrainFacts,
    report=section,
)
