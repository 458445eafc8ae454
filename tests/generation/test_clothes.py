"""Dressing people otherwise: models, stages and the plan of DLCR's generate job."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ray_reid import images, schema, storage
from ray_reid.generation import inpaint, outfits
from ray_reid.generation.filters.clothes import ClothesFilter
from ray_reid.generation.generators import clothes
from ray_reid.generation.generators.descriptions import Description
from ray_reid.generation.inpaint import JOB
from ray_reid.models.pretrained import inpainting, parser, summariser
from ray_reid.models.pretrained.describer import Describer
from ray_reid.recipe import recipes
from ray_reid.recipe.outfits import Outfits
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import run

RNG = np.random.default_rng(0)
WORN = [Description(f"c{n}", f"red {n}", "jeans", "boots") for n in range(4)]


def _pixels(height: int, width: int) -> images.Pixels:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def painter(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.inpainting(tmp_path_factory.mktemp("models") / "inpainting"))


@pytest.fixture(scope="module")
def segmenter(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    names = ("Background", "Hair", "Upper-clothes", "Pants", "Left-shoe")
    return str(tiny_models.segformer(tmp_path_factory.mktemp("models") / "parser", names))


# Models


def test_every_pixel_that_is_not_masked_stays_that_of_the_source_to_the_bit(painter: str) -> None:
    pipeline = inpainting.load_pipeline(painter, "fp32")
    # Of sizes that the model does not work at.
    sources = [_pixels(50, 30), _pixels(16, 16)]
    masks = [np.zeros(one.shape[:2], np.bool_) for one in sources]
    masks[0][10:20, 5:25] = True
    masks[1][:8] = True
    settings: dict[str, Any] = {"guidance_scale": 2.0, "steps": 2, "image_size": (16, 16)}
    made = inpainting.inpaint(pipeline, sources, masks, ["a", "b"], [1, 2], **settings)
    for source, image, mask in zip(sources, made, masks, strict=True):
        assert image is not None
        assert image.shape == source.shape
        np.testing.assert_array_equal(image[~mask], source[~mask])
        assert (image[mask] != source[mask]).any()
    (alone,) = inpainting.inpaint(pipeline, sources[1:], masks[1:], ["b"], [2], **settings)
    np.testing.assert_allclose(np.asarray(alone, int), np.asarray(made[1], int), atol=1)


def test_what_a_safety_checker_refuses_is_no_image(
    painter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = inpainting.load_pipeline(painter, "fp32")
    monkeypatch.setattr(
        pipeline, "run_safety_checker", lambda image, *_: (image, [False, True]), raising=False
    )
    masks = [np.ones((16, 16), np.bool_)] * 2
    settings: dict[str, Any] = {"guidance_scale": 1.0, "steps": 1, "image_size": (16, 16)}
    kept, refused = inpainting.inpaint(
        pipeline, [_pixels(16, 16)] * 2, masks, ["a", "b"], [1, 2], **settings
    )
    assert kept is not None
    assert refused is None


def test_what_is_stored_is_the_source_outside_the_mask_to_the_bit() -> None:
    source, mask = _pixels(9, 7), np.zeros((9, 7), np.bool_)
    mask[2:4] = True
    made = inpainting.composite(source, _pixels(20, 20), mask)
    batch = {name: np.array([None], dtype=object) for name in schema.OBSERVATION.names}
    packed = np.empty(1, dtype=object)
    packed[:] = [images.pack(made)]
    stored = images.decode(clothes.encode({**batch, schema.PIXELS: packed})[schema.IMAGE][0])
    np.testing.assert_array_equal(stored[~mask], source[~mask])


def test_a_parser_tells_clothes_by_the_names_of_its_labels(segmenter: str) -> None:
    found = parser.Parser(segmenter, "fp32").parse([_pixels(40, 20), _pixels(8, 8)])
    assert [one.shape for one in found] == [(40, 20), (8, 8)]
    names = ["Background", "Face", "Upper-clothes", "Skirt", "Right_shoe", "Hair"]
    parts = parser.parts_of(dict(enumerate(names)))
    assert parts.tolist() == [
        parser.OTHER, parser.BODY, parser.UPPER, parser.LOWER, parser.FOOTWEAR, parser.BODY
    ]  # fmt: skip
    assert parser.worn(parts).tolist() == [False, False, True, True, True, False]
    assert parser.body(parts).tolist() == [False, True, False, False, False, True]


def test_a_label_may_list_garments_and_a_part_without_labels_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ["bag, wallet", "shirt, blouse", "top, t-shirt, sweatshirt", "tights, stockings"]
    with caplog.at_level(logging.WARNING):
        parts = parser.parts_of(dict(enumerate(names)))
    assert parts.tolist() == [parser.OTHER, parser.UPPER, parser.UPPER, parser.LOWER]
    assert "no label is ['footwear']" in caplog.text


def test_a_model_without_clothes_among_its_labels_is_no_parser(
    tiny_models: ModuleType, tmp_path: Path
) -> None:
    path = tiny_models.segformer(tmp_path / "roads", ("road", "sky"))
    with pytest.raises(ValueError, match=r"none of its labels is clothes: \['road', 'sky'\]"):
        parser.Parser(str(path))


def test_a_summariser_is_told_how_often_each_answer_was_given() -> None:
    often = [f"coat {n} | jeans | boots" for n in range(60)]
    text = summariser.asked([*often, "red coat | jeans | boots", often[7], often[7]])
    lines = text.splitlines()[1:]
    assert lines[0] == f"3 x {often[7]}"
    assert lines[1] == f"1 x {often[0]}"
    assert len(lines) == summariser.MAX_ANSWERS


def test_a_chat_begins_once(tiny_models: ModuleType, tmp_path: Path) -> None:
    model = summariser.Summariser(str(tiny_models.llama(tmp_path / "llama")), "fp32")
    told = model.summarise(["red | blue | white"], 5)
    assert told == model.summarise(["red | blue | white"], 5)
    calls: list[torch.Tensor] = []
    generate = model.model.generate

    def watched(**inputs: Any) -> Any:
        calls.append(inputs["input_ids"])
        return generate(**inputs)

    model.model.generate = watched
    model.tokenizer.add_bos_token = True
    model.tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    model.summarise(["red | blue | white"], 5)
    (tokens,) = calls
    assert (tokens == model.tokenizer.bos_token_id).sum() == 1


def test_a_describer_answers_about_images_of_several_sizes(
    tiny_models: ModuleType, tmp_path: Path
) -> None:
    model = Describer(str(tiny_models.llava_next(tmp_path / "llava")), "fp32")
    sizes = ((16, 16), (40, 16))
    pictures = [_pixels(*size) for size in sizes]
    lengths = [model.processor(images=one, text="<image> a").input_ids for one in pictures]
    assert len({len(ids[0]) for ids in lengths}) == 2
    alone = [model.answer([one], "<image> what ?", 6)[0] for one in pictures]
    assert model.answer(pictures, "<image> what ?", 6) == alone
    assert all("what" not in answer for answer in alone)


# Masks


class _Parser:
    """Sees clothes in the first rows, as many as the first pixel says; hair at the right edge."""

    def parse(self, pixels: Sequence[images.Pixels]) -> list[NDArray[np.uint8]]:
        found = []
        for one in pixels:
            parts = np.zeros(one.shape[:2], np.uint8)
            parts[:, -1] = parser.BODY
            parts[: int(one[0, 0, 0])] = parser.UPPER
            found.append(parts)
        return found


def _masks(**outfits: Any) -> clothes.Masks:
    masks = object.__new__(clothes.Masks)
    masks.parser = _Parser()  # type: ignore[assignment]
    masks.spec = Outfits(**outfits)
    return masks


def _dressed(rows: int) -> images.Pixels:
    pixels = np.zeros((10, 4, 3), np.uint8)
    pixels[0, 0, 0] = rows
    return pixels


def test_nobody_and_nothing_but_clothes_are_told_apart_and_counted() -> None:
    nobody, person, wall = _masks()([_dressed(0), _dressed(5), _dressed(10)])
    assert nobody == "no_clothes: 0.0% of the image, less than 2.0%"
    assert wall == "all_clothes: 100.0% of the image, more than 85.0%"
    assert not isinstance(person, str)
    assert person.sum() == 20


def test_a_margin_widens_the_mask_but_not_over_the_body() -> None:
    (wide,) = _masks(margin=2)([_dressed(5)])
    assert np.asarray(wide)[5:7].tolist() == [[True, True, True, False]] * 2
    assert np.asarray(wide).sum() == 26


def test_image_to_image_paints_all() -> None:
    (whole,) = _masks(method="image_to_image")([_dressed(5)])
    assert np.asarray(whole).all()


# Stages


def _table(tmp_path: Path, pictures: Sequence[bytes]) -> Path:
    rows = [
        {
            schema.OBSERVATION_ID: f"id{n}",
            schema.IMAGE: picture,
            schema.IDENTITY: f"s:{n % 2}",
            schema.CAMERA: "c1",
            schema.CLOTHES: f"c{n}",
            schema.SOURCE: "s",
            schema.LICENCE: "CC0",
            schema.SPLIT: "train",
        }
        for n, picture in enumerate(pictures)
    ]
    place = tmp_path / "observations"
    storage.write(place, schema.observations(rows))
    return place


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("dlcr", "miniature", ["outfits.num_outfits=2", *overrides])


def _stages(table: Path) -> clothes.Parse:
    stage = object.__new__(clothes.Parse)
    stage.cache = storage.RowCache(table, table.parent / "cache", clothes.DRESSED["train"])
    stage.masks = _masks()
    return stage


def test_a_plan_dresses_every_image_in_other_clothes_and_keeps_the_person(tmp_path: Path) -> None:
    table = _table(tmp_path, [images.encode(_dressed(5))] * 3)
    plan = outfits.outfits_plan(_recipe(), table, WORN, "g")
    rows = plan.to_pylist(maps_as_pydicts="strict")
    assert [row[clothes.ROW] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert len({row[schema.OBSERVATION_ID] for row in rows}) == 6
    for row in rows:
        source = f"id{row[clothes.ROW]}"
        assert row[schema.PARENT] == source
        assert row[schema.IDENTITY] == f"s:{row[clothes.ROW] % 2}"
        assert row[schema.ATTRIBUTES][outfits.WHOSE] != f"c{row[clothes.ROW]}"
        assert row[schema.CLOTHES] == (
            f"{row[schema.IDENTITY]}/{row[schema.ATTRIBUTES][outfits.WHOSE]}"
        )
        assert (row[schema.ORIGIN], row[schema.LICENCE]) == ("synthetic", "CC0")
    more = outfits.outfits_plan(_recipe("outfits.num_outfits=3"), table, WORN, "g")
    kept = set(plan[schema.OBSERVATION_ID].to_pylist())
    assert kept < set(more[schema.OBSERVATION_ID].to_pylist())


def test_what_changes_no_image_paints_none_anew() -> None:
    def key(*overrides: str) -> str:
        return run.content_key("inpaint", 1, _recipe(*overrides), JOB.sections, {})

    assert key() == key("models.image_text=other", "generate.quality=50", "train.epochs=9")
    assert key() == key("outfits.parse_stage.batch_size=3", "generate.stage.batch_size=3")
    assert key() != key("generate.steps=9")
    assert key() != key("outfits.margin=2")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("filters=[{name: detection}]", "'detection' crops"),
        ("outfits.method=image_to_image", "paints everywhere; set filters to"),
        ("generate.image_size=[100, 48]", r"\[100, 48\] must be multiples of 8"),
        ("generate.licence=CC0", "'CC0' would replace the terms of the source"),
    ],
)
def test_what_cannot_be_painted_is_refused_before_anything_runs(
    override: str, sentence: str
) -> None:
    inpaint.check(_recipe())
    with pytest.raises(ValueError, match=sentence):
        inpaint.check(_recipe(override))


def test_sources_that_cannot_be_dressed_are_kept_with_their_reason(tmp_path: Path) -> None:
    pictures = [images.encode_png(_dressed(n)) for n in (5, 0)]
    table = _table(tmp_path, [*pictures, b"no image"])
    plan = outfits.outfits_plan(_recipe(), table, WORN, "g")
    batch = schema.to_batch(plan)
    found = _stages(table)(batch)
    kinds = [None if one is None else one.partition(":")[0] for one in found[schema.DROP_REASON]]
    assert kinds == [None] * 2 + ["no_clothes"] * 2 + ["unreadable"] * 2
    assert clothes.ROW not in found
    mask = clothes.mask_of(found[clothes.MASK][0], images.unpack(found[schema.PIXELS][0]))
    assert mask.sum() == 20
    painted = object.__new__(clothes.InpaintClothes)
    painted.painter = _paint_white  # type: ignore[assignment]
    made = clothes.encode(painted(found))
    first, nobody = (images.decode(made[schema.IMAGE][row]) for row in (0, 2))
    assert (first[:5] == 255).all()
    assert (first[5:] == 0).all()
    np.testing.assert_array_equal(nobody, _dressed(0))


def _paint_white(
    sources: Sequence[images.Pixels],
    masks: Sequence[NDArray[np.bool_]],
    prompts: Sequence[str],
    seeds: Sequence[int],
) -> list[images.Pixels]:
    white = np.full((4, 4, 3), 255, np.uint8)
    pairs = zip(sources, masks, strict=True)
    return [inpainting.composite(source, white, mask) for source, mask in pairs]


def test_a_changer_gives_every_image_its_variants_or_a_reason() -> None:
    changer = object.__new__(clothes.ClothesChanger)
    changer.masks = _masks()
    changer.painter = _paint_white  # type: ignore[assignment]
    found = changer.change([_dressed(5), _dressed(0)], [["a", "b"], ["a", "b"]], [[1, 2], [3, 4]])
    assert isinstance(found[0], list)
    assert len(found[0]) == 2
    assert isinstance(found[1], str)
    assert found[1].startswith("no_clothes")


def test_the_filter_keeps_clothes_where_they_were_painted() -> None:
    kept, lost = _dressed(5), _dressed(2)
    batch = {
        schema.PIXELS: np.array([images.pack(kept), images.pack(lost)], dtype=object),
        clothes.MASK: np.array(
            [(np.arange(10)[:, None] < 5).repeat(4, 1).tobytes()] * 2, dtype=object
        ),
        schema.DROP_REASON: np.array([None, None], dtype=object),
        schema.SCORES: np.array([None, None], dtype=object),
    }
    check = object.__new__(ClothesFilter)
    check.model, check.threshold = _Parser(), 0.6  # type: ignore[assignment]
    found = check(batch)
    assert found[schema.DROP_REASON].tolist() == [
        None,
        "clothes: on 0.40 of what was painted, below 0.6",
    ]
    assert [one["clothes"] for one in found[schema.SCORES]] == [1.0, 0.4]
    with pytest.raises(ValueError, match="no mask of what was painted"):
        check({name: values for name, values in batch.items() if name != clothes.MASK})
