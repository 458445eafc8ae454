"""k-reciprocal re-ranking (Zhong et al., CVPR 2017): gallery images that share neighbours are near.

The definition is the authors' function over lists of distances, given the Euclidean distances of
unit rows, which it squares. With the squared distances d2 of queries and gallery together:

1. original = d2, divided for each row by its largest.
2. The k-reciprocal neighbours of a row are those among its k1 + 1 nearest (itself included) that
   have it among theirs. Each of them brings its own of half the width, round(k1 / 2) + 1, if more
   than two thirds of those are there already.
3. A row's encoding has exp(-original) at these neighbours, divided by their sum; then it is the
   mean of the encodings of its k2 nearest.
4. jaccard = 1 - sum of the minima / sum of the maxima of two encodings.
5. distance = (1 - lambda) * jaccard + lambda * original.

What others call re-ranking differs; figures compare only under one definition:

- torchreid's engine and layumi's baseline hand over distances that are squared already, so theirs
  are of the fourth power. Ranks of neighbours stay, weights and the mixture do not.
- The authors' other function, over features, works in half precision: other neighbours.
- fast-reid's evaluator takes k1 instead of k1 + 1 neighbours and a softmax of -d2 that no row
  maximum scales, and mixes with a distance that is not scaled either.
- TransReID and CLIP-ReID compute this definition, but call it with 50, 15 and 0.3.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.cores import every_core
from ray_reid.ranking.neighbours import Floats, Search, nearest, slices, unit, unit_together

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Rows = NDArray[np.int32]

# Rows that one thread encodes, and queries that it ranks, before it takes the next.
ROWS = 1024
QUERIES = 128


def k_reciprocal(
    query: Any,
    gallery: Any,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    neighbours: Search = "exact",
    device: str | None = None,
) -> Floats:
    """Distances (Q, G) between queries and gallery, re-ranked; lower is nearer.

    `query` is (Q, D) and `gallery` (G, D), of any length: they are normalised here, and a zero row
    is similar to nothing. Beyond the result this takes memory for k1 neighbours of each row and
    for their encodings, and no more than a block of the products of all pairs.

    Args:
        k1: Neighbours that must be mutual.
        k2: Nearest rows, itself included, of which a row takes the mean encoding; 1 keeps its own.
        lambda_value: Share of the original distance in the result, 0 to 1.
        neighbours: `exact` multiplies every pair of the Q + G rows once. `approximate` searches an
            inverted file of faiss, near to linear in G; it also takes a row's largest distance
            from a sample of the others.
        device: Where torch multiplies in the exact search, such as `cuda`; that of the query if
            it is a torch tensor, and otherwise `cpu`, which needs no torch.

    Raises:
        ValueError: If shapes disagree, an embedding is not finite, or an argument is out of range.
        ModuleNotFoundError: If neighbours are approximate and faiss is not installed.
    """
    encoded = _encode(query, gallery, k1, k2, lambda_value, neighbours, device)
    result = np.empty((encoded.num_queries, encoded.num_gallery), dtype=np.float32)
    encoded.distances(slice(0, encoded.num_queries), result)
    return result


def k_reciprocal_blocks(
    query: Any,
    gallery: Any,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    neighbours: Search = "exact",
    device: str | None = None,
    block: int = 1024,
) -> Iterator[tuple[slice, Floats]]:
    """Give the rows of `k_reciprocal` for `block` queries at a time, with their slice.

    For galleries where (Q, G) distances do not fit; the same arguments and errors.
    """
    encoded = _encode(query, gallery, k1, k2, lambda_value, neighbours, device)
    for rows in slices(encoded.num_queries, max(1, block)):
        distances = np.empty((rows.stop - rows.start, encoded.num_gallery), dtype=np.float32)
        encoded.distances(rows, distances)
        yield rows, distances


def jaccard_within(
    embeddings: Any,
    radius: float,
    k1: int = 30,
    k2: int = 6,
    *,
    device: str | None = None,
    block: int = 1024,
) -> "csr_matrix":
    """Jaccard distances (N, N) of step 4 among (N, D) rows, of pairs at most `radius` apart.

    Other pairs have no entry, so that DBSCAN needs no more memory than it has neighbours. A
    distance of zero has an entry too.

    Raises:
        ValueError: If the embeddings are not finite, or an argument is out of range.
    """
    from scipy.sparse import csr_matrix

    rows = unit(embeddings, "clustered")
    device = device or str(getattr(embeddings, "device", "cpu"))
    encoded = _encoded(rows, 0, k1, k2, 0.0, "exact", device)
    counts, columns, values = [], [], []
    for part in slices(len(rows), max(1, block)):
        distances = np.empty((part.stop - part.start, len(rows)), dtype=np.float32)
        encoded.distances(part, distances)
        near = distances <= radius
        counts.append(near.sum(axis=1))
        columns.append(np.nonzero(near)[1])
        # Rounding may leave a row at a distance below zero from itself.
        values.append(np.maximum(distances[near], 0))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    shape = (len(rows), len(rows))
    return csr_matrix((np.concatenate(values), np.concatenate(columns), starts), shape=shape)


@dataclass(frozen=True, eq=False)
class _Sparse:
    """Rows of a matrix with few entries each, as in CSR."""

    starts: NDArray[np.int64]
    columns: Rows
    weights: Floats


@dataclass(frozen=True, eq=False)
class _Encoded:
    """All that the distances of queries and gallery follow from."""

    rows: Floats
    """(Q + G, D) unit rows, queries first."""
    num_queries: int
    farthest: Floats
    """(Q + G,) largest squared distance of each row."""
    queries: _Sparse
    """Encodings of the queries."""
    lists: _Sparse
    """Inverted lists: for each of the Q + G columns the gallery images with a weight in it."""
    lambda_value: float

    @property
    def num_gallery(self) -> int:
        return len(self.rows) - self.num_queries

    def distances(self, rows: slice, out: Floats) -> None:
        """Write the final distances of these queries to `out`, one row for each."""
        from ray_reid.ranking.rerank_kernels import mix

        gallery = self.rows[self.num_queries :]
        queries, lists = self.queries, self.lists

        def rank(part: slice) -> None:
            block = out[part.start - rows.start : part.stop - rows.start]
            np.matmul(self.rows[part], gallery.T, out=block)
            mix(
                block,
                self.farthest[part],
                queries.starts[part.start : part.stop + 1],
                queries.columns,
                queries.weights,
                lists.starts,
                lists.columns,
                lists.weights,
                self.lambda_value,
            )

        with every_core() as cores:
            cores.map(rank, slices(rows.stop, QUERIES, rows.start))


def _encode(
    query: Any,
    gallery: Any,
    k1: int,
    k2: int,
    lambda_value: float,
    neighbours: Search,
    device: str | None,
) -> _Encoded:
    # An array of NumPy has a device as well: cpu.
    device = device or str(getattr(query, "device", "cpu"))
    rows = unit_together(query, gallery)
    return _encoded(rows, len(query), k1, k2, lambda_value, neighbours, device)


def _encoded(
    rows: Floats,
    num_queries: int,
    k1: int,
    k2: int,
    lambda_value: float,
    neighbours: Search,
    device: str,
) -> _Encoded:
    """Encode unit rows, queries first."""
    for name, value in (("k1", k1), ("k2", k2)):
        if value < 1:
            raise ValueError(f"{name} {value} is too small; choose at least 1")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value {lambda_value} must be between 0 and 1")
    near = nearest(rows, max(k1 + 1, k2), neighbours, device)
    farthest = np.maximum(2 - 2 * near.lowest, 0)
    # Equal rows lie apart by rounding alone, which is no distance to divide by.
    farthest[farthest < 1e-6] = 0
    encodings = _averaged(near.rows, k2, _expanded(rows, near.rows, k1, farthest))
    return _Encoded(
        rows,
        num_queries,
        farthest,
        encodings,
        _inverted(encodings, num_queries),
        lambda_value,
    )


def _expanded(rows: Floats, found: Rows, k1: int, farthest: Floats) -> _Sparse:
    """Encode every row by its expanded k-reciprocal neighbours."""
    from ray_reid.ranking.rerank_kernels import expand, reciprocal

    width = min(k1 + 1, len(rows))
    # Halves round to even, as in the definition's code.
    half_width = min(round(k1 / 2) + 1, width)
    half = np.empty((len(rows), half_width), dtype=np.int32)
    half_counts = np.empty(len(rows), dtype=np.int32)

    def halve(part: slice) -> None:
        reciprocal(found, half_width, part.start, half[part], half_counts[part])

    def encode(part: slice, counts: Rows, columns: Rows, weights: Floats) -> int:
        return expand(
            rows,
            found,
            width,
            half,
            half_counts,
            farthest,
            part.start,
            counts,
            columns,
            weights,
        )

    with every_core() as cores:
        cores.map(halve, slices(len(rows), ROWS))
    room = width * (1 + half_width)
    return _by_parts(len(rows), lambda part: (part.stop - part.start) * room, encode)


def _averaged(found: Rows, k2: int, encodings: _Sparse) -> _Sparse:
    """Replace every row's encoding by the mean of those of its `k2` nearest."""
    from ray_reid.ranking.rerank_kernels import average

    near = found[:, :k2]
    lengths = np.diff(encodings.starts)

    def room(part: slice) -> int:
        return int(lengths[np.maximum(near[part], 0)].sum())

    def encode(part: slice, counts: Rows, columns: Rows, weights: Floats) -> int:
        return average(
            found,
            near.shape[1],
            encodings.starts,
            encodings.columns,
            encodings.weights,
            part.start,
            counts,
            columns,
            weights,
        )

    return _by_parts(len(found), room, encode)


