"""Kernels of what an item is to a query: a true match, junk of its identity, or a wrong one.

`inputs` is a `RankingInput`, `query` the number of a query in it and `item` that of an item. A rule
says what clothes a match wears; 0: any, 1: the query's, 2: others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.similarity_kernels import Integers, compiled, exact


@compiled
def mark_matches(
    own: Integers, labels: Integers, items: Integers, rule: int, out: NDArray[np.bool_]
) -> int:
    """Mark which items of the query's identity are matches, not junk, and count them."""
    count = 0
    for at in range(own[1] - own[0]):
        camera, clothes = items[0, own[0] + at], items[1, own[0] + at]
        # A null label is -1 on both sides and equals none.
        same = labels[1] >= 0 and labels[1] == clothes
        right = rule == 0 or (rule == 1 and same) or (rule == 2 and not same)
        out[at] = right and not (labels[0] >= 0 and labels[0] == camera)
        count += out[at]
    return count


@compiled
def num_matches(inputs: Any, rule: int) -> Integers:
    """(Q,) true matches of each query."""
    own, labels, items = inputs.own, inputs.query_labels, inputs.item_labels
    counts = np.empty(len(own), dtype=np.int64)
    is_match = np.empty(items.shape[1], dtype=np.bool_)
    for query in range(len(counts)):
        counts[query] = mark_matches(own[query], labels[query], items, rule, is_match)
    return counts


@compiled
def match_similarities(inputs: Any, rule: int, start: int, stop: int, ends: Integers) -> Integers:
    """Similarities of the true matches of some queries on the grid, each query's ascending.

    Args:
        inputs: See the module, as `rule`.
        rule: What clothes a match wears.
        start: First query.
        stop: The query after the last.
        ends: Where the matches of each of these queries begin, and the last end.
    """
    own, labels, items = inputs.own, inputs.query_labels, inputs.item_labels
    gallery, gallery_norm = inputs.gallery, inputs.gallery_norm
    image, first = inputs.image, inputs.first
    similarities = np.empty(ends[-1], dtype=np.int64)
    is_match = np.empty(items.shape[1], dtype=np.bool_)
    for query in range(start, stop):
        row, norm = inputs.query[query], inputs.query_norm[query]
        mark_matches(own[query], labels[query], items, rule, is_match)
        at = begin = ends[query - start]
        for item in range(own[query, 0], own[query, 1]):
            if is_match[item - own[query, 0]]:
                images = image[first[item] : first[item + 1]]
                similarities[at] = exact(row, norm, gallery, gallery_norm, images)
                at += 1
        # The counts look a similarity up among them.
        similarities[begin:at].sort()
    return similarities


@compiled
def wrong_columns(own: Integers, item: int, num_columns: int, side: int) -> tuple[int, int]:
    """The columns left or right of the query's own items in a block that begins with an item."""
    first = min(max(own[0] - item, 0), num_columns)
    last = min(max(own[1] - item, first), num_columns)
    return (0, first) if side == 0 else (last, num_columns)
