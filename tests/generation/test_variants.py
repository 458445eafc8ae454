"""The variants job with small models, its embeddings, and trials that are refined by it."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from ray_reid import images, pipelines, schema, storage
from ray_reid.evaluation import embed
from ray_reid.experiments import compare, in_process, trials
from ray_reid.generation import variants
from ray_reid.generation.generators import descriptions
from ray_reid.generation.generators.descriptions import Description
from ray_reid.generation.tailor import Tailor, variant_recipe
from ray_reid.miniature import street_observations
from ray_reid.models import package
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.facts import VariantsFacts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.run import content_key

CPU = torch.device("cpu")
VARIANTS = 3
# The parser takes nearly half of it for clothes, more than `max_mask` lets pass.
BARE = images.encode(np.full((64, 32, 3), (0, 255, 0), np.uint8))
WORN = [Description(f"w{n}", "red t-shirt", "blue trousers", f"boots {n}") for n in range(5)]


@pytest.fixture(scope="module")
def published(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drawn people, one query without clothes, and descriptions; of small models."""
    home = tmp_path_factory.mktemp("published")
    shared: dict[str, Any] = {"images_per_camera": 2, "cameras_per_identity": 2, "size": (64, 32)}
    rows = list(street_observations("pedestrian", num_train=8, num_test=6, seed=0, **shared))
    bare = next(row for row in rows if row[schema.SPLIT] == "query")
    bare[schema.IMAGE] = BARE
    storage.write(home / "ingest" / "observations", schema.observations(rows))
    (home / "describe").mkdir()
    descriptions.write(home / "describe" / descriptions.FILE, WORN, {})
    tiny_models.inpainting(home / "models")
    return {name: home / name for name in ("ingest", "describe", "models")}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_REID_CACHE", str(tmp_path / "cache"))


def recipe_of(published: dict[str, Path], *overrides: str) -> Recipe:
    small = (
        f"models.inpainting={published['models']}",
        "models.precision=fp32",
        "generate.image_size=[32, 16]",
        "generate.guidance_scale=1",
        "outfits.max_mask=0.4",
        "evaluate.protocol=market",
        f"refine={{num_variants: {VARIANTS}, steps: 2, stage: {{batch_size: 6, block_rows: 6}}}}",
        "train.backbone=resnet10t",
        "train.backbone_params={}",
        "train.image_size=[32, 32]",
        "train.sampler={kind: identity, num_identities: 4, num_instances: 2}",
        "train.mixing=real",
        "train.clothes={}",
        "train.epochs=1",
        "train.batches_per_epoch=2",
        "train.precision=fp32",
    )
    return recipes.load("dlcr", None, [*small, *overrides])


def work_on(published: dict[str, Path], out: Path, *overrides: str) -> Work:
    out.mkdir(exist_ok=True)
    inputs = {name: published[name] for name in ("ingest", "describe")}
    return Work(variants.JOB.view(recipe_of(published, *overrides)), out, inputs, {})


@pytest.fixture(scope="module")
def made(
    published: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, ray_local: None
) -> tuple[Path, VariantsFacts]:
    out = tmp_path_factory.mktemp("variants") / "variants"
    return out, variants.variants_job(work_on(published, out))


def rows_of(out: Path) -> list[dict[str, Any]]:
    names = [*schema.OBSERVATION.names, schema.NUMBER, variants.SECONDS]
    return storage.read(out / "observations", names, kept_only=False).to_pylist()


def test_every_query_has_its_variants_or_a_reason_why_not(
    published: dict[str, Path], made: tuple[Path, VariantsFacts]
) -> None:
    out, facts = made
    queries = storage.read(
        published["ingest"] / "observations",
        [schema.OBSERVATION_ID, schema.IDENTITY, schema.IMAGE],
        pc.field(schema.SPLIT) == "query",
    ).to_pylist()
    sources = {row[schema.OBSERVATION_ID]: row for row in queries}
    rows = rows_of(out)
    assert len(rows) == VARIANTS * len(queries)
    by_parent: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_parent.setdefault(row[schema.PARENT], []).append(row)
    assert by_parent.keys() == sources.keys()
    without = 0
    for parent, own in by_parent.items():
        assert sorted(row[schema.NUMBER] for row in own) == list(range(VARIANTS))
        assert len({row[schema.PROMPT] for row in own}) == VARIANTS
        assert {row[schema.IDENTITY] for row in own} == {sources[parent][schema.IDENTITY]}
        assert {row[schema.SPLIT] for row in own} == {"query"}
        reasons = {row[schema.DROP_REASON] for row in own}
        without += reasons != {None}
        if reasons == {None}:
            source = images.decode(sources[parent][schema.IMAGE])
            pictures = [images.decode(row[schema.IMAGE]) for row in own]
            assert all(picture.shape == source.shape for picture in pictures)
            assert all((picture != source).any() for picture in pictures)
            # What is outside the clothes is nobody's to paint.
            same = [(picture == source).all(axis=2) for picture in pictures]
            assert np.logical_and.reduce(same).mean() > 0.15
    assert without >= 1
    counts = facts.counts
    assert counts.queries == len(queries)
    assert counts.with_variants == len(queries) - without
    assert counts.made == VARIANTS * counts.with_variants
    assert counts.without["all_clothes"] == without
    total = sum(row[variants.SECONDS] for row in rows)
    assert facts.seconds_per_query == pytest.approx(total / len(queries))


