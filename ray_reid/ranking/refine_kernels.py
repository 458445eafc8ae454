"""The loops of prediction refinement, compiled: one reading of each row of similarities."""

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int32]

# Similarities looked at together; one comparison tells that none of them is wanted.
WIDTH = 64
# Cosines lie within 2 of each other; a level more than that keeps subjects apart.
LEVEL = 3.0


@numba.njit(cache=True, nogil=True)
def _top(
    similarity: Floats,
    m: int,
    junk_identity: int,
    junk_camera: int,
    hidden: NDArray[np.bool_],
    subject: Rows,
    camera: Rows,
    rows: Rows,
    values: Floats,
) -> int:
    """Write the m most similar gallery images that are not junk, the first of equals first."""
    count = 0
    last = np.float32(-np.inf)
    size = len(similarity)
    for first in range(0, size, WIDTH):
        wanted = False
        for g in range(first, min(first + WIDTH, size)):
            wanted |= similarity[g] > last
        if not wanted:
            continue
        for g in range(first, min(first + WIDTH, size)):
            value = similarity[g]
            if value <= last:
                continue
            # A null identity or camera is -1 in a query and equals none.
            if (
                junk_identity >= 0
                and subject[g] == junk_identity
                and junk_camera >= 0
                and camera[g] == junk_camera
            ):
                continue
            if len(hidden) and hidden[g]:
                continue
            # Moves only what is less similar, so the first of equals stays first.
            at = min(count, m - 1)
            while at > 0 and values[at - 1] < value:
                values[at] = values[at - 1]
                rows[at] = rows[at - 1]
                at -= 1
            values[at] = value
            rows[at] = g
            count = min(count + 1, m)
            # Until the list is full, any image is wanted.
            if count == m:
                last = values[m - 1]
    return count


@numba.njit(cache=True, nogil=True)
def _vote(
    released: bool,
    rows: Rows,
    values: Floats,
    count: int,
    subject: Rows,
    subjects: Rows,
    size: int,
    score: NDArray[np.float64],
) -> None:
    """Add what a list, most similar first, says of the subjects to their scores."""
    shift = 1.0 if released else 0.0
    if count == 0 or values[0] + shift <= 0:
        return
    largest = values[0] + shift
    for s in range(size):
        for at in range(count):
            if subject[rows[at]] == subjects[s]:
                value = values[at] + shift
                if released:
                    # The first image of a subject is its best.
                    score[s] += value * value / largest
                    break
                score[s] += value / largest


@numba.njit(cache=True, nogil=True)
def _lift(
    similarity: Floats,
    score: NDArray[np.float64],
    best: Floats,
    subjects: Rows,
    size: int,
    starts: NDArray[np.int64],
    images: Rows,
) -> None:
    """Raise all images of the scored subjects above the others, by levels in order of score."""
    for s in range(size):
        # As many levels as there are subjects that this one does not come after.
        level = 0
        for other in range(size):
            level += score[s] > score[other] or (
                score[s] == score[other] and best[s] >= best[other]
            )
        for at in range(starts[subjects[s]], starts[subjects[s] + 1]):
            similarity[images[at]] += np.float32(LEVEL * level)


@numba.njit(cache=True, nogil=True)
def refine_rows(
    similarity: Floats,
    variants: Floats,
    m: int,
    released: bool,
    identity: Rows,
    query_camera: Rows,
    hidden: NDArray[np.bool_],
    subject: Rows,
    camera: Rows,
    starts: NDArray[np.int64],
    images: Rows,
) -> None:
    """Refine (n, G) cosines in place with those of their variants, (n * L, G).

    `hidden` is (n, G), True where an image is in no list of a query, or (n, 0). `images` lists the
    gallery images of each subject, from `starts` of the subject on.
    """
    num_variants = len(variants) // len(similarity)
    rows, own_rows = np.empty(m, dtype=np.int32), np.empty(m, dtype=np.int32)
    values, own_values = np.empty(m, dtype=np.float32), np.empty(m, dtype=np.float32)
    subjects = np.empty(m, dtype=np.int32)
    best = np.empty(m, dtype=np.float32)
    score = np.empty(m, dtype=np.float64)
    for q in range(len(similarity)):
        row = similarity[q]
        junk = identity[q], query_camera[q]
        own = _top(row, m, junk[0], junk[1], hidden[q], subject, camera, own_rows, own_values)
        # The subjects in question, in the order of their best images.
        size = 0
        for at in range(own):
            known = False
            for s in range(size):
                known |= subjects[s] == subject[own_rows[at]]
            if not known:
                subjects[size] = subject[own_rows[at]]
                best[size] = own_values[at]
                score[size] = 1 + np.float64(own_values[at]) if released else 0.0
                size += 1
        _vote(released, own_rows, own_values, own, subject, subjects, size, score)
        for v in range(q * num_variants, (q + 1) * num_variants):
            count = _top(variants[v], m, junk[0], junk[1], hidden[q], subject, camera, rows, values)
            _vote(released, rows, values, count, subject, subjects, size, score)
        if not released:
            _lift(row, score, best, subjects, size, starts, images)
            continue
        # The released rule keeps cosine + 1 of all images, and raises those of the own list.
        for g in range(len(row)):
            row[g] += np.float32(1.0)
        for at in range(own):
            for s in range(size):
                if subject[own_rows[at]] == subjects[s]:
                    row[own_rows[at]] = max(row[own_rows[at]], np.float32(score[s]))
