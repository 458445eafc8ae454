"""What a run no longer needs is listed and removed; what is read, or current, stays."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ray_reid.runtime import results
from ray_reid.runtime.holding import hold
from ray_reid.runtime.prune import leftovers, prune
from ray_reid.runtime.results import RunState, reading

OLD, NEW = "0" * 12, "1" * 12


@pytest.fixture
def run(tmp_path: Path, publish_job: Callable[..., Path]) -> Path:
    """A run whose training was done twice, beside an attempt and files that are nobody's."""
    for key in (OLD, NEW):
        folder = publish_job(tmp_path, "train", key)
        (folder / "weights").write_bytes(bytes(1000))
    (tmp_path / "embed" / OLD).mkdir(parents=True)
    (tmp_path / "embed" / OLD / "part").write_bytes(bytes(10))
    state = RunState.read(tmp_path)
    replace(state, jobs=("train", "embed")).write()
    (tmp_path / "gallery" / "log").mkdir(parents=True)
    # A date and a time look like a key.
    (tmp_path / "backups" / "202611301200").mkdir(parents=True)
    (tmp_path / "tune-s").mkdir()
    return tmp_path


def test_what_is_neither_current_nor_open_is_listed_and_then_removed(run: Path) -> None:
    found = leftovers(run)
    assert [(one.folder, one.kind) for one in found] == [
        (run / "embed" / OLD, "unfinished"),
        (run / "train" / OLD, "not current"),
    ]
    assert found[0].num_bytes == 10
    assert found[1].num_bytes > 1000
    assert (run / "train" / OLD / "weights").exists()
    assert prune(run) == found
    assert not (run / "embed").exists()
    assert [path.name for path in (run / "train").iterdir()] == [NEW]
    assert (run / "gallery" / "log").is_dir()
    assert (run / "backups" / "202611301200").is_dir()
    assert (run / "tune-s").is_dir()
    assert prune(run) == []


def test_what_killed_trials_have_left_is_removed_and_what_is_finished_stays(run: Path) -> None:
    trials = run / "trials"
    left = [trials / ".trainings" / OLD, trials / "models" / f".{OLD}-77"]
    for folder in (*left, trials / "models" / NEW):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(500))
    (trials / f"{NEW}.json").write_text("{}")
    found = {one.folder: (one.num_bytes, one.kind) for one in leftovers(run)}
    assert {folder: found[folder] for folder in left} == dict.fromkeys(left, (500, "unfinished"))
    prune(run)
    names = sorted(path.relative_to(trials).as_posix() for path in trials.rglob("*"))
    assert names == [f"{NEW}.json", "models", f"models/{NEW}", f"models/{NEW}/weights"]


def test_references_stay_as_long_as_a_current_result_was_made_with_them(
    run: Path, publish_job: Callable[..., Path]
) -> None:
    references = run / "trials" / "references"
    for name in (OLD, NEW):
        (references / name).mkdir(parents=True)
        (references / name / "part").write_bytes(bytes(100))
    publish_job(run, "personalise", NEW, facts={"shared": [NEW]})
    (found,) = (one for one in prune(run) if one.folder == references / OLD)
    assert found.kind == "references of no current result"
    assert [folder.name for folder in references.iterdir()] == [NEW]
    publish_job(run, "personalise", OLD)
    prune(run)
    assert not references.exists()


def test_what_a_reader_has_opened_stays_until_it_ends(
    run: Path, publish_job: Callable[..., Path]
) -> None:
    with reading(run) as state:
        publish_job(run, "train", "2" * 12)
        prune(run)
        assert (state.folder("train") / "weights").exists()
    assert [one.folder.name for one in prune(run)] == [NEW]


def test_a_reader_renews_its_mark_and_a_mark_left_behind_expires(
    run: Path, publish_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RENEWAL_SECONDS", 0.01)
    with reading(run):
        publish_job(run, "train", "2" * 12)
        (mark,) = (run / results.READERS).iterdir()
        long_ago = time.time() - 2 * results.MARK_SECONDS
        os.utime(mark, (long_ago, long_ago))
        deadline = time.monotonic() + 10
        while mark.stat().st_mtime == long_ago:
            assert time.monotonic() < deadline, "the mark is not renewed"
            time.sleep(0.01)
        kept = results.being_read(run)
    assert kept == {("train", NEW)}
    mark.write_text('{"train": "' + NEW + '"}')
    os.utime(mark, (long_ago, long_ago))
    assert results.being_read(run) == set()


def test_a_run_that_cannot_be_written_can_be_read(run: Path) -> None:
    (run / results.READERS).write_text("in the way of the marks")
    with reading(run) as state:
        assert state == RunState.read(run)


def test_nothing_is_pruned_under_a_driver(run: Path) -> None:
    with hold(run), pytest.raises(ValueError, match="is already working on run"):
        prune(run)
    assert (run / "train" / OLD).is_dir()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run directory: it has no run\.json"):
        prune(tmp_path)
    assert not list(tmp_path.iterdir())
