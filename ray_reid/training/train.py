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
from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.recipe.train import Train
from ray_reid.runtime import stage
from ray_reid.runtime.cluster import check_capacity
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.progress import metered
from ray_reid.training import worker
from ray_reid.training.beginnings import (
    announce,
    as_train,
    changes_head,
    compared,
    initial_weights,
    outside,
    start_of,
)
from ray_reid.training.checks import check, check_network, check_plan, check_pretraining
from ray_reid.training.outcome import (
    KeptEpoch,
    RowCounts,
    StartedFrom,
    TrainedStage,
    TrainFacts,
    section,
)

# Ray Train's controller imports this module too; it has no use for torch and waits for it.
if TYPE_CHECKING:
    from torch import Tensor

    from ray_reid.training.loader import TrainingLabels
    from ray_reid.training.validation import Validation

log = logging.getLogger(__name__)

RAY_RUN, START, GIVEN = "ray", "weights.pt", "start.pt"
"""Folder of the checkpoints; in it what a stage leaves to the next, and what the first is given."""
GENERATING = ("generate", "inpaint", "personalise")
"""Jobs whose images may be trained on beside the ingested ones."""


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
    started: tuple[StartedFrom, ...]
    counts: RowCounts
    """Of the last stage."""
    precision: str


def train_job(work: Work) -> TrainFacts:
    """Train on the ingested and the generated table and write the model package `model/`.

    Raises:
        ValueError: If a stage cannot be trained.
    """
    return _train_job(work, work.recipe)


def pretrain_job(work: Work) -> TrainFacts:
    """Do the same by the section `pretrain`: what `train.start: pretrain` begins with.

    Raises:
        ValueError: If a stage cannot be trained.
    """
    return _train_job(work, as_train(work.recipe))


def _train_job(work: Work, recipe: Recipe) -> TrainFacts:
    from ray_reid.models import package
    from ray_reid.training import validation

    tables = training_tables(work)
    search = validation.of_recipe(recipe, tables)
    held_out = search.held_out if search else frozenset()
    folder = work.out.resolve() / RAY_RUN
    done = trained(recipe, tables, held_out, folder, pretrained_package(work.inputs))
    package.save(work.out / "model", done.recipe, done.identities, done.weights)
    before = work.facts_of(PRETRAIN, TrainFacts) if PRETRAIN in work.inputs else TrainFacts()
    named = [] if recipe.train.start in (None, PRETRAIN) else [str(recipe.train.start)]
    return TrainFacts(
        history=done.history,
        validation=_validated(search, done.history[done.kept], len(done.history))
        if search
        else None,
        stages=done.stages if recipe.train.stages else (),
        started=done.started,
        counts=done.counts,
        begun_on=before.counts,
        weights=(*before.weights, *named, *initial_weights(recipe.train)),
        metrics={f"final_{name}": done.history[-1][name] for name in ("loss", "accuracy")},
        precision=done.precision,
    )


def trained(
    recipe: Recipe,
    tables: Sequence[Place],
    held_out: Collection[str],
    folder: Place,
    pretrained: Place | None = None,
) -> Trained:
    """Train all stages on Ray Train; a killed training goes on from its last checkpoint.

    Args:
        recipe: What is trained, and how.
        tables: Of images.
        held_out: Identities that are not trained on.
        folder: Of this training alone, which every node sees; holds its checkpoints.
        pretrained: Package that `train.start: pretrain` begins with.

    Raises:
        ValueError: If a stage cannot be trained, or Ray lacks the resources.
    """
    from ray_reid.models.networks import starting
    from ray_reid.models.networks.starting import Start
    from ray_reid.training import validation

    stages = _planned(recipe, tables, held_out)
    history: list[dict[str, float]] = []
    ended: list[TrainedStage] = []
    started: list[StartedFrom] = []
    begins = start_of(recipe.train, pretrained)
    source = recipe.train.start or ""
    before: Place | None = None
    for number, (name, own, chosen) in enumerate(stages):
        place = folder / str(number)
        if begins is not None and (not number or changes_head(own.train, begins.spec)):
            started.append(compared(own.train, chosen.identities, begins, source, name))
            announce(started[-1])
        if begins is not None and not number:
            before = folder / GIVEN
            folder.mkdir(parents=True, exist_ok=True)
            starting.save(begins, before)
        state = _train(own, tables, held_out, place, name, before)
        before, source = place / START, f"stage {name!r}"
        begins = starting.parse(worker.load(before))
        epochs = state["progress"]["history"]
        # Epochs count on, so that one curve shows all stages.
        history += [entry | {"epoch": len(history) + entry["epoch"]} for entry in epochs]
        ended.append(TrainedStage(name=name, epochs=len(epochs), **_count(chosen)))
    assert isinstance(begins, Start), "every training has a stage"
    return Trained(
        own,
        chosen.identities,
        begins.weights,
        tuple(history),
        len(history) - len(epochs) + validation.kept(epochs, own.train.keep),
        tuple(ended),
        tuple(started),
        RowCounts(**_count(chosen)),
        state["precision"],
    )


def _planned(
    recipe: Recipe, tables: Sequence[Place], held_out: Collection[str]
) -> "list[tuple[str, Recipe, TrainingLabels]]":
    """Every stage by name, with its rows, once nothing speaks against training it."""
    from ray_reid.training import loader, remote_loader

    spec = recipe.train
    stages = [
        (name, own, loader.labels(tables, own.train, held_out)) for name, own in stages_of(recipe)
    ]
    for number, (_, own, chosen) in enumerate(stages):
        if not number or changes_head(own.train, spec):
            check_network(own.train)
        check_plan(own, chosen, own.train.num_workers)
    check_capacity("train.num_workers", spec.num_workers, spec.cpus_per_worker, spec.use_gpu)
    if spec.loader == "ray_data":
        remote_loader.check_free(spec)
    return stages


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
    jobs = [name for name in ("ingest", *GENERATING) if name in work.inputs]
    return [(work.inputs[name] / "observations").resolve() for name in jobs]


def unread(recipe: Recipe) -> frozenset[str]:
    """A pre-training changes nothing of a training that begins with something else."""
    return frozenset({PRETRAIN} - {recipe.train.start})


def pretrained_package(inputs: Mapping[str, Place]) -> Place | None:
    """The package of the run's own pre-training, if a job has made it."""
    return (inputs[PRETRAIN] / "model").resolve() if PRETRAIN in inputs else None


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
    from ray_reid.models.networks import starting
    from ray_reid.models.networks.starting import Start

    done = place / worker.STATE
    if done.is_file():
        return worker.load_state(place)
    state, weights = _run(recipe, tables, held_out, place, stage_name, before)
    place.mkdir(parents=True, exist_ok=True)
    starting.save(Start(recipe.train, weights), place / START)
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


def validates_with(recipe: Recipe) -> tuple[str, ...]:
    """Return what decides, besides `train`, which epoch a validation keeps."""
    if not recipe.train.validation:
        return ()
    return ("embed.flip", "embed.scales", "evaluate.average_precision")


JOB = Job(
    "train",
    train_job,
    needs=("ingest",),
    unread=unread,
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
# A pipeline has it before `train` where the recipe has its section.
PRETRAIN_JOB = Job(
    PRETRAIN,
    pretrain_job,
    needs=("ingest",),
    sections=("name", "seed", PRETRAIN),
    also=lambda recipe: validates_with(as_train(recipe)),
    check=check_pretraining,
    outside=lambda recipe: outside(as_train(recipe)),
    scratch=("ray",),
    facts=TrainFacts,
    report=lambda facts: section(facts, "Pre-training"),
)
