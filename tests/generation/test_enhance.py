"""The enhance job: sequences described, answers merged, prompts with a token, and bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_reid import images, schema, storage
from ray_reid.generation import enhance, manual_prompts
from ray_reid.generation.generators import phrases
from ray_reid.miniature import draw, vehicle_identities
from ray_reid.miniature.pedestrians import pedestrian_identity
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.job import Work

PICTURE = images.encode(np.zeros((4, 4, 3), np.uint8))
WORN = {
    "upper": "coat", "upper_colour": "red", "lower": "skirt", "lower_colour": "blue",
    "footwear": "boots", "footwear_colour": "black",
}  # fmt: skip


@pytest.fixture
def work_of(tmp_path: Path, people_tokenizer: Path) -> Callable[..., Work]:
    """A function that gives the job some real training images and changes of the recipe."""

    def work(rows: list[dict[str, Any]], *overrides: str) -> Work:
        whole = [
            {
                schema.OBSERVATION_ID: f"id{n}",
                schema.IMAGE: PICTURE,
                schema.SOURCE: "s",
                schema.SPLIT: "train",
                schema.CAMERA: "c1",
                **row,
            }
            for n, row in enumerate(rows)
        ]
        folder = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
        storage.write(folder / "ingest" / "observations", schema.observations(whole))
        (folder / "out").mkdir()
        recipe = _recipe(people_tokenizer, *overrides)
        inputs = {"ingest": folder / "ingest"}
        return Work(enhance.JOB.view(recipe), folder / "out", inputs, {})

    return work


def _recipe(tokenizer: Path, *overrides: str) -> Recipe:
    return recipes.load("baseline", "miniature", [f"models.text_to_image={tokenizer}", *overrides])


def _of(*names: str | None) -> list[dict[str, Any]]:
    return [{schema.IDENTITY: name} for name in names]


def _answering(monkeypatch: pytest.MonkeyPatch, *answers: str | None) -> None:
    told = {f"id{n}": answer for n, answer in enumerate(answers)}
    monkeypatch.setattr(enhance, "_ask", lambda work, table, found: told)


GOOD = "red hoodie | blue trousers | white boots"


def prompts_of(work: Work) -> pa.Table:
    """What the job has written, by identity."""
    whole = storage.dataset(work.out / enhance.TABLE).to_table(columns=enhance.PROMPTS.names)
    return whole.cast(enhance.PROMPTS).sort_by(schema.IDENTITY)


def test_an_identity_gets_a_prompt_with_a_rare_token_and_one_without(
    work_of: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(_of("s:1", "s:1", "s:1", "s:2"))
    _answering(
        monkeypatch, GOOD, GOOD, "red hoodie | grey trousers | none", "black coat | none | none"
    )
    facts = enhance.enhance_job(work)
    table = prompts_of(work)
    assert table.schema == enhance.PROMPTS
    first, second = table.to_pylist()
    assert first == {
        "identity": "s:1", "source": "s", "camera": "c1", "images": ["id0", "id1", "id2"],
        "description": "red hoodie, blue trousers, white boots", "token": facts.token,
        "prompt": f"a {facts.token} person wearing red hoodie, blue trousers, white boots",
        "class_prompt": "a person wearing red hoodie, blue trousers, white boots",
        "cut": 0, "drop_reason": None,
    }  # fmt: skip
    assert second["class_prompt"] == "a person wearing black coat"
    assert (facts.identities, facts.prompts, facts.images, facts.single) == (2, 2, 4, 1)
    assert (work.out / enhance.SHEET).is_file()
    shown = enhance.section(facts).tables[0]
    assert ("identities with a single image", "1") in shown.rows


def test_an_identity_that_nothing_is_said_of_is_kept_with_a_reason(
    work_of: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(_of("s:1", "s:2", "s:3"))
    _answering(monkeypatch, GOOD, "none", None)
    facts = enhance.enhance_job(work)
    rows = prompts_of(work).to_pylist()
    assert [row["drop_reason"] for row in rows] == [None, enhance.UNDESCRIBED, enhance.UNREADABLE]
    assert [row["prompt"] is None for row in rows] == [False, True, True]
    assert facts.dropped == {enhance.UNDESCRIBED: 1, enhance.UNREADABLE: 1}


def test_an_unlabelled_source_is_refused_and_single_images_without_identity_are_counted(
    work_of: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="none of the 2 training images has an identity"):
        enhance.enhance_job(work_of(_of(None, None)))
    _answering(monkeypatch, GOOD)
    facts = enhance.enhance_job(work_of(_of("s:1", None)))
    assert facts.unlabelled == 1
    assert "1 training images without an identity" in enhance.section(facts).warnings[1]


def test_words_are_cut_from_the_description_and_counted(
    work_of: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = '["what", {"ask": "a {category} carrying", "say": "carrying {answer}"}]'
    work = work_of(_of("s:1"), f"enhance.questions={asked}")
    more = ", ".join(
        f"{colour} bag" for colour in ("grey", "pink", "green", "blue", "red", "black")
    )
    _answering(monkeypatch, f"{GOOD}\n{more}, white bag, brown bag, orange bag")
    facts = enhance.enhance_job(work)
    (row,) = prompts_of(work).to_pylist()
    assert row["prompt"].startswith(f"a {facts.token} person wearing red hoodie, blue trousers")
    assert "white boots, carrying grey bag" in row["prompt"]
    assert row["cut"] > 0
    assert (facts.cut_prompts, facts.cut_words) == (1, row["cut"])


def test_the_category_alone_is_a_style(work_of: Callable[..., Work]) -> None:
    work = work_of(_of("s:1"), "enhance.style=category")
    facts = enhance.enhance_job(work)
    (row,) = prompts_of(work).to_pylist()
    assert (row["prompt"], row["class_prompt"]) == (f"a {facts.token} person", "a person")
    assert row["description"] is None


def test_words_of_people_are_a_style_from_attributes_or_from_a_file(
    work_of: Callable[..., Work], tmp_path: Path
) -> None:
    rows = [{**row, schema.ATTRIBUTES: WORN} for row in _of("s:1")] + _of("s:2")
    work = work_of(rows, "enhance.style=manual")
    enhance.enhance_job(work)
    first, second = prompts_of(work).to_pylist()
    assert first["class_prompt"] == "a person wearing red coat, blue skirt, black boots"
    assert second["drop_reason"] == enhance.UNDESCRIBED
    file = tmp_path / "mine.csv"
    file.write_text("identity,description\ns:2,a green parka\n")
    work = work_of(rows, "enhance.style=manual", f"enhance.manual_file={file}"
    )  # fmt: skip
    enhance.enhance_job(work)
    first, second = prompts_of(work).to_pylist()
    assert first["drop_reason"] == enhance.UNDESCRIBED
    assert second["class_prompt"] == "a person wearing a green parka"


def test_attributes_that_no_image_has_are_refused(work_of: Callable[..., Work]) -> None:
    with pytest.raises(ValueError, match=r"no training image has the attributes .*none"):
        enhance.enhance_job(work_of(_of("s:1"), "enhance.style=manual"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("identity\ns:1\n", "has no column 'description'"),
        ("identity,description\ns:1,\n", "row 1: identity or description is empty"),
        ("identity,description\ns:1,a\ns:1,b\n", "describes the identity 's:1' twice"),
    ],
)
def test_a_file_of_descriptions_with_a_hole_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        manual_prompts.read(file)


def test_a_token_that_a_description_uses_is_refused(
    work_of: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(_of("s:1"), "enhance.token.text=red")
    _answering(monkeypatch, GOOD)
    with pytest.raises(ValueError, match="token 'red' is a word of the description"):
        enhance.enhance_job(work)


def test_a_new_token_takes_the_place_of_a_rare_one(
    work_of: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(_of("s:1"), "enhance.token.kind=new")
    _answering(monkeypatch, GOOD)
    assert enhance.enhance_job(work).token == "<identity>"
    (row,) = prompts_of(work).to_pylist()
    assert row["prompt"].startswith("a <identity> person wearing")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models.describer=./none", "model './none' is not there"),
        ("enhance.token.text=brontosaurus", "is split by the tokenizer"),
        ("enhance.token.text=two words", "must be one word without spaces"),
        ("enhance.template=a {token} {description} {hat}", "unknown field 'hat'"),
        ("enhance.template=a person in {description}", "must have the field '{token}' once"),
        ("enhance.questions=[]", "asks nothing"),
        ('enhance.questions=[{"ask": "a", "say": "b"}]', "must have the field '{answer}' once"),
        ("enhance.manual_file=none.csv", "is for style 'manual'"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused_before_anything_runs(
    people_tokenizer: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        enhance.check(_recipe(people_tokenizer, override))


def test_the_job_reads_its_own_section_and_its_models_alone(people_tokenizer: Path) -> None:
    view = enhance.JOB.view(_recipe(people_tokenizer))
    with pytest.raises(RuntimeError, match="reads 'train'"):
        _ = view.train


def test_the_describer_is_asked_every_question_and_an_unreadable_image_has_no_answer() -> None:
    person = pedestrian_identity(3, 70_003)
    drawn = draw(person, domain="showroom", size=(96, 48))
    question = "describe the clothes of this person in one line: upper | lower | footwear"
    stage = enhance.AskAll("miniature:describer", "auto", [question, question], 40)
    told = stage({
        schema.OBSERVATION_ID: np.array(["a", "b"], object),
        schema.IMAGE: np.array([drawn.encoded, b"torn"], object),
    })  # fmt: skip
    first, second = told[enhance.ANSWER][0].split(enhance.SEPARATOR)
    assert first == second
    assert first.count("|") == 2
    assert told[enhance.ANSWER][1] is None
    assert schema.IMAGE not in told


def test_vehicles_are_described_by_a_captioner() -> None:
    car = vehicle_identities(4, 70_003)[2]
    drawn = [draw(car, domain="showroom", index=index).encoded for index in range(5)]
    stage = enhance.AskAll("miniature:captioner", "auto", ["a"], 40)
    told = stage({
        schema.OBSERVATION_ID: np.array(list("abcde"), object),
        schema.IMAGE: np.array(drawn, object),
    })  # fmt: skip
    description = phrases.merge(list(told[enhance.ANSWER]), "vehicle")
    assert description is not None
    assert car.colour in description.split(), description


@pytest.mark.slow
def test_people_are_described_in_a_stream(work_of: Callable[..., Work], ray_local: None) -> None:
    person = pedestrian_identity(3, 70_003)
    rows = [
        {
            schema.IDENTITY: "s:3",
            schema.IMAGE: draw(person, domain="showroom", index=n, size=(96, 48)).encoded,
        }
        for n in range(5)
    ]
    work = work_of(rows, "enhance.around=2")
    facts = enhance.enhance_job(work)
    (row,) = prompts_of(work).to_pylist()
    assert row["images"] == ["id1", "id2", "id3"]
    assert storage.dataset(work.out / enhance.ANSWERS).count_rows() == 3
    outfit = person.outfit(0)
    assert f"{outfit.lower_colour} {outfit.lower}" in row["description"], row
    assert facts.prompts == 1
