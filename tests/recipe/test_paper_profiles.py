"""What the profiles and sweeps of the papers say, where it is easily said wrongly."""

import timm
import yaml

from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.shipped import RECIPES


def _sources(recipe: Recipe) -> dict[str, dict[str, object]]:
    return {str(source.reader): source.model_dump(mode="json") for source in recipe.ingest.sources}


def _settings(name: str) -> dict[str, Recipe]:
    sweep = sweeps.load(name)
    recipe = recipes.override(recipes.load(sweep.recipe, sweep.profile), sweep.overrides)
    return {one.name: recipes.override(recipe, one.changes) for one in sweeps.settings(sweep)}


def test_every_profile_can_be_read_and_its_backbone_is_one_of_timm() -> None:
    for file in RECIPES.glob("*.yaml"):
        for profile in yaml.safe_load(file.read_text())["profiles"]:
            train = recipes.load(file.stem, profile).train
            assert timm.is_model(train.backbone), (file.stem, profile)
            # Without a tag timm takes weights of a later recipe than the papers'.
            if train.pretrained and train.backbone.startswith("resnet50"):
                assert train.backbone == "resnet50.tv_in1k", (file.stem, profile)


def test_clip_senet_begins_with_the_weights_of_ibn_net_and_reranks_veri_alone() -> None:
    paper, vehicleid, veriwild = (
        recipes.load("clip_senet", name) for name in ("paper", "vehicleid", "veriwild")
    )
    assert paper.train.backbone == "resnext101_32x4d"
    assert "resnext101_ibn_a" in str(paper.train.ibn_weights)
    assert [step.name for step in paper.evaluate.postprocess] == ["rerank"]
    assert (paper.train.epochs, paper.train.warmup_epochs) == (24, 0)
    for large in (vehicleid, veriwild):
        assert large.evaluate.postprocess == ()
        assert (large.train.epochs, large.train.learning_rate) == (120, 3.5e-4)
        assert large.train.schedule == "multistep"
        assert large.train.warmup_epochs > 0
    assert (vehicleid.train.side_weight, veriwild.train.side_weight) == (0, 1)


def test_the_sweeps_of_clip_senet_have_every_row_of_its_tables() -> None:
    parts = {
        (train.semantic.encoder is not None, train.semantic.groups is not None, train.side_weight)
        for train in (one.train for one in _settings("clip_senet").values())
    }
    # Without an encoder the groups are of nothing.
    assert parts == {
        *((False, True, weight) for weight in (0, 1)),
        *((True, enhanced, weight) for enhanced in (False, True) for weight in (0, 1)),
    }
    for setting in _settings("clip_senet_backbones").values():
        assert setting.train.ibn_weights is not None
        assert setting.train.ibn == "a"
    assert len({one.train.backbone for one in _settings("clip_senet_backbones").values()}) == 4
    losses = {
        (one.train.semantic.encoder is not None, one.train.loss.metric)
        for one in _settings("clip_senet_losses").values()
    }
    assert losses == {(True, "supcon"), (True, "triplet"), (False, "supcon"), (False, "triplet")}


def test_vehiclenet_trains_on_all_of_vehicleid_and_flips_alone_on_veri() -> None:
    paper = recipes.load("vehiclenet", "paper")
    assert paper.ingest.use["vehicleid"] == "whole"
    assert _sources(paper)["vehicleid"]["test_size"] == 13164
    assert (paper.embed.flip, paper.embed.scales, paper.embed.crop) == (True, (1.0,), None)
    cityflow = recipes.load("vehiclenet", "cityflow")
    assert cityflow.train.backbone == "legacy_seresnext101_32x4d.in1k"
    assert (cityflow.train.image_size, cityflow.train.weight_decay) == ((384, 384), 5e-4)
    assert cityflow.train.milestones == (40, 55)
    assert cityflow.embed.scales == (1.0, 0.9, 0.8)
    assert cityflow.embed.crop is not None
    names = [step.name for step in cityflow.evaluate.postprocess]
    assert names == ["query_expansion", "camera_verification", "rerank"]
    cameras = recipes.load("vehiclenet", "cameras")
    assert (cameras.train.target, cameras.train.backbone) == ("camera", "densenet121.tv_in1k")


def test_the_sources_of_vehiclenet_are_compared_as_in_table_ii() -> None:
    settings = _settings("sources")
    for recipe in settings.values():
        sources = _sources(recipe)
        assert sources["cityflow"]["hold_out"] == 78
        assert sources["cityflow"]["gallery"] == "all"
        assert recipe.train.backbone == "legacy_seresnext101_32x4d.in1k"
        assert (recipe.train.image_size, recipe.train.stages) == ((384, 384), ())
        assert (recipe.embed.scales, recipe.evaluate.postprocess) == ((1.0,), ())
        # The test parts of the others are trained on.
        beside = sources.keys() - {"cityflow", "compcars"}
        assert recipe.ingest.use == dict.fromkeys(beside, "whole")
        assert sources.get("vehicleid", {"test_size": 13164})["test_size"] == 13164
    assert sorted(len(_sources(recipe)) for recipe in settings.values()) == [1, 2, 2, 2, 4]


def test_dlcr_is_trained_as_the_code_of_cal_on_every_set_of_the_paper() -> None:
    protocols = {
        "paper": "prcc", "ltcc": "clothes_changing", "vc_clothes": "vc_clothes_changing",
        "ccvid": "ccvid_changing", "last": "market",
    }  # fmt: skip
    for profile, protocol in protocols.items():
        recipe = recipes.load("dlcr", profile)
        train = recipe.train
        assert recipe.evaluate.protocol == protocol
        assert (train.warmup_epochs, train.decay_biases, train.neck_bias) == (0, True, True)
        augment = train.augment
        assert (augment.flip, augment.enlarge, augment.pad) == (0.5, 0.5, 0)
        assert (augment.erase, augment.erase_area) == (0.5, 0.4)
        assert augment.erase_colour is not None
        assert train.loss.metric == ("triplet" if profile == "last" else "none")
    summaries = {name: one.describe.summary for name, one in _settings("descriptions").items()}
    assert summaries["one_image"] == "one"
