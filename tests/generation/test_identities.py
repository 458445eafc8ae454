"""The stage that tunes to an identity and generates: on dicts of arrays, without Ray."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ray_reid import images, schema, storage
from ray_reid.generation import attribute_references as attributes
from ray_reid.generation import identity_plan as plans
from ray_reid.generation.generators import identities
from ray_reid.generation.generators.identities import GenerateIdentity, adapter_name
from ray_reid.generation.generators.settings import pipeline_settings
from ray_reid.generation.identity_plan import Prompted
from ray_reid.models.pretrained.text_to_image import ADAPTER
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def home(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("identities")
    tiny_models.stable_diffusion(home / "sd")
    rng = np.random.default_rng(0)
    rows = [
        {
            "observation_id": f"{name}{number}",
            # Of c, no image can be read.
            "image": b"no image" if name == "c" else _encoded(rng),
            "identity": f"toy:{name}",
            "source": "toy",
            "split": "train",
            "licence": f"licence of {name}",
        }
        for name, count in zip(NAMES, (2, 3, 2), strict=True)
        for number in range(count)
    ]
    storage.write(home / "observations", schema.observations(rows))
    known = [
        {
            "observation_id": f"r{number}",
            "image": _encoded(rng),
            "source": "references",
            "split": "unlabelled",
            "prompt": "a car",
        }
        for number in range(4)
    ]
    storage.write(home / "references", schema.observations(known))
    return home


def _encoded(rng: np.random.Generator) -> bytes:
    return images.encode(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))


def _recipe(home: Path, *more: str) -> Recipe:
    return recipes.load(
        "diffusion_reid",
        "paper",
        [
            f"models.text_to_image={home / 'sd'}",
            "personalise.mode=lora",
            "personalise.learning_rate=0.1",
            "personalise.steps=3",
            "personalise.batch_size=2",
            "personalise.micro_batch=null",
            "personalise.gradient_checkpointing=false",
            "personalise.balance={target: 6, least: 1}",
            "personalise.output_size=[24, 12]",
            "generate.steps=2",
            "generate.guidance_scale=3",
            "generate.image_size=[16, 16]",
            *more,
        ],
    )


def _prompted() -> list[Prompted]:
    return [
        Prompted(
            f"toy:{name}", "toy", tuple(f"{name}{n}" for n in range(2)), f"a qz {name}", "a car"
        )
        for name in NAMES
    ]


def _plan(home: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The rows of each identity, as its stage sees them."""
    table = plans.identities_plan(recipe, home / "observations", _prompted(), {"a car": "a car"})
    batch = schema.to_batch(table)
    names = batch[schema.IDENTITY]
    return {
        name: {column: values[names == f"toy:{name}"] for column, values in batch.items()}
        for name in NAMES
    }


def _stage(home: Path, recipe: Recipe, adapters: Path | None = None) -> GenerateIdentity:
    return GenerateIdentity(
        table=str(home / "observations"),
        references=str(home / "references"),
        model=recipe.models.text_to_image,
        precision="fp32",
        spec=recipe.personalise,
        settings=pipeline_settings(recipe.generate),
        adapters=None if adapters is None else str(adapters),
    )


def _digest(made: Mapping[str, Any]) -> str:
    return hashlib.sha256(b"".join(made[schema.PIXELS])).hexdigest()


# The plan


def test_the_plan_has_a_row_an_image_and_identities_are_never_torn(home: Path) -> None:
    recipe = _recipe(home)
    table = plans.identities_plan(recipe, home / "observations", _prompted(), {"a car": "a car"})
    names = table[schema.IDENTITY].to_pylist()
    # Of 2, 3 and 2 real images, to 6.
    assert names == ["toy:a"] * 4 + ["toy:b"] * 3 + ["toy:c"] * 4
    rows = table.to_pylist()
    for row in rows:
        number = [other["observation_id"] for other in rows if other["identity"] == row["identity"]]
        place = number.index(row["observation_id"])
        assert row["observation_id"] == schema.observation_id(
            row["identity"], row["prompt"], row["seed"], row["generator"], place
        )
        assert row["licence"] == f"licence of {row['identity'][-1]}"
        assert (row["split"], row["origin"]) == ("train", "synthetic")
    assert [row["parent"] for row in rows[:4]] == ["a0", "a1", "a0", "a1"]
    assert len({row["seed"] for row in rows}) == len({row["observation_id"] for row in rows}) == 11
    # The same rows again, whatever else is made beside them.
    alone = plans.identities_plan(
        recipe, home / "observations", _prompted()[1:2], {"a car": "a car"}
    )
    assert alone.to_pylist() == rows[4:7]


def test_identities_that_share_references_stand_side_by_side(home: Path) -> None:
    prompted = [
        Prompted(f"toy:{name}", "toy", (f"{name}0",), f"a qz {kind}", f"a {kind}")
        for name, kind in (("a", "car"), ("b", "van"), ("c", "car"))
    ]
    shared = {"a car": "a car", "a van": "a van"}
    plan = plans.identities_plan(_recipe(home), home / "observations", prompted, shared)
    names = list(dict.fromkeys(plan[schema.IDENTITY].to_pylist()))
    assert names == ["toy:a", "toy:c", "toy:b"]


def test_prompts_share_references_when_they_are_near(home: Path) -> None:
    texts = ["a red car", "a red car", "a blue van", "a green bus"]
    assert attributes.shared_prompts(texts, None, None, 0) == {text: text for text in texts}
    embedding = np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0]], np.float32)
    found = attributes.shared_prompts(texts, 2, embedding, 0)
    assert found["a blue van"] == found["a green bus"] != found["a red car"] == "a red car"
    embedded = attributes.embed_texts(str(home / "sd"), sorted(set(texts)))
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)
    assert len(set(attributes.shared_prompts(texts, 2, embedded, 0).values())) == 2


