"""The API on Ray Serve: replicas that each load the model and the gallery of a run once.

There is no authentication yet, so it listens on this machine only unless told otherwise.
"""

import ipaddress
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.concurrency import run_in_threadpool

from ray_reid.cluster import Cluster, check_capacity
from ray_reid.config import Dressers, Recipe, Serve
from ray_reid.gallery import Searcher, check_current
from ray_reid.ports import check_port
from ray_reid.serving.api import BusyError, create_api

log = logging.getLogger(__name__)

NAME = "ray-reid"
DRESSER = "dresser"


def application(run: Path, settings: Serve) -> serve.Application:
    """Describe the Serve application of a run; its path must be readable on every node."""
    lacking, dressers = _lacking(run, settings), settings.dressers

    # Ray Serve calls this in each replica.
    def build() -> FastAPI:
        searcher = Searcher.open(run)
        # The first pass through a network is slow; and it proves that model and index agree.
        searcher.warm_up()
        if lacking is not None or dressers is None:
            return create_api(searcher, settings.max_upload_mb, lacking or "")
        from ray_reid.search import Refiner

        handle = serve.get_deployment_handle(DRESSER, serve.get_replica_context().app_name)
        refiner = Refiner.open(run, searcher, partial(ask, handle, dressers.timeout_s))
        return create_api(searcher, settings.max_upload_mb, refiner)

    deployed = serve.deployment(
        name="search",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )
    search = deployed(serve.ingress(build)())
    if lacking is not None or dressers is None:
        return search.bind()
    # What a deployment is bound to is deployed with it.
    return search.bind(dressing(Dresser, dressers).bind(run))


def dressing(kind: type["Dresser"], settings: Dressers) -> serve.Deployment:
    """Describe the deployment that makes variants, one query at a time."""
    return serve.deployment(
        name=DRESSER,
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=1,
        max_queued_requests=settings.max_queued,
    )(kind)


class Dresser:
    """Makes variants with the models and descriptions of a run."""

    def __init__(self, run: Path) -> None:
        """Load them once per replica."""
        from ray_reid import search

        self.dress: Callable[[bytes], list[bytes] | str] = search.tailor(run)

    async def __call__(self, encoded: bytes) -> list[bytes] | str:
        """The variants of an image, or why it has none."""
        # Painting takes seconds, and Serve asks meanwhile whether the replica is well.
        return await run_in_threadpool(self.dress, encoded)


def ask(handle: "DeploymentHandle[Any]", timeout_s: float, encoded: bytes) -> list[bytes] | str:
    """Have variants of an image made by another deployment.

    Raises:
        BusyError: If its queue is full, or it takes too long.
    """
    waiting = handle.remote(encoded)
    try:
        made: list[bytes] | str = waiting.result(timeout_s=timeout_s)
    except TimeoutError:
        waiting.cancel()  # type: ignore[no-untyped-call]
        raise BusyError(f"the variants of this query took more than {timeout_s:g} s") from None
    except BackPressureError:
        raise BusyError("too many queries are waiting to be dressed; try again later") from None
    return made


def _lacking(run: Path, settings: Serve) -> str | None:
    """Why no search of a run can be refined; null if it can."""
    from ray_reid import search

    if settings.dressers is None:
        return "this server dresses nobody: serve.dressers is null"
    try:
        search.needs(run)
    except ValueError as error:
        return str(error)
    return None


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
        _check_capacity(run, serving)
        with _interruptible(), _server(host, port, own):
            serve.run(application(run.resolve(), recipe.serve), name=NAME)
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("serving %d gallery images at %s; Ctrl-C ends it", size, url)
            log.info("try: curl -F image=@photo.jpg -F k=5 %s/v1/search", url)
            _wait()
            # Answers what has been asked before Ray goes away.
            serve.delete(NAME)


def _check_capacity(run: Path, settings: Serve) -> None:
    check_capacity("serve.replicas", settings.replicas, settings.num_cpus, settings.num_gpus)
    if settings.dressers is None or _lacking(run, settings):
        return
    parts = (settings, settings.dressers)
    cpus, gpus = (
        sum(part.replicas * getattr(part, name) for part in parts)
        for name in ("num_cpus", "num_gpus")
    )
    check_capacity("serve.replicas and serve.dressers:", 1, cpus, gpus)


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
