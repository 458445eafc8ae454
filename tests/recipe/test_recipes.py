"""Recipes: what a person may type, and what is said when it is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ray_reid.recipe import recipes
from ray_reid.recipe.train import Train
from ray_reid.runtime.run import content_key


def test_a_dumped_recipe_loads_as_itself(tmp_path: Path) -> None:
    recipe = recipes.load("baseline", "miniature", ["train.epochs=3", "seed=7"])
    file = tmp_path / "recipe.yaml"
    file.write_text(recipes.dump(recipe))
    assert recipes.load(str(file)) == recipe
    assert recipes.validate(recipes.read_yaml(file)) == recipe
    assert (recipe.train.epochs, recipe.seed) == (3, 7)


def test_the_options_of_a_source_are_kept_as_they_are_written(tmp_path: Path) -> None:
    written = [
        {"reader": "folder", "root": "x: 1", "query_cameras": ["1", "2"], "name": None},
        {"reader": "later", "nested": {"a": [1, 0.5, True]}},
    ]
    recipe = recipes.validate({"name": "x", "ingest": {"sources": written}})
    assert recipe.model_dump(mode="json")["ingest"]["sources"] == written
    file = tmp_path / "recipe.yaml"
    file.write_text(recipes.dump(recipe))
    assert recipes.load(str(file)) == recipe
    changed = recipes.override(recipe, {"ingest.sources.1.nested.a.1": 2})
    assert changed != recipe
    sections = ("ingest",)
    assert content_key("ingest", 1, changed, sections, {}) != content_key(
        "ingest", 1, recipe, sections, {}
    )
    with pytest.raises(ValidationError, match="frozen"):
        recipe.ingest.sources[0].root = "y"  # type: ignore[attr-defined]


def test_overrides_come_after_the_profile_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "x",
                "train": {"epochs": 1},
                "profiles": {"small": {"train.epochs": 2, "train.loss.margin": 0.1}, "big": None},
            },
            sort_keys=False,
        )
    )
    assert recipes.load(str(file)).train.epochs == 2
    assert recipes.load(str(file), "big").train.epochs == 1
    assert recipes.load(str(file), "big").profile == "big"
    changed = recipes.load(str(file), "small", ["train.epochs=5", "train.epochs=6"])
    assert (changed.train.epochs, changed.train.loss.margin) == (6, 0.1)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epcohs=3", "unknown recipe key 'train.epcohs'; choose from .*'epochs'"),
        ("ingest.sorces=[]", "unknown recipe key 'ingest.sorces'; choose from .*'sources'"),
        (
            "ingest.sources=[{root: x}]",
            "'ingest.sources.0.reader' is {'root': 'x'}: Field required",
        ),
        ("train.epochs=0", "'train.epochs' is 0: .*greater than or equal to 1"),
        ("train.epochs.x=1", "train.epochs is a value, so 'train.epochs.x' cannot be set"),
        ("train.num_workers=3", "16 must be a multiple of num_workers 3"),
        ("train.epochs", "is not of the form key.path=value"),
        ("ingest.sources.4.seed=1", "'4' .* must be a position from 0 to 0"),
        ("seed={a", "'seed' is '{a': Input should be a valid integer"),
        ("seed=-1", "'seed' is -1: .*greater than or equal to 0"),
        ("train.image_size=[0, 64]", "'train.image_size.0' is 0: .*greater than or equal to 8"),
        ("evaluate.num_ranked=101", "'evaluate.num_ranked' is 101: .*less than or equal to 100"),
        ("evaluate.top_k=101", "'evaluate.top_k' is 101: .*less than or equal to 100"),
    ],
)
def test_a_wrong_override_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        recipes.load("baseline", None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["no", "1e3", "0012", "1:30", "2020-01-01", "true", "a #b", "[a-z]+_(\\d)", "a: b", "*", "="],
)
def test_text_is_taken_as_typed(text: str) -> None:
    recipe = recipes.load(
        "baseline", None, [f"models.describer={text}", f"ingest.sources.0.pattern={text}"]
    )
    assert recipe.models.describer == text
    # Of the options of a reader only the reader knows whether they are text.
    assert recipe.model_dump(mode="json")["ingest"]["sources"][0]["pattern"] == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("0012", 12), ("1e3", 1000), ("'7'", 7), ("+3", 3)],
)
def test_a_number_is_read_from_what_is_typed(text: str, value: int) -> None:
    assert recipes.load("baseline", None, [f"seed={text}"]).seed == value


def test_lists_and_folders_are_taken_as_typed() -> None:
    typed = ["train.sources=[no, 0012, 1e3]", 'ingest.sources.0.root="C:\\ud83d\\ude00 #1"']
    recipe = recipes.load("baseline", None, [*typed, "train.loss.label_smoothing=1e-1"])
    assert recipe.train.sources == ("no", "0012", "1e3")
    assert recipe.train.loss.label_smoothing == 0.1
    assert recipe.model_dump(mode="json")["ingest"]["sources"][0]["root"] == "C:\U0001f600 #1"


def test_unknown_names_list_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'basline'; choose from \['baseline'"):
        recipes.load("basline")
    with pytest.raises(ValueError, match="unknown profile 'huge' of 'baseline'; choose from"):
        recipes.load("baseline", "huge")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ValueError, match="is not YAML"):
        recipes.load(str(broken))
    broken.write_text("- 1")
    with pytest.raises(ValueError, match="must be a mapping of sections, not list"):
        recipes.load(str(broken))


def test_every_shipped_profile_is_valid() -> None:
    for file in recipes.RECIPES.glob("*.yaml"):
        for profile in recipes.read_yaml(file).get("profiles", {}):
            assert recipes.load(file.stem, profile).profile == profile


def test_stages_are_trainings_that_differ_in_what_they_change() -> None:
    recipe = recipes.load("vehiclenet", "miniature")
    (one, first), (two, second) = recipe.train.trainings()
    assert (one, two) == ("I", "II")
    assert (first.epochs, second.epochs) == (12, 6)
    assert (first.sources, second.sources) == ((), ("target",))
    assert second.stages == ()
    assert second.head == first.head == "vehiclenet"
    alone = Train()
    assert alone.trainings() == [("", alone)]


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([{"name": "I"}, {"name": "I"}], r"stages \['I', 'I'\] need names of their own"),
        ([{"name": "I", "changes": {"backbone": "a"}}], "stage 'I' changes 'backbone', but all"),
        ([{"name": "I", "changes": {"start": "runs/a"}}], "stage 'I' changes 'start', but all"),
        (
            [{"name": "I", "changes": {"epoch": 3}}],
            "stage 'I': unknown recipe key 'epoch'; choose from .*'epochs'",
        ),
        ([{"name": "I", "changes": {"epochs": 0}}], "stage 'I': recipe key 'epochs' is 0"),
        ([{"name": "I", "changes": {"loss.metrics": "none"}}], "unknown recipe key 'loss.metrics'"),
    ],
)
def test_stages_that_cannot_be_trained_are_one_sentence(
    stages: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        recipes.load("baseline", None, [f"train.stages={json.dumps(stages)}"])


def test_a_rule_that_spans_sections_names_its_own_keys() -> None:
    steps = "evaluate.postprocess=[{name: camera_verification}]"
    with pytest.raises(ValueError, match=r"^evaluate\.postprocess: .* needs embed\.camera_model"):
        recipes.load("baseline", None, [steps])