def test_references_are_named_by_what_they_are(home: Path) -> None:
    recipe = _recipe(home, "personalise.references=3")
    plan = attributes.references_plan(recipe, ["a van", "a car", "a car"])
    assert plan[schema.PROMPT].to_pylist() == ["a car"] * 3 + ["a van"] * 3
    key = attributes.content_key(plan, 90)
    assert attributes.content_key(plan, 95) != key
    same = _recipe(home, "personalise.references=3", "personalise.prior_weight=0.5")
    assert attributes.content_key(attributes.references_plan(same, ["a car", "a van"]), 90) == key
    other = _recipe(home, "personalise.references=3", "generate.steps=5")
    assert attributes.content_key(attributes.references_plan(other, ["a car", "a van"]), 90) != key


# The stage


def test_an_identity_is_tuned_to_and_its_images_have_the_size_of_the_table(
    home: Path, tmp_path: Path
) -> None:
    recipe = _recipe(home, "personalise.keep_adapters=true")
    rows, stage = _plan(home, recipe), _stage(home, recipe, tmp_path / "adapters")
    first = {name: stage(rows[name]) for name in ("a", "b")}
    for name, made in first.items():
        assert set(made) == {
            *schema.OBSERVATION.names,
            schema.PIXELS,
            identities.ATTEMPTS,
            identities.TUNING,
            identities.GENERATING,
            identities.RESTORING,
        }
        assert [images.unpack(one).shape for one in made[schema.PIXELS]] == [(24, 12, 3)] * len(
            rows[name][schema.PROMPT]
        )
        assert set(made[schema.DROP_REASON]) == {None}
        assert set(made[identities.ATTEMPTS]) == {1}
        assert made[identities.TUNING].sum() > 0
        assert (tmp_path / "adapters" / adapter_name(f"toy:{name}") / ADAPTER).is_file()
    # In another order, and some rows alone: the same images.
    assert _digest(stage(rows["a"])) == _digest(first["a"])
    some = {column: values[2:] for column, values in rows["a"].items()}
    assert list(stage(some)[schema.PIXELS]) == list(first["a"][schema.PIXELS][2:])
    encoded = identities.encode(first["a"], 95)
    assert images.decode(encoded[schema.IMAGE][0]).shape == (24, 12, 3)


def test_an_identity_without_a_usable_image_is_recorded_and_the_next_one_is_whole(
    home: Path,
) -> None:
    recipe = _recipe(home)
    rows, stage = _plan(home, recipe), _stage(home, recipe)
    undisturbed = _digest(stage(rows["a"]))
    made = stage(rows["c"])
    (reason,) = set(made[schema.DROP_REASON])
    assert reason.startswith("personalise: none of its 2 images can be used, the first because ")
    assert set(made[identities.ATTEMPTS]) == {1}
    assert not images.unpack(made[schema.PIXELS][0]).any()
    # As rows of an identity whose images are gone altogether.
    gone = {**rows["c"], identities.INSTANCES: np.array([[]] * 4, dtype=object)}
    assert set(stage(gone)[schema.DROP_REASON]) == {"personalise: none of its 0 images can be used"}
    assert _digest(stage(rows["a"])) == undisturbed


def test_what_fails_is_tried_once_more_with_smaller_batches(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(home)
    rows, stage = _plan(home, recipe), _stage(home, recipe)
    undisturbed = stage(rows["a"])
    tune, tried = stage.tuner.tune, []

    def full(subject: Any, seed: int, micro_batch: int) -> float:
        tried.append(micro_batch)
        if micro_batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tune(subject, seed, micro_batch)

    monkeypatch.setattr(stage.tuner, "tune", full)
    made = stage(rows["a"])
    assert tried == [4, 2]
    assert set(made[identities.ATTEMPTS]) == {2}
    assert set(made[schema.DROP_REASON]) == {None}
    for one, other in zip(made[schema.PIXELS], undisturbed[schema.PIXELS], strict=True):
        # Summed in another order.
        assert np.abs(images.unpack(one).astype(int) - images.unpack(other)).max() <= 2

    def never(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage.tuner, "tune", never)
    (reason,) = set(stage(rows["a"])[schema.DROP_REASON])
    assert reason == "personalise: out of memory with 2 images at once"
    monkeypatch.undo()
    assert _digest(stage(rows["a"])) == _digest(undisturbed)


def test_a_loss_that_is_no_number_is_recorded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(home)
    rows, stage = _plan(home, recipe), _stage(home, recipe)
    encode = stage.tuner.encode
    monkeypatch.setattr(
        stage.tuner, "encode", lambda pixels: tuple(part * np.nan for part in encode(pixels))
    )
    made = stage(rows["b"])
    assert set(made[schema.DROP_REASON]) == {"personalise: the loss of step 1 is nan"}
    assert set(made[identities.ATTEMPTS]) == {2}


def test_an_image_that_the_pipeline_refuses_is_dropped_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(home)
    rows, stage = _plan(home, recipe), _stage(home, recipe)
    generate = stage.tuner.generate
    monkeypatch.setattr(stage.tuner, "generate", lambda *asked: [None, *generate(*asked)[1:]])
    first, *others = stage(rows["a"])[schema.DROP_REASON]
    assert first.startswith("unsafe")
    assert set(others) == {None}


def test_latents_of_references_are_remembered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(home)
    rows, stage = _plan(home, recipe), _stage(home, recipe)
    encode, counts = stage.tuner.encode, []

    def counted(pixels: Any) -> Any:
        counts.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(stage.tuner, "encode", counted)
    stage(rows["a"])
    stage(rows["b"])
    assert counts == [4, 2, 2]
