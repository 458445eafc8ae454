"""The API on Ray Serve: replicas that each load the model and the gallery of a run once.

There is no authentication yet, so it listens on this machine only unless told otherwise.
"""

import asyncio
import ipaddress
import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from ray_reid.gallery.searcher import Searcher, check_current
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.serve import Dressers, Serve
from ray_reid.runtime import interrupts
from ray_reid.runtime.cluster import Cluster, check_capacity
from ray_reid.runtime.patience import patient
from ray_reid.runtime.ports import check_port
from ray_reid.runtime.results import RunState, reading
from ray_reid.serving.api import UnavailableError, create_api

log = logging.getLogger(__name__)

NAME = "ray-reid"
DRESSER = "dresser"
# Requests that a replica takes at once, beside all those that may wait for variants.
AT_ONCE = 5


def application(run: RunState, settings: Serve) -> serve.Application:
    """Describe the Serve application of a run; its path must be readable on every node."""
    lacking = _lacking(run, settings)
    dressers = settings.dressers if lacking is None else None

    # Ray Serve calls this in each replica.
    def build() -> FastAPI:
        searcher = Searcher.open(run)
        # The first pass through a network is slow; and it proves that model and index agree.
        searcher.warm_up()
        if dressers is None:
            return create_api(searcher, settings.max_upload_mb, lacking or "")
        from ray_reid.gallery.search import Refiner

        handle = serve.get_deployment_handle(DRESSER, serve.get_replica_context().app_name)
        refiner = Refiner.open(run, searcher, partial(ask, handle, dressers.timeout_s))
        return create_api(searcher, settings.max_upload_mb, refiner)

    waiting = 0 if dressers is None else dressers.max_queued + dressers.replicas
    deployed = serve.deployment(
        name="search",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=AT_ONCE + waiting,
    )
    search = deployed(serve.ingress(build)())
    if dressers is None:
        return search.bind()
    # What a deployment is bound to is deployed with it.
    return search.bind(dressing(DresserReplica, dressers).bind(run))


def dressing(kind: type["DresserReplica"], settings: Dressers) -> serve.Deployment:
    """Describe the deployment that makes variants, one query at a time."""
    return serve.deployment(
        name=DRESSER,
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=1,
        max_queued_requests=settings.max_queued,
    )(kind)


class DresserReplica:
    """Makes variants with the models and descriptions of a run."""

    def __init__(self, run: RunState) -> None:
        """Load them once per replica."""
        self.dress = self.load(run)
        # The painting of a query that is given up goes on, and no other may begin before it ends.
        self.thread = ThreadPoolExecutor(1)

    def load(self, run: RunState) -> Callable[[bytes], list[bytes] | str]:
        """What makes the variants, its models loaded."""
        from ray_reid.gallery import search

        tailor = search.tailor(run)
        tailor.load()
        return tailor

    async def __call__(self, encoded: bytes) -> list[bytes] | str:
        """The variants of an image, or why it has none."""
        # Painting takes seconds, and Serve asks meanwhile whether the replica is well.
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.dress, encoded)


def ask(handle: "DeploymentHandle[Any]", timeout_s: float, encoded: bytes) -> list[bytes] | str:
    """Have variants of an image made by another deployment.

    Raises:
        UnavailableError: If its queue is full, it takes too long, or it fails.
    """
    waiting = handle.remote(encoded)
    try:
        made: list[bytes] | str = waiting.result(timeout_s=timeout_s)
    except TimeoutError:
        waiting.cancel()  # type: ignore[no-untyped-call]
        sentence = f"the variants of this query took more than {timeout_s:g} s"
        raise UnavailableError(sentence) from None
    except BackPressureError:
        sentence = "too many queries are waiting to be dressed; try again later"
        raise UnavailableError(sentence) from None
    except (RayError, RayServeException) as error:
        log.exception("the variants of a query could not be made")
        sentence = "the variants of this query could not be made; the log of the server says why"
        raise UnavailableError(sentence) from error
    return made


def _lacking(run: RunState, settings: Serve) -> str | None:
    """Why no search of a run can be refined; null if it can."""
    from ray_reid.gallery import search
    from ray_reid.generation import outfits

    if settings.dressers is None:
        return "this server dresses nobody: serve.dressers is null"
    try:
        search.needs(run)
        outfits.check_models(search.tailor(run).recipe)
    except ValueError as error:
        return str(error)
    return None


def serve_run(
    run: Place,
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
            the CPUs or GPUs of all replicas, the cluster already serves something, or what makes
            variants cannot start.
    """
    host = recipe.serve.host if host is None else host
    port = recipe.serve.port if port is None else port
    # What is current now stays to the end, whatever is pruned. The gallery is live.
    with reading(run.resolve()) as state:
        _serve(check_current(state), recipe, host, port, address)


def _serve(run: RunState, recipe: Recipe, host: str, port: int, address: str | None) -> None:
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
            _deploy(run, serving)
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("serving %d gallery images at %s; Ctrl-C ends it", size, url)
            lacking = _lacking(run, serving)
            if recipe.refine is not None and lacking is not None:
                log.info("no search is refined: %s", lacking)
            log.info("try: curl -F image=@photo.jpg -F k=5 %s/v1/search", url)
            _wait()
            # Answers what has been asked before Ray goes away.
            serve.delete(NAME)


def _deploy(run: RunState, settings: Serve) -> None:
    """Start the replicas.

    Raises:
        ValueError: If those that make variants cannot start, or Ray lacks the resources for long.
    """
    try:
        with patient("serve"):
            serve.run(application(run, settings), name=NAME)
    except RuntimeError as error:
        dresser = serve.status().applications[NAME].deployments.get(DRESSER)
        if dresser is None or not dresser.message:
            raise
        # It ends with the last line of the replica's traceback.
        reason = dresser.message.strip().splitlines()[-1]
        raise ValueError(
            "what makes variants cannot start; the run's recipe, run again with --set "
            f"serve.dressers=null, is served without: {reason}"
        ) from error


def _check_capacity(run: RunState, settings: Serve) -> None:
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
    before = {number: signal.signal(number, interrupts.interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _proved_size(run: RunState) -> int:
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
