"""Bars on the driver of what Ray workers do."""

import threading

import pytest
from ray.exceptions import ActorUnavailableError

from ray_reid.runtime.progress import watched


def test_a_bar_ends_quietly_where_the_actor_that_it_reads_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    read = threading.Event()

    def gone() -> tuple[int, int]:
        read.set()
        raise ActorUnavailableError("The actor is temporarily unavailable", None)

    with watched("train", "batch", gone):
        assert read.wait(timeout=10)
    assert raised == []
