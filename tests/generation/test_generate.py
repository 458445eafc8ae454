"""Plans, names and refusals of generation, and its stages on plain arrays; no Ray."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ray_reid import cli, images, schema, storage
from ray_reid.generation import adapt, describe, generate, inpaint, review, variants
from ray_reid.generation.candidates import (
    AdaptFacts,
    CandidateFacts,
    candidate_names,
    own_models,
)
from ray_reid.generation.filters.colour import ColourFilter
from ray_reid.generation.generators.settings import UNSAFE
from ray_reid.generation.generators.text_to_image import GenerateImages, encode
from ray_reid.models.pretrained import references
from ray_reid.models.pretrained.text_to_image import ADAPTER
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.job import Work
from ray_reid.schema import Batch

LIBRARY = "brand,model,body_style,years,colours\n"
SETTINGS: dict[str, Any] = {
    "adapter": None,
    "precision": "fp32",
    "guidance_scale": 3.0,
    "steps": 2,
    "image_size": (16, 24),
    "negative_prompt": "",
}


@pytest.fixture(scope="module")
def home(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_models.stable_diffusion(home / "sd")
    tiny_models.yolos(home / "yolos")
    tiny_models.image_text(home / "clip")
    return home


def _recipe(home: Path, *overrides: str) -> Recipe:
    return recipes.load(
        "vehicle_diff",
        "paper",
        [
            *_models(home),
            "prompts.num_identities=6",
            "prompts.images_per_identity=3",
            *overrides,
        ],
    )


def _models(home: Path) -> list[str]:
    """Overrides that name models of this machine alone."""
    return [
        f"models.text_to_image={home / 'sd'}",
        f"models.detector={home / 'yolos'}",
        f"models.image_text={home / 'clip'}",
        f"models.captioner={home / 'clip'}",
        "frechet.extractor=image_text",
        "adapt.trainings=[{rank: 8, keep_epochs: [50]}]",
    ]


def _plan(recipe: Recipe, generator: str = "painter") -> list[dict[str, Any]]:
    plan = generate.prompts_plan(recipe, generator, "CC-BY-4.0")
    return list(plan.to_pylist(maps_as_pydicts="strict"))


def _seeds(rows: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """Seeds by prompt and the number of the image of this prompt."""
    found: dict[tuple[str, int], int] = {}
    for row in rows:
        number = sum(prompt == row["prompt"] for prompt, _ in found)
        found[row["prompt"], number] = row["seed"]
    return found


# The plan


def test_a_plan_holds_every_identity_equally_often_in_whole_records(home: Path) -> None:
    rows = _plan(_recipe(home))
    assert len(rows) == 18
    identities = [row["identity"] for row in rows]
    assert {identities.count(name) for name in identities} == {3}
    assert len({row["observation_id"] for row in rows}) == len({row["seed"] for row in rows}) == 18
    for row in rows:
        assert row["identity"].startswith("vehicle_diff:")
        assert row["licence"] == "CC-BY-4.0"
        assert (row["split"], row["origin"], row["role"]) == ("train", "synthetic", "normal")
        assert row["generator"] == "painter"
        assert row["drop_reason"] is None
        assert all(value in row["prompt"] for value in row["attributes"].values())
        own = ("", row["prompt"], row["seed"], "painter")
        assert row["observation_id"] == schema.observation_id(*own)


def test_the_first_rows_are_of_as_many_identities_as_there_are(home: Path) -> None:
    rows = _plan(_recipe(home))
    for count in (1, 4, 6):
        assert len({row["identity"] for row in rows[:count]}) == count


def test_a_seed_depends_on_the_recipe_seed_the_prompt_and_the_number_alone(home: Path) -> None:
    seeds = _seeds(_plan(_recipe(home)))
    larger = _recipe(home, "prompts.num_identities=9", "prompts.images_per_identity=5")
    assert seeds.items() <= _seeds(_plan(larger)).items()
    others = _recipe(home, "generate.steps=7", "generate.guidance_scale=2", "adapt.fraction=0.5")
    assert _seeds(_plan(others, "another painter")) == seeds
    other = _seeds(_plan(_recipe(home, "seed=1")))
    assert not set(other.values()) & set(seeds.values())
    assert all(0 <= seed < 2**60 for seed in seeds.values())


def test_another_generator_makes_other_observations_of_the_same_seeds(home: Path) -> None:
    first, second = (_plan(_recipe(home), name) for name in ("painter", "sculptor"))
    assert [row["seed"] for row in first] == [row["seed"] for row in second]
    ids = [{row["observation_id"] for row in rows} for rows in (first, second)]
    assert not ids[0] & ids[1]


# The generator's name


def test_a_generator_is_named_by_the_content_of_model_and_adapter(
    home: Path, tiny_models: ModuleType, tmp_path: Path
) -> None:
    recipe = _recipe(home)
    bare = generate.generator_name(recipe, None)
    assert "adapter@" not in bare
    assert bare.endswith(" guidance=8,steps=50,size=1024x1024 precision=auto")
    names = {bare}
    for name, content in (("one", b"1"), ("two", b"2"), ("same", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / ADAPTER).write_bytes(content)
        names.add(generate.generator_name(recipe, tmp_path / name))
    # A copy of an adapter elsewhere is the same adapter.
    assert len(names) == 3
    assert all("adapter@" in name for name in names - {bare})
    again = tiny_models.stable_diffusion(tmp_path / "sd", seed=1)
    other = generate.generator_name(_recipe(home, f"models.text_to_image={again}"), None)
    assert other.split("@")[1].split()[0] != bare.split("@")[1].split()[0]


def test_settings_that_change_an_image_change_the_name_and_resources_do_not(home: Path) -> None:
    name = generate.generator_name(_recipe(home), None)
    for change in (
        "guidance_scale=7",
        "steps=9",
        "image_size=[512, 1024]",
        "negative_prompt=blurred",
    ):
        assert generate.generator_name(_recipe(home, f"generate.{change}"), None) != name
    for change in ("generate.stage={batch_size: 3}", "prompts.num_identities=4", "train.epochs=3"):
        assert generate.generator_name(_recipe(home, change), None) == name


def test_what_lies_outside_the_recipe_is_known_by_its_content(home: Path, tmp_path: Path) -> None:
    library = tmp_path / "own.csv"
    library.write_text(LIBRARY + "A,B,van,2004;2005;2006,red;blue\n")
    recipe = _recipe(home, f"prompts.library={library}")
    found = [kind.outside(recipe) for kind in (generate, adapt)]
    assert [kind.outside(recipe) for kind in (generate, adapt)] == found
    library.write_text(LIBRARY + "A,B,van,2004;2005;2006,red;green\n")
    changed = [kind.outside(recipe) for kind in (generate, adapt)]
    assert all(old != new for old, new in zip(found, changed, strict=True))
    # Judges see the first identities only, whose number the adapt job's section holds.
    more = _recipe(home, "adapt.num_prompts=2", "prompts.num_identities=12")
    few = _recipe(home, "adapt.num_prompts=2")
    assert adapt.outside(more) == adapt.outside(few)
    assert generate.outside(more) != generate.outside(few)


# Refusals


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "filters.0.name=sharpnes",
            r"unknown filter 'sharpnes'; choose from \['category', 'classifier'",
        ),
        ("filters.0.params={treshold: 1}", r"no parameter 'treshold'; choose from \['model'"),
        ("filters.0.params={threshold: high}", "filter detection: threshold is 'high': Input sh"),
        ("filters.1.params={colours: red}", "filter colour: colours is 'red': "),
        ("filters.1.params={colours: [red]}", r"ask for the colour '\w+', .* params.colours \['r"),
        ("models.detector=/no/such", "model '/no/such' is not there; give a local path or a hub"),
        ("models.detector=yolov5x6u.pt", "model 'yolov5x6u.pt' is not there; give a local path"),
        ("models.text_to_image=./none", r"model '\./none' is not there"),
        ("prompts.library=none.csv", "no prompt library 'none.csv'"),
        ("prompts.num_identities=99999", "99999 is more than the"),
        ("prompts.template=a {color} car", "unknown field 'color'; choose from"),
    ],
)
def test_an_impossible_recipe_is_refused_before_anything_runs(
    home: Path, override: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        generate.check(_recipe(home, override))
    assert "\n" not in str(raised.value)


def test_a_recipe_that_can_be_generated_is_not_refused(home: Path) -> None:
    generate.check(_recipe(home))
    generate.check(_recipe(home, "generate.candidate=rank8-epoch50"))
    adapt.check(_recipe(home))


@pytest.mark.parametrize(
    ("key", "check"),
    [
        ("models.text_to_image", generate.check),
        ("models.detector", generate.check),
        ("models.captioner", adapt.check),
        ("models.image_text", review.check),
        ("adapt.trainings.0.model", adapt.check),
        ("models.describer", describe.check),
        ("models.parser", inpaint.check),
        ("models.inpainting", variants.check),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_refused_before_anything_runs(
    home: Path, key: str, check: Callable[[Recipe], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references.constants, "HF_HUB_OFFLINE", True)
    override = f"{key}=nobody/nothing"
    dlcr = check in (describe.check, inpaint.check, variants.check)
    recipe = recipes.load("dlcr", "miniature", [override]) if dlcr else _recipe(home, override)
    with pytest.raises(ValueError, match=rf"^{key} 'nobody/nothing': .*; without a network, give"):
        check(recipe)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("adapt.num_prompts=1", "adapt.images_per_prompt=1"), "leaves one image to judge"),
        (("models.captioner=./none",), r"model '\./none' is not there"),
    ],
)
def test_an_adaptation_that_cannot_be_is_refused(
    home: Path, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        adapt.check(_recipe(home, *overrides))


def test_candidates_are_named_by_rank_and_epoch_and_by_number_where_ranks_are_alike(
    home: Path,
) -> None:
    trainings = "[{rank: 4, epochs: 9, keep_epochs: [5, 9, 12, 3]}, {rank: 8, epochs: 2}]"
    recipe = _recipe(home, f"adapt.trainings={trainings}")
    names = ["none", "rank4-epoch3", "rank4-epoch5", "rank4-epoch9", "rank8-epoch2"]
    assert candidate_names(recipe) == names
    recipe = _recipe(home, "adapt.trainings=[{rank: 4, epochs: 2}, {rank: 4, epochs: 3}]")
    assert candidate_names(recipe) == ["none", "rank4-1-epoch2", "rank4-2-epoch3"]


@pytest.mark.parametrize(
    ("columns", "row", "said"),
    [
        ("brand,model,body_style,years,color", "A,B,van,2004,red", "unknown column 'color'"),
        ("brand,model,body_style,years,colours", "A,B,van,2004,", "line 2: colours is empty"),
        ("brand,model,body_style,years,colours", "A,B,van,2004,;", "colours ';' holds none"),
    ],
)
def test_a_bad_prompt_library_is_one_sentence_on_the_command_line(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    columns: str,
    row: str,
    said: str,
) -> None:
    (tmp_path / "own.csv").write_text(f"{columns}\n{row}\n")
    own = f"prompts.library={tmp_path / 'own.csv'}"
    error = _fails(capsys, tmp_path, *_models(home), own)
    assert "own.csv, line" in error
    assert said in error


def test_a_missing_model_is_one_sentence_on_the_command_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = _models(home)
    for role in ("text_to_image", "captioner", "detector", "image_text"):
        error = _fails(capsys, tmp_path, *own, f"models.{role}={tmp_path / 'none'}")
        assert f"model {str(tmp_path / 'none')!r} is not there" in error
    error = _fails(capsys, tmp_path, *own, "models.detector=yolov5x6u.pt")
    assert "'yolov5x6u.pt' is not there" in error


def _fails(capsys: pytest.CaptureFixture[str], home: Path, *overrides: str) -> str:
    """What the command says of the profile `paper` with some overrides; it must make no run."""
    options = [part for override in overrides for part in ("--set", override)]
    run = ["run", "vehicle_diff", "--profile", "paper", "--run", str(home / "run"), *options]
    assert cli.main(run) == cli.MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("ray-reid: ")
    assert error.count("\n") == 1
    assert not (home / "run").exists()
    return error


def test_images_of_a_candidate_are_made_by_the_model_that_it_adapts(home: Path) -> None:
    trainings = f"[{{rank: 4, epochs: 2}}, {{rank: 8, epochs: 3, model: {home / 'other'}}}]"
    recipe = _recipe(home, f"adapt.trainings={trainings}")
    models = own_models(recipe)
    assert models == {"rank8-epoch3": str(home / "other")}
    facts = AdaptFacts(
        candidates=tuple(
            CandidateFacts(name=name, model=models.get(name), fid=1.0, agreement=1.0, score=place)
            for place, name in enumerate(candidate_names(recipe))
        ),
        best="rank8-epoch3",
    ).model_dump()
    for candidate, model in ((None, "other"), ("none", "sd"), ("rank4-epoch2", "sd")):
        chosen = recipes.override(recipe, {"generate.candidate": candidate})
        work = Work(generate.JOB.view(chosen), home, {}, {"adapt": facts})
        assert generate._recipe(work).models.text_to_image == str(home / model)


# The stages


def _batch(home: Path, rows: slice) -> Batch:
    plan = generate.prompts_plan(_recipe(home), "painter", None)
    return schema.to_batch(plan.slice(rows.start, rows.stop - rows.start))


def test_images_do_not_depend_on_what_else_is_in_the_batch(home: Path) -> None:
    stage = GenerateImages(str(home / "sd"), **SETTINGS)
    together = stage(_batch(home, slice(0, 5)))["pixels"]
    apart = [stage(_batch(home, slice(row, row + 1)))["pixels"][0] for row in range(5)]
    assert together.tolist() == apart
    assert len(set(apart)) == 5
    assert images.unpack(apart[0]).shape == (16, 24, 3)


def test_a_row_with_another_seed_is_another_image_and_with_the_same_the_same(home: Path) -> None:
    stage = GenerateImages(str(home / "sd"), **SETTINGS)
    rows = {name: values.copy() for name, values in _batch(home, slice(0, 3)).items()}
    rows["prompt"][:] = rows["prompt"][0]
    rows["seed"][2] = rows["seed"][0]
    first, second, third = stage(rows)["pixels"]
    assert first == third
    assert first != second


def test_what_the_safety_checker_refuses_is_dropped_and_no_filter_looks_at_it(home: Path) -> None:
    stage = GenerateImages(str(home / "sd"), **SETTINGS)
    pipeline = stage.pipeline

    def checked(*asked: Any, **settings: Any) -> SimpleNamespace:
        found = pipeline(*asked, **settings)
        return SimpleNamespace(images=found.images, nsfw_content_detected=[False, True, False])

    stage.pipeline = checked
    made = stage(_batch(home, slice(0, 3)))
    assert made["drop_reason"].tolist() == [None, UNSAFE, None]
    assert not images.unpack(made["pixels"][1]).any()
    assert images.unpack(made["pixels"][0]).any()
    looked: list[int] = []
    judge = ColourFilter(str(home / "clip"))
    embed = judge.model.embed_images
    judge.model.embed_images = lambda pixels: looked.append(len(pixels)) or embed(pixels)
    assert judge(made)["drop_reason"][1] == UNSAFE
    assert looked == [2]


def test_encoding_gives_whole_records_of_what_the_filters_left(home: Path, tmp_path: Path) -> None:
    flat = [np.full(size, (30, 90, 200), np.uint8) for size in ((16, 24, 3), (10, 12, 3))]
    pixels = np.empty(2, dtype=object)
    pixels[:] = [images.pack(image) for image in flat]
    found = encode({**_batch(home, slice(0, 2)), schema.PIXELS: pixels}, quality=95)
    assert list(found) == schema.OBSERVATION.names
    storage.write(tmp_path / "table", schema.to_table(found))
    for encoded, image in zip(found["image"], flat, strict=True):
        assert encoded.startswith(b"\xff\xd8")
        np.testing.assert_allclose(images.decode(encoded), image, atol=3)
