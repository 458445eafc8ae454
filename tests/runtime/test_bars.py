"""Bars go on, and let others go on, when nobody reads what they draw."""

import io
import threading

import pytest

from ray_reid.runtime.bars import bar


class Broken(io.StringIO):
    """Standard error whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_has_gone_stops_no_bar_and_leaves_no_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr", Broken())

    def draw() -> None:
        with bar("x", "row", 2, interval=0) as line:
            line.update()
            line.refresh()
            line.update()

    # The lock lets the thread in that holds it already: another one must find it free.
    for _ in range(2):
        drawing = threading.Thread(target=draw, daemon=True)
        drawing.start()
        drawing.join(timeout=10)
        assert not drawing.is_alive(), "waits for the lock of a bar that nobody reads"


def test_a_bar_says_what_it_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(bar("ingest", "image", over=[1, 2, 3])) == [1, 2, 3]
    said = capsys.readouterr().err
    assert "ingest" in said
    assert "3/3" in said