def _by_parts(
    size: int,
    room: Callable[[slice], int],
    encode: Callable[[slice, Rows, Rows, Floats], int],
) -> _Sparse:
    """Encode some rows at a time on every core, and join the encodings."""

    def work(part: slice) -> tuple[Rows, Rows, Floats]:
        counts = np.empty(part.stop - part.start, dtype=np.int32)
        columns = np.empty(room(part), dtype=np.int32)
        weights = np.empty(len(columns), dtype=np.float32)
        end = encode(part, counts, columns, weights)
        return counts, columns[:end].copy(), weights[:end].copy()

    with every_core() as cores:
        parts = cores.map(work, slices(size, ROWS))
    counts, columns, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Sparse(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), columns, weights)


def _inverted(encodings: _Sparse, num_queries: int) -> _Sparse:
    """For each column the rows behind the queries that have a weight in it, counted from these."""
    from scipy.sparse import csr_array

    size = len(encodings.starts) - 1
    first = encodings.starts[num_queries]
    gallery = csr_array(
        (
            encodings.weights[first:],
            encodings.columns[first:],
            encodings.starts[num_queries:] - first,
        ),
        shape=(size - num_queries, size),
    ).tocsc()
    return _Sparse(gallery.indptr.astype(np.int64), gallery.indices.astype(np.int32), gallery.data)
