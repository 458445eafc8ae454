import logging
import os
from collections.abc import Iterator
from pathlib import Path

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
