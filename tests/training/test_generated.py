"""Which generated images are trained on: kept ones, all, or as many at random."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_reid import images, schema, storage
from ray_reid.generation.generators import clothes, settings
from ray_reid.generation.generators.identities import FAILED
from ray_reid.recipe.train import Train
from ray_reid.training import loader

REAL, MADE, DROPPED = 12, 40, 16


def _image(number: int) -> bytes:
    return images.encode(np.full((16, 16, 3), number, np.uint8))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three real identities, of which an image is broken; four generated ones, some dropped."""
    base = tmp_path_factory.mktemp("tables")
    real = [_row(f"r{n}", f"r:{n % 3}", n, schema.ORIGINS[0]) for n in range(REAL)]
    real.append(_row("broken", "r:0", 0, "real") | {schema.DROP_REASON: "corrupt image: ?"})
    made = [_row(f"g{n}", f"g:{n % 4}", 100 + n, "synthetic") for n in range(MADE)]
    for number, row in enumerate(made):
        # Two filters: one keeps the last ones, the other every even one. The recipe had both.
        passed = {"colour": number >= DROPPED, "clip": number % 2 == 0}
        row[schema.SCORES] = {schema.PASSED + name: float(one) for name, one in passed.items()}
        if number < DROPPED:
            row[schema.DROP_REASON] = "colour: blue"
    for name in schema.NOT_MADE:
        made.append(_row(name, "g:0", 0, "synthetic") | {schema.DROP_REASON: f"{name}: 1 %"})
    storage.write(base / "real", schema.observations(real))
    storage.write(base / "made", schema.observations(made))
    return [base / "real", base / "made"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


def _row(name: str, identity: str, number: int, origin: str) -> dict[str, Any]:
    return {
        schema.OBSERVATION_ID: schema.observation_id("s", name),
        schema.IMAGE: _image(number),
        schema.IDENTITY: identity,
        schema.SOURCE: "s",
        schema.SPLIT: "train",
        schema.ORIGIN: origin,
    }


def _numbers(tables: list[Path], **changes: Any) -> list[int]:
    """Numbers of the generated images that are trained on, read from their pixels."""
    spec = Train(**{"mixing": "shuffled", "image_size": (16, 16), **changes})
    rows = loader.TrainingRows(tables, spec)
    assert int((~rows.chosen.synthetic).sum()) == REAL
    decoded = rows.decode(np.flatnonzero(rows.chosen.synthetic).tolist())
    return [int(pixels.mean().round()) - 100 for pixels in decoded]


def test_kept_images_are_trained_on_by_default(tables: list[Path]) -> None:
    kept = list(range(DROPPED, MADE))
    assert sorted(_numbers(tables)) == kept
    # Whether the dropped ones are read too or not.
    assert sorted(_numbers(tables, synthetic_images=MADE)) == kept


def test_the_verdicts_of_some_filters_decide_in_the_place_of_all(tables: list[Path]) -> None:
    even = [number for number in range(MADE) if number % 2 == 0]
    assert sorted(_numbers(tables, synthetic_filters=["clip"])) == even
    assert sorted(_numbers(tables, synthetic_filters=["colour"])) == list(range(DROPPED, MADE))
    both = [number for number in even if number >= DROPPED]
    assert sorted(_numbers(tables, synthetic_filters=["clip", "colour"])) == both
    # As many at random as these keep.
    random = _numbers(tables, synthetic_filters=["clip"], synthetic_of="random")
    assert (len(random), set(random) == set(even)) == (len(even), False)
    said = r"names .reid., but .* have verdicts of \[.clip., .colour.\] only; choose"
    with pytest.raises(ValueError, match=said):
        _numbers(tables, synthetic_filters=["reid"])


def test_all_images_are_those_that_a_model_has_made(tables: list[Path]) -> None:
    assert sorted(_numbers(tables, synthetic_of="all")) == list(range(MADE))


def test_as_many_at_random_do_not_ask_the_filters(tables: list[Path]) -> None:
    for number in (10, 20, 40):
        kept = _numbers(tables, synthetic_images=number)
        some = _numbers(tables, synthetic_of="random", synthetic_images=number)
        assert len(some) == len(kept)
        # The first of those that are drawn: as many need be made and no more.
        drawn = {"synthetic_of": "all", "synthetic_images": len(kept)}
        assert sorted(some) == sorted(_numbers(tables, **drawn))
    assert min(some) < DROPPED


@pytest.mark.parametrize("kind", ["kept", "all", "random"])
def test_fewer_images_are_part_of_more_and_a_seed_draws_others(
    tables: list[Path], kind: str
) -> None:
    few, more = (_numbers(tables, synthetic_of=kind, synthetic_images=n) for n in (15, 30))
    assert set(few) < set(more)
    other = _numbers(tables, synthetic_of=kind, synthetic_images=15, synthetic_draw=1)
    assert set(other) != set(few)


def test_the_filtered_are_the_kept_of_the_unfiltered(tables: list[Path]) -> None:
    kept = _numbers(tables, synthetic_images=20, synthetic_draw=5)
    every = _numbers(tables, synthetic_images=20, synthetic_draw=5, synthetic_of="all")
    assert len(every) == 20
    assert set(kept) == {number for number in every if number >= DROPPED}


def test_more_images_than_were_made_are_refused(tables: list[Path]) -> None:
    with pytest.raises(ValueError, match="synthetic_images is 41, but 40 generated images can be"):
        loader.labels(tables, Train(mixing="shuffled", synthetic_images=41))


def test_rows_without_an_image_are_known_by_their_reason() -> None:
    reasons = (clothes.NO_CLOTHES, clothes.ALL_CLOTHES, clothes.NO_IMAGE, settings.UNSAFE, FAILED)
    assert {reason.partition(":")[0] for reason in reasons} == set(schema.NOT_MADE)
