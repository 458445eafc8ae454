"""A model package scored on a data set: the jobs of a run, the model given instead of trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ray_reid
from ray_reid import cli, images, pipelines, schema, storage
from ray_reid.datasets.readers import READERS
from ray_reid.evaluation import evaluate, given, report, runs
from ray_reid.gallery.searcher import Searcher
from ray_reid.models import card, package
from ray_reid.models.networks import ReidNetwork
from ray_reid.places import Place
from ray_reid.ranking import metrics, open_set, protocols
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.job import Work
from ray_reid.runtime.results import RunState

WORLD = {"reader": "miniature", "num_train": 2, "num_test": 6, "cameras_per_identity": 3}
SMALL: dict[str, Any] = {
    "ingest.stage.actors": 1,
    "embed.stage.actors": 1,
    "evaluate.num_maps": 0,
    "evaluate.max_tsne": 0,
}
IMPORTED = {"peer": "fast-reid", "sha256": "ab12"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of small networks: one as a training leaves it, one with a card, one of cameras."""
    root = tmp_path_factory.mktemp("given")
    for seed, (name, target) in enumerate(
        [("bare", "identity"), ("imported", "identity"), ("cameras", "camera")]
    ):
        changes = ["train.backbone=resnet10t", "train.image_size=[32, 32]", "embed.flip=false"]
        recipe = recipes.load("baseline", None, [*changes, f"train.target={target}"])
        torch.manual_seed(seed)
        weights = ReidNetwork(recipe.train, 3).state_dict()
        package.save(root / name, recipe, ["s:a", "s:b", "s:c"], weights)
    page = card.write(recipe, (), imported=IMPORTED)
    (root / "imported" / card.FILE).write_text(page)
    return root


@pytest.mark.slow
def test_a_package_is_scored_as_by_hand_and_its_run_is_like_any_other(
    home: Path, ray_local: None
) -> None:
    run = home / "scored"
    figures = ray_reid.evaluate(home / "bare", WORLD, run=run, settings=SMALL)
    state = RunState.read(run)
    columns = [schema.IMAGE, schema.IDENTITY, schema.CAMERA, schema.SPLIT]
    rows = storage.read(state.folder("ingest") / "observations", columns)
    model = ray_reid.load(home / "bare", "cpu")
    sides = {}
    for split in ("query", "gallery"):
        part = rows.filter(np.array(rows[schema.SPLIT].to_pylist()) == split)
        labels = [part[name].to_pylist() for name in (schema.IDENTITY, schema.CAMERA)]
        sides[split] = (model.embed(part[schema.IMAGE].to_pylist(), flip=False), *labels)
    (asking, identity, camera), (answering, known, seen) = sides["query"], sides["gallery"]
    expected = metrics.evaluate(
        *(asking, answering),
        **{"query_identity": identity, "gallery_identity": known},
        **{"query_camera": camera, "gallery_camera": seen},
    )
    assert figures["mAP"] == pytest.approx(expected.mAP, abs=1e-6)
    assert figures["rank-1"] == pytest.approx(expected.rank(1))
    result = json.loads((run / "metrics.json").read_text())
    assert result["stamp"]["flip_averaging"] is False
    assert result["metrics"] == figures
    for file in ("report.html", "recipe.yaml"):
        assert str(home / "bare") in (run / file).read_text()
    assert (state.folder("evaluate") / "ranked_list.jpg").is_file()
    assert len(Searcher.open(run).search(rows[schema.IMAGE][0].as_py(), k=3)) == 3

    # The set and the protocol of that run, another model; the first one's thresholds stay behind.
    shutil.copytree(home / "imported", home / "known")
    (home / "known" / open_set.FILE).write_text("{}")
    ray_reid.evaluate(home / "known", run=home / "other", recipe=run / "recipe.yaml")
    found = runs.difference(run, home / "other")
    assert found.comparable
    assert found.recipe.keys() == {"package"}
    other = ray_reid.load(home / "other", "cpu")
    assert np.array_equal(
        other.embed([rows[schema.IMAGE][0]]),
        ray_reid.load(home / "imported", "cpu").embed([rows[schema.IMAGE][0]]),
    )
    page = (RunState.read(home / "other").folder("evaluate") / "model" / card.FILE).read_text()
    assert "SHA-256" in page
    assert "Not evaluated here" not in page
    made = {job: state.manifest(job) for job in state.keys}
    ray_reid.evaluate(home / "bare", WORLD, run=run, settings=SMALL)
    assert {job: RunState.read(run).manifest(job) for job in state.keys} == made


