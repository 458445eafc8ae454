"""The API on Ray Serve: replicas that each load the model and the gallery of a run once.

There is no authentication yet, so it listens on this machine only unless told otherwise.
"""

import ipaddress
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from fastapi import FastAPI
from ray import serve

from ray_reid.cluster import Cluster, check_capacity
from ray_reid.config import Recipe, Serve
from ray_reid.gallery import Searcher, check_current
from ray_reid.ports import check_port
from ray_reid.serving.api import create_api

log = logging.getLogger(__name__)

NAME = "ray-reid"


def application(run: Path, settings: Serve) -> serve.Application:
    """Describe the Serve application of a run; its path must be readable on every node."""

    # Ray Serve calls this in each replica.
    def build() -> FastAPI:
        searcher = Searcher.open(run)
        # The first pass through a network is slow; and it proves that model and index agree.
        searcher.warm_up()
        return create_api(searcher, settings.max_upload_mb)

    deployed = serve.deployment(
        name="search",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )
    return deployed(serve.ingress(build)()).bind()


def serve_run(
    run: Path,
    recipe: Recipe,
    host: str | None = None,
    port: int | None = None,
    address: str | None = None,
) -> None:
    """Serve the gallery of a run until SIGINT or SIGTERM.

    Args:
        run: A run directory with published `evaluate` and `index`.
        recipe: Its sections `serve` and `resources` are used.
        host: Interface to listen on; None takes `serve.host`.
        port: Likewise `serve.port`.
        address: Ray cluster to join; None takes `RAY_ADDRESS`, else starts a local one.

    Raises:
        ValueError: If the run is not complete or cannot be loaded, the port is taken, Ray lacks
            the CPUs or GPUs of all replicas, or the cluster already serves something.
    """
    host = recipe.serve.host if host is None else host
    port = recipe.serve.port if port is None else port
    check_current(run)
    local = (address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    if local:
        check_port(host, port)
    size = _proved_size(run)
    _warn_if_public(host)
    own = local and not ray.is_initialized()
    with Cluster(recipe.resources, address) as cluster:
        cluster.start()
        serving = recipe.serve
        check_capacity("serve.replicas", serving.replicas, serving.num_cpus, serving.num_gpus)
        with _interruptible(), _server(host, port, own):
            serve.run(application(run.resolve(), recipe.serve), name=NAME)
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("serving %d gallery images at %s; Ctrl-C ends it", size, url)
            log.info("try: curl -F image=@photo.jpg -F k=5 %s/v1/search", url)
            _wait()
            # Answers what has been asked before Ray goes away.
            serve.delete(NAME)


@contextmanager
def _server(host: str, port: int, own: bool) -> Iterator[None]:
    """Start Serve on a cluster that has none, and end it whatever happens.

    Serve on a local Ray of our `own` ends with it; ended by itself it prints an error of Ray's.
    """
    # Serve keeps the options it was started with, and its end would end others' applications.
    if serve.status().proxies:
        raise ValueError(
            "Ray Serve already runs on this cluster; end it first with 'serve shutdown'"
        )
    check_port(host, port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"}
        )
        yield
    finally:
        if not own:
            serve.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt too, and SIGINT even where a shell ignores it."""
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _proved_size(run: Path) -> int:
    """Search once here: what a replica cannot load it tries thrice, with a traceback each time."""
    searcher = Searcher.open(run, device="cpu")
    searcher.warm_up()
    return len(searcher.gallery)


def _wait() -> None:
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        log.info("stopping")


def _warn_if_public(host: str) -> None:
    try:
        private = ipaddress.ip_address(host).is_loopback
    except ValueError:
        private = host == "localhost"
    if not private:
        log.warning("%s is reachable from other machines, and there is no authentication", host)
