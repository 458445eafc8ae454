"""k-reciprocal re-ranking against its definition written with dense matrices."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from ray_reid.ranking import neighbours, rerank

REFERENCES = Path(__file__).resolve().parents[2] / "benchmarks" / "support" / "references.py"


@pytest.fixture(scope="module")
def references():
    spec = importlib.util.spec_from_file_location("references", REFERENCES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scene(seed, queries=40, images=260, dimensions=24, identities=15, noise=1.2):
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((identities, dimensions))
    identity = chance.integers(identities, size=queries + images)
    rows = centres[identity] + noise * chance.standard_normal((len(identity), dimensions))
    # Lengths must not matter.
    rows *= chance.uniform(0.1, 9, (len(rows), 1))
    rows = rows.astype(np.float32)
    return (rows[:queries], rows[queries:]), (identity[:queries], identity[queries:])


@pytest.mark.parametrize("block", [64, 512])
@pytest.mark.parametrize(
    "parameters", [(20, 6, 0.3), (50, 15, 0.3), (7, 3, 1.0), (5, 1, 0.0), (10, 30, 0.5)]
)
def test_distances_and_map_match_the_dense_definition(monkeypatch, references, block, parameters):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    monkeypatch.setattr(rerank, "ROWS", block)
    monkeypatch.setattr(rerank, "QUERIES", 7)
    rows, identities = scene(block)
    found = rerank.k_reciprocal(*rows, *parameters)
    expected = references.k_reciprocal(*rows, *parameters)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    precision = references.mean_average_precision
    assert precision(found, *identities) == pytest.approx(
        precision(expected, *identities), abs=1e-4
    )


def test_reranking_raises_map_where_neighbours_tell_more_than_one_distance(references):
    rows, identities = scene(1)
    queries, gallery = (references.unit(side) for side in rows)
    before = references.mean_average_precision(-queries @ gallery.T, *identities)
    after = references.mean_average_precision(rerank.k_reciprocal(*rows), *identities)
    assert after > before + 0.05


def test_lambda_one_is_the_distance_over_the_largest_of_the_row(references):
    (query, gallery), _ = scene(2)
    rows = references.unit(np.concatenate([query, gallery]))
    squared = np.maximum(2 - 2 * rows @ rows.T, 0)
    expected = (squared / squared.max(axis=1, keepdims=True))[: len(query), len(query) :]
    found = rerank.k_reciprocal(query, gallery, lambda_value=1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fewer_rows_than_neighbours_are_all_neighbours(references):
    (query, gallery), _ = scene(3, queries=3, images=6)
    np.testing.assert_allclose(
        rerank.k_reciprocal(query, gallery), references.k_reciprocal(query, gallery), atol=1e-5
    )


@pytest.mark.parametrize(("radius", "block"), [(0.5, 1024), (0.9, 37), (0.05, 64)])
def test_pairs_within_a_radius_are_those_of_the_dense_definition(references, radius, block):
    (query, gallery), _ = scene(4, queries=90, images=110)
    rows = np.concatenate([query, gallery])
    found = rerank.jaccard_within(rows, radius, k1=15, k2=4, block=block)
    # Rows as their own gallery would be twice among their neighbours, so both sides are one set.
    for split in (60, 140):
        dense = references.k_reciprocal(rows[:split], rows[split:], 15, 4, 0.0)
        near = found[:split, split:].toarray()
        inside = dense <= radius
        np.testing.assert_allclose(near[inside], dense[inside], atol=1e-5)
        assert (near[dense > radius + 1e-5] == 0).all()
    assert (found.indices[found.indptr[7] : found.indptr[8]] == 7).any()
    assert found.diagonal().max() < 1e-5


def test_rows_that_are_all_equal_lie_at_no_distance():
    row = np.array([[0.3, 0.1, 0.7]])
    found = rerank.k_reciprocal(row, np.repeat(row, 30, axis=0), k1=40)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    np.testing.assert_allclose(rerank.k_reciprocal(row, row), 0, atol=1e-6)


def test_a_zero_row_is_farther_than_any_image_of_the_query():
    (query, gallery), (wanted, identity) = scene(4)
    gallery[0] = 0
    found = rerank.k_reciprocal(query, gallery)
    assert np.isfinite(found).all()
    for row, identity_of_query in zip(found, wanted, strict=True):
        assert row[0] > row[1:][identity[1:] == identity_of_query].min()


def test_no_order_of_the_gallery_changes_a_distance():
    (query, gallery), _ = scene(5)
    order = np.random.default_rng(0).permutation(len(gallery))
    before = rerank.k_reciprocal(query, gallery)
    np.testing.assert_allclose(
        rerank.k_reciprocal(query, gallery[order]), before[:, order], atol=1e-5
    )


def test_blocks_are_the_rows_of_the_whole():
    rows, _ = scene(6)
    whole = rerank.k_reciprocal(*rows, k1=8)
    blocks = list(rerank.k_reciprocal_blocks(*rows, k1=8, block=11))
    assert [rows.start for rows, _ in blocks] == [0, 11, 22, 33]
    for part, block in blocks:
        # Another number of rows is another order of additions in a product.
        np.testing.assert_allclose(block, whole[part], atol=1e-6)


@pytest.mark.parametrize("kind", ["float16", "float64", "int64", "torch"])
def test_embeddings_may_be_of_other_kinds(kind):
    # Whole numbers up to 256 are the same in every one of them.
    rows = [np.rint(side.clip(-25, 25) * 10) for side in scene(7)[0]]
    whole = rerank.k_reciprocal(*(side.astype(np.float32) for side in rows))
    if kind == "torch":
        import torch

        other = [torch.from_numpy(side).bfloat16() for side in rows]
    else:
        other = [side.astype(kind) for side in rows]
    np.testing.assert_allclose(rerank.k_reciprocal(*other), whole, atol=1e-5)


def test_neighbours_are_those_of_a_sort_the_first_of_equals_first(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 30)
    # Rows of few whole numbers tie often, and their products are exact.
    rows = np.random.default_rng(0).integers(-1, 2, (200, 4)).astype(np.float32)
    found = neighbours.nearest(rows, 9)
    similarity = rows @ rows.T
    np.testing.assert_array_equal(found.lowest, similarity.min(axis=1))
    np.fill_diagonal(similarity, np.inf)
    np.testing.assert_array_equal(found.rows, np.argsort(-similarity, axis=1, kind="stable")[:, :9])


def test_torch_finds_the_same_neighbours(monkeypatch):
    monkeypatch.setattr(neighbours, "DEVICE_BLOCK", 5000)
    rows = neighbours.unit(np.concatenate(scene(8)[0]), "query")
    exact, torch = neighbours.nearest(rows, 21), neighbours.on_device(rows, 21, "cpu")
    np.testing.assert_array_equal(torch.rows, exact.rows)
    np.testing.assert_allclose(torch.lowest, exact.lowest, atol=1e-6)


@pytest.mark.gpu
def test_a_graphics_processor_gives_the_same_distances():
    import torch

    rows, _ = scene(8)
    on_gpu = [torch.from_numpy(side).cuda() for side in rows]
    np.testing.assert_allclose(rerank.k_reciprocal(*on_gpu), rerank.k_reciprocal(*rows), atol=1e-5)


def test_approximate_neighbours_are_nearly_all_and_rank_as_well(references):
    pytest.importorskip("faiss", reason="faiss searches approximately; an extra has it")
    rows, identities = scene(9, images=2500, identities=60, noise=0.5)
    unit = neighbours.unit(np.concatenate(rows), "query")
    exact, found = (neighbours.nearest(unit, 21, kind) for kind in neighbours.SEARCHES)
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(len(unit)))
    recall = np.mean([np.isin(e, f).mean() for e, f in zip(exact.rows, found.rows, strict=True)])
    assert recall > 0.95
    for row in found.rows:
        known = row[row >= 0]
        assert len(set(known.tolist())) == len(known)
    assert (found.lowest >= exact.lowest - 1e-6).all()
    assert np.abs(found.lowest - exact.lowest).max() < 0.2
    precision = [
        references.mean_average_precision(rerank.k_reciprocal(*rows, neighbours=kind), *identities)
        for kind in neighbours.SEARCHES
    ]
    assert precision[1] == pytest.approx(precision[0], abs=0.01)


def test_approximate_neighbours_that_are_missing_are_none():
    pytest.importorskip("faiss", reason="faiss searches approximately; an extra has it")
    rows, _ = scene(10, images=200)
    found = rerank.k_reciprocal(*rows, k1=500, neighbours="approximate")
    assert np.isfinite(found).all()


def test_approximate_neighbours_without_faiss_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match="need faiss; add one of the extras"):
        rerank.k_reciprocal(*scene(0)[0], neighbours="approximate")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k1": 0}, "k1 0 is too small; choose at least 1"),
        ({"k2": -1}, "k2 -1 is too small; choose at least 1"),
        ({"lambda_value": 1.5}, "lambda_value 1.5 must be between 0 and 1"),
        ({"neighbours": "hnsw"}, r"unknown neighbours 'hnsw'; choose from \['exact', 'approx"),
        ({"query": np.ones(3)}, r"query embeddings must be \(N, D\).*\(3,\)"),
        ({"gallery": np.empty((0, 3))}, r"gallery embeddings must be \(N, D\)"),
        ({"gallery": np.eye(3)[:, :2]}, "3 dimensions but gallery embeddings 2"),
        ({"query": np.diag([1, np.nan, 1])}, "query embedding 1 is not finite"),
        ({"gallery": np.diag([1, 1, np.inf])}, "gallery embedding 2 is not finite"),
    ],
)
def test_bad_input_gets_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        rerank.k_reciprocal(**{"query": np.eye(3), "gallery": np.eye(3), **change})


def test_importing_the_mathematics_loads_neither_numba_nor_torch():
    import subprocess

    code = (
        "import sys, ray_reid.ranking.rerank, ray_reid.ranking.refine;"
        "print({'numba', 'torch', 'faiss', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
