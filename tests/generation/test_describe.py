"""The describe job: answers asked for, counted, summarised, and given in a file instead."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_reid import images, schema, storage
from ray_reid.generation import describe
from ray_reid.generation.generators import descriptions
from ray_reid.generation.generators.descriptions import Description
from ray_reid.models.pretrained import references
from ray_reid.recipe import recipes
from ray_reid.runtime import stage, vllm
from ray_reid.runtime.job import Work

PICTURE = images.encode(np.zeros((4, 4, 3), np.uint8))
GOOD, OTHER = "red coat | jeans | boots", "blue coat | jeans | boots"


def _work(
    tmp_path: Path, clothes: list[str | None], *overrides: str, wearers: str = "1111111"
) -> Work:
    rows: list[dict[str, Any]] = [
        {
            schema.OBSERVATION_ID: f"id{n}",
            schema.IMAGE: PICTURE,
            schema.IDENTITY: f"s:{wearers[n]}",
            schema.CLOTHES: name,
            schema.SOURCE: "s",
            schema.SPLIT: "train",
        }
        for n, name in enumerate(clothes)
    ]
    storage.write(tmp_path / "ingest" / "observations", schema.observations(rows))
    (tmp_path / "out").mkdir()
    recipe = recipes.load("dlcr", "miniature", list(overrides))
    recipe = describe.JOB.view(recipe)
    return Work(recipe, tmp_path / "out", {"ingest": tmp_path / "ingest"}, {})


def _answering(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    told = {f"id{n}": answer for n, answer in enumerate(answers)}
    monkeypatch.setattr(describe, "_ask", lambda work, table: told)


def test_answers_become_one_description_a_set_of_clothes_and_others_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = _work(tmp_path, ["a", "a", "a", "b", "b", None])
    _answering(monkeypatch, [OTHER, GOOD, GOOD, "a man in a coat", "blue coat | none | boots"])
    facts = describe.describe_job(work)
    assert descriptions.read(work.out / descriptions.FILE) == [
        Description("a", "red coat", "jeans", "boots")
    ]
    assert (facts.worn, facts.described) == (2, 1)
    assert facts.undescribed == ("b",)
    assert facts.without_clothes == 1
    assert facts.answers["unparsable"] == 1
    assert facts.answers["most_unparsable"] == {"a man in a coat": 1}


def test_answers_of_no_use_are_refused_with_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = _work(tmp_path, ["a"])
    _answering(monkeypatch, ["a man"])
    with pytest.raises(ValueError, match=r"none of the 1 answers has the form .* 'a man'"):
        describe.describe_job(work)


def test_an_edited_file_takes_the_place_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    own = [Description(name, "green parka", "jeans", "boots") for name in ("a", "b", "spare")]
    descriptions.write(file, own, {})
    work = _work(tmp_path, ["a", "b"], f"describe.file={file}")
    facts = describe.describe_job(work)
    assert descriptions.read(work.out / descriptions.FILE) == own[:2]
    assert facts.answers == {"file": str(file), "ignored": 1}


def test_a_file_without_clothes_that_are_worn_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    descriptions.write(file, [Description("a", "red coat", "jeans", "boots")], {})
    work = _work(tmp_path, ["a", "b", "c"], f"describe.file={file}")
    with pytest.raises(ValueError, match=r"lacks 2 of the 3 clothes .*: \['b', 'c'\]; add"):
        describe.describe_job(work)


def test_one_id_for_the_clothes_of_two_people_is_refused(tmp_path: Path) -> None:
    work = _work(tmp_path, ["1", "2", None, "1"], wearers="1122")
    with pytest.raises(ValueError, match=r"clothes '1' are worn by .* 's:1' and 's:2'"):
        describe.describe_job(work)


def test_summaries_that_cannot_be_read_are_counted_and_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work = _work(tmp_path, ["a", "b"], "describe.summary=llm", "models.summariser=none/such")
    _answering(monkeypatch, [GOOD, OTHER])

    def told(plan: pa.Table, columns: Any, steps: Any, out: Path, title: str) -> None:
        answers = pa.array(["I am sorry"] * plan.num_rows)
        storage.write(out, plan.append_column(describe.ANSWER, answers))

    monkeypatch.setattr(stage, "stream", told)
    with caplog.at_level(logging.WARNING):
        facts = describe.describe_job(work)
    assert (facts.answers["summaries"], facts.answers["unparsable_summaries"]) == (0, 2)
    assert "2 of 2 summaries cannot be read, such as 'I am sorry'" in caplog.text
    assert [one.upper for one in descriptions.read(work.out / descriptions.FILE)] == [
        "red coat",
        "blue coat",
    ]


def test_images_without_clothes_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training image has clothes in the column 'clothes'"):
        describe.describe_job(_work(tmp_path, [None, None]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("describe.file=none.parquet", "no file of descriptions 'none.parquet'"),
        ("models.describer=./none", "model './none' is not there"),
        ("describe.summary=llm", "set models.summariser"),
        ("describe.backend=vllm", "needs the package vllm"),
    ],
)
def test_what_cannot_describe_is_refused_before_anything_runs(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe.check(recipes.load("dlcr", "miniature", [override]))


def test_vllm_is_asked_with_the_image_and_the_prompt() -> None:
    row = {schema.OBSERVATION_ID: "id", schema.IMAGE: PICTURE}
    asked = vllm.request(row, "what?", 9)
    image, text = asked["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert text == {"type": "text", "text": "what?"}
    assert asked["sampling_params"] == {"temperature": 0.0, "max_tokens": 9}
    assert asked[schema.OBSERVATION_ID] == "id"


def test_vllm_runs_the_model_in_the_precision_of_the_recipe() -> None:
    spec = recipes.load("dlcr", "miniature").describe
    engine = vllm.engine("/models/llava", "bf16", spec)
    assert engine["model_source"] == "/models/llava"
    assert engine["engine_kwargs"] == {"dtype": "bfloat16"}
    assert vllm.engine("m", "auto", spec)["engine_kwargs"] == {"dtype": "auto"}


def test_vllm_is_given_what_a_reference_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def answer(*arguments: Any) -> None:
        given.extend(arguments)
        raise ValueError("asked")

    monkeypatch.setattr(vllm, "answer", answer)
    work = _work(tmp_path, ["a"], "describe.backend=vllm", "models.precision=fp16")
    with pytest.raises(ValueError, match="asked"):
        describe.describe_job(work)
    assert given[4:6] == [str(references.WEIGHTS / "describer"), "fp16"]


def test_one_image_can_speak_for_its_clothes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = _work(tmp_path, ["a", "a", "a"], "describe.summary=one")
    _answering(monkeypatch, ["green coat | none | boots", OTHER, GOOD])
    describe.describe_job(work)
    # The first that names all parts; what others say of them does not count.
    assert descriptions.read(work.out / descriptions.FILE) == [
        Description("a", "blue coat", "jeans", "boots")
    ]
