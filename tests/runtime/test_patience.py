"""Waiting for Ray: it is said and ends if nothing can be scheduled, and only then."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from ray.core.generated.autoscaler_pb2 import ClusterResourceState
from ray.core.generated.common_pb2 import CoreWorkerStats

from ray_reid import schema
from ray_reid.recipe.resources import StageSpec
from ray_reid.runtime import patience, stage
from ray_reid.runtime.patience import Stillness

JOB = "01000000"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of three seconds."""
    for name, seconds in (("stop", 3.0), ("say", 1.0), ("look", 0.1)):
        monkeypatch.setattr(patience.LIMITS, name, seconds)


class Holder:
    """Holds CPUs and does nothing."""

    def is_there(self) -> bool:
        return True


@pytest.fixture
def take(ray_local: None) -> Iterator[Callable[[], None]]:
    """A function that has both CPUs of the session's Ray taken by an idle actor."""
    holders: list[Any] = []

    def start() -> None:
        holders.append(ray.remote(num_cpus=2)(Holder).remote())
        ray.get(holders[0].is_there.remote(), timeout=60)

    yield start
    ray.kill(holders[0])
    end = time.monotonic() + 30
    # What was stopped must leave nothing behind that waits for CPUs or takes them.
    while ray.available_resources().get("CPU", 0.0) < 2.0 or patience.shortage() is not None:
        assert time.monotonic() < end, "something still takes CPUs or waits for them"
        time.sleep(0.1)


class Same:
    """Change nothing."""

    def __call__(self, batch: schema.Batch) -> schema.Batch:
        return dict(batch)


def rows(count: int) -> Any:
    return schema.observations(
        [
            {"observation_id": f"{n}", "image": b"", "source": "s", "split": "train"}
            for n in range(count)
        ]
    )