@pytest.mark.drill
def test_a_killed_job_goes_on_where_it_was_and_makes_the_same_images(
    published: dict[str, Path], made: tuple[Path, VariantsFacts], tmp_path: Path, ray_local: None
) -> None:
    out, facts = made
    again = tmp_path / "again"
    table = again / "observations"
    table.mkdir(parents=True)
    half = rows_of(out)[::2]
    kept = {row[schema.OBSERVATION_ID] for row in half}
    files = pq.read_table(out / "observations")
    mask = np.array([key in kept for key in files[schema.OBSERVATION_ID].to_pylist()])
    pq.write_table(files.filter(mask), table / "part-0.parquet")
    before = (table / "part-0.parquet").read_bytes()
    found = variants.variants_job(work_on(published, again))
    assert (table / "part-0.parquet").read_bytes() == before
    assert found.fingerprint == facts.fingerprint
    pixels = [
        np.stack([images.decode(row[schema.IMAGE]) for row in rows_of(folder)])
        for folder in (out, again)
    ]
    # A batch of another size rounds otherwise.
    np.testing.assert_allclose(pixels[0].astype(int), pixels[1].astype(int), atol=2)


def test_fewer_variants_are_among_more(published: dict[str, Path]) -> None:
    table = published["ingest"] / "observations"
    recipe = variant_recipe(recipe_of(published), recipe_of(published).refine)
    few, more = (
        variants.variants_plan(recipe, table, published["describe"], number).to_pylist()
        for number in (2, 4)
    )
    ids = {row[schema.OBSERVATION_ID]: row[schema.NUMBER] for row in more}
    assert all(ids[row[schema.OBSERVATION_ID]] == row[schema.NUMBER] for row in few)
    assert len(few) * 2 == len(more)
    with pytest.raises(ValueError, match=r"refine.num_variants: 6 outfits .* only 5 other"):
        variants.variants_plan(recipe, table, published["describe"], 6)


def test_variants_are_painted_at_a_share_of_the_size_with_steps_of_their_own(
    published: dict[str, Path],
) -> None:
    recipe = recipe_of(published, "generate.image_size=[768, 256]", "refine.steps=10")
    found = variant_recipe(recipe, recipe.refine).generate
    assert (found.steps, found.image_size) == (10, (384, 128))
    small = recipe_of(published, "generate.image_size=[20, 9]", "refine.scale=0.3")
    assert variant_recipe(small, small.refine).generate.image_size == (8, 8)


def test_without_the_section_nothing_is_made(published: dict[str, Path], tmp_path: Path) -> None:
    facts = variants.variants_job(work_on(published, tmp_path / "out", "refine=null"))
    assert facts.counts.made == 0
    assert not any((tmp_path / "out").iterdir())


def test_how_variants_vote_does_not_make_them_anew(published: dict[str, Path]) -> None:
    job = job_of("variants")

    def key(*overrides: str) -> str:
        return content_key("variants", 1, recipe_of(published, *overrides), job.sections, {})

    same = ("refine.m=9", "refine.rule=released", "refine.gate={}", "outfits.num_outfits=3")
    assert {key(one) for one in same} == {key()}
    other = ("refine.num_variants=2", "refine.steps=3", "generate.guidance_scale=3", "refine=null")
    assert len({key(one) for one in ("seed=0", *other)}) == len(other) + 1


def job_of(name: str) -> Job:
    return next(job for job in pipelines.PIPELINES["dlcr"] if job.name == name)


