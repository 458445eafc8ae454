"""Counting instead of sorting: nothing that is not in the rows may change a figure."""

import subprocess
import sys

import numpy as np
import pytest

from ray_reid.ranking import metrics

GRID = metrics.GRID


def scene(seed, queries=23, images=70, dimensions=7, kind="noise"):
    """Embeddings of four kinds, and labels with nulls and distractors."""
    chance = np.random.default_rng(seed)
    rows = chance.standard_normal((queries + images, dimensions))
    if kind == "duplicates":
        rows = rows[chance.integers(0, 9, len(rows))] * chance.choice([0.5, 1, 4], (len(rows), 1))
    elif kind == "collapsed":
        rows = 1 + 1e-4 * rows
    elif kind == "constant":
        rows[:] = 0.1
    rows = rows.astype(np.float32)
    identity = np.array([f"v{n}" if n else None for n in chance.integers(0, 9, len(rows))], object)
    camera = np.array([int(n) if n else None for n in chance.integers(0, 4, len(rows))], object)
    sides = slice(None, queries), slice(queries, None)
    return [rows[side] for side in sides], {
        f"{name}_{what}": labels[side]
        for what, labels in (("identity", identity), ("camera", camera))
        for name, side in zip(("query", "gallery"), sides, strict=True)
    }


def pairs(rows, labels):
    """Similarities on the grid, whether a pair has one identity, and whether it is junk."""
    unit = [metrics.unit(side, "query") for side in rows]
    same = np.array(
        [
            [a is not None and a == b for b in labels["gallery_identity"]]
            for a in labels["query_identity"]
        ]
    )
    camera = np.array(
        [
            [a is not None and a == b for b in labels["gallery_camera"]]
            for a in labels["query_camera"]
        ]
    )
    return np.rint(unit[0] @ unit[1].T * GRID), same, same & camera


def by_sort(rows, labels):
    """AP of every query by a full sort of its ranking, wrong images first."""
    found = []
    for similarity, same, junk in zip(*pairs(rows, labels), strict=True):
        order = np.lexsort((same, -similarity))
        hits = same[order][~junk[order]]
        ranks = np.flatnonzero(hits) + 1
        found.append(np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else np.nan)
    return np.array(found)


KINDS = ["noise", "duplicates", "collapsed", "constant"]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_equal_a_full_sort_whatever_the_embeddings(monkeypatch, kind):
    for seed, block in enumerate((1, 50, 300, 10**6) * 3):
        monkeypatch.setattr(metrics, "BLOCK", block)
        rows, labels = scene(seed, dimensions=1 + seed * 3, kind=kind)
        found = metrics.evaluate(*rows, **labels)
        np.testing.assert_allclose(found.ap, by_sort(rows, labels), rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_blocks_nor_the_order_of_rows_change_a_bit(monkeypatch, kind):
    for seed in range(6):
        (query, gallery), labels = scene(seed, dimensions=33, kind=kind)
        before = metrics.evaluate(query, gallery, **labels)
        chance = np.random.default_rng(seed)
        to = {"query": chance.permutation(len(query)), "gallery": chance.permutation(len(gallery))}
        moved = {name: values[to[name.split("_")[0]]] for name, values in labels.items()}
        monkeypatch.setattr(metrics, "BLOCK", int(chance.integers(1, 2000)))
        after = metrics.evaluate(query[to["query"]], gallery[to["gallery"]], **moved)
        np.testing.assert_array_equal(after.ap, before.ap[to["query"]])
        np.testing.assert_array_equal(after.cmc, before.cmc)
        np.testing.assert_array_equal(after.place, before.place[to["query"]])
        assert (after.mAP, after.mINP) == (before.mAP, before.mINP)


def test_a_copy_of_a_match_under_another_identity_always_comes_first():
    chance = np.random.default_rng(0)
    query = chance.standard_normal((40, 512)).astype(np.float32)
    match = query + chance.standard_normal((40, 512)).astype(np.float32)
    # The wrong copies have other lengths, and lie far from the matches in the gallery.
    found = metrics.evaluate(
        query,
        np.concatenate([match, 4 * match[::-1]]),
        query_identity=np.arange(40),
        gallery_identity=np.concatenate([np.arange(40), np.full(40, 99)]),
    )
    assert found.mAP == found.mINP == 1 / 2
    assert found.rank(1) == 0


def test_more_thresholds_than_bins_are_counted_too():
    chance = np.random.default_rng(0)
    gallery = chance.standard_normal((12_000, 16)).astype(np.float32)
    identity = np.arange(12_000) % 2
    labels = {
        "query_identity": [0],
        "gallery_identity": identity,
        "query_camera": [None],
        "gallery_camera": [None] * 12_000,
    }
    found = metrics.evaluate(gallery[:1] + 1, gallery, **labels)
    expected = by_sort([gallery[:1] + 1, gallery], labels)
    np.testing.assert_allclose(found.ap, expected, rtol=1e-13)


def test_a_gallery_of_one_image_and_one_of_zeros():
    one = metrics.evaluate([[1.0, 2.0]], [[0.0, 0.0]], query_identity=[5], gallery_identity=[5])
    assert one.cmc.tolist() == [1]
    both = metrics.evaluate(
        [[1.0, 2.0]], [[-1.0, -2.0], [0, 0]], query_identity=["a"], gallery_identity=["a", None]
    )
    assert both.mAP == 1 / 2


def test_integers_and_texts_number_alike():
    chance = np.random.default_rng(2)
    (query, gallery), _ = scene(2)
    for kind in (np.int8, np.uint16, np.int64):
        names = chance.integers(0, 100, 93).astype(kind)
        if kind == np.int64:
            names = names * (2**55) - 2**60
        texts = [str(name) for name in names]
        found = [
            metrics.evaluate(query, gallery, query_identity=of[:23], gallery_identity=of[23:]).ap
            for of in (names, texts, names.tolist())
        ]
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])


