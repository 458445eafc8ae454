"""The teachers job and the filters that ask its models, on people who are plain colours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_reid
from ray_reid import images, schema, storage
from ray_reid.generation import judges, kept_identity, sheets, teachers, teaching
from ray_reid.generation.filters.category import CategoryFilter
from ray_reid.generation.filters.classifier import ClassifierFilter
from ray_reid.generation.filters.reid import ReidFilter
from ray_reid.generation.filters.steps import check_filters, check_given, filter_steps
from ray_reid.generation.teaching import Lesson
from ray_reid.images import Pixels
from ray_reid.models import package
from ray_reid.places import Place
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.job import Job, Work
from ray_reid.schema import Batch

SIZE = (32, 16)
TRAIN = {
    "backbone": "resnet10t", "image_size": [32, 16], "epochs": 4, "batches_per_epoch": 10,
    "sampler": {"num_identities": 4, "num_instances": 4}, "learning_rate": 2e-3,
    "precision": "fp32", "augment": {"erase": 0, "hue": 0},
}  # fmt: skip
COLOURS = (
    (230, 40, 40), (40, 200, 40), (40, 60, 230), (230, 220, 40),
    (40, 220, 220), (220, 40, 220), (240, 240, 240), (30, 30, 30),
)  # fmt: skip


def person(number: int, seed: int) -> Pixels:
    """An identity is the colour of its upper half; all else is chance."""
    chance = np.random.default_rng(seed)
    picture = chance.integers(60, 190, (*SIZE, 3))
    picture[:16] = COLOURS[number]
    return np.clip(picture + chance.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)


def rows_of(source: str, people: range, each: int = 6) -> list[dict[str, Any]]:
    return [
        {
            schema.OBSERVATION_ID: schema.observation_id(source, number, place),
            schema.IMAGE: images.encode_png(person(number, 100 * number + place)),
            schema.IDENTITY: f"{source}:{number}",
            schema.CAMERA: f"c{place % 2}",
            schema.SOURCE: source,
            schema.SPLIT: "train",
        }
        for number in people
        for place in range(each)
    ]


def recipe_of(**section: Any) -> Recipe:
    values = {"train": TRAIN, "judge": "halves"} | section
    return recipes.validate({"name": "diffusion_reid", "teachers": values})


def here(job: str, lessons: list[Lesson], states: Place, *resources: float) -> None:
    """Train in this process, without Ray."""
    states.mkdir(parents=True, exist_ok=True)
    for lesson in lessons:
        teaching.teach(lesson, states / teaching.state_name(lesson), lambda *_: None)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of ingest: eight people, and a test image."""
    root = tmp_path_factory.mktemp("ingest")
    rows = rows_of("market", range(8))
    query = {**rows[0], schema.OBSERVATION_ID: "q", schema.SPLIT: "query"}
    storage.write(root / "observations", schema.observations([*rows, query]))
    return root


def work_of(table: Path, out: Path, recipe: Recipe, job: Job = teachers.JOB) -> Work:
    out.mkdir(parents=True, exist_ok=True)
    return Work(job.view(recipe), out, {"ingest": table}, {"ingest": {}})


@pytest.fixture(scope="module")
def taught(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The result of the job, and its facts."""
    out = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "perform", here)
        facts = teachers.teachers_job(work_of(table, out, recipe_of()))
    return out, facts


@pytest.fixture(scope="module")
def judged(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The result of the job judges, and its facts."""
    out = tmp_path_factory.mktemp("judges")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "perform", here)
        facts = judges.judges_job(work_of(table, out, recipe_of(), judges.JOB))
    return out, facts


def batch(pictures: list[Pixels], people: list[int | str], source: str = "market") -> Batch:
    def objects(values: list[Any]) -> Any:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    empty: list[Any] = [None] * len(pictures)
    return {
        schema.PIXELS: objects([images.pack(one) for one in pictures]),
        schema.IDENTITY: objects([f"{source}:{one}" for one in people]),
        schema.SCORES: objects(empty),
        schema.DROP_REASON: objects(empty),
    }


