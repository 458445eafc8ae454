"""The Ray that a job runs on: one that it joins, or a local instance of its own."""

import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray._common.utils import get_default_ray_temp_dir
from ray._private.utils import validate_socket_filepath

from ray_reid.recipe.resources import Resources, StageSpec
from ray_reid.runtime import interrupts
from ray_reid.runtime.capacity import Share
from ray_reid.runtime.facts import Cost
from ray_reid.runtime.patience import LIMITS

log = logging.getLogger(__name__)

# Without a dashboard nobody reads them, and they take a twentieth of a small machine's cores.
UNSEEN = {"enable_metrics_collection": False, "task_events_report_interval_ms": 0}


class Cluster:
    """Ray for the length of a `with`: started at the first need, stopped at the end."""

    def __init__(self, resources: Resources, address: str | None = None) -> None:
        """Plan to join `address` or `RAY_ADDRESS`; without either, to start a local instance."""
        self._resources = resources
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._started = False

    def start(self) -> None:
        """Start or join, once.

        Raises:
            ValueError: If the cluster does not answer.
        """
        if not ray.is_initialized():
            _connect(self._resources, self._address)
            self._started = True
            # Ray's handler of SIGTERM exits without a message.
            interrupts.take()
        LIMITS.stop = self._resources.patience_s
        configure()

    def __enter__(self) -> "Cluster":
        """Check, before any work, that a local instance could start.

        Raises:
            ValueError: If the path of the temporary folder is too long for Ray.
        """
        if not ray.is_initialized() and self._address in (None, "local"):
            _check_socket_paths()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._started:
            ray.shutdown()


def check_capacity(name: str, count: int, num_cpus: float, num_gpus: float) -> None:
    """Compare what `count` workers need with what Ray has, which would wait for it.

    A cluster of several nodes may grow: there it is only said.

    Raises:
        ValueError: If one machine is not enough; `name` is the recipe's key of the count.
    """
    nodes = alive_nodes()
    for kind, each, has in (
        ("CPU", num_cpus, [node.num_cpus for node in nodes]),
        ("GPU", num_gpus, [node.num_gpus for node in nodes]),
    ):
        if each <= max(has) and count * each <= sum(has):
            continue
        found = f"{name} {count} of {each:g} {kind}s each needs more than the {sum(has):g} {kind}s"
        if len(nodes) == 1:
            raise ValueError(f"{found} that Ray has; lower one of them")
        log.warning(
            "%s, at most %g on one node, that Ray has; waiting for a node to join", found, max(has)
        )


def alive_nodes() -> list[Share]:
    """Return the CPUs and GPUs of each node that has not been lost."""
    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return [Share(has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in alive]


def configure() -> None:
    """Set Ray Data's ways of working in this process."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.print_on_execution_start = False
    context.enable_operator_progress_bars = False
    # The bar is ours (progress.py): Ray's prints five lines every ten seconds into a log file.
    context.enable_progress_bars = False
    # A block may take hours, and what cannot be scheduled is for patience.py to say: it is 30
    # minutes otherwise.
    context.execution_no_progress_timeout_s = 24 * 3600.0
    # It logs the traceback of what it raises as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _connect(resources: Resources, address: str | None) -> None:
    # What workers print is in Ray's log folder; their errors come back to the driver anyway.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None or address == "local":
        # Threads that spin while they wait take the cores from the other processes.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        store = resources.object_store_mb
        with _without_core_messages():
            ray.init(
                address="local",
                num_cpus=resources.num_cpus,
                object_store_memory=store * 2**20 if store else None,
                include_dashboard=False,
                _system_config=UNSEEN,
                **quiet,
            )
        return
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        # A head started where this file exists asks for its token, but clients do not look.
        os.environ["RAY_AUTH_MODE"] = "token"
    _check_answers(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {error}") from error


def _check_socket_paths() -> None:
    folder = get_default_ray_temp_dir()  # type: ignore[no-untyped-call]
    session = f"session_2026-01-31_23-59-59_000000_{os.getpid()}"
    try:
        validate_socket_filepath(f"{folder}/{session}/sockets/plasma_store")
    except OSError as error:
        raise ValueError(
            f"temporary folder {folder!r} is too long for Ray, whose sockets lie below it: a "
            "socket's path has 107 bytes at most; set RAY_TMPDIR to a shorter folder, such as /tmp"
        ) from error


def _has_token() -> bool:
    try:
        return (Path.home() / ".ray" / "auth_token").exists()
    except RuntimeError:
        # There is no home: a user id without a name, and no HOME.
        return False


def _check_answers(address: str) -> None:
    """Knock at `host:port` first: Ray would try for minutes where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"no Ray cluster answers at {address!r}: {reason}") from error


@contextmanager
def _without_core_messages() -> Iterator[None]:
    """Keep Ray's C++ core off the terminal: it warns of what only its developers can mend.

    Its log files and the exceptions of `ray.init` are not touched.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        # It announces the level itself, below Python's sys.stderr.
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cost(specs: Sequence[StageSpec], rows: int, seconds: float) -> Cost | None:
    """What the rows of a stream through some stages took of the cluster; None if there are none.

    Its devices are the GPUs of all actors, or without any the CPUs of all nodes.
    """
    if not rows:
        return None
    gpus = sum(spec.actors * spec.num_gpus for spec in specs)
    cpus = sum(node.num_cpus for node in alive_nodes())
    spent = round(seconds, 3)
    return Cost(rows=rows, seconds=spent, device="GPU" if gpus else "CPU", devices=gpus or cpus)
