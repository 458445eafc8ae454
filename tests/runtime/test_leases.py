"""One driver of a run in a bucket: who holds the lease, and who may take it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ray_reid.places import BucketPath
from ray_reid.runtime import leases
from ray_reid.runtime.holding import Check, driver, hold
from tests import buckets


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    pytest.importorskip("moto", reason="moto is the S3 double; the extra `dev` has it")
    with buckets.served():
        yield


@pytest.fixture
def run(server: None) -> BucketPath:
    return buckets.new_bucket() / "run"


def _left_by(run: BucketPath, process: int, machine: str | None = None) -> None:
    mine = {"host": "elsewhere", "process": process, "machine": machine or leases._machine()}
    (run / leases.LEASE).write_text(json.dumps(mine))


def test_a_second_driver_gets_one_sentence(run: BucketPath) -> None:
    assert driver(run) is None
    with hold(run) as check:
        check()
        assert driver(run) == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(ValueError, match=r"is already working on run .*ends in \d+ s$"):
            leases.leased(run).__enter__()
    assert driver(run) is None
    with hold(run):
        pass


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(run: BucketPath) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    _left_by(run, dead.pid)
    assert driver(run) is None
    with hold(run) as check:
        check()


def test_that_of_another_machine_is_taken_once_it_has_ended(
    run: BucketPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    _left_by(run, 1, "another boot")
    with pytest.raises(ValueError, match="process 1 on elsewhere is already working"), hold(run):
        pass
    monkeypatch.setattr(leases, "LEASE_SECONDS", -1.0)
    with hold(run):
        pass


def test_of_two_that_take_it_at_once_one_has_it(run: BucketPath) -> None:
    """Both have read that nobody holds it; the store lets one of them write."""
    store = leases._store(run)
    assert store.read() is None
    first = store.write(b"{}", None)
    assert first is not None
    assert store.write(b"{}", None) is None
    second = store.write(b'{"renewed": true}', first)
    assert second is not None
    assert store.write(b"{}", first) is None
    found = store.read()
    assert found is not None
    assert found.tag == second
    assert 0 <= found.age < 60


def test_a_renewed_lease_stays_and_a_lost_one_stops_the_run(
    run: BucketPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.05)
    renewed, write = threading.Semaphore(0), leases._AmazonStore.write

    def noting(self: leases._AmazonStore, content: bytes, tag: str | None) -> str | None:
        done = write(self, content, tag)
        renewed.release()
        return done

    monkeypatch.setattr(leases._AmazonStore, "write", noting)
    with hold(run) as check:
        for _ in range(3):
            assert renewed.acquire(timeout=30)
        check()
        _left_by(run, 1, "another boot")
        deadline = time.monotonic() + 30
        while _holds(check):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ValueError, match=r"is lost.*the same command goes on"):
            check()
    # Who lost it gives nothing back.
    assert driver(run) == "process 1 on elsewhere"


def _holds(check: Check) -> bool:
    try:
        check()
    except ValueError:
        return False
    return True


def test_a_network_that_fails_for_a_while_loses_nothing(
    run: BucketPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)

    class Failing:
        calls = 0

        def read(self) -> None:
            return None

        def write(self, content: bytes, tag: str | None) -> str | None:
            self.calls += 1
            if self.calls == 2:
                raise ConnectionError("no route")
            return str(self.calls)

        def delete(self) -> None:
            raise ConnectionError("no route")

    store = Failing()
    lease = leases._Lease(run, store)
    over = threading.Event()
    thread = threading.Thread(target=lease.renew, args=(over,))
    thread.start()
    while store.calls < 4:
        over.wait(0.01)
    over.set()
    thread.join()
    lease.check()
    assert lease._tag == str(store.calls)
    lease.release()


def test_an_answer_that_was_lost_on_its_way_loses_no_lease(run: BucketPath) -> None:
    """The store has written, the client tries again, and the store knows the old tag no more."""
    store = leases._store(run)
    write = store.write

    def twice(content: bytes, tag: str | None) -> str | None:
        write(content, tag)
        return write(content, tag)

    store.write = twice  # type: ignore[method-assign]
    lease = leases._Lease(run, store)
    lease._write()
    lease.check()
    lease.release()
    assert driver(run) is None


def test_a_lease_that_was_not_renewed_in_time_is_lost_and_not_given_back(
    run: BucketPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = leases._Lease(run, leases._store(run))
    now = leases._now()
    monkeypatch.setattr(leases, "_now", lambda: now + leases.LEASE_SECONDS + 1)
    with pytest.raises(ValueError, match="is lost"):
        lease.check()
    _left_by(run, 1, "another boot")
    lease.release()
    assert driver(run) == "process 1 on elsewhere"
