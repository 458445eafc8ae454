"""A refined search of a gallery gives what `refine` gives over all of it."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_reid import images, schema
from ray_reid.gallery import search
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.gallery.gallery import Gallery
from ray_reid.gallery.search import Refiner
from ray_reid.gallery.searcher import Searcher, UnknownCameraError
from ray_reid.generation.generators import descriptions
from ray_reid.generation.generators.descriptions import Description
from ray_reid.models import package
from ray_reid.ranking import doubt
from ray_reid.ranking.doubt import CalibratedGate
from ray_reid.ranking.refine import refine
from ray_reid.recipe import recipes
from ray_reid.recipe.refine import Refine
from ray_reid.runtime.results import RunState

NUM, DIMENSION, PEOPLE, VARIANTS = 200, 12, 25, 4
RNG = np.random.default_rng(5)
CENTRES = RNG.normal(size=(PEOPLE, DIMENSION))
OF = RNG.integers(PEOPLE, size=NUM)
OURS = RNG.integers(2, size=NUM)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def around(person: int, chance: np.random.Generator, count: int) -> np.ndarray:
    return unit(CENTRES[person] + 1.1 * chance.normal(size=(count, DIMENSION)))


VECTORS = unit(CENTRES[OF] + 1.1 * RNG.normal(size=(NUM, DIMENSION)))
NAMES = [None if row % 9 == 0 else f"w:{OF[row]}" for row in range(NUM)]
IDS = [schema.observation_id("w", row) for row in range(NUM)]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    path = tmp_path_factory.mktemp("gallery") / "index"
    rows = [
        {
            "observation_id": IDS[row],
            "identity": NAMES[row],
            "camera": "c1",
            "source": "w" if OURS[row] else "v",
            "split": "gallery",
        }
        for row in range(NUM)
    ]
    path.mkdir()
    with Writer.create(path, "t1", DIMENSION) as writer:
        writer.enrol(rows, VECTORS, "t1")
    return Gallery.open(path)


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("where", [Where(), Where(sources=("w",))], ids=["all", "some"])
def test_the_first_hits_are_those_of_the_whole_gallery(
    gallery: Gallery, rule: str, k: int, where: Where
) -> None:
    seen = np.flatnonzero(OURS) if where else np.arange(NUM)
    names = [NAMES[row] for row in seen]
    for person in range(PEOPLE):
        chance = np.random.default_rng(person)
        query, variants = around(person, chance, 1), around(person, chance, VARIANTS)
        spec = Refine(m=5, rule=rule)
        hits = search.refined(gallery, query, variants, k, spec, where)
        score = refine(query, variants[None], VECTORS[seen], names, 5, rule)[0]
        cosine = VECTORS[seen] @ query[0]
        expected = np.lexsort((-cosine, -score))[:k]
        assert [hit.observation_id for hit in hits] == [IDS[seen[at]] for at in expected]
        np.testing.assert_allclose([hit.similarity for hit in hits], cosine[expected], atol=1e-5)
        assert [hit.rank for hit in hits] == list(range(1, k + 1))


def test_the_margin_of_a_search_is_that_of_a_loop(gallery: Gallery) -> None:
    for person in range(PEOPLE):
        query = around(person, np.random.default_rng(person), 1)
        cosine = VECTORS @ query[0]
        first = int(cosine.argmax())
        other = [
            cosine[row]
            for row in range(NUM)
            if row != first and (NAMES[first] is None or NAMES[row] != NAMES[first])
        ]
        assert search.margin(gallery, query) == pytest.approx(cosine[first] - max(other), abs=1e-6)


def test_a_margin_looks_beyond_the_first_hits_and_may_find_nobody(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = around(3, np.random.default_rng(0), 1)
    expected = search.margin(gallery, query)
    monkeypatch.setattr(search, "FIRST", 1)
    assert search.margin(gallery, query) == expected
    assert math.isinf(search.margin(gallery, query, Where(identities=("w:3",))))
    assert math.isinf(search.margin(gallery, query, Where(identities=("nobody",))))
    assert search.refined(gallery, query, query, 3, Refine(), Where(identities=("no",))) == []


class ByBrightness:
    """Takes a query's person, and the number of a variant, from the colour of its image."""

    thresholds = None
    cameras = ("w:c2",)

    def embed(self, encoded, *, sides=None):
        self.asking = sides[0]
        colours = [images.decode(image)[0, 0] for image in encoded]
        return np.concatenate(
            [around(int(c[0]), np.random.default_rng(int(c[1])), 1) for c in colours]
        )


def picture(person: int, number: int = 0) -> bytes:
    return images.encode_png(np.full((8, 4, 3), (person, number, 0), np.uint8))


class Wardrobe:
    def __init__(self, refuses: str | None = None) -> None:
        self.asked, self.refuses = 0, refuses

    def __call__(self, encoded: bytes) -> list[bytes] | str:
        self.asked += 1
        person = int(images.decode(encoded)[0, 0, 0])
        return self.refuses or [picture(person, number) for number in range(1, 1 + VARIANTS)]