def noise(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


# The job


def test_every_source_has_a_package_with_the_features_of_its_training_images(
    taught: tuple[Path, Any],
) -> None:
    out, facts = taught
    (one,) = facts.teachers
    assert (one.source, one.images, one.identities) == ("market", 48, 8)
    model = ray_reid.load(out / "market")
    assert model.identities == [f"market:{number}" for number in range(8)]
    rows, embedding = teaching.read_features(out / "market")
    assert rows.num_rows == len(embedding) == 48
    first = images.encode_png(person(0, 0))
    place = rows[schema.OBSERVATION_ID].to_pylist().index(schema.observation_id("market", 0, 0))
    np.testing.assert_allclose(model.embed([first])[0], embedding[place], atol=1e-4)
    assert set(rows[schema.CAMERA].to_pylist()) == {"market:c0", "market:c1"}
    curves = teaching.read_false_matches(out / "market")
    assert curves["centroid"].impostors == 48 * 7
    assert teachers.section(facts).tables[0].rows[0][:2] == ("market", "centroid")


def test_a_judge_has_seen_no_identity_that_it_judges(judged: tuple[Path, Any]) -> None:
    out, facts = judged
    assert facts.judges == 2
    seen: list[str] = []
    for judge in teaching.folders_in(out):
        known = set(package.load(judge).identities)
        rows, _ = teaching.read_features(judge)
        own = set(rows[schema.IDENTITY].to_pylist())
        assert not own & known
        seen += own
    assert sorted(seen) == [f"market:{number}" for number in range(8)]


def test_a_finished_model_is_not_trained_again(taught: tuple[Path, Any], table: Path) -> None:
    out, _ = taught
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert len(before) == 1
    own = teaching.training_of(recipe_of(), "market")
    lesson = Lesson(own, table / "observations", out / "market")
    assert lesson.is_done
    teaching.teach(lesson, out / "none.pt", lambda *_: None)
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.slow
def test_models_are_trained_side_by_side_on_ray_and_once(
    ray_local: None, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(train=TRAIN | {"epochs": 1, "batches_per_epoch": 2}, num_cpus=0.5)
    first = judges.judges_job(work_of(table, tmp_path, recipe, judges.JOB))
    assert first.judges == 2
    monkeypatch.delattr(teaching.stage, "tasks")
    assert judges.judges_job(work_of(table, tmp_path, recipe, judges.JOB)) == first


def test_a_killed_training_goes_on_from_its_last_epoch_and_ends_the_same(
    table: Path, tmp_path: Path
) -> None:
    own = teaching.training_of(recipe_of(train=TRAIN | {"epochs": 2}), "market")
    whole = Lesson(own, table / "observations", tmp_path / "whole")
    teaching.teach(whole, tmp_path / "whole.pt", lambda *_: None)

    class KilledError(Exception):
        pass

    done: list[int] = []

    def until(batches: int, _: int) -> None:
        done.append(batches)
        if batches == 13 and len(done) == 13:
            raise KilledError

    part = Lesson(own, table / "observations", tmp_path / "part")
    with pytest.raises(KilledError):
        teaching.teach(part, tmp_path / "part.pt", until)
    teaching.teach(part, tmp_path / "part.pt", until)
    assert done == [*range(1, 14), *range(11, 21)]
    weights = [(tmp_path / name / package.WEIGHTS).read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]


def test_a_package_is_taken_in_the_place_of_a_training(
    taught: tuple[Path, Any], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = taught
    monkeypatch.setattr(teachers, "perform", here)
    recipe = recipe_of(packages={"market": str(out / "market")}, judge=None)
    teachers.check(recipe)
    (one,) = teachers.teachers_job(work_of(table, tmp_path / "out", recipe)).teachers
    assert one.taken == str(out / "market")
    nobody = work_of(table, tmp_path / "none", recipe, judges.JOB)
    assert judges.judges_job(nobody).judges == 0
    pair = [teaching.read_features(place / "market")[1] for place in (out, tmp_path / "out")]
    np.testing.assert_allclose(*pair, atol=1e-5)


def _relabelled(folder: Path, source: str, labels: Callable[[int], str]) -> Path:
    for name in (package.WEIGHTS, package.RECIPE, package.PREPROCESSING):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((Path(source) / name).read_bytes())
    (folder / package.LABELS).write_text(json.dumps([labels(n) for n in range(8)]))
    return folder


def test_a_teacher_of_another_data_set_is_one_sentence(
    taught: tuple[Path, Any], tmp_path: Path
) -> None:
    other = _relabelled(tmp_path / "other", str(taught[0] / "market"), lambda n: f"msmt17:{n}")
    said = r"teachers.packages.market '.*other' was trained on \['msmt17'\], not on 'market'; give"
    with pytest.raises(ValueError, match=said):
        teachers.check(recipe_of(packages={"market": str(other)}))
    imported = _relabelled(tmp_path / "peer", str(taught[0] / "market"), lambda n: f"imported:{n}")
    teachers.check(recipe_of(packages={"market": str(imported)}))
    asks = recipe_of(packages={"market": str(imported)}).model_dump(mode="json")
    asking = recipes.validate(asks | {"filters": [{"name": "classifier"}]})
    with pytest.raises(ValueError, match="does not say which identities it was trained on, so the"):
        teachers.check(asking)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"train": TRAIN | {"pretrained": "nowhere"}}, "teachers.train.pretrained"),
        ({"train": TRAIN | {"backbone": "resnet", "pretrained": "x"}}, "teachers.train: timm has"),
        ({"packages": {"market": "nowhere"}}, "teachers.packages.market: no model package at"),
    ],
)
def test_what_cannot_be_trained_or_taken_is_refused_first(
    section: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        teachers.check(recipe_of(**section))


@pytest.mark.parametrize(
    "change",
    [{"num_workers": 2}, {"mixing": "shuffled"}, {"validation": 0.1}, {"sources": ["market"]}],
)
def test_a_teacher_is_one_training_of_real_images(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=f"teachers.train.{name} is "):
        recipe_of(train=TRAIN | change)


def test_sources_and_packages_are_held_against_each_other(
    taught: tuple[Path, Any], table: Path, tmp_path: Path
) -> None:
    package_of = str(taught[0] / "market")
    recipe = recipe_of(packages={"market": package_of}, judge=package_of)
    with pytest.raises(ValueError, match="was trained on 'market', whose images it is to judge"):
        judges.judges_job(work_of(table, tmp_path / "a", recipe, judges.JOB))
    recipe = recipe_of(packages={"duke": package_of})
    with pytest.raises(ValueError, match=r"duke names no source of this run; choose from \['mark"):
        teachers.teachers_job(work_of(table, tmp_path / "b", recipe))


def test_unlabelled_sources_have_no_teacher(tmp_path: Path) -> None:
    rows = [{**row, schema.IDENTITY: None} for row in rows_of("market", range(2))]
    storage.write(tmp_path / "observations", schema.observations(rows))
    with pytest.raises(ValueError, match="labelled training images, and the sources have none"):
        teachers.teachers_job(work_of(tmp_path, tmp_path / "out", recipe_of()))


def test_a_source_of_few_identities_is_not_judged_and_the_report_says_so(tmp_path: Path) -> None:
    storage.write(tmp_path / "observations", schema.observations(rows_of("market", range(3))))
    facts = judges.judges_job(work_of(tmp_path, tmp_path / "out", recipe_of(), judges.JOB))
    assert facts.judges == 0
    (warning,) = judges.section(facts).warnings
    assert "'market' has 3 identities, and halves of fewer than 4 teach nothing" in warning


def test_a_judge_that_is_not_there_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"teachers\.judge: no model package at 'nowhere'"):
        judges.check(recipe_of(judge="nowhere"))