def test_a_stream_that_cannot_be_scheduled_says_so_and_ends(
    take: Callable[[], None], hasty: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def late(dataset: "ray.data.Dataset") -> "ray.data.Dataset":
        take()
        return dataset

    step, columns = stage.Step(Same, {}, StageSpec(num_cpus=0.5)), ["observation_id"]
    with pytest.raises(ValueError, match=r"^paint: nothing has moved for [3-9] s: ") as raised:
        stage.stream(rows(4), columns, [step], tmp_path / "out", "paint", through=late)
    assert "1 x (0.5 CPU)" in str(raised.value)
    assert "must wait, and Ray has 2 CPU (0 free) and 0 GPU (0 free)" in str(raised.value)
    assert "resources.patience_s is 3" in str(raised.value)
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    # After one second, and after two.
    assert [one.split(" s:")[0] for one in said] == [
        "paint: nothing has moved for 1",
        "paint: nothing has moved for 2",
    ]


@pytest.mark.slow
def test_a_stream_that_cannot_look_at_its_input_ends(
    take: Callable[[], None], hasty: None, tmp_path: Path
) -> None:
    take()
    with pytest.raises(ValueError, match=r"paint: nothing has moved .* 1 x \(1 CPU\) must wait"):
        stage.stream(rows(4), ["observation_id"], [stage.Step(Same)], tmp_path / "out", "paint")


@pytest.mark.slow
def test_tasks_that_cannot_be_scheduled_end(take: Callable[[], None], hasty: None) -> None:
    take()
    with pytest.raises(ValueError, match=r"adapt: nothing has moved .* 2 x \(1 CPU\) must wait"):
        list(stage.tasks("adapt", slow, [{"seconds": 0.0}] * 2, 1.0))


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.slow
def test_slow_work_is_never_ended(
    ray_local: None, hasty: None, caplog: pytest.LogCaptureFixture
) -> None:
    # The second waits for the CPUs of the first for longer than patience lasts.
    found = list(stage.tasks("adapt", slow, [{"seconds": 4.0}, {"seconds": 0.0}], 2.0))
    assert found == [(0, 4.0), (1, 0.0)]
    assert not caplog.records


def test_an_interrupt_of_the_user_stays_one(ray_local: None) -> None:
    with pytest.raises(KeyboardInterrupt), patience.patient("paint"):
        raise KeyboardInterrupt


def test_the_clock_counts_only_while_something_is_lacking() -> None:
    still = Stillness(0.0)
    assert still.seconds(5.0, 0, lacking=True) == 5.0
    assert still.seconds(10.0, 0, lacking=True) == 10.0
    # One look between two of Ray Train's attempts changes nothing.
    assert still.seconds(15.0, 0, lacking=False) == 0.0
    assert still.seconds(20.0, 0, lacking=True) == 20.0
    # Something was done.
    assert still.seconds(25.0, 1, lacking=True) == 0.0
    assert still.seconds(30.0, 1, lacking=True) == 5.0
    assert still.seconds(35.0, 1, lacking=False) == 0.0
    assert still.seconds(40.0, 1, lacking=False) == 0.0
    assert still.seconds(45.0, 1, lacking=True) == 5.0


def cluster(pending: dict[str, float] | None = None, group: str = "") -> ClusterResourceState:
    """Two nodes with a CPU left on each, the rest of one in a group of its own; two lots may wait.

    Three CPUs of the other and its GPU must be held by workers.
    """
    state = ClusterResourceState()
    one, other, lost = (state.node_states.add() for _ in range(3))
    one.total_resources.update({"CPU": 4.0, "CPU_group_ab": 3.0, "CPU_group_0_ab": 3.0})
    one.available_resources.update({"CPU": 1.0, "CPU_group_ab": 3.0, "CPU_group_0_ab": 3.0})
    other.total_resources.update({"CPU": 4.0, "GPU": 1.0, "object_store_memory": 1e9})
    other.available_resources.update({"CPU": 1.0, "object_store_memory": 5e8})
    assert not lost.total_resources
    if pending:
        state.pending_resource_requests.add(count=3).request.resources_bundle.update(pending)
    if group:
        gang = state.pending_gang_resource_requests.add(details=f"{group}:PACK|PENDING")
        for _ in range(2):
            gang.requests.add().resources_bundle.update({"CPU": 2.0, "GPU": 1.0})
    return state


def process(
    begun: int = 0, running: int = 0, holds: dict[str, float] | None = None
) -> CoreWorkerStats:
    found = CoreWorkerStats(
        num_pending_tasks=begun, num_running_tasks=running, job_id=bytes.fromhex(JOB)
    )
    for kind, amount in (holds or {}).items():
        found.used_resources[kind].resource_slots.add(allocation=amount)
    return found


IDLE = {"CPU": 3.0, "GPU": 1.0}
"""What the workers on the second node hold."""


def test_what_waits_is_told_with_what_there_is() -> None:
    workers = [process(begun=3), process(holds=IDLE)]
    state = cluster({"CPU": 2.0, "GPU": 0.25, "memory": 172.0}, "ab" + JOB)
    assert patience.describe(state, workers, JOB) == (
        "3 x (2 CPU, 0.25 GPU) and 2 x (2 CPU, 1 GPU) must wait, and Ray has "
        "8 CPU (2 free, at most 1 on one node) and 1 GPU (0 free)"
    )


def test_a_worker_that_computes_or_starts_is_waited_for() -> None:
    driver, state = process(begun=3), cluster({"CPU": 2.0})
    assert patience.describe(state, [driver, process(running=1, holds=IDLE)], JOB) is None
    # Nobody holds the third CPU yet.
    assert patience.describe(state, [driver, process(holds=IDLE | {"CPU": 2.0})], JOB) is None
    # The controllers of Ray Train and Ray Serve always run something.
    idle = [process(holds=IDLE), process(running=1), process(running=1, holds={"node:head": 0.001})]
    assert patience.describe(state, [driver, *idle], JOB) is not None


def test_what_other_jobs_wait_for_is_theirs() -> None:
    # A training: the controller is all that this job has begun, and it runs.
    mine = [process(begun=1), process(running=1), process(holds=IDLE)]
    assert patience.describe(cluster({"CPU": 2.0}, "ab02000000"), mine, JOB) is None
    assert patience.describe(cluster({"CPU": 2.0}, "ab" + JOB), mine, JOB) is not None
