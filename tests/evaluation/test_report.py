"""The page of a made-up run directory."""

import json
import re
from dataclasses import replace

import pytest

from ray_reid import pipelines
from ray_reid.evaluation import report
from ray_reid.evaluation.headline import HEADLINE
from ray_reid.runtime.results import RunState

pytestmark = pytest.mark.usefixtures("fake_model")


def test_the_page_is_self_contained_and_escapes_what_people_wrote(
    tmp_path, make_run, publish_evaluation
):
    work = make_run(tmp_path, num_ranked=3, top_k=4, num_maps=2)
    pipelines.write_report(publish_evaluation(tmp_path, work))
    page = (tmp_path / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    # Four pictures of the evaluation and the training curve.
    assert len(sources) == 5
    assert all(re.match("data:image/(png|jpeg);base64,", source) for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "2 files are not images &amp; were &lt;left&gt; out" in page
    assert "2 (corrupt image)" in page
    assert report.DRAWN in page
    for job in ("ingest", "train", "embed", "evaluate"):
        assert f"key-{job}" in page


def test_the_json_file_carries_the_stamp_the_recipe_and_the_profile(
    tmp_path, make_run, publish_evaluation
):
    work = make_run(tmp_path, num_maps=0, max_tsne=0)
    pipelines.write_report(publish_evaluation(tmp_path, work))
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert set(found) == {"metrics", "reference", "stamp", "recipe", "profile"}
    assert (found["recipe"], found["profile"]) == ("baseline", "none")
    assert not list(tmp_path.glob(".metrics.json*"))


def test_a_run_with_few_jobs_or_none_has_a_page_but_no_figures(tmp_path, evaluate_recipe):
    pipelines.write_report(RunState(tmp_path, evaluate_recipe(), {}))
    assert "Nothing is evaluated yet" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "metrics.json").exists()
    assert report.console([]).startswith("nothing is evaluated yet")


def test_figures_of_older_data_are_not_shown_as_if_they_were_of_this(
    tmp_path, make_run, publish_evaluation
):
    state = publish_evaluation(tmp_path, make_run(tmp_path, num_maps=0, max_tsne=0))
    pipelines.write_report(state)
    newer = replace(state, keys={"ingest": state.keys["ingest"]})
    pipelines.write_report(newer)
    assert "Nothing is evaluated yet" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "metrics.json").exists()
    assert report.headline(newer) == {}


@pytest.mark.parametrize("both", [False, True])
def test_the_console_table_has_a_line_for_the_model_and_one_for_the_floor(
    tmp_path, both, make_run, publish_evaluation
):
    work = make_run(tmp_path, num_maps=0, max_tsne=0, both_directions=both)
    lines = pipelines.write_report(publish_evaluation(tmp_path, work)).splitlines()
    assert lines[0].split() == [*HEADLINE]
    assert len(lines) == (6 if both else 4)
    assert lines[1].startswith("model")
    assert lines[-2].startswith("colour histogram")
    assert "18 gallery images" in lines[-1]
    assert "images dropped at ingest: 2" in lines[-1]
    assert lines[-1].endswith(report.DRAWN)


def test_photographs_are_not_called_drawn(tmp_path, evaluate_recipe):
    folder = {"sources": [{"reader": "folder", "root": str(tmp_path)}]}
    recipe = type(evaluate_recipe()).model_validate({"name": "baseline", "ingest": folder})
    pipelines.write_report(RunState(tmp_path, recipe, {}))
    assert report.DRAWN not in (tmp_path / "report.html").read_text()
