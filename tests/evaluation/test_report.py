"""The page of a made-up run directory."""

import json
import re
from dataclasses import asdict

import pytest

from ray_reid.evaluation import report
from ray_reid.runtime.run import Manifest

pytestmark = pytest.mark.usefixtures("fake_model")


def test_the_page_is_self_contained_and_escapes_what_people_wrote(
    tmp_path, make_run, publish_evaluation
):
    work = make_run(tmp_path, num_ranked=3, top_k=4, num_maps=2)
    report.write_report(tmp_path, work.recipe, publish_evaluation(tmp_path, work))
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


def test_the_page_says_which_epoch_was_taken(tmp_path, evaluate_recipe):
    found = {"identities": 20, "images": 90, "epoch": 4, "mAP": 0.8124, "rank-1": 0.9}
    history = [{"epoch": 0, "loss": 1.0, "validation_mAP": 0.8124}]
    facts = {"history": history, "validation": found}
    manifest = Manifest("train", "key", "0", None, {}, {}, facts, 1.0)
    report.write_report(tmp_path, evaluate_recipe(), [manifest])
    page = (tmp_path / "report.html").read_text()
    assert "those of epoch 5: validation mAP 81.2 % among 20 training identities" in page
    facts["validation"] = None
    report.write_report(tmp_path, evaluate_recipe(), [manifest])
    assert "held out" not in (tmp_path / "report.html").read_text()


def test_the_json_file_carries_the_stamp_the_recipe_and_the_profile(
    tmp_path, make_run, publish_evaluation
):
    work = make_run(tmp_path, num_maps=0, max_tsne=0)
    report.write_report(tmp_path, work.recipe, publish_evaluation(tmp_path, work))
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert set(found) == {"metrics", "reference", "stamp", "recipe", "profile"}
    assert (found["recipe"], found["profile"]) == ("baseline", "none")
    assert not list(tmp_path.glob(".metrics.json*"))


def test_a_run_with_few_jobs_or_none_has_a_page_but_no_figures(tmp_path, evaluate_recipe):
    report.write_report(tmp_path, evaluate_recipe(), [])
    assert "Nothing is evaluated yet" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "metrics.json").exists()
    assert report.summary_table(tmp_path).startswith("nothing is evaluated yet")


def test_figures_of_older_data_are_not_shown_as_if_they_were_of_this(
    tmp_path, make_run, publish_evaluation
):
    work = make_run(tmp_path, num_maps=0, max_tsne=0)
    manifests = publish_evaluation(tmp_path, work)
    manifest = tmp_path / "ingest" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("key-ingest", "another"))
    report.write_report(tmp_path, work.recipe, manifests)
    assert "Nothing is evaluated yet" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "metrics.json").exists()
    assert report.headline(tmp_path) == {}


@pytest.mark.parametrize("both", [False, True])
def test_the_console_table_has_a_line_for_the_model_and_one_for_the_floor(
    tmp_path, both, make_run, publish_evaluation
):
    work = make_run(tmp_path, num_maps=0, max_tsne=0, both_directions=both)
    publish_evaluation(tmp_path, work)
    lines = report.summary_table(tmp_path).splitlines()
    assert lines[0].split() == ["mAP", "rank-1", "rank-5", "rank-10", "mINP"]
    assert len(lines) == (7 if both else 5)
    assert lines[1].startswith("model")
    assert lines[-3].startswith("colour histogram")
    assert "18 gallery images" in lines[-2]
    assert "images dropped at ingest: 2" in lines[-2]
    assert lines[-1] == report.DRAWN


def test_photographs_are_not_called_drawn(tmp_path, evaluate_recipe):
    folder = {"sources": [{"reader": "folder", "root": str(tmp_path)}]}
    recipe = type(evaluate_recipe()).model_validate({"name": "baseline", "ingest": folder})
    report.write_report(tmp_path, recipe, [])
    assert report.DRAWN not in (tmp_path / "report.html").read_text()