def test_half_of_few_identities_that_fills_no_batch_is_one_sentence(
    table: Path, tmp_path: Path
) -> None:
    sampler = {"num_identities": 6, "num_instances": 2}
    recipe = recipe_of(train=TRAIN | {"sampler": sampler})
    with pytest.raises(
        ValueError,
        match=r"teachers.train on half of the identities of source 'market': train.sampler: ",
    ):
        judges.judges_job(work_of(table, tmp_path, recipe, judges.JOB))


# The filters


def test_the_reid_filter_tells_the_own_identity_from_others(
    taught: tuple[Path, Any],
) -> None:
    pictures = [person(n, 9_000 + n) for n in range(8)]
    own, others = list(range(8)), [(n + 1) % 8 for n in range(8)]
    for against in ("centroid", "nearest"):
        stage = ReidFilter(str(taught[0]), against, far=0.05)  # type: ignore[arg-type]
        kept = stage(batch(pictures, own))
        swapped = stage(batch(pictures, others))
        rubbish = stage(batch([noise(n) for n in range(8)], own))
        passed, likeness = (
            [
                float(np.mean([one[name] for one in found[schema.SCORES]]))
                for found in (kept, swapped, rubbish)
            ]
            for name in ("passed_reid", "reid")
        )
        assert passed[0] >= 7 / 8
        assert passed[1] <= 1 / 8
        # The rate is one of other people: noise is less like an identity, but no other one.
        assert likeness[2] < likeness[0]
        for scores, reason in zip(swapped[schema.SCORES], swapped[schema.DROP_REASON], strict=True):
            if not scores["passed_reid"]:
                assert reason.startswith(f"reid: similarity {scores['reid']:.3f} to the {against}")