@pytest.mark.slow
def test_a_set_for_tests_alone_is_scored(home: Path, tmp_path: Path, ray_local: None) -> None:
    (tmp_path / "bounding_box_train").mkdir()
    for number in range(8):
        who, side = divmod(number, 2)
        pixels = np.random.default_rng(who).integers(0, 255, (32, 32, 3), np.uint8)
        folder = tmp_path / ("query", "bounding_box_test")[side]
        folder.mkdir(exist_ok=True)
        name = f"{who + 1:04d}_c{side + 1}s1_000001_00.jpg"
        (folder / name).write_bytes(images.encode(pixels, 95))
    figures = ray_reid.evaluate(home / "bare", tmp_path, run=tmp_path / "run", settings=SMALL)
    # The same picture on two cameras.
    assert figures["rank-1"] == 1


@pytest.mark.slow
def test_a_set_without_answers_is_one_sentence(home: Path, tmp_path: Path, ray_local: None) -> None:
    for number in range(6):
        pixels = np.full((8, 8, 3), 40 * number, np.uint8)
        (tmp_path / f"car{number}_cam1.png").write_bytes(images.encode_png(pixels))
    source = {"reader": "folder", "root": str(tmp_path)}
    with pytest.raises(ValueError, match=r"every test identity of .* a query needs|two cameras"):
        ray_reid.evaluate(home / "bare", source, run=tmp_path / "run", settings=SMALL)


def test_the_recipe_is_that_of_the_package_and_of_the_set(home: Path) -> None:
    bare, imported = str(home / "bare"), str(home / "imported")
    own = package.recipe_of(bare)
    plain = given.recipe_of([bare], SMALL, data=WORLD)
    assert (plain.name, plain.profile) == (own.name, own.profile)
    assert plain.train == own.train
    assert plain.embed.flip is False
    assert plain.seed == 0
    assert pipelines.of_recipe(plain) == pipelines.GIVEN
    theirs = given.recipe_of([bare, imported], {}, "dlcr", "miniature")
    assert theirs.evaluate.protocol == "clothes_changing"
    assert theirs.embed.flip is True
    assert theirs.embed.ensemble == (imported,)
    assert theirs.train == own.train
    # Variants of queries are generated, which nobody does here.
    assert theirs.refine is None
    # The packages are the model, whatever that recipe joined.
    joined = home / "joined.yaml"
    joined.write_text(recipes.dump(theirs))
    assert given.recipe_of([bare], {}, str(joined)).embed.ensemble == ()


def test_what_cannot_be_scored_is_named_before_any_job(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: str) -> str:
        assert cli.main(["evaluate", *arguments, "--run", str(tmp_path / "r")]) == cli.MISTAKE
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    bare = str(home / "bare")
    data = ("--data", str(tmp_path), "--pattern", "(?P<identity>.+)")
    assert "no model package at" in fails(str(tmp_path), *data)
    weights = home / "bare" / package.WEIGHTS
    assert "is a file, not a model package; `ray-reid import`" in fails(str(weights), *data)
    assert "no data set to score" in fails(bare)
    assert "has none of the known layouts; give --reader, one of" in fails(bare, *data[:2])
    assert "does not exist" in fails(bare, "--data", str(tmp_path / "none"))
    assert "--reader is for a folder" in fails(bare, "--reader", "market1501")
    assert "profile 'paper' is of no recipe" in fails(bare, *data, "--profile", "paper")
    said = fails(bare, *data, "--set", "train.embedding_dim=8")
    assert "train.embedding_dim is 8, but the package" in said
    assert "train.target 'camera', but 'identity'" in fails(str(home / "cameras"), *data)
    assert "makes no variants of queries" in fails(bare, *data, "--set", "refine={}")
    assert "embed.ensemble.0: no model package" in fails(bare, str(tmp_path / "none"), *data)
    assert not (tmp_path / "r").exists()
    with pytest.raises(ValueError, match=r"holds the package .*; give another --run"):
        ray_reid.evaluate(home / "bare", WORLD, run=home)


def test_packages_of_one_name_have_runs_of_their_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish_job: Callable[..., Path]
) -> None:
    shutil.copytree(home / "bare", tmp_path / "bare")
    known = given.recipe_of([str(tmp_path / "bare")], {}, data=WORLD)
    monkeypatch.chdir(tmp_path)
    publish_job(tmp_path / "runs" / "bare-on-miniature", "ingest", recipe=known)
    with pytest.raises(ValueError, match=r"is of the package .*; give another --run"):
        ray_reid.evaluate(home / "bare", WORLD)


