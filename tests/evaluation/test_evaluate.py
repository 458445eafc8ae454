"""The evaluate job on a made-up run directory: no torch, no Ray, no MLflow."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ray_reid import images, pipelines, schema, storage
from ray_reid.evaluation import evaluate, pictures
from ray_reid.evaluation.headline import HEADLINE
from ray_reid.ranking import doubt, open_set, scoring
from ray_reid.ranking.scoring import Side
from ray_reid.recipe import recipes
from ray_reid.recipe.evaluate import Evaluate
from ray_reid.runtime import figures

pytestmark = pytest.mark.usefixtures("fake_model")


def test_the_job_writes_metrics_pictures_and_the_stamped_package(tmp_path, make_run):
    work = make_run(tmp_path, num_ranked=3, top_k=4, num_maps=2)
    facts = evaluate.evaluate_job(work)
    written = json.loads((work.out / "metrics.json").read_text())
    assert set(written["metrics"]) == set(HEADLINE)
    assert facts.metrics["reference_mAP"] == written["reference"]["mAP"]
    assert facts.metrics["mAP"] > facts.metrics["reference_mAP"]
    assert set(facts.pictures) == {
        "ranked_list.jpg",
        "cmc.png",
        "tsne.png",
        "activation_maps.jpg",
    }
    for name in facts.pictures:
        with Image.open(work.out / name) as picture:
            assert picture.format == ("JPEG" if name.endswith(".jpg") else "PNG")
    package = work.out / facts.model
    assert json.loads((package / "metrics.json").read_text()) == written
    assert (package / "parts" / "weights").read_text() == "weights"
    # The train job's own directory is as it was, although files are linked.
    assert (work.inputs["train"] / "model" / "metrics.json").read_text() == "{}"


def test_the_package_has_a_card_with_the_terms_of_its_training_images_and_the_picture(
    tmp_path, make_run
):
    work = make_run(tmp_path, num_maps=0, max_tsne=0)
    train = [
        {
            schema.OBSERVATION_ID: schema.observation_id("shop", str(number)),
            schema.IMAGE: images.encode(np.zeros((8, 8, 3), np.uint8)),
            schema.IDENTITY: f"shop:{number // 2}",
            schema.SPLIT: "train",
            schema.ROLE: "normal",
            schema.ORIGIN: "real",
            schema.SOURCE: "shop",
            schema.LICENCE: "CC BY 4.0" if number < 4 else None,
        }
        for number in range(6)
    ]
    observations = work.inputs["ingest"] / "observations"
    table = storage.read(observations, schema.OBSERVATION.names)
    shutil.rmtree(observations)
    storage.write(observations, pa.concat_tables([table, schema.observations(train)]))
    made = {"real": {"images": 6, "identities": 3}, "synthetic": {"images": 40, "identities": 10}}
    none = {"images": 0, "identities": 0}
    # The generated ones were those of the pre-training, with whose weights the training began.
    for name, synthetic in (("counts", none), ("begun_on", made["synthetic"])):
        by_origin = made | {"synthetic": synthetic}
        work.facts["train"][name] = {"images": 46, "identities": 13, "by_origin": by_origin}
    work.facts["train"]["weights"] = ["imagenet.pth"]
    evaluate.evaluate_job(work)
    package = work.out / "model"
    card = (package / "README.md").read_text()
    assert (package / "ranked_list.jpg").read_bytes() == (work.out / "ranked_list.jpg").read_bytes()
    assert "](ranked_list.jpg)" in card
    assert "| shop | real | 4 | 2 | CC BY 4.0 |" in card
    assert "| shop | real | 2 | 1 | unknown: ask those who gave the images |" in card
    assert "| generated | synthetic | 40 | 10 | those of the images that the generator" in card
    assert "began with the weights of `imagenet.pth`. Their terms hold too." in card
    figures = json.loads((package / "metrics.json").read_text())["metrics"]
    assert f"| mAP | {figures['mAP']:.4f} |" in card
    assert "| protocol | market |" in card


def test_the_stamp_says_what_the_figures_were_measured_on(tmp_path, make_run):
    stamp = evaluate.evaluate_job(make_run(tmp_path, num_maps=0, max_tsne=0)).stamp
    assert stamp["protocol"] == "market"
    assert stamp["average_precision"] == "rectangle"
    assert stamp["dataset"]["images"] == "cd"
    assert stamp["query"]["images"] == 8
    # Two distractors stay in the gallery; the junk image is in neither count.
    assert stamp["gallery"]["images"] == 18
    assert (stamp["gallery"]["distractors"], stamp["junk"]) == (2, 1)
    assert stamp["scored"] == {"standard": 8}
    assert stamp["skipped"] == {"standard": 0}
    assert stamp["dropped"] == {"corrupt image": 2}
    assert (stamp["seed"], stamp["source_seeds"]) == (0, [5])
    assert stamp["postprocess"] == []


def test_both_directions_give_their_mean(tmp_path, make_run):
    work = make_run(tmp_path, both_directions=True, num_maps=0, max_tsne=0)
    facts = evaluate.evaluate_job(work)
    found = facts.metrics
    for name in ("mAP", "rank-1", "mINP", "reference_mAP"):
        prefix, plain = ("reference_", name[10:]) if name.startswith("reference_") else ("", name)
        ways = [found[f"{prefix}{way}_{plain}"] for way in ("forward", "reverse")]
        assert found[name] == pytest.approx(sum(ways) / 2)
    # Distractors are nobody's match, so they do not search.
    assert facts.stamp["scored"] == {"forward": 8, "reverse": 16}


def test_a_killed_attempt_does_not_disturb_the_next(tmp_path, make_run):
    work = make_run(tmp_path, num_maps=0, max_tsne=0)
    first = evaluate.evaluate_job(work)
    (work.out / "model" / "torn").write_text("half")
    assert evaluate.evaluate_job(work) == first
    assert not (work.out / "model" / "torn").exists()


def test_a_run_without_queries_gets_one_sentence(tmp_path, make_run):
    work = make_run(tmp_path)
    embeddings = work.inputs["embed"] / "embeddings"
    table = storage.read(embeddings, evaluate.COLUMNS)
    gallery = table.filter(np.array(table[schema.SPLIT].to_pylist()) == "gallery")
    shutil.rmtree(embeddings)
    storage.write(embeddings, gallery)
    with pytest.raises(ValueError, match="nothing to evaluate: 0 query and 18 gallery images"):
        evaluate.evaluate_job(work)


def side(identity, camera, embedding):
    ids = [str(row) for row in range(len(identity))]
    rows = np.array(embedding, dtype=np.float32)
    nothing = [None] * len(ids)
    return Side(ids, identity, camera, nothing, nothing, rows, rows)


def test_a_ranking_leaves_out_junk_and_puts_wrong_images_first_in_ties():
    query = side(["a"], ["c1"], [[1, 0]])
    gallery = side(
        ["a", "a", "b", None], ["c1", "c2", "c1", "c1"], [[1, 0], [1, 1], [1, 1], [1, 2]]
    )
    rows, similarity = pictures.ranking(query, gallery, 0)
    assert rows.tolist() == [2, 1, 3]
    assert (np.diff(similarity) <= 1e-6).all()


def test_shown_queries_are_spread_over_sorted_ap_and_never_skipped():
    ap = np.array([0.9, np.nan, 0.1, 0.5, 0.3, 0.7])
    assert pictures.spread(ap, 3) == [2, 3, 0]
    assert pictures.spread(ap, 99) == [2, 4, 3, 5, 0]


def test_identical_embeddings_have_no_projection_to_show(tmp_path, monkeypatch, make_run):
    work = make_run(tmp_path, num_maps=0)
    read_sides = scoring.read_sides

    def collapsed(table):
        return tuple(
            replace(side, embedding=np.ones_like(side.embedding)) for side in read_sides(table)
        )

    monkeypatch.setattr(scoring, "read_sides", collapsed)
    assert "tsne.png" not in evaluate.evaluate_job(work).pictures


def test_a_name_with_dollars_is_not_read_as_mathematics():
    pixels = np.zeros((8, 8, 3), np.uint8)
    card = figures.Card(pixels, pictures._short("a$x_$"), "query")
    assert figures.png(figures.ranked_lists([[card]], ["one"]))
    assert figures.png(figures.scatter(np.eye(2), [pictures._short("a$b\\foo$")] * 2, ["1", "2"]))


def test_a_protocol_of_draws_gives_means_and_deviations_and_says_so(tmp_path, make_run):
    work = make_run(tmp_path, num_maps=0, max_tsne=0, protocol="vehicleid")
    facts = evaluate.evaluate_job(work)
    stamp, figures = facts.stamp, facts.metrics
    assert (stamp["protocol"], stamp["draws"], stamp["cases"]) == ("vehicleid", 10, ["standard"])
    # Each of 8 vehicles has three images: one answers and two ask.
    assert stamp["scored"] == {"standard": 16}
    assert 0 < figures["mAP_std"] < figures["mAP"] < 1


def test_crops_of_one_camera_are_evaluated_and_drawn_a_gap_of_frames_later(tmp_path, make_run):
    work = make_run(tmp_path, cameras=2, protocol="reassociation", num_maps=0, max_tsne=0)
    path = work.inputs["embed"] / "embeddings"
    table = storage.read(path, evaluate.COLUMNS)
    asked = np.array(table[schema.SPLIT].to_pylist()) == "query"
    for name, values in (
        (schema.CAMERA, pa.array(["sequence"] * len(table))),
        (schema.TIME, pa.array(np.where(asked, 60.0, 90.0))),
    ):
        table = table.set_column(table.schema.get_field_index(name), name, values)
    shutil.rmtree(path)
    storage.write(path, table)
    facts = evaluate.evaluate_job(work)
    assert facts.stamp["scored"] == {"standard": 8}
    assert facts.metrics["mAP"] == facts.metrics["mINP"] > 0.5
    assert "ranked_list.jpg" in facts.pictures


def test_average_precision_is_a_choice_and_part_of_the_stamp(tmp_path, make_run):
    found = {}
    for kind in ("rectangle", "trapezoid"):
        section = {"num_maps": 0, "max_tsne": 0, "average_precision": kind}
        facts = evaluate.evaluate_job(make_run(tmp_path / kind, noise=1.5, **section))
        assert facts.stamp["average_precision"] == kind
        found[kind] = facts.metrics
    assert found["trapezoid"]["mAP"] < found["rectangle"]["mAP"]
    assert found["trapezoid"]["rank-1"] == found["rectangle"]["rank-1"]


def test_targets_are_scored_apart_and_their_mean_is_the_headline():
    chance = np.random.default_rng(3)
    found = {}
    rows = {"query": [], "gallery": []}
    for source, people, noise in (("a", 9, 0.4), ("b", 6, 1.2)):
        # Both sources lie at the same place: searched together, they would be mixed up.
        centres = np.random.default_rng(7).standard_normal((people, 6))
        for split, camera in (("query", "1"), ("gallery", "2")):
            for person in range(people):
                vector = centres[person] + noise * chance.standard_normal(6)
                rows[split].append((source, f"{source}:{person}", camera, vector))
        both = [
            side(*zip(*[row[1:] for row in rows[split] if row[0] == source], strict=True))
            for split in ("query", "gallery")
        ]
        spec = Evaluate(protocol="drawn_halves")
        found[source] = scoring.flatten(scoring.score(*both, schema.EMBEDDING, spec))
    whole = [
        replace(
            side(*zip(*[row[1:] for row in rows[split]], strict=True)),
            source=[row[0] for row in rows[split]],
        )
        for split in ("query", "gallery")
    ]
    spec = Evaluate(protocol="drawn_halves", by_source=True)
    scored = scoring.score(*whole, schema.EMBEDDING, spec)
    assert list(scored) == ["a", "b"]
    figures = scoring.flatten(scored)
    ap = scoring.Judged(found=scored).ap()
    assert np.nanmean(ap) == pytest.approx(figures["mAP"])
    for name in ("mAP", "rank-1", "mINP"):
        assert figures[f"a_{name}"] == pytest.approx(found["a"][name])
        assert figures[f"b_{name}"] == pytest.approx(found["b"][name])
        assert figures[name] == pytest.approx((found["a"][name] + found["b"][name]) / 2)
    # Draw by draw, so the spread is that of the mean over the targets.
    means = [np.mean([draws[number].mAP for draws in scored.values()]) for number in range(10)]
    assert figures["mAP_std"] == pytest.approx(np.std(means))
    together = scoring.flatten(
        scoring.score(*whole, schema.EMBEDDING, Evaluate(protocol="drawn_halves"))
    )
    assert together["mAP"] < figures["mAP"]


def test_a_target_without_a_gallery_is_one_sentence():
    query = replace(side(["a:1", "b:1"], ["1", "1"], [[1, 0], [0, 1]]), source=["a", "b"])
    gallery = replace(side(["a:1", "a:2"], ["2", "2"], [[1, 0], [0, 1]]), source=["a", "a"])
    with pytest.raises(ValueError, match="source 'b' has 1 queries and no gallery"):
        scoring.score(query, gallery, schema.EMBEDDING, Evaluate(by_source=True))
    with pytest.raises(ValueError, match="both_directions and by_source are two means"):
        Evaluate(both_directions=True, by_source=True)


def test_the_report_has_a_line_for_every_target(tmp_path, make_run):
    work = make_run(tmp_path, by_source=True, num_maps=0, max_tsne=0)
    facts = evaluate.evaluate_job(work)
    assert facts.stamp["by_source"] is True
    assert facts.stamp["cases"] == ["world"]
    assert facts.metrics["mAP"] == facts.metrics["world_mAP"]


def test_both_directions_go_with_the_market_rule_alone(evaluate_recipe):
    with pytest.raises(ValueError, match="goes with the protocol 'market', not with 'prcc'"):
        evaluate_recipe(protocol="prcc", both_directions=True)


def test_another_split_of_the_same_images_has_another_stamp(tmp_path, make_run):
    work = make_run(tmp_path / "a", num_maps=0, max_tsne=0)
    first = evaluate.evaluate_job(work).stamp
    columns = (schema.OBSERVATION_ID, schema.IDENTITY, schema.CAMERA, schema.SPLIT, schema.ROLE)
    table = storage.read(work.inputs["embed"] / "embeddings", columns)
    assert first["split"] == evaluate._split_digest(table)
    swapped = ["query" if name == "gallery" else "gallery" for name in table["split"].to_pylist()]
    place = table.column_names.index("split")
    changed = table.set_column(place, "split", pa.array(swapped))
    assert first["split"] != evaluate._split_digest(changed)


def add_variants(embed, count=2, without=()):
    """Embedded variants of the queries, near what they show; returns what the job would say."""
    names = [schema.OBSERVATION_ID, schema.EMBEDDING, schema.SPLIT, schema.IDENTITY]
    table = storage.read(embed / "embeddings", names)
    vectors, chance = storage.embeddings(table, schema.EMBEDDING), np.random.default_rng(1)
    rows = []
    for row in np.flatnonzero(np.array(table[schema.SPLIT].to_pylist()) == "query"):
        same = np.array(table[schema.IDENTITY].to_pylist()) == table[schema.IDENTITY][row].as_py()
        if row not in without:
            parent = table[schema.OBSERVATION_ID][row].as_py()
            centre = vectors[same].mean(axis=0)
            rows += [(parent, n, centre + 0.2 * chance.standard_normal(16)) for n in range(count)]
    batch = {
        schema.OBSERVATION_ID: np.array([f"{key}-{n}" for key, n, _ in rows], dtype=object),
        schema.PARENT: np.array([key for key, _, _ in rows], dtype=object),
        schema.NUMBER: np.array([n for _, n, _ in rows]),
        schema.EMBEDDING: np.array([vector for _, _, vector in rows], dtype=np.float32),
    }
    storage.write(embed / "variants", schema.to_table(batch))
    queries = len(rows) // count + len(without)
    counts = {"queries": queries, "with_variants": queries - len(without), "made": len(rows)}
    return {"counts": counts, "num_variants": count, "seconds_per_query": 3.0}


@pytest.fixture
def refined_run(make_run):
    def work_of(run, **refine):
        # Twice the identities of the other tests: both halves of them need queries.
        work = make_run(run, identities=24, noise=1.6, num_maps=0, max_tsne=0)
        recipe = recipes.override(work.recipe, {"refine": {"num_variants": 2, **refine}})
        made = add_variants(work.inputs["embed"])
        return replace(work, recipe=recipe, facts={**work.facts, "variants": made})

    return work_of


@pytest.mark.slow
def test_a_refined_evaluation_leads_and_the_unrefined_stands_beside(tmp_path, refined_run):
    work = refined_run(tmp_path, gate={"share": 0.5})
    facts = evaluate.evaluate_job(work)
    plain = {name: value for name, value in facts.metrics.items() if "_" not in name}
    assert {f"unrefined_{name}" for name in plain} <= facts.metrics.keys()
    assert plain["mAP"] > facts.metrics["unrefined_mAP"]
    alone = evaluate.evaluate_job(
        replace(work, recipe=recipes.override(work.recipe, {"refine": None}))
    )
    assert alone.metrics["mAP"] == facts.metrics["unrefined_mAP"]
    assert alone.refinement is None
    stamp = facts.stamp["refine"]
    assert stamp["num_variants"] == 2
    assert "stage" not in stamp
    assert alone.stamp["refine"] is None


def test_what_refinement_gains_and_costs_is_told_for_each_share(tmp_path, refined_run):
    work = refined_run(tmp_path, gate={"share": 0.5})
    facts = evaluate.evaluate_job(work)
    written = json.loads((work.out / "metrics.json").read_text())["refinement"]
    assert written == facts.refinement.model_dump(mode="json")
    curve = written["curve"]
    assert [point["share"] for point in curve] == [tenth / 10 for tenth in range(11)]
    for point in curve:
        assert point["variants_per_query"] == pytest.approx(2 * point["refined"])
        assert point["seconds_per_query"] == pytest.approx(3 * point["refined"])
    assert written["queries"]["with_variants"] == 24
    gate = doubt.parse((work.out / "model" / "gate.json").read_text())
    assert asdict(gate) == written["gate"]
    assert "refinement.png" in facts.pictures
    with Image.open(work.out / "refinement.png") as picture:
        assert picture.format == "PNG"


def test_without_a_gate_the_package_has_none(tmp_path, refined_run):
    work = refined_run(tmp_path)
    facts = evaluate.evaluate_job(work)
    assert facts.refinement.gate is None
    assert not (work.out / "model" / "gate.json").exists()


def test_the_report_shows_both_rankings_and_the_table_of_shares(
    tmp_path, publish_evaluation, refined_run
):
    work = refined_run(tmp_path, gate={"share": 0.5})
    text = pipelines.write_report(publish_evaluation(tmp_path, work))
    page = (tmp_path / "report.html").read_text()
    assert "model, without variants" in page
    assert "model, without variants" in text
    assert "queries refined" in text
    assert "24 of 24 queries have variants" in page


def test_the_job_calibrates_post_processes_and_says_so(tmp_path, make_run, publish_evaluation):
    steps = [{"name": "query_expansion"}, {"name": "camera_verification", "kind": "label"}]
    section = {
        "num_maps": 0,
        "max_tsne": 0,
        "num_ranked": 1,
        "postprocess": [*steps, {"name": "rerank", "k1": 3, "k2": 2}],
        "open_set": {"match_far": 0.1, "possible_far": 0.2},
    }
    work = make_run(tmp_path, identities=32, noise=1.0, **section)
    state = publish_evaluation(tmp_path, work)
    facts = evaluate.EvaluateFacts.model_validate(state.manifest("evaluate").facts)
    assert facts.stamp["postprocess"] == [
        "query_expansion(kind=dbscan, eps=0.1, min_samples=2)",
        "camera_verification(kind=label)",
        "rerank(k1=3, k2=2, lambda_value=0.3, neighbours=exact)",
    ]
    changes = facts.postprocess["standard"]
    assert [change["step"] for change in changes] == [step["name"] for step in steps] + ["rerank"]
    # All queries are of the first camera, and no gallery image is.
    assert changes[1] == {"step": "camera_verification", "groups": 3, "excluded": 0, "emptied": 0}
    kept = open_set.parse((work.out / "model" / open_set.FILE).read_text())
    assert kept.match == facts.open_set.match
    assert kept.counts["impostors"] == facts.open_set.counts["impostors"] > 0
    pipelines.write_report(state)
    page = (tmp_path / "report.html").read_text()
    assert "post-processing: query_expansion(kind=dbscan" in page
    assert "standard, rerank: " in page
    assert f"match above {kept.match:.3f}: TAR " in page


def test_a_test_too_small_for_thresholds_is_evaluated_without(tmp_path, make_run):
    work = make_run(tmp_path, num_maps=0, max_tsne=0, num_ranked=1)
    found = evaluate.evaluate_job(work).open_set
    assert found.levels == {}
    assert "needs 10,000 impostor pairs" in found.missing
    assert not (work.out / "model" / open_set.FILE).exists()