def test_similarities_of_the_filter_are_those_of_a_loop(taught: tuple[Path, Any]) -> None:
    out, _ = taught
    model = ray_reid.load(out / "market")
    rows, embedding = teaching.read_features(out / "market")
    names = np.array(rows[schema.IDENTITY].to_pylist())
    picture = person(3, 77)
    (vector,) = model.embed([picture])
    own = embedding[names == "market:3"]
    centre = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
    for against, expected in (("centroid", centre @ vector), ("nearest", (own @ vector).max())):
        stage = ReidFilter(str(out), against, threshold=0.0)  # type: ignore[arg-type]
        (scores,) = stage(batch([picture], [3]))[schema.SCORES]
        assert scores["reid"] == pytest.approx(float(expected), abs=1e-5)


def test_a_given_threshold_holds_for_all_sources_and_keeps_at_it(taught: tuple[Path, Any]) -> None:
    rows = batch([person(0, 5)], [0])
    (similarity,) = [
        one["reid"] for one in ReidFilter(str(taught[0]), threshold=-1)(rows)[schema.SCORES]
    ]
    for threshold, kept in ((similarity, 1.0), (similarity + 1e-4, 0.0)):
        (scores,) = ReidFilter(str(taught[0]), threshold=threshold)(rows)[schema.SCORES]
        assert scores["passed_reid"] == kept


def test_the_classifier_is_sure_of_the_own_identity_alone(taught: tuple[Path, Any]) -> None:
    stage = ClassifierFilter(str(taught[0]), threshold=0.3)
    pictures = [person(n, 500 + n) for n in range(8)]
    own = stage(batch(pictures, list(range(8))))
    other = stage(batch(pictures, [(n + 3) % 8 for n in range(8)]))
    assert sum(one["passed_classifier"] for one in own[schema.SCORES]) >= 7
    assert sum(one["passed_classifier"] for one in other[schema.SCORES]) == 0
    model = ray_reid.load(taught[0] / "market")
    shares = model.probabilities(pictures)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    found = [one["classifier"] for one in own[schema.SCORES]]
    np.testing.assert_allclose(found, np.diag(shares), atol=1e-5)


def test_an_identity_that_no_teacher_has_seen_is_one_sentence(taught: tuple[Path, Any]) -> None:
    for stage in (ReidFilter(str(taught[0]), far=0.05), ClassifierFilter(str(taught[0]))):
        with pytest.raises(ValueError, match=r"no teacher has seen the identity 'duke:1'; there"):
            stage(batch([person(0, 0)], [1], source="duke"))


