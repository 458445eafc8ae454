"""Stages of a training without Ray: what is run, from which weights, and what is not run again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_reid import schema, storage
from ray_reid.models import package
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.job import Work
from ray_reid.training import loader, train


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Two sources of four identities with three images each."""
    rows = [*_rows("target", 4, 3), *_rows("beside", 4, 3)]
    storage.write(tmp_path / "ingest" / "observations", schema.observations(rows))
    (tmp_path / "work").mkdir()
    stages = [
        {"name": "I", "changes": {"epochs": 2}},
        {"name": "II", "changes": {"epochs": 1, "sources": ["target"]}},
    ]
    recipe = recipes.load(
        "baseline",
        None,
        [
            "train.backbone=resnet10t",
            "train.image_size=[32, 32]",
            "train.sampler={num_identities: 4, num_instances: 2}",
            f"train.stages={stages}",
        ],
    )
    return Work(recipe, tmp_path / "work", {"ingest": tmp_path / "ingest"}, {})


def _rows(source: str, identities: int, images: int) -> list[dict[str, Any]]:
    return [
        {
            schema.OBSERVATION_ID: schema.observation_id(source, identity, image),
            schema.IMAGE: b"?",
            schema.IDENTITY: schema.qualified_identity(source, str(identity)),
            schema.SOURCE: source,
            schema.SPLIT: "train",
        }
        for identity in range(identities)
        for image in range(images)
    ]


def fake_run(ran: list[Any], monkeypatch: pytest.MonkeyPatch, fail: str = "") -> None:
    """In place of Ray Train: remember what was asked for, and leave a network of that size."""

    def run(
        recipe: Recipe,
        tables: list[Path],
        held_out: frozenset[str],
        place: Path,
        name: str,
        before: Path | None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if name == fail:
            raise RuntimeError("killed")
        start = (
            None if before is None else float(torch.load(before)["weights"]["head.weight"].sum())
        )
        ran.append((name, recipe.train.epochs, start))
        count = len(loader.labels(tables, recipe.train, held_out).identities)
        history = [{"epoch": n, "loss": 1.0, "accuracy": 0.5} for n in range(recipe.train.epochs)]
        if held_out:
            found = {"validation_mAP": 0.5, "validation_rank-1": 0.25}
            history = [entry | found for entry in history]
        kept = {"head.weight": torch.full((count, 2), float(len(ran)))}
        state = {"network": {}, "progress": {"history": history}, "precision": "fp32"}
        return state, kept

    monkeypatch.setattr(train, "_run", run)
    monkeypatch.setattr(train, "check_capacity", lambda *_: None)
    monkeypatch.setattr(package, "save", lambda *saved: ran.append(("saved", len(saved[2]))))


def test_each_stage_starts_from_the_one_before(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    fake_run(ran, monkeypatch)
    facts = train.train_job(work)
    # Stage I leaves eight classifiers of two ones each; the package knows the target's four.
    assert ran == [("I", 2, None), ("II", 1, 16.0), ("saved", 4)]
    assert [entry["epoch"] for entry in facts.history] == [0, 1, 2]
    assert [(stage.name, stage.identities) for stage in facts.stages] == [
        ("I", 8),
        ("II", 4),
    ]
    assert facts.counts.images == 12


def test_a_stage_that_was_finished_is_not_trained_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    fake_run(ran, monkeypatch, fail="II")
    with pytest.raises(RuntimeError, match="killed"):
        train.train_job(work)
    fake_run(ran, monkeypatch)
    train.train_job(work)
    assert ran == [("I", 2, None), ("II", 1, 16.0), ("saved", 4)]


def test_a_stage_that_cannot_fill_a_batch_is_refused_before_any_is_trained(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    fake_run(ran, monkeypatch)
    small = recipes.override(work.recipe, {"train.sampler.num_identities": 6})
    with pytest.raises(ValueError, match=r"train\.sampler: num_identities is 6 but only 4"):
        train.train_job(Work(small, work.out, work.inputs, work.facts))
    assert ran == []


def test_every_stage_does_without_the_held_out_identities_of_the_last(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    fake_run(ran, monkeypatch)
    changes = {"train.validation": 0.5, "train.sampler.num_identities": 2}
    recipe = recipes.override(work.recipe, changes)
    facts = train.train_job(Work(train.JOB.view(recipe), work.out, work.inputs, work.facts))
    # Two of the target's four; all of those beside it are trained on.
    assert [(stage.name, stage.identities) for stage in facts.stages] == [
        ("I", 6),
        ("II", 2),
    ]
    # Stages count on: the last has one epoch, after the two of the first.
    taken = facts.validation
    assert (taken.identities, taken.images, taken.epoch) == (2, 6, 2)
    assert taken.figures == {"mAP": 0.5, "rank-1": 0.25}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"sources": ["targte"]}, r"train\.sources names 'targte', .* choose from \['alone', 'b"),
        (
            {"sources": ["few"]},
            r"train\.validation 0\.5 of the real training identities cannot be .*: 3 identities",
        ),
        ({"sources": ["alone"]}, r"train\.validation 0\.5 .* cannot be held out and searched: "),
        ({"validation": 0.2}, r"stage 'II' changes 'validation', but all stages hold out the same"),
    ],
)
def test_a_validation_that_cannot_be_is_refused_before_anything_is_trained(
    work: Work,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    rule: str,
) -> None:
    ran: list[Any] = []
    fake_run(ran, monkeypatch)
    # Too few identities, and identities that nobody else's image could be found of.
    rows = [*_rows("beside", 4, 3), *_rows("few", 3, 3), *_rows("alone", 4, 1)]
    storage.write(tmp_path / "other" / "observations", schema.observations(rows))
    with pytest.raises(ValueError, match=rule) as raised:
        _refused(Work(work.recipe, work.out, {"ingest": tmp_path / "other"}, {}), changes)
    assert "\n" not in str(raised.value)
    assert ran == []


def _refused(work: Work, changes: dict[str, Any]) -> None:
    stages = [{"name": "I"}, {"name": "II", "changes": changes}]
    own = {"train.stages": stages, "train.validation": 0.5, "train.sampler.num_identities": 2}
    train.train_job(Work(recipes.override(work.recipe, own), work.out, work.inputs, work.facts))