def test_read_only_and_transposed_embeddings_are_left_as_they_are():
    (query, gallery), labels = scene(1)
    before = metrics.evaluate(query, gallery, **labels)
    for rows in (query, gallery):
        rows.flags.writeable = False
    kept = gallery.copy()
    assert metrics.evaluate(query, np.asfortranarray(gallery), **labels).mAP == before.mAP
    assert metrics.evaluate(query, gallery.astype(np.float64), **labels).mAP == before.mAP
    np.testing.assert_array_equal(gallery, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_roc_equals_a_sort_of_all_pairs(monkeypatch, kind):
    rates = (0, 1e-3, 1e-2, 0.3, 1)
    for seed, block in enumerate((50, 300, 10**6)):
        monkeypatch.setattr(metrics, "BLOCK", block)
        rows, labels = scene(seed, kind=kind)
        found = metrics.roc(*rows, **labels, far=rates)
        similarity, same, junk = pairs(rows, labels)
        known = np.array([name is not None for name in labels["query_identity"]])[:, None]
        genuine = similarity[same & ~junk]
        impostor = np.sort(similarity[known & ~same])[::-1]
        assert (found.num_genuine, found.num_impostor) == (len(genuine), len(impostor))
        for rate, tar, threshold in zip(rates, found.tar, found.threshold, strict=True):
            refused = int(rate * len(impostor))
            expected = impostor[refused] if refused < len(impostor) else -np.inf
            assert threshold * GRID == expected
            assert tar == np.mean(genuine > expected)
            assert np.mean(impostor > expected) <= rate


def test_roc_says_what_it_needs():
    labels = {"query_identity": [1], "gallery_identity": [1, 1]}
    with pytest.raises(ValueError, match="no pair is an impostor: all images have one identity"):
        metrics.roc(np.eye(2)[:1], np.eye(2), **labels)
    with pytest.raises(ValueError, match=r"far must be .* between 0 and 1, not \[1.5\]"):
        metrics.roc(np.eye(2)[:1], np.eye(2), **labels, far=[1.5])
    with pytest.raises(ValueError, match="gallery embedding 1 is not finite, as are 1 of 2"):
        metrics.roc(np.eye(2)[:1], [[1, 0], [0, np.nan]], **labels)


def test_importing_the_metrics_compiles_and_loads_nothing_heavy():
    code = (
        "import sys; from ray_reid.ranking import metrics; "
        "sys.exit(' '.join({'numba', 'ray', 'mlflow', 'torch'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