@pytest.fixture(scope="module")
def trained(published: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose weights are those of a network that has learned nothing."""
    from ray_reid.models.networks import ReidNetwork

    torch.manual_seed(0)
    recipe = recipe_of(published)
    names = [f"p{n}" for n in range(4)]
    path = tmp_path_factory.mktemp("train") / "train" / "model"
    path.mkdir(parents=True)
    package.save(path, recipe, names, ReidNetwork(recipe.train, len(names)).state_dict())
    return path.parent


@pytest.mark.slow
def test_the_embed_job_embeds_the_variants_too(
    published: dict[str, Path],
    made: tuple[Path, VariantsFacts],
    trained: Path,
    tmp_path: Path,
    ray_local: None,
) -> None:
    inputs = {"ingest": published["ingest"], "train": trained, "variants": made[0]}
    tmp_path.joinpath("embed").mkdir()
    work = Work(embed.JOB.view(recipe_of(published)), tmp_path / "embed", inputs, {})
    facts = embed.embed_job(work)
    kept = [row for row in rows_of(made[0]) if row[schema.DROP_REASON] is None]
    assert facts.variants == len(kept)
    names = [schema.OBSERVATION_ID, schema.PARENT, schema.NUMBER, schema.EMBEDDING]
    table = storage.read(work.out / embed.VARIANTS, names)
    assert table[schema.PARENT].to_pylist() == [row[schema.PARENT] for row in kept]
    expected = package.load(trained / "model").embed([row[schema.IMAGE] for row in kept])
    found = storage.embeddings(table, schema.EMBEDDING)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert schema.IMAGE not in storage.dataset(work.out / embed.VARIANTS).schema.names


@pytest.mark.slow
def test_a_pipeline_without_variants_embeds_as_ever(
    published: dict[str, Path], trained: Path, tmp_path: Path, ray_local: None
) -> None:
    tmp_path.joinpath("embed").mkdir()
    inputs = {"ingest": published["ingest"], "train": trained}
    recipe = embed.JOB.view(recipe_of(published, "refine=null"))
    work = Work(recipe, tmp_path / "embed", inputs, {})
    assert embed.embed_job(work).variants == 0
    assert [path.name for path in work.out.iterdir()] == ["embeddings"]


def test_a_trial_is_refined_as_the_jobs_refine(
    published: dict[str, Path], made: tuple[Path, VariantsFacts], tmp_path: Path
) -> None:
    tables, out = [published["ingest"] / "observations"], made[0] / "observations"
    recipe = recipe_of(published)
    shared = tmp_path / "shared"
    alone = in_process.run_trial(recipe_of(published, "refine=null"), tables, CPU, shared=shared)
    refined = in_process.run_trial(recipe, tables, CPU, shared=shared, variants=out)
    assert alone != refined
    again = in_process.run_trial(recipe, tables, CPU, shared=shared, variants=out)
    assert refined == again
    with pytest.raises(ValueError, match="which no job has made"):
        in_process.run_trial(recipe, tables, CPU, shared=shared)


@pytest.mark.parametrize(
    ("arm", "rule"),
    [
        ("refine.num_variants: 4", "num_variants 4 is more than the 3 of the recipe"),
        ("refine.steps: 9", r"refine.steps and refine.scale must be those of the recipe"),
        ("refine.m: 0", r"recipe key 'refine\.m' is 0"),
    ],
)
def test_an_arm_that_needs_other_variants_is_refused(
    published: dict[str, Path], arm: str, rule: str
) -> None:
    compare.check(recipe_of(published, "compare.arms={alone: {refine: null}, one: {refine.m: 1}}"))
    with pytest.raises(ValueError, match=rule):
        compare.check(recipe_of(published, f"compare.arms={{bad: {{{arm}}}}}"))


def test_refinement_goes_with_a_pipeline_that_makes_variants(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="makes no variants of queries: refine goes with 'dlcr'"):
        pipelines.run(recipes.load("baseline", None, ["refine={}"]), tmp_path / "run")


def test_a_tailor_makes_the_same_variants_of_the_same_image(published: dict[str, Path]) -> None:
    tailor = Tailor(recipe_of(published), published["describe"])
    rows = storage.read(
        published["ingest"] / "observations", [schema.IMAGE], pc.field(schema.SPLIT) == "gallery"
    )
    found = [(one, tailor(one)) for one in rows[schema.IMAGE].to_pylist()]
    encoded, dressed = next((one, two) for one, two in found if not isinstance(two, str))
    assert len(dressed) == len(set(dressed)) == VARIANTS
    assert tailor(encoded) == dressed
    assert all(images.decode(one).shape == images.decode(encoded).shape for one in dressed)
    assert str(tailor(BARE)).startswith("all_clothes")
    with pytest.raises(ValueError, match="not a readable image"):
        tailor(b"words")


def test_a_tailor_shrinks_a_large_photograph(published: dict[str, Path]) -> None:
    tailor = Tailor(recipe_of(published), published["describe"])
    large = images.encode(np.zeros((900, 450, 3), np.uint8))
    assert tailor._decoded(large).shape[:2] == (64, 32)


def test_a_tailor_needs_the_section_and_descriptions_enough(published: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="its recipe has no section 'refine'"):
        Tailor(recipe_of(published, "refine=null"), published["describe"])
    with pytest.raises(ValueError, match=r"refine\.num_variants: 6 outfits"):
        Tailor(recipe_of(published, "refine.num_variants=6"), published["describe"])


def test_what_makes_variants_needs_neither_a_job_nor_ray() -> None:
    program = (
        "import sys, ray_reid.generation.tailor; "
        "print([name for name in ('ray', 'ray_reid.runtime.run', 'ray_reid.runtime.stage', "
        "*(f'ray_reid.generation.{job}' for job in "
        "('adapt', 'describe', 'generate', 'inpaint', 'review', 'variants'))) "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout.strip() == b"[]"


def test_the_trials_of_a_sweep_rest_on_the_variants_but_their_trainings_do_not() -> None:
    jobs = pipelines.PIPELINES["dlcr"]
    needed = trials.prerequisites(jobs)
    names = [job.name for job in needed]
    assert names == ["ingest", "describe", "inpaint", "variants"]
    assert job_of("train").needs == ("ingest", "inpaint")
    assert "refine" in trials._sections(jobs, needed)
    plain = pipelines.PIPELINES["baseline"]
    assert "refine" not in trials._sections(plain, trials.prerequisites(plain))
