"""The order of the jobs, what each reads of the recipe, and the report of all that they say."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_reid import pipelines, places, storage
from ray_reid.evaluation import report
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.results import RunState
from ray_reid.training import outcome, train
from tests import buckets

STAGE = {"num_images": 40, "extractor": "image_text"}
GENERATED: dict[str, dict[str, Any]] = {
    "adapt": {
        "candidates": [
            {"name": "none", "fid": 0.9, "agreement": 0.5, "score": 0.1},
            {"name": "0-<100>", "fid": 0.4, "agreement": 0.6, "score": 0.8},
        ],
        "best": "0-<100>",
    },
    "generate": {"candidate": "0-<100>"},
    "review": {
        "made": 50,
        "kept": 40,
        "dropped": {"colour": 3, "confidence": 7},
        "stages": [
            {"stage": "raw", "identities": 0, "images": 0},
            {"stage": "adapted", "identities": 6, "images": 50, "fid": 0.25, **STAGE},
            {"stage": "filtered", "identities": 5, "images": 40, "fid": 0.2, **STAGE},
        ],
    },
    "compare": {
        "table": [
            {"setting": "real", "real_images": 80, "synthetic_images": 0, "seeds": [0, 1]}
            | {"mAP": {"mean": 0.5, "std": 0.012, "values": [0.49, 0.51]}},
            {"setting": "both", "real_images": 80, "synthetic_images": 40, "seeds": [0]}
            | {"mAP": {"mean": 0.6, "std": 0.0, "values": [0.6]}, "rank-1": {"mean": 0.7}},
        ]
    },
}


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("baseline", "miniature", list(overrides))


@pytest.fixture
def generated(tmp_path: Path, publish_job: Callable[..., Path]) -> RunState:
    """The jobs of generation beside a made-up ingest."""
    publish_job(tmp_path, "ingest", facts={"sources": [{"reader": "miniature"}]}, recipe=_recipe())
    for job, facts in GENERATED.items():
        publish_job(tmp_path, job, inputs={"ingest": "key-ingest"}, facts=facts)
    return RunState.read(tmp_path)


def test_the_tables_of_generation_are_laid_out_with_what_they_were_measured_on() -> None:
    facts = {job: pipelines.JOBS[job].facts.model_validate(said) for job, said in GENERATED.items()}
    sections = [pipelines.JOBS[job].report(said) for job, said in facts.items()]
    adaptation, stages, verdicts, compared = (
        table for section in sections for table in section.tables
    )
    assert adaptation.rows[1] == ("0-<100>", "0.400", "0.600", "0.800", "best")
    assert [row[1:] for row in stages.rows] == [
        ("-", "-", "-"),
        ("6", "50", "0.250"),
        ("5", "40", "0.200"),
    ]
    assert "40 images of either, features of image_text" in stages.note
    assert (stages.measured, verdicts.measured) == (True, False)
    assert verdicts.rows == (
        ("kept", "40", "80.0 %"),
        ("dropped: confidence", "7", "14.0 %"),
        ("dropped: colour", "3", "6.0 %"),
    )
    assert compared.header[4:] == ("mAP", "rank-1")
    assert compared.rows[0] == ("real", "80", "0", "2", "50.0 +- 1.2 %", "-")
    assert compared.rows[1] == ("both", "80", "40", "1", "60.0 %", "70.0 %")


def test_the_tables_of_generation_are_on_the_page_and_on_the_console(
    generated: RunState, tmp_path: Path
) -> None:
    said = pipelines.write_report(generated)
    page = (tmp_path / "report.html").read_text()
    for title in ("Adaptation", "Generated images", "Filters", "Comparison"):
        assert f"<h2>{title}</h2>" in page
    assert "0-&lt;100&gt;" in page
    assert "Generated with the candidate 0-&lt;100&gt;." in page
    assert page.count(report.DRAWN) == said.count(report.DRAWN) + 1 == 3
    assert said.startswith("nothing is evaluated yet")
    candidate, *rows = said.split("\n\n")[1].splitlines()[:3]
    # Numbers stand below the ends of their names.
    assert [row.index("0.9") + len("0.900") for row in rows[:1]] == [
        candidate.index("Frechet distance") + len("Frechet distance")
    ]
    assert all(line.isascii() and line == line.rstrip() for line in said.splitlines())


def test_the_page_says_which_epoch_was_taken() -> None:
    taken = {"identities": 20, "images": 90, "epoch": 4, "figures": {"mAP": 0.8124}}
    history = [{"epoch": 0, "loss": 1.0, "validation_mAP": 0.8124}]
    facts = outcome.TrainFacts.model_validate({"history": history, "validation": taken})
    (drawing,) = outcome.section(facts).drawings
    assert "those of epoch 5: validation mAP 81.2 % among 20 training identities" in drawing.caption
    (drawing,) = outcome.section(facts.model_copy(update={"validation": None})).drawings
    assert "held out" not in drawing.caption


def test_what_chooses_the_epoch_of_a_validation_is_part_of_the_key_of_train() -> None:
    plain, validated = _recipe(), _recipe("train.validation=0.25")
    assert "embed.flip" not in train.JOB.declared(plain)
    for entry in ("embed.flip", "embed.scales", "evaluate.average_precision"):
        assert entry in train.JOB.declared(validated)


def test_what_crops_is_part_of_the_key_of_embed() -> None:
    job = pipelines.JOBS["embed"]
    assert "models.precision" not in job.declared(_recipe())
    assert "models.precision" in job.declared(_recipe("embed.crop={}"))


TINY = [
    "ingest.sources=[{reader: miniature, num_train: 8, num_test: 6, cameras_per_identity: 2}]",
    "ingest.use={}",
    "ingest.stage.actors=1",
    "embed.stage={actors: 1, batch_size: 64}",
    "evaluate.num_maps=0",
    "evaluate.max_tsne=0",
    "train.backbone=resnet10t",
    "train.validation=0.5",
    "train.cpus_per_worker=1",
    "compare.arms={cropped: {embed.crop: {}}}",
    "compare.seeds=[0]",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "vehiclenet",
            [
                "train.sampler.batch_size=4",
                "train.stages=[{name: I, changes: {epochs: 1, milestones: [0.5]}}]",
            ],
        ),
        ("clip_senet", ["train.epochs=1", "train.sampler={num_identities: 2, num_instances: 2}"]),
    ],
)
def test_every_job_reads_only_what_it_declares(
    name: str, changes: list[str], tmp_path: Path, ray_local: None
) -> None:
    """The pipelines that no other test runs whole, with validation, crops and a comparison."""
    recipe = recipes.load(name, "miniature", [*TINY, *changes, "embed.crop={}"])
    pipelines.run(recipe, tmp_path / "run")
    state = RunState.read(tmp_path / "run")
    assert 0 < report.headline(state)["mAP"] <= 1
    assert list(state.jobs) == [job.name for job in pipelines.PIPELINES[name]]
    assert set(state.keys) == set(state.jobs)


PEOPLE = (
    "ingest.sources=[{reader: miniature, kind: pedestrian, num_train: 4, num_test: 4, "
    "images_per_camera: 2, cameras_per_identity: 2, image_size: [96, 48]}]"
)
SHORT = ("embed.stage={batch_size: 16}", "evaluate.max_tsne=0", "train.cpus_per_worker=1")
GENERATING = {
    "vehicle_diff": [
        "ingest.sources=[{reader: miniature, num_train: 8, num_test: 6, cameras_per_identity: 3}]",
        "prompts={num_identities: 4, images_per_identity: 2}",
        "adapt.trainings=[{rank: 2, epochs: 2, warmup_epochs: 1, keep_epochs: []}]",
        "adapt.num_prompts=2",
        "generate.steps=2",
        "train.backbone=resnet10t",
        "train.batches_per_epoch=3",
        "train.epochs=1",
        "train.real_fraction=0.5",
        "train.sampler={num_identities: 4, num_instances: 2}",
        "compare={seeds: [0], arms: {real: {train.mixing: real}}}",
    ],
    "dlcr": [
        PEOPLE,
        "outfits.num_outfits=2",
        "generate.steps=2",
        "guidance={num_images: 8, steps: 4}",
        "train.sampler={kind: progressive, num_identities: 4, num_instances: 2, widen_every: 1}",
        "train.epochs=2",
        "train.batches_per_epoch=2",
        "train.clothes.start_epoch=1",
        "refine={num_variants: 2, steps: 2}",
        "compare.arms={}",
    ],
}


@pytest.mark.drill
@pytest.mark.parametrize("name", list(GENERATING))
def test_a_pipeline_that_generates_makes_in_a_bucket_what_it_makes_on_a_disk(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("moto", reason="moto is the S3 double; the extra `dev` has it")
    options = [part for one in (*SHORT, *GENERATING[name]) for part in ("--set", one)]
    options += ["--set", f"gallery.path={tmp_path / 'gallery'}"]
    with buckets.served():
        made: list[Place] = [tmp_path / "run", buckets.new_bucket() / "run"]
        for path in made:
            # A process of its own, because a Ray that is there knows nothing of the server.
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "ray_reid.cli",
                    "run",
                    name,
                    "--profile",
                    "miniature",
                    "--run",
                    str(path),
                    *options,
                ],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            places.remove(tmp_path / "gallery")
        disk, bucket = map(RunState.read, made)
        assert disk.keys == bucket.keys
        assert list(disk.tables()) == list(bucket.tables())
        for table, path in disk.tables().items():
            assert storage.fingerprint(path, table) == storage.fingerprint(
                bucket.tables()[table], table
            )
        assert report.headline(disk) == report.headline(bucket)


def test_a_personalisation_waits_for_what_it_reads_alone() -> None:
    def needs(*overrides: str) -> tuple[str, ...]:
        recipe = recipes.load("diffusion_reid", "miniature", overrides)
        jobs = {job.name: job for job in pipelines.of_recipe(recipe)}
        assert set(jobs["personalise"].needs) <= set(jobs)
        return jobs["personalise"].inputs(recipe)

    assert needs() == ("ingest", "enhance", "teachers")
    assert needs("filters=[{name: category}]") == ("ingest", "enhance")
    assert needs("filters=[]", "personalise.prompts=edited.parquet") == ("ingest",)