def test_the_layout_of_a_folder_and_its_protocol_are_known(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without recipe, reader and name of a run: `ray-reid evaluate PACKAGE --data FOLDER`."""
    for name in ("train_test_split/train_list.txt", "train_test_split/test_list_800.txt"):
        (tmp_path / "VehicleID" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "VehicleID" / name).touch()
    (tmp_path / "VehicleID" / "image").mkdir()
    asked: list[tuple[Recipe, Place]] = []
    monkeypatch.setattr(pipelines, "perform", lambda recipe, run, *_: asked.append((recipe, run)))
    monkeypatch.setattr(report, "headline", lambda _: {})
    monkeypatch.setattr(RunState, "read", lambda _: None)
    bare, data = str(home / "bare"), str(tmp_path / "VehicleID")
    assert cli.main(["evaluate", bare, "--data", data]) == 0
    assert ray_reid.evaluate(bare, data) == {}
    for recipe, run in asked:
        (source,) = recipe.ingest.sources
        assert (source.reader, source.model_dump()["root"]) == ("vehicleid", data)
        assert recipe.evaluate.protocol == "vehicleid"
        assert run == Path("runs/bare-on-VehicleID")
    protocol = ("--set", "evaluate.protocol=vehicleid_inverse")
    assert cli.main(["evaluate", bare, "--data", data, *protocol, "--run", "r"]) == 0
    assert (asked[-1][0].evaluate.protocol, asked[-1][1]) == ("vehicleid_inverse", Path("r"))


def test_the_protocol_of_every_reader_is_one_that_there_is(home: Path) -> None:
    bare = [str(home / "bare")]

    def protocol(**source: Any) -> str:
        return given.recipe_of(bare, {}, data={"root": "x", **source}).evaluate.protocol

    for layout in READERS.values():
        options = {"root": "x", "pattern": "(?P<identity>.)", "parent": "prcc"}
        needed = {name: options[name] for name in layout.source.model_fields if name in options}
        assert layout.protocol(layout.source.model_validate(needed)) in protocols.PROTOCOLS
    assert protocol(reader="ltcc") == "clothes"
    assert protocol(reader="cuhk03") == protocol(reader="market1501") == "market"
    assert protocol(reader="cuhk03", protocol="classic") == "cuhk03_classic"
    two = [{"reader": "market1501", "root": "a"}, {"reader": "prcc", "root": "b"}]
    with pytest.raises(ValueError, match=r"different protocols, .*'prcc'.*evaluate\.protocol"):
        given.recipe_of(bare, {}, data=two)
    chosen = given.recipe_of(bare, {"evaluate": {"protocol": "market"}}, data=two)
    assert chosen.evaluate.protocol == "market"
    assert given.run_of([*bare, "models:/reid/3"], chosen) == Path("runs/bare+reid-3-on-a+b")


def test_only_what_is_taken_over_of_a_package_is_in_its_key(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "bare", tmp_path / "bare")
    recipe = given.recipe_of([str(tmp_path / "bare")], {}, data=WORLD)
    before = given.outside(recipe)
    (tmp_path / "bare" / "metrics.json").write_text("{}")
    (tmp_path / "bare" / evaluate.RANKED).write_bytes(b"")
    same = given.recipe_of([str(home / "bare")], {}, data=WORLD)
    assert given.outside(recipe) == before == given.outside(same)
    (tmp_path / "bare" / "labels.json").write_text('["s:x", "s:b", "s:c"]')
    assert given.outside(recipe) != before


def test_a_package_without_a_card_gets_one_that_says_so(home: Path, tmp_path: Path) -> None:
    for name, said in (("bare", "came without a card"), ("imported", "SHA-256 is `ab12`")):
        recipe = given.recipe_of([str(home / name)], {}, data=WORLD)
        work = Work(given.JOB.view(recipe), tmp_path / name, {}, {})
        assert given.JOB.work(work).params == {"package": str(home / name)}
        assert said in (tmp_path / name / "model" / card.FILE).read_text()


def test_the_card_of_a_given_package_keeps_what_it_was_trained_on(
    tmp_path: Path, make_run: Callable[..., Work], fake_model: None
) -> None:
    work = make_run(tmp_path)
    trained = work.inputs["train"] / "model"
    source = card.Source("elsewhere", "real", 7, 2, "theirs")
    old = {
        "reference": {"mAP": 0.1},
        "metrics": {"mAP": 0.9876},
        "stamp": {"query": {}, "gallery": {}, "protocol": "clothes"},
    }
    page = card.write(work.recipe, [source], old, "ranked_list.jpg")
    (trained / card.FILE).write_text(page.replace("## Use", "## Mine\n\nA note.\n\n## Use"))
    facts = evaluate.evaluate_job(work)
    found = (work.out / "model" / card.FILE).read_text()
    assert "| elsewhere | real | 7 | 2 | theirs |" in found
    assert "A note." in found
    assert "0.9876" not in found
    assert "| protocol | market |" in found
    assert found.count("ranked_list.jpg") == found.count("## Evaluation") == 1
    # Whoever scores an old model has made no newer one.
    assert facts.model is None
