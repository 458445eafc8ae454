"""A made-up run directory with embeddings, and its evaluation: no torch, no Ray, no MLflow."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_reid import images, schema, storage
from ray_reid.evaluation import evaluate
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.job import Work
from ray_reid.runtime.results import RunState

MINIATURE = {"reader": "miniature", "num_train": 4, "num_test": 8}


class FakeModel:
    """Looks at the middle of every image."""

    def activation_maps(self, inputs: Sequence[Any]) -> NDArray[np.float32]:
        heat = np.zeros((len(inputs), 4, 4), dtype=np.float32)
        heat[:, 1:3, 1:3] = 1
        return heat


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the evaluate job load a model that needs no weights."""
    monkeypatch.setattr(evaluate, "_load", lambda path: FakeModel())


@pytest.fixture(scope="session")
def evaluate_recipe() -> Callable[..., Recipe]:
    """A function that returns a recipe with these settings in its section `evaluate`."""
    return _evaluate_recipe


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Work]:
    """A function that makes a run of random embeddings and returns the work of its evaluate job."""
    return _make_run


@pytest.fixture(scope="session")
def publish_evaluation(publish_job: Callable[..., Path]) -> Callable[[Path, Work], RunState]:
    """A function that runs the evaluate job, makes all results current, and returns the state."""

    def publish(run: Path, work: Work) -> RunState:
        facts = {**work.facts, "evaluate": evaluate.evaluate_job(work).model_dump(mode="json")}
        inputs = {"evaluate": {job: f"key-{job}" for job in work.facts}}
        recipe = recipes.validate({"name": "baseline", "ingest": {"sources": [MINIATURE]}})
        for job, said in facts.items():
            publish_job(run, job, None, inputs.get(job, {}), dict(said), recipe)
        return RunState.read(run)

    return publish


def _evaluate_recipe(**section: Any) -> Recipe:
    return recipes.validate(
        {"name": "baseline", "ingest": {"sources": [MINIATURE]}, "evaluate": section}
    )


def _make_run(
    run: Path, identities: int = 8, cameras: int = 3, noise: float = 0.6, **section: Any
) -> Work:
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((identities, 16))
    rows: list[tuple[str, ...]] = []
    embeddings = []
    for number in range(identities):
        for camera in range(cameras):
            name = f"world:veh{number:02d}"
            where = f"{number}-{camera}"
            role, split = "normal", "query" if camera == 0 else "gallery"
            rows.append((where, name, f"c{camera}", split, role))
            embeddings.append(centres[number] + noise * chance.standard_normal(16))
    for where, role in (("d1", "distractor"), ("d2", "distractor"), ("j1", "junk")):
        rows.append((where, f"world:{where}", "c1", "gallery", role))
        embeddings.append(chance.standard_normal(16))
    _write_tables(run, rows, np.array(embeddings, dtype=np.float32), chance)
    folders = {job: run / job / f"key-{job}" for job in ("ingest", "train", "embed", "evaluate")}
    model = folders["train"] / "model"
    (model / "parts").mkdir(parents=True)
    (model / "parts" / "weights").write_text("weights")
    (model / "metrics.json").write_text("{}")
    out = folders.pop("evaluate")
    out.mkdir(parents=True)
    recipe = evaluate.JOB.view(_evaluate_recipe(**section))
    return Work(recipe, out, folders, _facts())


def _write_tables(
    run: Path,
    rows: list[tuple[str, ...]],
    embeddings: NDArray[np.float32],
    chance: np.random.Generator,
) -> None:
    names = (schema.IDENTITY, schema.CAMERA, schema.SPLIT, schema.ROLE)
    columns = [dict(zip(names, row[1:], strict=True)) for row in rows]
    ids = [schema.observation_id("world", row[0]) for row in rows]
    colours = chance.integers(0, 255, (len(rows), 3), dtype=np.uint8)
    encoded = [images.encode(np.broadcast_to(colour, (32, 24, 3)).copy()) for colour in colours]
    table = schema.observations(
        [
            {schema.OBSERVATION_ID: key, schema.IMAGE: image, schema.SOURCE: "world", **row}
            for key, image, row in zip(ids, encoded, columns, strict=True)
        ]
    )
    storage.write(run / "ingest" / "key-ingest" / "observations", table)
    kept = (*names, schema.CLOTHES, schema.TRACK, schema.TIME, schema.SOURCE)
    batch = {name: table[name].to_numpy(zero_copy_only=False) for name in kept}
    batch[schema.OBSERVATION_ID] = np.array(ids, dtype=object)
    batch[schema.EMBEDDING] = embeddings
    batch[schema.REFERENCE_EMBEDDING] = colours.astype(np.float32) + 1
    storage.write(run / "embed" / "key-embed" / "embeddings", schema.to_table(batch))


def _facts() -> dict[str, dict[str, Any]]:
    return {
        "ingest": {
            "fingerprint": {
                "table": "ingest/observations",
                "rows": 27,
                "ids": "ab",
                "images": "cd",
            },
            "counts": {"train": {"images": 32, "identities": 4, "cameras": 4}},
            "dropped": {"corrupt image": 2},
            "warnings": ["2 files are not images & were <left> out"],
            "sources": [{"reader": "miniature", "seed": 5}],
        },
        "train": {
            "history": [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0}],
        },
        "embed": {},
    }
