"""The review job on a made-up run, with colours in the place of a model's features."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ray_reid import schema, storage
from ray_reid.generation import agreement, frechet, review, sheets
from ray_reid.generation.generators.settings import UNSAFE
from ray_reid.images import decode, encode
from ray_reid.recipe import recipes
from ray_reid.runtime import figures
from ray_reid.runtime.figures import Card
from ray_reid.runtime.job import Work

SIZE = (24, 32)


def mean_colours(pictures):
    """Features of images: their mean colour."""
    return np.array([pixels.mean((0, 1)) for pixels in pictures], dtype=np.float32)


@pytest.fixture(autouse=True)
def small_extractor(monkeypatch):
    monkeypatch.setattr(frechet, "extractor", lambda spec, model, precision: mean_colours)


def rows_of(name, count, shift=0, **columns):
    """Plain images around one colour; reasons and identities may be given by row."""
    chance = np.random.default_rng(len(name))
    rows = []
    for number in range(count):
        colour = np.clip(chance.normal(100 + shift, 20, 3), 0, 255).astype(np.uint8)
        row = {
            schema.OBSERVATION_ID: schema.observation_id(name, number),
            schema.IMAGE: encode(np.broadcast_to(colour, (*SIZE, 3)).copy(), 100),
            schema.IDENTITY: f"{name}:{number % 5}",
            schema.SOURCE: name,
            schema.SPLIT: "train",
            **{column: value(number) for column, value in columns.items()},
        }
        rows.append(row)
    return rows


def reason(number):
    """Every third image passes; the others fail one of two filters."""
    return (None, "colour: seen blue, asked red", "confidence: 0.31 is below 0.65")[number % 3]


def generated(name, count, shift, **columns):
    return rows_of(
        name,
        count,
        shift,
        origin=lambda _: "synthetic",
        attributes=lambda n: {"colour": "red", "body_style": f"van{n}"},
        scores=lambda n: {"confidence": n / 100},
        **columns,
    )


def make_work(run, real=40, made=30, raw=0, drop_reason=reason, unsafe=(), **section):
    test = [{**row, schema.SPLIT: "query"} for row in rows_of("query", 4)]
    corrupt = [{**row, schema.DROP_REASON: "corrupt image: x"} for row in rows_of("corrupt", 2)]
    real_rows = rows_of("street", real) + test + corrupt
    storage.write(run / "ingest" / "observations", schema.observations(real_rows))
    rows = generated("made", made, 30, drop_reason=drop_reason)
    storage.write(run / "generate" / "observations", schema.observations(rows))
    if raw:
        refused = dict.fromkeys(unsafe, UNSAFE)
        table = schema.observations(generated("raw", raw, 90, drop_reason=refused.get))
        storage.write(run / "generate" / "raw", table)
        table = schema.observations(generated("adapted", raw, 60))
        storage.write(run / "generate" / "adapted", table)
    out = run / "out"
    out.mkdir()
    recipe = recipes.validate({"name": "vehicle_diff", "frechet": section})
    jobs = ("ingest", "adapt", "generate")
    return Work(
        review.JOB.view(recipe), out, {job: run / job for job in jobs}, {job: {} for job in jobs}
    )


def features(run, table, keep=None):
    """Mean colours of a table in the order of ids, without the code under test."""
    found = storage.read(run / table, list(schema.OBSERVATION.names), kept_only=False).to_pylist()
    kept = [row for row in found if keep is None or keep(row)]
    return mean_colours([decode(row[schema.IMAGE]) for row in kept])


def test_counts_reasons_and_identities_are_those_of_the_marks(tmp_path):
    facts = review.review_job(make_work(tmp_path))
    assert (facts.made, facts.kept) == (30, 10)
    assert facts.dropped == {"colour": 10, "confidence": 10}
    assert (facts.identities_made, facts.identities_kept) == (5, 5)
    assert facts.metrics["generated_kept"] == 10
    assert "frechet_raw" not in facts.metrics
    assert type(facts).model_validate_json(facts.model_dump_json()) == facts


def test_the_stages_compare_equally_many_images_first_in_the_order_of_their_ids(tmp_path):
    facts = review.review_job(make_work(tmp_path, raw=12, num_images=8))
    raw, adapted, filtered = facts.stages
    real = features(tmp_path, "ingest/observations", lambda row: row["source"] == "street")[:8]
    every = features(tmp_path, "generate/adapted")[:8]
    passed = features(
        tmp_path, "generate/observations", lambda row: row[schema.DROP_REASON] is None
    )
    for stage, images, own in (
        (raw, 12, features(tmp_path, "generate/raw")),
        (adapted, 30, every),
        (filtered, 10, passed),
    ):
        assert stage.images == images
        assert stage.identities == 5
        assert stage.fid == pytest.approx(frechet.frechet_distance(own[:8], real))
        assert (stage.num_images, stage.extractor) == (8, "image_text")
    assert raw.fid > adapted.fid


def test_images_that_the_pipeline_left_black_are_of_no_stage(tmp_path):
    raw = review.review_job(make_work(tmp_path, raw=12, unsafe=(0, 3))).stages[0]
    assert raw.images == 10
    shown = features(tmp_path, "generate/raw", lambda row: row[schema.DROP_REASON] is None)
    real = features(tmp_path, "ingest/observations", lambda row: row["source"] == "street")
    size = raw.num_images
    assert raw.fid == pytest.approx(frechet.frechet_distance(shown[:size], real[:size]))


def test_a_missing_set_is_null_and_holds_no_other_back(tmp_path):
    work = make_work(tmp_path, drop_reason=lambda n: None if n == 0 else "colour: seen blue")
    raw, adapted, filtered = review.review_job(work).stages
    assert (raw.images, raw.fid, raw.extractor) == (0, None, None)
    # One image has no covariance.
    assert (filtered.images, filtered.fid) == (1, None)
    assert (adapted.images, adapted.fid) == (30, None)


def test_guided_images_stand_beside_those_without_that_nothing_dropped(tmp_path):
    work = make_work(tmp_path)
    jobs = {job: place for job, place in work.inputs.items() if job != "adapt"}
    alone = dataclasses.replace(work, inputs=jobs)
    assert [stage.stage for stage in review.review_job(alone).stages] == ["kept"]
    rows = generated("unguided", 9, 60, drop_reason=reason)
    storage.write(tmp_path / "generate" / "unguided", schema.observations(rows))
    without, kept = review.review_job(alone).stages
    assert (without.stage, without.images) == ("unguided", 3)
    assert without.num_images == kept.num_images == 3


def test_all_dropped_is_a_warning_and_only_the_dropped_are_shown(tmp_path):
    facts = review.review_job(make_work(tmp_path, drop_reason=lambda _: "colour: seen blue"))
    assert facts.warnings == ("the filters dropped every generated image",)
    assert list(facts.pictures) == [sheets.DROPPED, sheets.COUNTS]


def test_nothing_generated_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing was generated"):
        review.review_job(make_work(tmp_path, made=0))


def test_both_sheets_are_written_with_captions_and_stay_small(tmp_path):
    work = make_work(tmp_path, made=300)
    facts = review.review_job(work)
    assert list(facts.pictures) == [sheets.KEPT, sheets.DROPPED, sheets.COUNTS]
    for name in facts.pictures:
        file = work.out / name
        assert file.stat().st_size < 1_500_000
        with Image.open(file) as picture:
            assert picture.format == "PNG"


def test_a_caption_says_what_was_asked_or_what_was_measured():
    row = {
        schema.ATTRIBUTES: {"colour": "red", "body_style": "van"},
        schema.PROMPT: "a red van on a road",
        schema.SCORES: {"confidence": 0.5, "colour": 0.2, "best_colour": 0.25, "passed_colour": 0},
        schema.DROP_REASON: "confidence: 0.5 is below 0.65",
    }
    assert sheets._about(row) == "red van"
    assert sheets._about({**row, schema.ATTRIBUTES: None}) == "a red van on a road"
    assert sheets._measured(row) == "0.5 is below 0.65"
    assert sheets._measured({**row, schema.DROP_REASON: "confidence"}) == "confidence 0.50"
    wrong = {**row, schema.DROP_REASON: "colour: looks red"}
    assert sheets._measured(wrong) == "looks red; colour 0.20, best_colour 0.25"
    assert sheets._measured({**wrong, schema.SCORES: None}) == "looks red"


# What the filters say of the same images


def measured_by(number):
    """Two filters: one keeps what 3 divides, the other what 2 divides."""
    return {
        "confidence": number / 100,
        "passed_confidence": float(number % 3 == 0),
        "shape": 0.5,
        "passed_shape": float(number % 2 == 0),
    }


def measured_work(tmp_path, count=30, **columns):
    work = make_work(tmp_path, made=0)
    rows = rows_of(
        "street",
        count,
        30,
        origin=lambda _: "synthetic",
        observation_id=lambda n: schema.observation_id("made", n),
        scores=measured_by,
        drop_reason=lambda n: None if n % 6 == 0 else "confidence: x" if n % 3 else "shape: y",
        **columns,
    )
    table = tmp_path / "generate" / "more"
    storage.write(table / "observations", schema.observations(rows))
    return dataclasses.replace(
        work, inputs={"ingest": work.inputs["ingest"], "personalise": table}, facts={}
    )


def test_agreement_is_what_a_loop_over_the_images_counts(tmp_path):
    found = review.review_job(measured_work(tmp_path)).agreement
    first = [n % 3 == 0 for n in range(30)]
    second = [n % 2 == 0 for n in range(30)]
    assert found.filters == ("confidence", "shape")
    assert found.images == 30
    assert found.kept == (sum(first), sum(second))
    assert found.alone == (
        sum(b and not a for a, b in zip(first, second, strict=True)),
        sum(a and not b for a, b in zip(first, second, strict=True)),
    )
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert found.same == ((30, same), (same, 30))
    chance = 30 * (10 / 30 * 15 / 30 + 20 / 30 * 15 / 30)
    assert found.expected[0][1] == pytest.approx(chance)
    assert found.all_keep == sum(a and b for a, b in zip(first, second, strict=True))
    assert found.all_drop == sum(not a and not b for a, b in zip(first, second, strict=True))


def test_the_table_of_agreement_names_every_pair_and_all(tmp_path):
    facts = review.review_job(measured_work(tmp_path))
    (table,) = [one for one in review.section(facts).tables if one.title.startswith("Agreement")]
    assert table.header[3:] == ("says as confidence", "says as shape")
    assert table.rows[0] == ("confidence", "33.3 %", "10", "", "50.0 % (0.00)")
    assert table.rows[-1] == ("all of them", "16.7 %", "", "50.0 %", "")
    assert all(len(row) == len(table.header) for row in table.rows)


def test_one_filter_or_none_has_nobody_to_agree_with():
    rows = schema.observations(generated("made", 4, 0, drop_reason=reason)).select(
        list(sheets.COLUMNS)
    )
    assert agreement.of_rows(rows) is None
    assert agreement.table(None) is None
    assert agreement.measured(rows).num_rows == 2


def test_every_filter_has_a_sheet_of_what_it_keeps_beside_what_it_drops(tmp_path):
    work = measured_work(tmp_path, parent=lambda n: schema.observation_id("street", n))
    facts = review.review_job(work)
    names = ["filter_confidence.png", "filter_shape.png", sheets.COUNTS]
    assert list(facts.pictures) == [sheets.KEPT, sheets.DROPPED, *names]
    for name in names:
        with Image.open(work.out / name) as picture:
            assert picture.format == "PNG"
    before, kept = facts.stages
    assert (before.stage, before.images, kept.images) == ("made", 30, 5)


def test_images_that_no_filter_saw_are_compared_by_none(tmp_path):
    rows = generated("made", 6, 0)
    for number, row in enumerate(rows):
        row[schema.SCORES] = measured_by(number) if number else None
        row[schema.DROP_REASON] = None if number else UNSAFE
    found = agreement.of_rows(schema.observations(rows).select(list(sheets.COLUMNS)))
    assert found.images == 5


def test_a_curve_says_how_many_identities_have_at_most_so_many_images():
    figure = figures.distribution({"real": [1, 2, 2, 5], "kept": [3]}, "images", "identities")
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [0, 1, 2, 2, 5]
    assert line.get_ydata().tolist() == [0, 25, 50, 75, 100]


def drawn(figure):
    with Image.open(io.BytesIO(figures.png(figure))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def coloured(sheet, channel):
    """Height and width of what has one pure colour."""
    others = [other for other in range(3) if other != channel]
    rows, columns = np.nonzero((sheet[..., channel] > 250) & (sheet[..., others].max(-1) < 5))
    return np.ptp(rows) + 1, np.ptp(columns) + 1


@pytest.mark.parametrize("shape", [(64, 64), (256, 128), (40, 400), (900, 30)])
def test_a_contact_sheet_keeps_the_proportions_of_every_image(shape):
    red, blue = (np.zeros((*shape, 3), np.uint8) for _ in range(2))
    red[..., 0] = blue[..., 2] = 255
    square = np.zeros((50, 50, 3), np.uint8)
    sheet = drawn(figures.contact_sheet({"one": [Card(red, ""), Card(square, "b" * 200)]}))
    height, width = coloured(sheet, 0)
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.15)


def test_a_contact_sheet_of_no_image_is_refused():
    with pytest.raises(ValueError, match="needs an image"):
        figures.contact_sheet({"none": []})


def test_dollars_in_a_caption_are_no_mathematics():
    card = Card(np.zeros((8, 8, 3), np.uint8), "from $a_ to $b\\foo$")
    assert figures.png(figures.contact_sheet({"$x_$": [card]}))
