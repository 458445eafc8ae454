"""Kernels of ranks: how many wrong items reach each true match of a query, and what that scores."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.grid import GRID
from ray_reid.ranking.match_kernels import mark_matches, wrong_columns
from ray_reid.ranking.similarity_kernels import Floats, Integers, compiled, exact

Numbers = NDArray[np.int32]

# Bins into which the span of a query's thresholds is divided.
BINS = 4096
# Where more of the items reach a threshold, it costs less to look at all than to choose them.
MOST = 0.7
UNLIMITED = 1 << 62


class _Table(NamedTuple):
    """How many matches of a query a value reaches, by the bin that it falls into.

    Every match makes a threshold, and a band around it in which a proxy cannot tell. A table is
    filled for one row of a block after the other, so nothing is allocated in between.

    Attributes:
        low: (M,) where the bands begin, ascending; of these M the row's own come first.
        high: (M,) where they end.
        low_bin: (M,) bins of both.
        high_bin: (M,)
        scaling: (2,) where the bins begin, and bins per unit of similarity.
        reached: (BINS,) matches reached from a bin; -1 - m where a band touches it and values in it
            reach at least m.
        tally: (BINS,) values of a row in each bin, where most of them are looked at.
        bins: (C,) bins of a row's values.
        kept: (C,) columns of those values that must be looked at.
    """

    low: Floats
    high: Floats
    low_bin: Numbers
    high_bin: Numbers
    scaling: Floats
    reached: Numbers
    tally: Numbers
    bins: Numbers
    kept: Numbers


class Ahead(NamedTuple):
    """Subjects that come before a query's own: one image as similar as its best match is enough.

    A null identity is a subject of its own.

    Attributes:
        number: (R,) of each row.
        known: (R, B) bits of the identities that are counted.
    """

    number: Integers
    known: NDArray[np.uint8]


def nobody(rows: int, subject: Integers) -> Ahead:
    """No subject before any of the rows; `subject` is that of every item."""
    bits = max(1, int(subject.max(initial=-1)) // 8 + 1)
    return Ahead(np.zeros(rows, np.int64), np.zeros((rows, bits), np.uint8))


@compiled
def _put_ahead(ahead: Any, row: int, subject: int) -> None:
    """Count a subject before that of a row, once."""
    if subject >= 0:
        bit = np.uint8(1 << (subject % 8))
        if ahead.known[row, subject // 8] & bit:
            return
        ahead.known[row, subject // 8] |= bit
    ahead.number[row] += 1


@compiled
def _table(block: Floats, ends: Integers) -> _Table:
    """An empty table for every row of a block."""
    most = 0
    for row in range(len(block)):
        most = max(most, ends[row + 1] - ends[row])
    num_columns = block.shape[1]
    # Thresholds of the block's own type, lest single precision be promoted.
    return _Table(
        np.empty(most, block.dtype),
        np.empty(most, block.dtype),
        np.empty(most, np.int32),
        np.empty(most, np.int32),
        np.empty(2, block.dtype),
        np.empty(BINS, np.int32),
        np.empty(BINS, np.int32),
        np.empty(num_columns, np.int32),
        np.empty(num_columns, np.int32),
    )


@compiled
def _write_bins(values: Floats, scaling: Floats, out: Numbers) -> None:
    """Divide values into bins; never decreasing in the value, so bounds are placed by it too."""
    base, scale = scaling[0], scaling[1]
    zero, top = values.dtype.type(0), values.dtype.type(BINS - 1)
    for i in range(len(values)):
        out[i] = np.int32(min(max((values[i] - base) * scale, zero), top))


@compiled
def _fill(table: _Table, grids: Integers, shift: float, error: float) -> None:
    """Fill the table for a row with the similarities of its matches on the grid."""
    size = len(grids)
    low, high = table.low[:size], table.high[:size]
    low_bin, high_bin = table.low_bin[:size], table.high_bin[:size]
    for k in range(size):
        # What lies half a step of the grid below a match still rounds to it, and so ties.
        threshold = (grids[k] - 0.5) / GRID - shift
        low[k], high[k] = threshold - error, threshold + error
    # Two bins lie below the lowest band, so what falls into bin 0 reaches nothing.
    width = max((np.float64(high[size - 1]) - low[0]) / (BINS - 8), error)
    table.scaling[0], table.scaling[1] = low[0] - 2.0 * width, 1.0 / width
    _write_bins(low, table.scaling, low_bin)
    _write_bins(high, table.scaling, high_bin)
    done = 0
    for k in range(size):
        for bin_ in range(done, low_bin[k]):
            table.reached[bin_] = k
        # Bands may overlap, and then begin in bins that are done.
        for bin_ in range(max(done, low_bin[k]), high_bin[k] + 1):
            table.reached[bin_] = -1 - k
        done = max(done, high_bin[k] + 1)
    table.reached[done:] = size


@compiled
def _num_above(bins: Numbers) -> int:
    """How many values are not in bin 0."""
    # A sum of 32 bits is twice as fast as one of 64.
    total = np.int32(0)
    for i in range(len(bins)):
        total += np.int32(bins[i] > 0)
    return int(total)


@compiled
def _reaching(bins: Numbers, kept: Numbers) -> Numbers:
    """The columns that are not in bin 0."""
    size = 0
    for column in range(len(bins)):
        # Written always and kept by the count, for a branch would be mispredicted.
        kept[size] = column
        size += bins[column] > 0
    return kept[:size]


@compiled
def _tallied(bins: Numbers, table: _Table, size: int, counts: Integers) -> Numbers:
    """Count by bins what reaches some matches; return the columns in doubt or that reach all."""
    tally, reached, kept = table.tally, table.reached, table.kept
    tally[:] = 0
    num_kept: Any = np.uint32(0)
    for column in range(len(bins)):
        bin_ = np.uint32(bins[column])  # Unsigned, lest every index be tested for a sign.
        tally[bin_] += 1
        kept[num_kept] = column
        num_kept += np.uint32((reached[bin_] < 0) | (reached[bin_] == size))
    for each in range(BINS):
        if 0 <= reached[each] < size:
            counts[reached[each]] += tally[each]
    return kept[:num_kept]


@compiled
def _up_to(values: Any, key: Any) -> int:
    """How many of the ascending values are at most the key."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] <= key:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _count_values(
    values: Floats,
    subjects: Integers,
    table: _Table,
    size: int,
    counts: Integers,
    ahead: Ahead,
    row: int,
    doubts: Numbers,
) -> int:
    """Count the values that the table decides; write the columns of the others to `doubts`.

    Args:
        values: (C,) of a row.
        subjects: (C,) of its columns.
        table: Filled for it.
        size: Matches of the row.
        counts: (size + 1,) values that reach 0, 1, ... of them.
        ahead: Of all rows.
        row: This one.
        doubts: Room for C columns.

    Returns:
        The number of columns in doubt.
    """
    bins, reached_by = table.bins[: len(values)], table.reached
    low, high = table.low[:size], table.high[:size]
    _write_bins(values, table.scaling, bins)
    num_above = _num_above(bins)
    if num_above >= MOST * len(bins):
        columns = _tallied(bins, table, size, counts)
    else:
        counts[0] += len(bins) - num_above
        columns = _reaching(bins, table.kept)
    num_doubts = 0
    for column in columns:
        reached = reached_by[bins[column]]
        if reached < 0:
            # Hardly ever more than a step, where a search of all would mispredict every branch.
            reached = -1 - reached
            while reached < size and low[reached] <= values[column]:
                reached += 1
            if reached > 0 and not high[reached - 1] < values[column]:
                doubts[num_doubts] = column
                num_doubts += 1
                continue
        counts[reached] += 1
        if reached == size:
            _put_ahead(ahead, row, subjects[column])
    return num_doubts


