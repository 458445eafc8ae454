"""What the generation jobs depend on, what they refuse first, and work handed to Ray."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from ray_reid import pipelines, schema, storage
from ray_reid.experiments import compare
from ray_reid.generation import adapt, generate, review
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.resources import StageSpec
from ray_reid.runtime import run, stage
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.schema import Batch


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("vehicle_diff", "paper", list(overrides))


def _key(job: Job, *overrides: str) -> str:
    return run.content_key(job.name, job.format, _recipe(*overrides), job.sections, {})


# What a job is made from


@pytest.mark.parametrize(
    ("job", "changes", "others"),
    [
        (
            adapt.JOB,
            (
                "seed=1",
                "models.captioner=other",
                "prompts.template=a {colour} {model}",
                "adapt.fraction=0.3",
                "adapt.trainings.0.rank=4",
                "generate.guidance_scale=3",
                "generate.steps=9",
                "generate.image_size=[64, 64]",
                "generate.negative_prompt=blurred",
            ),
            (
                # More identities leave the first ones, by which candidates are judged.
                "prompts.num_identities=8",
                "prompts.images_per_identity=8",
                "generate.quality=80",
                "generate.raw_images=3",
                "generate.licence=CC0",
                "filters=[]",
                "train.epochs=2",
            ),
        ),
        (
            generate.JOB,
            ("prompts.num_identities=8", "generate.quality=80", "filters.0.params.threshold=0.5"),
            ("frechet.num_images=8", "train.epochs=2", "compare.seeds=[5]"),
        ),
        (review.JOB, ("frechet.num_images=8", "models.image_text=other"), ("train.epochs=2",)),
        (compare.JOB, ("compare.seeds=[5]", "train.epochs=2"), ("serve.port=99",)),
    ],
    ids=lambda value: value.name if isinstance(value, Job) else "",
)
def test_a_job_is_redone_for_what_it_depends_on_alone(
    job: Job, changes: tuple[str, ...], others: tuple[str, ...]
) -> None:
    key = _key(job)
    for change in changes:
        assert _key(job, change) != key, change
    for other in others:
        assert _key(job, other) == key, other


def test_resources_within_lists_and_beside_results_do_not_redo_a_job() -> None:
    faster = (
        "filters.0.stage={actors: 9, batch_size: 3, num_gpus: 0}",
        "generate.stage.actors=3",
        "adapt.caption_stage.batch_size=2",
        "adapt.num_cpus=7",
        "adapt.num_gpus=0",
        "compare.num_cpus=3",
        "resources.num_cpus=1",
        "adapt.trainings.0.micro_batch=4",
        "adapt.trainings.0.gradient_checkpointing=false",
    )
    for job in pipelines.PIPELINES["vehicle_diff"]:
        assert _key(job, *faster) == _key(job), job.name


def test_the_manifest_names_single_entries_as_the_job_does() -> None:
    sections = run._sections(_recipe("generate.steps=7"), adapt.JOB.sections)
    assert list(sections) == list(adapt.JOB.sections)
    assert sections["generate.steps"] == 7
    assert "caption_stage" not in sections["adapt"]
    assert [one["rank"] for one in sections["adapt"]["trainings"]] == [8, 8]


def test_jobs_come_after_those_they_need() -> None:
    for jobs in pipelines.PIPELINES.values():
        done: set[str] = set()
        for job in jobs:
            assert set(job.needs) <= done, job.name
            done.add(job.name)
            run._sections(_recipe(), job.sections)


# Refusals before work


def test_every_check_is_made_before_the_first_job_and_leaves_no_run(tmp_path: Path) -> None:
    seen = []

    def work(work: Work) -> Facts:
        seen.append(work)
        return Facts()

    def refuse(recipe: Recipe) -> None:
        raise ValueError(f"no {recipe.name}")

    first = Job("first", work, uses_ray=False)
    last = Job("last", work, check=refuse, uses_ray=False)
    with pytest.raises(ValueError, match="no vehicle_diff"):
        pipelines.perform(_recipe(), tmp_path / "r", [first, last])
    assert not seen
    assert not (tmp_path / "r").exists()


def test_the_training_of_vehicle_diff_reads_what_was_generated() -> None:
    jobs = {job.name: job for job in pipelines.PIPELINES["vehicle_diff"]}
    (plain,) = [job for job in pipelines.PIPELINES["baseline"] if job.name == "train"]
    assert jobs["train"] == replace(plain, needs=("ingest", "generate"))


# Tasks and stages on Ray


def _square(number: int, seconds: float = 0.0, marks: str = "") -> int:
    time.sleep(seconds)
    if number < 0:
        raise ValueError(f"{number} is below 0")
    if marks:
        (Path(marks) / str(number)).touch()
    return number * number


class Refuses:
    """A stage whose model is missing, or that finds a wrong row."""

    def __init__(self, when: str) -> None:
        self.when = when
        if when == "start":
            raise ValueError("model 'x' is not there;\ngive a local folder")

    def __call__(self, batch: Batch) -> Batch:
        if self.when == "call":
            raise KeyError("colour")
        return batch


def test_tasks_give_every_result_with_the_place_of_its_arguments(ray_local: None) -> None:
    arguments = [{"number": number, "seconds": 0.3 * (number == 0)} for number in range(5)]
    found = dict(stage.tasks("square", _square, arguments, num_cpus=0.5))
    assert found == {number: number * number for number in range(5)}
    assert list(stage.tasks("square", _square, [], num_cpus=1)) == []


def test_a_failed_task_is_one_sentence_and_stops_the_others(
    ray_local: None, tmp_path: Path
) -> None:
    slow = [{"number": n, "seconds": 60.0, "marks": str(tmp_path)} for n in range(1, 4)]
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"^square: -3 is below 0$"):
        list(stage.tasks("square", _square, [*slow, {"number": -3}], num_cpus=0.25))
    assert time.monotonic() - started < 60
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "said"),
    [("start", r"^paint: give a local folder$"), ("call", r"^paint: KeyError: 'colour'$")],
)
def test_what_a_stage_refuses_is_one_sentence_without_a_traceback(
    ray_local: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    when: str,
    said: str,
) -> None:
    rows = [{"observation_id": str(n), "image": b"", "source": "s", "split": "train"}
            for n in range(3)]  # fmt: skip
    storage.write(tmp_path / "in", schema.observations(rows))
    step = stage.Step(Refuses, {"when": when}, StageSpec(num_cpus=0.5))
    with pytest.raises(ValueError, match=said) as raised:
        stage.stream(tmp_path / "in", schema.OBSERVATION.names, [step], tmp_path / "out", "paint")
    # Whoever keeps the exception keeps no actor, and so no CPU, with it.
    end = time.monotonic() + 30
    while ray.available_resources()["CPU"] < 2.0:
        assert time.monotonic() < end, f"after {raised.value} something still takes a CPU"
        time.sleep(0.1)
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert logging.getLogger("ray.data").getEffectiveLevel() == logging.CRITICAL


def test_gpus_that_no_machine_has_are_refused_at_once(ray_local: None, tmp_path: Path) -> None:
    columns: dict[str, Any] = {"observation_id": np.array(["a"], dtype=object)}
    storage.write(tmp_path / "in", schema.to_table(columns))
    steps = [stage.Step(Refuses, {"when": "never"}, StageSpec(num_gpus=64.0))] * 2
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=r"paint: num_gpus 64 \+ 64 of its stages is more than the 0"
    ):
        stage.stream(tmp_path / "in", ["observation_id"], steps, tmp_path / "out", "paint")
    assert time.monotonic() - started < 30


def test_the_arms_of_table_six_share_the_adaptation_and_generate_each_their_own() -> None:
    sweep = sweeps.load("vehicle_diff")
    common = [f"{key}={json.dumps(value)}" for key, value in sweep.overrides.items()]
    for profile in ("miniature", "paper"):
        recipe = recipes.load("vehicle_diff", profile, common)
        arms = [recipes.override(recipe, one.changes) for one in sweeps.settings(sweep)]
        assert [one.name for one in sweeps.settings(sweep)] == ["raw", "adapted", "filtered"]
        keys = {
            job.name: {run.content_key(job.name, job.format, arm, job.declared(arm), {})
                       for arm in arms}
            for job in (adapt.JOB, generate.JOB)
        }  # fmt: skip
        assert (len(keys["adapt"]), len(keys["generate"])) == (1, 3)
        assert {arm.train.mixing for arm in arms} == {"synthetic"}
        assert {arm.train.synthetic_fraction for arm in arms} == {1.0}
        raw, adapted, filtered = arms
        assert (raw.generate.candidate, adapted.generate.candidate) == ("none", None)
        assert raw.filters == adapted.filters == ()
        assert [one.name for one in filtered.filters] == ["detection", "colour"]


def test_the_profiles_of_the_papers_say_what_the_papers_count() -> None:
    vehicles, people = _recipe(), recipes.load("dlcr", "paper")
    # Table VII: 45,338 of the 149,472 images that pass the filters.
    assert round(vehicles.train.synthetic_fraction * 149_472) == pytest.approx(45_338, abs=10)
    (size,) = {spec.params["min_side"] for spec in vehicles.filters if "min_side" in spec.params}
    assert size * 1024 == 250
    models = {lora.model or vehicles.models.text_to_image for lora in vehicles.adapt.trainings}
    assert len(models) == len(vehicles.adapt.trainings) > 1
    assert {lora.blocks for lora in vehicles.adapt.trainings} == {("up_blocks",)}
    # Table 1 counts K images for every source image.
    assert (people.filters, people.outfits.num_outfits) == ((), 10)
