"""Runs beside each other: their list, what two differ in, and the commands that tell of them."""

import json

import pytest

from ray_reid import cli
from ray_reid.evaluation import runs
from ray_reid.runtime.holding import hold

pytestmark = pytest.mark.usefixtures("fake_model")


@pytest.fixture
def evaluated(make_run, publish_evaluation):
    """A function that makes an evaluated run in a directory, with these settings."""

    def made(path, **section):
        publish_evaluation(path, make_run(path, num_maps=0, max_tsne=0, **section))
        return path

    return made


def test_runs_are_listed_with_their_state_and_figures(tmp_path, evaluated, publish_job, capsys):
    evaluated(tmp_path / "first")
    publish_job(tmp_path / "second", "ingest")
    (tmp_path / "no_run").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    lines = {row[0]: row for row in runs.overview(tmp_path).rows}
    assert set(lines) == {"first", "second", "torn"}
    assert "is damaged" in lines["torn"][4]
    assert lines["first"][1:3] == ("baseline", "none")
    assert lines["first"][4] == "complete"
    assert 0 < float(lines["first"][5]) <= 100
    assert lines["second"][5] == "-"
    with hold(tmp_path / "second"):
        working = {row[0]: row[4] for row in runs.overview(tmp_path).rows}
    assert working["second"].startswith("process ")
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "first" in capsys.readouterr().out
    assert cli.main(["runs", str(tmp_path / "no_run")]) == cli.MISTAKE
    assert "no folder in it has a run.json" in capsys.readouterr().err


def test_a_run_that_lacks_jobs_says_which(tmp_path, publish_job):
    publish_job(tmp_path / "r", "ingest")
    pointer = tmp_path / "r" / "run.json"
    values = json.loads(pointer.read_text()) | {"jobs": ["ingest", "train", "embed"]}
    pointer.write_text(json.dumps(values))
    assert runs.overview(tmp_path).rows[0][4] == "lacks train, embed"


def test_alike_runs_are_compared_in_points(tmp_path, evaluated, capsys):
    one, other = evaluated(tmp_path / "one"), evaluated(tmp_path / "other")
    found = runs.difference(one, other)
    assert found.comparable
    assert (found.recipe, found.stamp) == ({}, {})
    assert cli.main(["diff", str(one), str(other)]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("mAP ")]
    assert line.endswith("+0.0")


def test_unlike_stamps_are_shown_and_their_figures_are_not_ranked(tmp_path, evaluated, capsys):
    one = evaluated(tmp_path / "one")
    other = evaluated(tmp_path / "other", average_precision="trapezoid")
    found = runs.difference(one, other)
    assert found.stamp == {"average_precision": ("rectangle", "trapezoid")}
    assert not found.comparable
    assert cli.main(["diff", str(one), str(other)]) == 0
    said = capsys.readouterr().out
    assert "The protocol stamps differ: these figures must not be ranked" in said
    assert "difference" not in said.splitlines()[-3]


def test_another_release_alone_leaves_figures_comparable(tmp_path, evaluated, monkeypatch):
    one = evaluated(tmp_path / "one")
    monkeypatch.setattr("ray_reid.evaluation.evaluate.VERSION", "9.9")
    found = runs.difference(one, evaluated(tmp_path / "other"))
    assert set(found.stamp) == {"version"}
    assert found.comparable


def test_the_path_of_a_result_is_printed_and_what_is_not_current_is_named(
    tmp_path, publish_job, capsys
):
    folder = publish_job(tmp_path / "r", "train")
    assert cli.main(["path", str(tmp_path / "r"), "train"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert cli.main(["path", str(tmp_path / "r"), "embed"]) == cli.MISTAKE
    assert "has no current 'embed'; it has ['train']" in capsys.readouterr().err


def test_prune_lists_first_and_removes_when_told(tmp_path, publish_job, capsys):
    run = tmp_path / "r"
    old = publish_job(run, "train", "0" * 12)
    publish_job(run, "train", "1" * 12)
    assert cli.main(["prune", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"{old}: 0.0 MB, not current" in said
    assert "to be removed with --yes: 1, 0.0 MB" in said
    assert old.exists()
    assert cli.main(["prune", str(run), "--yes"]) == 0
    assert "removed: 1, " in capsys.readouterr().out
    assert not old.exists()
    assert cli.main(["prune", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: nothing to remove\n"
