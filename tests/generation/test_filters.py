"""Filters on batches of plain arrays: what they keep, crop, mark and leave alone."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid import images, schema
from ray_reid.generation.filters.colour import COLOURS, ColourFilter
from ray_reid.generation.filters.detection import DetectionFilter
from ray_reid.images import Pixels
from ray_reid.models.pretrained.detector import Box

SIDE = 1024
"""The image side of which the paper gives its smallest box."""


class Boxes:
    """A detector that has seen the same boxes in every image, whatever it shows."""

    def __init__(self, *boxes: Box) -> None:
        self.boxes = boxes
        self.looked_at = 0

    def detect(self, pictures: Sequence[Pixels], threshold: float) -> list[list[Box]]:
        self.looked_at += len(pictures)
        seen = [box for box in self.boxes if box.confidence >= threshold]
        return [sorted(seen, key=lambda box: -box.confidence) for _ in pictures]


class Directions:
    """An image-text model whose embedding of an image is its mean colour, of unit norm."""

    def embed_images(self, pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        means = np.stack([image.mean(axis=(0, 1)) for image in pictures]).astype(np.float32)
        return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def home(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_models.yolos(home / "yolos")
    tiny_models.image_text(home / "clip")
    return home


def box(label: str, confidence: float, *edges: float) -> Box:
    return Box(label, confidence, *edges)


def detection(home: Path, *boxes: Box, **params: Any) -> DetectionFilter:
    stage = DetectionFilter(str(home / "yolos"), **params)
    stage.model = Boxes(*boxes)  # type: ignore[assignment]
    return stage


def colour(home: Path, texts: Sequence[Sequence[float]], colours: Sequence[str]) -> ColourFilter:
    stage = ColourFilter(str(home / "clip"), colours=colours)
    stage.model = Directions()  # type: ignore[assignment]
    stage.texts = np.array(texts, np.float32)
    return stage


def objects(values: Sequence[Any]) -> NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def batch(pictures: Sequence[Pixels], **columns: Sequence[Any]) -> dict[str, NDArray[Any]]:
    empty: list[Any] = [None] * len(pictures)
    columns = {"scores": empty, "drop_reason": empty, "attributes": empty, **columns}
    pixels = [images.pack(image) for image in pictures]
    return {"pixels": objects(pixels), **{name: objects(v) for name, v in columns.items()}}


def noise(height: int = SIDE, width: int = SIDE) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Detection


def test_the_largest_confident_box_of_a_wanted_class_is_cropped(home: Path) -> None:
    image = noise()
    stage = detection(
        home,
        box("car", 0.99, 0, 0, 300, 300),
        box("truck", 0.70, 100, 200, 600, 900),
        box("car", 0.64, 0, 0, 1000, 1000),
        box("person", 0.99, 0, 0, 1024, 1024),
    )
    found = stage(batch([image]))
    np.testing.assert_array_equal(images.unpack(found["pixels"][0]), image[200:900, 100:600])
    boxed = {"detection": 0.70, "box_width": 500, "box_height": 700}
    assert found["scores"][0] == boxed | {"passed_detection": 1}
    assert found["drop_reason"][0] is None


def test_a_confidence_at_the_threshold_is_kept_and_one_below_is_not(home: Path) -> None:
    for confidence, reason in (
        (0.65, None),
        (0.64, "detection: best confidence 0.64 is below 0.65"),
    ):
        found = detection(home, box("bus", confidence, 0, 0, 500, 500))(batch([noise()]))
        assert found["drop_reason"][0] == reason
        assert found["scores"][0]["detection"] == confidence


def test_only_boxes_of_other_classes_count_as_none(home: Path) -> None:
    image = noise(64, 64)
    found = detection(home, box("person", 0.9, 0, 0, 64, 64))(batch([image]))
    assert found["drop_reason"][0] == "detection: best confidence 0.00 is below 0.65"
    np.testing.assert_array_equal(images.unpack(found["pixels"][0]), image)


@pytest.mark.parametrize(
    ("right", "bottom", "kept"),
    [(251, 251, True), (250, 800, False), (800, 250, False), (250, 250, False)],
)
def test_boxes_of_250_pixels_in_1024_are_dropped_as_in_the_paper(
    home: Path, right: int, bottom: int, kept: bool
) -> None:
    image = noise()
    found = detection(home, box("car", 0.9, 0, 0, right, bottom))(batch([image]))
    if kept:
        assert found["drop_reason"][0] is None
        assert images.unpack(found["pixels"][0]).shape == (bottom, right, 3)
    else:
        assert found["drop_reason"][0] == f"size: box of {bottom} x {right} pixels in 1024 x 1024"
        np.testing.assert_array_equal(images.unpack(found["pixels"][0]), image)
    boxed = {"detection": 0.9, "box_width": right, "box_height": bottom}
    assert found["scores"][0] == boxed | {"passed_detection": float(kept)}


def test_each_side_is_measured_against_its_own_side_of_the_image(home: Path) -> None:
    image = noise(40, 400)
    stage = detection(home, box("car", 0.9, 0, 0, 110, 20), min_side=0.25)
    assert stage(batch([image]))["drop_reason"][0] is None
    stage = detection(home, box("car", 0.9, 0, 0, 100, 20), min_side=0.25)
    assert stage(batch([image]))["drop_reason"][0].startswith("size: ")


def test_a_box_beyond_the_image_counts_and_is_cropped_within_it(home: Path) -> None:
    image = noise(100, 200)
    stage = detection(home, box("car", 0.9, -30.4, -5, 120.6, 500))
    found = stage(batch([image]))
    np.testing.assert_array_equal(images.unpack(found["pixels"][0]), image[0:100, 0:121])
    assert found["scores"][0] == pytest.approx(
        {"detection": 0.9, "box_width": 120.6, "box_height": 100, "passed_detection": 1}
    )
    # 300 pixels wide, but only 20 of them are to be seen.
    outside = detection(home, box("car", 0.9, -280, 0, 20, 100))
    assert outside(batch([image]))["drop_reason"][0] == "size: box of 100 x 20 pixels in 100 x 200"


def test_a_margin_is_a_share_of_the_box_and_ends_at_the_image(home: Path) -> None:
    image = noise(100, 100)
    stage = detection(home, box("car", 0.9, 10, 40, 60, 80), margin=0.1)
    crop = images.unpack(stage(batch([image]))["pixels"][0])
    np.testing.assert_array_equal(crop, image[36:84, 5:65])
    stage = detection(home, box("car", 0.9, 10, 40, 60, 80), margin=9.0)
    crop = images.unpack(stage(batch([image]))["pixels"][0])
    np.testing.assert_array_equal(crop, image)


def test_no_box_is_cropped_to_nothing(home: Path) -> None:
    for edge in (5.0, 5.4, 5.9, 6.0):
        stage = detection(home, box("car", 0.9, 5.0, 5.0, edge, 9.0), min_side=0.0)
        assert stage(batch([noise(16, 16)]))["drop_reason"][0].startswith("size: ")


def test_rows_dropped_before_are_measured_and_keep_their_first_reason(home: Path) -> None:
    stage = detection(home, box("car", 0.9, 0, 0, 40, 40))
    dull = {"sharpness": 2.0, "passed_sharpness": 0.0}
    clear = {"sharpness": 9.0, "passed_sharpness": 1.0}
    rows = batch(
        [noise(64, 64), noise(80, 80)],
        drop_reason=["sharpness: dull", None],
        scores=[dull, clear],
    )
    found = stage(rows)
    assert stage.model.looked_at == 2  # type: ignore[attr-defined]
    assert found["drop_reason"].tolist() == ["sharpness: dull", None]
    boxed = {"detection": 0.9, "box_width": 40, "box_height": 40, "passed_detection": 1}
    for row, before in enumerate((dull, clear)):
        assert images.unpack(found["pixels"][row]).shape == (40, 40, 3)
        assert found["scores"][row] == before | boxed
    # What came in is as it was: Ray hands out arrays that others may read too.
    assert rows["drop_reason"].tolist() == ["sharpness: dull", None]
    assert rows["scores"][1] == clear


def test_what_one_filter_drops_the_next_one_sees_whole(home: Path) -> None:
    image = np.full((60, 60, 3), (200, 10, 10), np.uint8)
    rows = batch([image], attributes=[{"colour": "blue"}])
    unseen = detection(home, box("car", 0.9, 0, 0, 5, 5))(rows)
    found = colour(home, [[1, 0, 0], [0, 0, 1]], ("red", "blue"))(unseen)
    assert found["drop_reason"].tolist() == ["size: box of 5 x 5 pixels in 60 x 60"]
    assert (found["scores"][0]["passed_detection"], found["scores"][0]["passed_colour"]) == (0, 0)
    np.testing.assert_array_equal(images.unpack(found["pixels"][0]), image)


def test_verdicts_do_not_depend_on_what_was_dropped_before(home: Path) -> None:
    chance = np.random.default_rng(3)
    pictures = [chance.integers(0, 256, (20, 20, 3), dtype=np.uint8) // 2 for _ in range(6)]
    asked = [{"colour": name} for name in ("red", "blue") * 3]
    judge = colour(home, [[1, 0, 0], [0, 0, 1]], ("red", "blue"))
    alone = judge(batch(pictures, attributes=asked))
    dropped = {"passed_other": 0.0}
    after = judge(
        batch(pictures, attributes=asked, drop_reason=["other: x"] * 6, scores=[dropped] * 6)
    )
    for row in range(6):
        assert after["scores"][row] == alone["scores"][row] | dropped
        assert after["drop_reason"][row] == "other: x"


def test_a_filter_that_stands_twice_passes_what_both_keep(home: Path) -> None:
    rows = batch([noise(64, 64)])
    strict = detection(home, box("car", 0.7, 0, 0, 40, 40), threshold=0.9)(rows)
    found = detection(home, box("car", 0.7, 0, 0, 40, 40), threshold=0.5)(strict)
    assert found["scores"][0]["passed_detection"] == 0
    assert found["drop_reason"][0].startswith("detection: best confidence 0.70 is below 0.9")


def test_a_row_that_its_generator_refused_passes_through_both_filters(home: Path) -> None:
    rows = batch([noise(16, 16)], drop_reason=["unsafe: refused"])
    for stage in (detection(home), ColourFilter(str(home / "clip"))):
        found = stage(rows)
        assert found["drop_reason"].tolist() == ["unsafe: refused"]
        assert found["scores"].tolist() == [None]
        assert found["pixels"].tolist() == rows["pixels"].tolist()


def test_a_detector_that_knows_none_of_the_classes_is_refused(home: Path) -> None:
    said = r"knows none of \['lorry'\]; choose from \['person', 'car', 'bus', 'truck'\]"
    with pytest.raises(ValueError, match=said):
        DetectionFilter(str(home / "yolos"), classes=("lorry",))
    DetectionFilter(str(home / "yolos"), classes=("lorry", "truck"))


def test_an_untrained_detector_of_the_real_class_marks_every_row(home: Path) -> None:
    rows = batch([noise(32, 32), noise(24, 40)])
    strict = DetectionFilter(str(home / "yolos"), threshold=1.0)(rows)
    assert all(reason.startswith("detection: ") for reason in strict["drop_reason"])
    lax = DetectionFilter(str(home / "yolos"), threshold=0.0, min_side=0.0)(rows)
    for row, scores in enumerate(lax["scores"]):
        height, width = images.unpack(lax["pixels"][row]).shape[:2]
        if lax["drop_reason"][row] is None:
            assert (height, width) == pytest.approx(
                (scores["box_height"], scores["box_width"]), abs=1
            )


# Colour


def test_colours_are_judged_as_a_loop_over_all_pairs_does(home: Path) -> None:
    rng = np.random.default_rng(1)
    names = ("red", "green", "blue", "grey")
    texts = rng.normal(size=(4, 3))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    pictures = [rng.integers(0, 256, (8, 9, 3), dtype=np.uint8) // 4 + tint for tint in
                rng.integers(0, 190, (40, 1, 1, 3)).astype(np.uint8)]  # fmt: skip
    asked = [names[place] for place in rng.integers(0, 4, 40)]
    stage = colour(home, texts, names)
    found = stage(batch(pictures, attributes=[{"colour": name} for name in asked]))
    kept = 0
    for row, (image, name) in enumerate(zip(pictures, asked, strict=True)):
        mean = image.mean(axis=(0, 1))
        best, nearest = -2.0, ""
        for own, text in zip(names, texts, strict=True):
            similarity = float(mean @ text) / float(np.linalg.norm(mean))
            if similarity > best:
                best, nearest = similarity, own
            if own == name:
                mine = similarity
        expected = None if nearest == name else f"colour: looks {nearest}, the prompt says {name}"
        assert found["drop_reason"][row] == expected
        assert found["scores"][row] == pytest.approx(
            {"colour": mine, "best_colour": best, "passed_colour": float(expected is None)},
            abs=1e-5,
        )
        kept += expected is None
    assert 0 < kept < 40


def test_colour_leaves_the_image_and_adds_to_the_scores_of_detection(home: Path) -> None:
    image = np.full((60, 60, 3), (200, 10, 10), np.uint8)
    rows = batch([image, image], attributes=[{"colour": "red"}, {"colour": "blue"}])
    cropped = detection(home, box("car", 0.9, 0, 0, 30, 40))(rows)
    found = colour(home, [[1, 0, 0], [0, 0, 1]], ("red", "blue"))(cropped)
    assert found["drop_reason"].tolist() == [None, "colour: looks red, the prompt says blue"]
    for row in (0, 1):
        assert images.unpack(found["pixels"][row]).shape == (40, 30, 3)
        assert set(found["scores"][row]) == {
            "detection", "box_width", "box_height", "colour", "best_colour",
            "passed_detection", "passed_colour",
        }  # fmt: skip


@pytest.mark.parametrize("attributes", [{"colour": "mauve"}, {"brand": "Orvella"}, None])
def test_a_colour_that_is_not_in_the_list_is_one_sentence(
    home: Path, attributes: dict[str, str] | None
) -> None:
    stage = ColourFilter(str(home / "clip"))
    asked = (attributes or {}).get("colour")
    said = f"filter colour: colour {asked!r} is not one of .*add it to the filter's params.colours"
    with pytest.raises(ValueError, match=said):
        stage(batch([noise(8, 8)], attributes=[attributes]))


def test_one_prompt_is_embedded_for_every_colour(home: Path) -> None:
    stage = ColourFilter(str(home / "clip"), template="a {colour} bus")
    assert stage.texts.shape[0] == len(COLOURS)
    again = stage.model.embed_texts([f"a {name} bus" for name in COLOURS])
    np.testing.assert_array_equal(stage.texts, again)


def test_filters_read_the_batches_that_arrow_gives_and_give_back_what_it_takes(home: Path) -> None:
    rows = schema.observations([
        {"observation_id": str(n), "image": b"", "source": "s", "split": "train",
         "attributes": {"colour": "red"}} for n in range(2)
    ])  # fmt: skip
    arrays = {**schema.to_batch(rows), **{"pixels": batch([noise(20, 20)] * 2)["pixels"]}}
    found = colour(home, [[1, 1, 1]], ("red",))(
        detection(home, box("car", 0.9, 0, 0, 20, 20))(arrays)
    )
    table = schema.to_table({name: found[name] for name in schema.OBSERVATION.names})
    assert table.schema.types == schema.OBSERVATION.types
    assert dict(table["scores"][0].as_py())["box_width"] == 20