@pytest.fixture
def refiner(gallery: Gallery) -> Refiner:
    searcher = Searcher(ByBrightness(), gallery, "test/t1")
    return Refiner(searcher, Wardrobe(), Refine(num_variants=VARIANTS), None)


def test_a_refiner_asks_for_variants_and_says_so(refiner: Refiner) -> None:
    answer = refiner.search(picture(4), 7, camera="w:c2")
    model = refiner.searcher.model
    variants = model.embed([picture(4, n) for n in range(1, 1 + VARIANTS)], sides=([None], [None]))
    query = model.embed([picture(4)], sides=([None], [None]))
    assert answer.hits == search.refined(refiner.searcher.gallery, query, variants, 7, refiner.spec)
    told = answer.refinement
    assert (told.refined, told.num_variants, told.threshold) == (True, VARIANTS, None)
    assert told.margin == search.margin(refiner.searcher.gallery, query)
    assert search.sentence(told) == f"refined by 4 variants (margin {told.margin:.4f})"


def test_variants_are_of_the_camera_of_their_query(refiner: Refiner) -> None:
    refiner.search(picture(4), 3, camera="w:c2")
    assert refiner.searcher.model.asking == ["w:c2"] * VARIANTS
    with pytest.raises(UnknownCameraError, match="camera 'w:c9' is on no image of the gallery"):
        refiner.search(picture(4), 3, camera="w:c9")


def test_a_gate_spares_a_query_that_is_sure(refiner: Refiner) -> None:
    margin = refiner.search(picture(4), 3).refinement.margin
    for level, refined in ((margin, False), (margin + 1e-6, True)):
        gated = replace(refiner, gate=CalibratedGate(level, 0.3, 0.3, 0.3), dress=Wardrobe())
        answer = gated.search(picture(4), 3)
        assert answer.refinement.refined == refined == bool(gated.dress.asked)
        assert answer.refinement.threshold == level
    sure = replace(refiner, gate=CalibratedGate(margin, 0.3, 0.3, 0.3)).search(picture(4), 3)
    assert sure.hits == refiner.searcher.search(picture(4), 3)
    assert "not refined: the first place is sure" in search.sentence(sure.refinement)


def test_a_query_without_clothes_is_answered_as_ever(refiner: Refiner) -> None:
    answer = replace(refiner, dress=Wardrobe("no_clothes: 0.1% of the image")).search(picture(4), 3)
    assert answer.hits == refiner.searcher.search(picture(4), 3)
    assert answer.refinement.reason == "no_clothes: 0.1% of the image"
    assert not answer.refinement.refined


def test_a_run_that_does_not_refine_is_refused_with_the_choice(tmp_path: Path) -> None:
    RunState(tmp_path, recipes.validate({"name": "baseline"}), {}).write()
    with pytest.raises(ValueError, match="its recipe has no section 'refine'; run 'dlcr' with"):
        search.needs(RunState.read(tmp_path))
    RunState(tmp_path, recipes.validate({"name": "dlcr", "refine": {}}), {}).write()
    with pytest.raises(ValueError, match="has no current 'describe'"):
        search.needs(RunState.read(tmp_path))


def test_a_query_that_is_sure_needs_no_models(
    gallery: Gallery, tmp_path: Path, publish_job: Callable[..., Path]
) -> None:
    sections = {"refine": {"num_variants": 1}, "models": {"parser": "/no/model"}}
    recipe = recipes.validate({"name": "dlcr", **sections})
    described = publish_job(tmp_path, "describe", recipe=recipe)
    worn = [Description(f"w{n}", "red t-shirt", "blue trousers", "boots") for n in range(2)]
    descriptions.write(described / descriptions.FILE, worn, {})
    model = publish_job(tmp_path, "evaluate") / "model"
    model.mkdir(parents=True)
    (model / package.WEIGHTS).touch()
    searcher = Searcher(ByBrightness(), gallery, "test/t1")
    (model / doubt.FILE).write_text(CalibratedGate(0.0, 0.3, 0.3, 0.3).dump())
    assert (
        not Refiner.open(RunState.read(tmp_path), searcher).search(picture(4), 3).refinement.refined
    )
    (model / doubt.FILE).write_text(CalibratedGate(1.0, 0.3, 0.3, 0.3).dump())
    doubtful = Refiner.open(RunState.read(tmp_path), searcher)
    with pytest.raises(ValueError, match="model '/no/model' is not there"):
        doubtful.search(picture(4), 3)
    descriptions.write(described / descriptions.FILE, worn[:0], {})
    with pytest.raises(ValueError, match=r"refine\.num_variants: 1 outfits"):
        Refiner.open(RunState.read(tmp_path), searcher)


@pytest.mark.parametrize("module", ["ray_reid.gallery.search", "ray_reid.serving.app"])
def test_searching_and_serving_load_no_job(module: str) -> None:
    program = (
        f"import sys, {module}; "
        "print([name for name, loaded in sys.modules.items() "
        "if name.startswith('ray_reid') and hasattr(loaded, 'JOB')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
