"""Fixtures that several rooms share."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.results import POINTER, Manifest, RunState


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One real local Ray for the whole session, because starting it costs seconds."""
    import ray

    from ray_reid.runtime import cluster

    # Workers unpickle stages that tests define, so they must find the test modules.
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), known])
    )
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _system_config=cluster.UNSEEN,
        object_store_memory=200 * 2**20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    cluster.configure()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_models() -> ModuleType:
    """The builders of tiny untrained models in the formats of the real ones."""
    # It imports diffusers and transformers, which takes seconds: most tests do without.
    from tests import tiny_models

    return tiny_models


@pytest.fixture(scope="session")
def people_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with the tokenizer of the miniature people's model, and nothing else."""
    # They import diffusers, which takes seconds.
    from ray_reid.miniature.trainers import people, people_text_to_image

    tokenizer = people_text_to_image.tokenizer_of(
        people_text_to_image.all_captions(people.dressed_people(200, people.TRAIN_WORLD), seed=0)
    )
    folder = tmp_path_factory.mktemp("people")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def publish_job() -> Callable[..., Path]:
    """A function that makes a folder a job's current result; returns the folder."""
    return _publish_job


def _publish_job(
    run: Path,
    name: str,
    key: str | None = None,
    inputs: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
) -> Path:
    key = key or f"key-{name}"
    folder = run / name / key
    folder.mkdir(parents=True, exist_ok=True)
    Manifest(name, key, "0", None, {}, dict(inputs or {}), dict(facts or {}), 1.5).write(folder)
    before = RunState.read(run) if (run / POINTER).exists() else None
    known = before.recipe if before else recipes.load("baseline", None, [])
    keys = dict(before.keys) if before else {}
    RunState(run, recipe or known, {**keys, name: key}).write()
    return folder


@pytest.fixture(scope="session")
def copy_run() -> Callable[..., Path]:
    """A function that makes a run of the current results of some jobs of another one."""

    def copied(run: Path, path: Path, *jobs: str) -> Path:
        state = RunState.read(run)
        for job in jobs:
            shutil.copytree(state.folder(job), path / job / state.keys[job])
        replace(state, path=path, keys={job: state.keys[job] for job in jobs}).write()
        return path

    return copied
