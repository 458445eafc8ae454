"""Fixtures that several rooms share."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest


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
def publish_job() -> Callable[[Path, str, str, Mapping[str, str]], None]:
    """A function that writes the manifest of a job with a key and the keys of its inputs."""
    return _publish_job


def _publish_job(run: Path, name: str, key: str, inputs: Mapping[str, str]) -> None:
    manifest = {
        "job": name,
        "key": key,
        "version": "0",
        "commit": None,
        "recipe": {},
        "inputs": dict(inputs),
        "facts": {},
        "seconds": 0.0,
    }
    (run / name).mkdir(parents=True, exist_ok=True)
    (run / name / "manifest.json").write_text(json.dumps(manifest))