@compiled
def count(
    inputs: Any,
    block: Floats,
    error: float,
    shift: Floats,
    query: int,
    item: int,
    grids: Integers,
    ends: Integers,
    budget: int,
    counts: Integers,
    ahead: Ahead,
) -> int:
    """Count the wrong items of a block by how many matches of the query they reach.

    Args:
        inputs: A RankingInput.
        block: (R, C) similarity to within `error`, less `shift`.
        error: Bound of the proxy's error.
        shift: (R,) what has been taken from each row.
        query: The first row's query.
        item: The first column's item.
        grids: Similarities of the matches of all rows, see `match_similarities`.
        ends: (R + 1,) where those of each row begin.
        budget: Pairs that may be recomputed before giving up.
        counts: Those of row r begin at `ends[r] + r`: items that reach 0, 1, ... of its matches.
        ahead: Of the rows; gets the subjects whose items reach all matches.

    Returns:
        The number of rows that were counted.
    """
    num_rows, num_columns = block.shape
    # The budget is looked at after each row, which may be in doubt as a whole.
    room = min(budget, block.size) + num_columns
    doubt_row, doubt_column = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
    num_doubts = 0
    table = _table(block, ends)
    for row in range(num_rows):
        thresholds = grids[ends[row] : ends[row + 1]]
        _fill(table, thresholds, shift[row], error)
        row_counts = counts[ends[row] + row : ends[row + 1] + row + 1]
        for side in range(2):
            start, stop = wrong_columns(inputs.own[query + row], item, num_columns, side)
            values, subjects = block[row, start:stop], inputs.subject[item + start : item + stop]
            doubts, size = doubt_column[num_doubts:], len(thresholds)
            more = _count_values(values, subjects, table, size, row_counts, ahead, row, doubts)
            doubt_row[num_doubts : num_doubts + more] = row
            doubts[:more] += np.int32(start)
            num_doubts += more
        if num_doubts > budget:
            num_rows = row + 1
            break
    rows, columns = doubt_row[:num_doubts], doubt_column[:num_doubts]
    _settle(inputs, rows, columns, num_columns, query, item, grids, ends, counts, ahead)
    return num_rows