STAGE = {"num_images": 40, "extractor": "image_text"}
GENERATED = {
    "adapt": {
        "candidates": [
            {"name": "none", "fid": 0.9, "agreement": 0.5, "score": 0.1},
            {"name": "0-<100>", "fid": 0.4, "agreement": 0.6, "score": 0.8},
        ]
    },
    "generate": {"candidate": "0-<100>"},
    "filter": {
        "counts": {"made": 50, "kept": 40, "dropped": {"colour": 3, "confidence": 7}},
        "stages": [
            {"stage": "raw", "identities": 0, "images": 0, "fid": None}
            | {"num_images": None, "extractor": None},
            {"stage": "adapted", "identities": 6, "images": 50, "fid": 0.25, **STAGE},
            {"stage": "filtered", "identities": 5, "images": 40, "fid": 0.2, **STAGE},
        ],
    },
    "compare": {
        "table": [
            {"arm": "real", "real_images": 80, "synthetic_images": 0, "seeds": [0, 1]}
            | {"mAP": {"mean": 0.5, "std": 0.012, "values": [0.49, 0.51]}},
            {"arm": "both", "real_images": 80, "synthetic_images": 40, "seeds": [0]}
            | {"mAP": {"mean": 0.6, "std": 0.0, "values": [0.6]}, "rank-1": {"mean": 0.7}},
        ]
    },
}


def publish_generated(run, **inputs):
    """Publish the jobs of generation beside a made-up ingest, as far as the report reads them."""
    ingest = {"sources": [{"reader": "miniature"}]}
    for job, facts in {"ingest": ingest, **GENERATED}.items():
        own = inputs.get(job, {"outside": "files"} if job == "ingest" else {"ingest": "key-ingest"})
        manifest = Manifest(job, f"key-{job}", "0", None, {}, own, facts, 1.0)
        (run / job).mkdir(exist_ok=True)
        (run / job / "manifest.json").write_text(json.dumps(asdict(manifest)))


def test_the_tables_of_generation_are_laid_out_with_what_they_were_measured_on(tmp_path):
    publish_generated(tmp_path)
    adaptation, stages, verdicts, compared = report.tables(tmp_path)
    assert adaptation.rows[1] == ("0-<100>", "0.400", "0.600", "0.800", "taken")
    assert [row[1:] for row in stages.rows] == [
        ("-", "-", "-"),
        ("6", "50", "0.250"),
        ("5", "40", "0.200"),
    ]
    assert "40 images of either, features of image_text" in stages.note
    assert stages.note.endswith(report.DRAWN)
    assert verdicts.rows == (
        ("kept", "40", "80.0 %"),
        ("dropped: confidence", "7", "14.0 %"),
        ("dropped: colour", "3", "6.0 %"),
    )
    assert compared.header[4:] == ("mAP", "rank-1")
    assert compared.rows[0] == ("real", "80", "0", "2", "50.0 +- 1.2 %", "-")
    assert compared.rows[1] == ("both", "80", "40", "1", "60.0 %", "70.0 %")


def test_the_tables_of_generation_are_on_the_page_and_on_the_console(tmp_path, evaluate_recipe):
    publish_generated(tmp_path)
    report.write_report(tmp_path, evaluate_recipe(), [])
    page = (tmp_path / "report.html").read_text()
    for title in ("Adaptation", "Generated images", "Filters", "Comparison"):
        assert f"<h2>{title}</h2>" in page
    assert "0-&lt;100&gt;" in page
    said = report.summary_table(tmp_path)
    assert said.startswith("nothing is evaluated yet")
    candidate, *rows = said.split("\n\n")[1].splitlines()[:3]
    # Numbers stand below the ends of their names.
    assert [row.index("0.9") + len("0.900") for row in rows[:1]] == [
        candidate.index("Frechet distance") + len("Frechet distance")
    ]
    assert all(line.isascii() and line == line.rstrip() for line in said.splitlines())


def test_tables_of_jobs_that_rest_on_older_ones_are_left_out(tmp_path):
    publish_generated(
        tmp_path, filter={"adapt": "key-older"}, compare={"filter": "key-filter", "outside": "x"}
    )
    assert [table.title for table in report.tables(tmp_path)] == ["Adaptation"]
