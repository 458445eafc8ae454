"""Stages of a training without Ray: what is run, from which weights, and what is not run again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_reid import config, loader, package, schema, storage, train
from ray_reid.config import Recipe
from ray_reid.run import Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Two sources of four identities with three images each."""
    rows = [
        {
            schema.OBSERVATION_ID: schema.observation_id(source, identity, image),
            schema.IMAGE: b"?",
            schema.IDENTITY: schema.qualified_identity(source, str(identity)),
            schema.SOURCE: source,
            schema.SPLIT: "train",
        }
        for source in ("target", "beside")
        for identity in range(4)
        for image in range(3)
    ]
    storage.write(tmp_path / "ingest" / "observations", schema.observations(rows))
    (tmp_path / "work").mkdir()
    stages = [
        {"name": "I", "changes": {"epochs": 2}},
        {"name": "II", "changes": {"epochs": 1, "sources": ["target"]}},
    ]
    recipe = config.load(
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


def fake_run(ran: list[Any], monkeypatch: pytest.MonkeyPatch, fail: str = "") -> None:
    """In place of Ray Train: remember what was asked for, and leave a network of that size."""

    def run(
        recipe: Recipe, tables: list[Path], place: Path, name: str, before: Path | None
    ) -> dict[str, Any]:
        if name == fail:
            raise RuntimeError("killed")
        start = None if before is None else float(torch.load(before)["head.weight"].sum())
        ran.append((name, recipe.train.epochs, start))
        count = len(loader.labels(tables, recipe.train).identities)
        history = [{"epoch": n, "loss": 1.0, "accuracy": 0.5} for n in range(recipe.train.epochs)]
        network = {"head.weight": torch.full((count, 2), float(len(ran)))}
        return {"network": network, "progress": {"history": history}, "precision": "fp32"}

    monkeypatch.setattr(train, "_run", run)
    monkeypatch.setattr(train, "check_capacity", lambda *_: None)
    monkeypatch.setattr(package, "save", lambda *saved: ran.append(("saved", len(saved[2]))))


def test_each_stage_starts_from_the_one_before(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    fake_run(ran, monkeypatch)
    facts = train.train_job(work)
    # Stage I leaves eight classifiers of two ones each; the package knows the target's four.
    assert ran == [("I", 2, None), ("II", 1, 16.0), ("saved", 4)]
    assert [entry["epoch"] for entry in facts["history"]] == [0, 1, 2]
    assert [(stage["name"], stage["identities"]) for stage in facts["stages"]] == [
        ("I", 8),
        ("II", 4),
    ]
    assert facts["counts"]["images"] == 12


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
    small = config.override(work.recipe, {"train.sampler.num_identities": 6})
    with pytest.raises(ValueError, match=r"train\.sampler: num_identities is 6 but only 4"):
        train.train_job(Work(small, work.out, work.inputs, work.facts))
    assert ran == []
