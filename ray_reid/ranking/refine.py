"""Prediction refinement (DLCR, Algorithm 1): the gallery's answer to a query in several clothes.

Each query has L variants, the same person inpainted with other clothes. The query's own m most
similar gallery images name the subjects in question; the query and every variant vote for them
with their own m most similar images. Two rules are in the world:

- `paper`: a list gives each of its images' subjects the image's cosine as a share of the list's
  largest. Subjects are ranked by the sum over all lists.
- `released`, of the authors' code: with similarity = cosine + 1 and b the best of a subject in a
  list, its score is b of the query's own list + the sum over all lists of b * b / the list's
  largest. The query's own m images take the score of their subject where it is higher; all others
  keep their similarity. So only the first m places permute, and images of one subject among
  them tie.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ray_reid.ranking.cores import every_core
from ray_reid.ranking.labels import Labels, number_sides, split_nulls
from ray_reid.ranking.neighbours import Floats, check_dimensions, into_unit, on_host, slices, unit

Rule = Literal["paper", "released"]
RULES: tuple[str, ...] = get_args(Rule)
Rows = NDArray[np.int32]

# Similarities that a thread works on at a time: 8 MB; fewer queries than this waste a product.
SIMILARITIES = 2_000_000
QUERIES = 16


def refine(
    query: Any,
    variants: Any,
    gallery: Any,
    gallery_identity: Labels,
    m: int = 5,
    rule: Rule = "paper",
    *,
    query_identity: Labels | None = None,
    query_camera: Labels | None = None,
    gallery_camera: Labels | None = None,
    hidden: NDArray[np.bool_] | None = None,
) -> Floats:
    """Similarities (Q, G) between queries and gallery, refined by variants; higher is nearer.

    `query` is (Q, D), `variants` (Q, L, D) with L of 0 or more, `gallery` (G, D), of any length:
    they are normalised here, and a zero row is similar to nothing. The result ranks the whole
    gallery. By rule `paper` the images of the subjects in question come first, subjects by score,
    images of one subject by their cosine to the query; the others follow in the query's order. An
    image outside keeps its cosine and one inside is raised by 3 for each subject that its own
    does not come after, itself included. Subjects of equal score come by their best cosine to the
    query, and share their place if that is equal too. By rule `released` the result is the
    similarity of that rule, cosine + 1 or a score.

    A gallery image of null identity (None or NaN) is a subject of its own: an unknown person may
    well be the most similar. By rule `paper` a list whose largest cosine is not positive adds
    nothing; a negative cosine below a positive one counts as it is. Of equally similar images at
    the end of a list the first rows count.

    Args:
        m: Images of each list; the whole gallery if it has fewer.
        query_identity: With both cameras: gallery images of the query's identity from its camera
            are junk and are in no list. The released code drops them so; the paper says nothing
            of them. Null equals nothing.
        hidden: (Q, G) True where an image is in no list of a query, for other rules of junk.

    Raises:
        ValueError: If the rule is unknown, shapes or lengths disagree, an embedding is not finite,
            `m` is below 1, or only some of the labels of junk are given.
    """
    _check(rule, m)
    queries, images = unit(query, "query"), unit(gallery, "gallery")
    check_dimensions(queries, images)
    others = _of_queries(variants, queries)
    shape = len(queries), len(images)
    subjects = _subjects(shape, gallery_identity, query_identity, query_camera, gallery_camera)
    unseen = _mask(hidden, shape)
    result = np.empty(shape, dtype=np.float32)

    def work(rows: slice) -> None:
        np.matmul(queries[rows], images.T, out=result[rows])
        flat = others[rows].reshape(-1, queries.shape[1])
        block = np.empty(flat.shape, dtype=np.float32)
        into_unit(flat, block, "variant", rows.start * others.shape[1])
        _refine(result[rows], block @ images.T, m, rule, subjects, rows, unseen[rows])

    with every_core() as cores:
        cores.map(work, _blocks(len(queries), others.shape[1], len(images)))
    return result


def _check(rule: str, m: int) -> None:
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; choose from {list(RULES)}")
    if m < 1:
        raise ValueError(f"m {m} is too small; choose at least 1")


def _of_queries(variants: Any, queries: Floats) -> NDArray[Any]:
    """The variants (Q, L, D) in main memory."""
    rows = on_host(variants)
    if rows.ndim != 3 or (rows.shape[0], rows.shape[2]) != queries.shape:
        raise ValueError(
            f"variants must be (Q, L, D) with Q {len(queries)} and D {queries.shape[1]} as the "
            f"queries, not {rows.shape}"
        )
    return rows


def _mask(hidden: NDArray[np.bool_] | None, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(Q, G) what is hidden; without it (Q, 0), which the kernel skips."""
    if hidden is None:
        return np.zeros((shape[0], 0), dtype=bool)
    if hidden.shape != shape or hidden.dtype != np.bool_:
        raise ValueError(f"hidden must be bool {shape}, not {hidden.dtype} {hidden.shape}")
    return hidden


@dataclass(frozen=True, eq=False)
class _Subjects:
    """Numbers of the gallery's subjects and of what makes a pair junk."""

    gallery: Rows
    """(G,) subject of each image."""
    gallery_camera: Rows
    query: Rows
    """(Q,) subject of each query, -1 where it is null or junk is not looked for."""
    query_camera: Rows
    starts: NDArray[np.int64]
    images: Rows
    """(G,) images in order of subject; those of subject s begin at starts[s]."""


def _refine(
    similarity: Floats,
    variants: Floats,
    m: int,
    rule: str,
    subjects: _Subjects,
    rows: slice,
    hidden: NDArray[np.bool_],
) -> None:
    """Refine (n, G) cosines of these queries in place with those of their variants, (n * L, G)."""
    from ray_reid.ranking.refine_kernels import refine_rows

    refine_rows(
        similarity,
        variants,
        min(m, similarity.shape[1]),
        rule == "released",
        subjects.query[rows],
        subjects.query_camera[rows],
        hidden,
        subjects.gallery,
        subjects.gallery_camera,
        subjects.starts,
        subjects.images,
    )


def _blocks(num_queries: int, num_variants: int, num_gallery: int) -> list[slice]:
    """Queries that a thread takes at a time."""
    fitting = SIMILARITIES // (num_gallery * (num_variants + 1))
    return slices(num_queries, max(QUERIES, fitting))


def _subjects(
    sizes: tuple[int, int],
    gallery_identity: Labels,
    query_identity: Labels | None,
    query_camera: Labels | None,
    gallery_camera: Labels | None,
) -> _Subjects:
    given = {
        "query_identity": query_identity,
        "query_camera": query_camera,
        "gallery_camera": gallery_camera,
    }
    missing = [name for name, labels in given.items() if labels is None]
    if 0 < len(missing) < len(given):
        raise ValueError(f"{' and '.join(missing)} must be given too; junk needs {list(given)}")
    nobody = [None] * sizes[0]
    asking, answering = number_sides(
        "identity", sizes, nobody if query_identity is None else query_identity, gallery_identity
    )
    subjects = split_nulls(answering, asking)
    camera_of_query, camera_of_image = number_sides("camera", sizes, query_camera, gallery_camera)
    images = np.argsort(subjects, kind="stable")
    return _Subjects(
        subjects.astype(np.int32),
        camera_of_image.astype(np.int32),
        asking.astype(np.int32),
        camera_of_query.astype(np.int32),
        np.searchsorted(subjects[images], np.arange(subjects.max() + 2)),
        images.astype(np.int32),
    )
