"""Say so when work waits for CPUs or GPUs that Ray does not have, and stop when it waits too long.

Only work that cannot be scheduled is stopped. As long as a worker of this job computes, however
slowly, or a worker starts, or nothing waits for resources, there is no hurry.
"""

import logging
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import ray
import ray.exceptions
from ray._private import internal_api
from ray._private import worker as ray_worker
from ray._raylet import PlacementGroupID
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.util.placement_group import PlacementGroup, remove_placement_group

log = logging.getLogger(__name__)


@dataclass
class Limits:
    """Seconds; one set of them holds for a process."""

    stop: float | None = 600.0
    """After which work that waits for resources ends; None never ends it. `Cluster` sets it."""
    say: float = 60.0
    """After which it is said; then again after twice, four times as long, and so on."""
    look: float = 5.0
    """Between two looks at the cluster."""


LIMITS = Limits()


@contextmanager
def patient(name: str, count: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Watch over a block in the main thread that waits for work on Ray.

    Inside another such block, and in other threads, which cannot be interrupted, it does nothing.

    Args:
        name: What the messages begin with.
        count: What is done so far; any change starts the clock anew.

    Raises:
        ValueError: If nothing was done for `LIMITS.stop` seconds because Ray lacks resources.
    """
    if threading.current_thread() is not threading.main_thread() or _Watch.current is not None:
        yield
        return
    watch = _Watch.current = _Watch(name, count)
    before = signal.signal(signal.SIGUSR2, watch.interrupt)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if watch.verdict is None:
            raise
        _withdraw()
        raise ValueError(watch.verdict) from None
    finally:
        watch.end()
        thread.join(timeout=5)
        signal.signal(signal.SIGUSR2, before or signal.SIG_DFL)
        _Watch.current = None


class Stillness:
    """For how long nothing has moved although something waits for resources."""

    def __init__(self, now: float) -> None:
        """Start the clock."""
        self._since, self._count, self._enough = now, 0, 0

    def seconds(self, now: float, count: int, lacking: bool) -> float:
        """Take in what a look at the cluster has shown."""
        # One look with nothing lacking says nothing: Ray Train asks anew every minute.
        self._enough = 0 if lacking else self._enough + 1
        if count != self._count or self._enough > 1:
            self._since, self._count = now, count
        return now - self._since if lacking else 0.0


class _Watch:
    """Looks at the cluster from a thread of its own, and interrupts the main thread."""

    current: "_Watch | None" = None

    def __init__(self, name: str, count: Callable[[], int]) -> None:
        self._name, self._count = name, count
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.verdict: str | None = None

    def run(self) -> None:
        still, say = Stillness(time.monotonic()), LIMITS.say
        while not self._over.wait(LIMITS.look):
            lack = shortage()
            waited = still.seconds(time.monotonic(), self._count(), lack is not None)
            if waited < LIMITS.say:
                say = LIMITS.say
                continue
            found = f"{self._name}: nothing has moved for {waited:.0f} s: {lack}"
            if LIMITS.stop is not None and waited >= LIMITS.stop:
                self._stop(
                    f"{found}; resources.patience_s is {LIMITS.stop:g}: raise it, ask for less or "
                    "add nodes"
                )
                # What is interrupted may take a while to clean up.
                self._over.wait(LIMITS.say)
            elif waited >= say:
                log.warning("%s; resources.patience_s is %s", found, LIMITS.stop)
                say *= 2

    def _stop(self, verdict: str) -> None:
        with self._lock:
            if not self._over.is_set():
                self.verdict = verdict
                # Unlike SIGINT, which shells may ignore and Ray Train handles in its own way.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    def interrupt(self, *_: object) -> None:
        # Of all exceptions Ray's waiting lets only this one through.
        if self.verdict is not None and not self._over.is_set():
            raise KeyboardInterrupt

    def end(self) -> None:
        """After this no signal is sent."""
        self._over.set()
        with self._lock:
            pass


def shortage() -> str | None:
    """Return what this job waits for and what the cluster has; None if it waits for no resources.

    While one of its workers computes, or a worker starts, it waits for that one.
    """
    driver: Any = ray_worker.global_worker
    node_stats: Any = internal_api.node_stats
    job = ray.get_runtime_context().get_job_id()
    try:
        # What an autoscaler adds nodes by: all that Ray could not place.
        state = get_cluster_resource_state(driver.gcs_client)
        if not state.pending_resource_requests and not state.pending_gang_resource_requests:
            return None
        nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
        workers = [
            one
            for node in nodes
            if node["Alive"]
            for one in node_stats(
                node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
            ).core_workers_stats
        ]
    except (grpc.RpcError, ray.exceptions.RpcError):
        # A node that does not answer is soon known to be dead, or answers the next time.
        return None
    return describe(state, workers, job)


def describe(state: Any, workers: Sequence[Any], job: str) -> str | None:
    """Say in a sentence what a job waits for; see `shortage`.

    Args:
        state: Ray's `ClusterResourceState`.
        workers: Ray's `CoreWorkerStats` of all processes, the job's driver among them.
        job: Its id, in hexadecimal digits.
    """
    mine = [one for one in workers if one.job_id.hex() == job]
    # Actors that only coordinate hold nothing, or a sliver of their node.
    if any(one.num_running_tasks and any(map(_runs_out, one.used_resources)) for one in mine):
        return None
    if _starts(state, workers):
        return None
    # Ray does not say whose the waiting tasks and actors are. Some are this job's if it has begun
    # more than runs.
    begun = sum(one.num_pending_tasks - one.num_running_tasks for one in mine)
    waiting = Counter[str]()
    for one in state.pending_resource_requests if begun > 0 else ():
        waiting[_amounts(one.request.resources_bundle)] += one.count
    for group in _groups(state, job).values():
        waiting.update(_amounts(part.resources_bundle) for part in group.requests)
    if not waiting:
        return None
    told = " and ".join(f"{count} x ({amounts})" for amounts, count in waiting.items())
    return f"{told} must wait, and Ray has {_has(state, 'CPU')} and {_has(state, 'GPU')}"


def _groups(state: Any, job: str) -> dict[str, Any]:
    """Placement groups of a job that wait, by id; the id ends with that of the job."""
    # "ID:STRATEGY|STATE".
    groups = {one.details.partition(":")[0]: one for one in state.pending_gang_resource_requests}
    return {name: one for name, one in groups.items() if name.endswith(job)}


def _withdraw() -> None:
    """Remove the placement groups that this job waits for: those of Ray Train outlive it."""
    driver: Any = ray_worker.global_worker
    state = get_cluster_resource_state(driver.gcs_client)
    for name in _groups(state, ray.get_runtime_context().get_job_id()):
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def _starts(state: Any, workers: Sequence[Any]) -> bool:
    """Whether CPUs or GPUs are held that no worker has yet, because its process still starts."""
    held: dict[str, float] = defaultdict(float)
    for node in state.node_states:
        for kind, total in node.total_resources.items():
            held[kind] += total - node.available_resources.get(kind, 0.0)
            # What a placement group holds is there again as "CPU_group_ID", and once more for each
            # of its bundles as "CPU_group_NUMBER_ID".
            base, _, group = kind.partition("_group_")
            if group and "_" not in group:
                held[base] -= total
    for one in workers:
        for kind, used in one.used_resources.items():
            held[kind] -= sum(slot.allocation for slot in used.resource_slots)
    return any(left > 1e-3 for kind, left in held.items() if kind.startswith(("CPU", "GPU")))


def _has(state: Any, kind: str) -> str:
    """For example "2 CPU (0 free)"; nodes that were lost have nothing."""
    total = sum(node.total_resources.get(kind, 0.0) for node in state.node_states)
    free = [node.available_resources.get(kind, 0.0) for node in state.node_states]
    most = f", at most {max(free):g} on one node" if sum(free) > max(free) else ""
    return f"{total:g} {kind} ({sum(free):g} free{most})"


def _amounts(resources: Mapping[str, float]) -> str:
    """For example "1 CPU, 0.5 GPU"."""
    told = {kind: amount for kind, amount in resources.items() if _runs_out(kind)}
    memory = told.pop("memory", 0.0) / 2**30
    amounts = [f"{amount:g} {kind}" for kind, amount in sorted(told.items())]
    # Ray Data asks for the few bytes that it expects a task to use.
    return ", ".join(amounts + [f"{memory:.1f} GiB of memory"] * (memory >= 0.1))


def _runs_out(kind: str) -> bool:
    """Whether a resource is more than a name that Ray gives to a node."""
    return not kind.startswith("node:")
