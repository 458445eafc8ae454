"""A view of a recipe shows what is declared and raises where anything else is read."""

import pickle

import pytest

from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.view import UndeclaredError, restrict


def _view(*sections: str, overrides: tuple[str, ...] = ()) -> Recipe:
    recipe = recipes.load("baseline", "miniature", list(overrides))
    return restrict(recipe, sections, "job 'train'")


def test_declared_sections_and_entries_are_those_of_the_recipe() -> None:
    view = _view("seed", "train", "embed.flip", overrides=("embed.flip=false", "seed=7"))
    assert (view.seed, view.embed.flip, view.train.backbone) == (7, False, "resnet10t")


def test_an_undeclared_section_raises_and_the_sentence_says_what_to_do() -> None:
    with pytest.raises(UndeclaredError) as error:
        _ = _view("seed", "train").evaluate
    assert str(error.value) == (
        "job 'train' reads 'evaluate' of the recipe without declaring it; it declares "
        "['seed', 'train']: add it to the sections of the job, because its key must change with "
        "all that it reads"
    )


def test_an_undeclared_entry_of_a_declared_section_raises() -> None:
    with pytest.raises(UndeclaredError, match=r"'generate\.quality'.*\['generate\.steps'\]"):
        _ = _view("generate.steps").generate.quality


def test_resources_may_be_read_beside_a_declared_entry() -> None:
    view = _view("generate.steps", overrides=("generate.stage.actors=3",))
    assert view.generate.stage.actors == 3
    assert view.resources.num_cpus is None


def test_a_name_that_no_recipe_has_is_an_ordinary_mistake() -> None:
    with pytest.raises(AttributeError, match="trian"):
        _ = _view("train").trian  # type: ignore[attr-defined]


def test_a_section_that_is_null_is_null() -> None:
    assert _view("refine.steps").refine is None
    assert _view("refine").refine is None


def test_what_is_dumped_is_what_may_be_read() -> None:
    values = _view("name", "seed", "generate.steps", "refine.steps").model_dump(mode="json")
    assert sorted(values) == ["generate", "name", "refine", "resources", "seed"]
    assert sorted(values["generate"]) == ["stage", "steps"]
    assert values["refine"] is None


def test_a_changed_view_shows_no_more_than_it_did_and_what_was_set() -> None:
    view = recipes.override(_view("name", "train"), {"train.epochs": 99, "generate.steps": 3})
    assert (view.train.epochs, view.generate.steps) == (99, 3)
    with pytest.raises(UndeclaredError):
        _ = view.generate.quality
    copied = view.model_copy(update={"train": view.train.model_copy(update={"epochs": 5})})
    assert copied.train.epochs == 5
    with pytest.raises(UndeclaredError):
        _ = copied.evaluate


def test_a_view_travels_to_workers() -> None:
    view = pickle.loads(pickle.dumps(_view("train")))
    assert view.train.epochs == 12
    with pytest.raises(UndeclaredError):
        _ = view.seed


def test_a_view_of_a_view_shows_what_both_readers_may_read() -> None:
    job = restrict(recipes.load("baseline", None, []), ("seed", "train", "embed.flip"), "the job")
    trial = restrict(job, ("train.epochs", "embed", "evaluate"), "the trial")
    assert trial.train.epochs == job.train.epochs
    assert trial.embed.flip == job.embed.flip
    for read in (
        lambda: trial.seed,
        lambda: trial.train.backbone,
        lambda: trial.embed.scales,
        lambda: trial.evaluate,
    ):
        with pytest.raises(UndeclaredError, match="the trial reads"):
            read()