def test_a_rate_that_is_too_low_for_the_source_is_one_sentence(taught: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match="filter reid, source 'market': far 1e-05 needs"):
        ReidFilter(str(taught[0]), far=1e-5)
    # And before anything is loaded or made.
    low = {"name": "x", "filters": [{"name": "reid", "params": {"far": 1e-5}}]}
    with pytest.raises(ValueError, match="filter reid, source 'market': far 1e-05 needs"):
        check_given(recipes.validate(low), {"teachers": taught[0]})
    low["filters"][0]["params"]["threshold"] = 0.5  # type: ignore[index]
    check_given(recipes.validate(low), {"teachers": taught[0]})


def test_filters_that_need_teachers_are_refused_where_no_job_trains_them() -> None:
    recipe = recipes.validate({"name": "x", "filters": [{"name": "reid", "params": {"far": 0.1}}]})
    with pytest.raises(ValueError, match="filter 'reid' asks the models of the job 'teachers'"):
        check_filters(recipe)
    check_filters(recipe, jobs=("teachers",))
    (step,) = filter_steps(recipe, {"teachers": Path("/somewhere")})
    assert step.params == {"teachers": "/somewhere", "far": 0.1}
    wrong = recipes.validate({"name": "x", "filters": [{"name": "reid", "params": {"against": 1}}]})
    with pytest.raises(ValueError, match="filter reid: against is 1: "):
        check_filters(wrong, jobs=("teachers",))


def test_the_category_is_a_softmax_over_scaled_similarities(
    tiny_models: Any, tmp_path: Path
) -> None:
    tiny_models.image_text(tmp_path / "clip")
    stage = CategoryFilter(str(tmp_path / "clip"), others=("a dog", "a car"), threshold=0.4)
    pictures = [noise(n) for n in range(5)]
    found = stage(batch(pictures, [0] * 5))
    texts = stage.model.embed_texts(["a person", "a dog", "a car"])
    for picture, scores, reason in zip(
        pictures, found[schema.SCORES], found[schema.DROP_REASON], strict=True
    ):
        (vector,) = stage.model.embed_images([picture])
        powers = [np.exp(stage.model.scale * float(vector @ text)) for text in texts]
        assert scores["category"] == pytest.approx(powers[0] / sum(powers), rel=1e-3)
        assert (reason is None) == (scores["category"] >= 0.4)
    with pytest.raises(ValueError, match="'a person' must be compared with other prompts"):
        CategoryFilter(str(tmp_path / "clip"), others=())


# Identity kept


def test_identity_kept_is_the_rank_1_of_models_that_saw_neither(
    judged: tuple[Path, Any], tmp_path: Path
) -> None:
    rows = []
    for number in range(8):
        for place in range(4):
            shows = number if place < 2 else (number + 1) % 8
            rows.append({
                schema.OBSERVATION_ID: schema.observation_id("made", number, place),
                schema.IMAGE: images.encode_png(person(shows, 7_000 + 10 * number + place)),
                schema.IDENTITY: f"market:{number}",
                schema.PARENT: schema.observation_id("market", number, 0),
                schema.SOURCE: "market",
                schema.SPLIT: "train",
                schema.ORIGIN: "synthetic",
                schema.SCORES: {"passed_reid": float(place < 2)},
                schema.DROP_REASON: None if place < 2 else "reid: x",
            })  # fmt: skip
    storage.write(tmp_path / "made", schema.observations(rows))
    columns = storage.read(tmp_path / "made", sheets.COLUMNS, kept_only=False)
    made = sheets.Selection(tmp_path / "made", columns)
    found = {one.what: one for one in kept_identity.measure(judged[0], made, 1000)}
    assert {what: one.images for what, one in found.items()} == {
        "kept": 16, "dropped": 16, "real": 48,
    }  # fmt: skip
    assert found["kept"].rank_1 > found["dropped"].rank_1 + 0.25
    assert found["kept"].across_images == 16
    assert (found["real"].judges, found["real"].gallery) == (2, 24)
    few = {one.what: one.images for one in kept_identity.measure(judged[0], made, 4)}
    assert (few["kept"], few["dropped"]) == (4, 4)
    table = kept_identity.table(tuple(found.values()))
    assert table is not None
    assert table.rows[0][0] == "generated, kept"