@compiled
def _settle(
    inputs: Any,
    rows: Numbers,
    columns: Numbers,
    num_columns: int,
    query: int,
    item: int,
    grids: Integers,
    ends: Integers,
    counts: Integers,
    ahead: Ahead,
) -> None:
    """Count the pairs in doubt by definition; see `count`."""
    gallery, gallery_norm = inputs.gallery, inputs.gallery_norm
    queries, query_norm = inputs.query, inputs.query_norm
    image, first = inputs.image, inputs.first
    # Column by column, so that a row of the large gallery is fetched once.
    starts = np.zeros(num_columns + 1, dtype=np.int64)
    for column in columns:
        starts[column + 1] += 1
    starts[:] = np.cumsum(starts)
    order = np.empty(len(rows), dtype=np.int64)
    for at, column in enumerate(columns):
        order[starts[column]] = at
        starts[column] += 1
    for pair in order:
        row, number = rows[pair], item + columns[pair]
        images = image[first[number] : first[number + 1]]
        own_row, own_norm = queries[query + row], query_norm[query + row]
        similarity = exact(own_row, own_norm, gallery, gallery_norm, images)
        reached = _up_to(grids[ends[row] : ends[row + 1]], similarity)
        counts[ends[row] + row + reached] += 1
        if reached == ends[row + 1] - ends[row]:
            _put_ahead(ahead, row, inputs.subject[number])


@compiled
def count_given(
    inputs: Any, rule: int, similarity: Floats, ends: Integers, counts: Integers, ahead: Ahead
) -> None:
    """Count the wrong items of given similarities by how many matches of the query they reach.

    Args:
        inputs: A RankingInput, of whose embeddings nothing is read.
        rule: What clothes a match wears; see `match_kernels`.
        similarity: (Q, I) any values, compared as they are.
        ends: (Q + 1,) where the matches of each query begin.
        counts: Those of query q begin at `ends[q] + q`: items that reach 0, 1, ... of its matches.
        ahead: Of the queries, as in `count`.
    """
    own, labels, items = inputs.own, inputs.query_labels, inputs.item_labels
    is_match = np.empty(items.shape[1], dtype=np.bool_)
    for query in range(len(own)):
        row, size = similarity[query], ends[query + 1] - ends[query]
        mark_matches(own[query], labels[query], items, rule, is_match)
        thresholds = np.empty(size, dtype=similarity.dtype)
        at = 0
        for item in range(own[query, 0], own[query, 1]):
            if is_match[item - own[query, 0]]:
                thresholds[at] = row[item]
                at += 1
        thresholds.sort()
        for side in range(2):
            start, stop = wrong_columns(own[query], 0, len(row), side)
            for item in range(start, stop):
                reached = _up_to(thresholds, row[item])
                counts[ends[query] + query + reached] += 1
                if reached == size:
                    _put_ahead(ahead, query, inputs.subject[item])


@compiled
def score(
    counts: Integers, ends: Integers, trapezoid: bool, ap: Floats, inp: Floats, first: Integers
) -> None:
    """Write AP, inverse negative penalty and the first rank of queries from their counts."""
    for row in range(len(ap)):
        size = ends[row + 1] - ends[row]
        wrong, total, rank = 0, 0.0, 0
        # From the most similar match down: what reaches more matches than are left lies above.
        for matches in range(1, size + 1):
            wrong += counts[ends[row] + row + size + 1 - matches]
            rank = wrong + matches
            precision = matches / rank
            if trapezoid:
                # Before the first image of a ranking precision is 1.
                before = (matches - 1) / (rank - 1) if rank > 1 else 1.0
                precision = (precision + before) / 2
            total += precision
            if matches == 1:
                first[row] = rank
        ap[row], inp[row] = total / size, size / rank
