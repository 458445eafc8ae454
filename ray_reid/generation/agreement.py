"""What the filters make of the same images: each measures all of them, so they can be compared."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_reid import schema
from ray_reid.recipe.base import Frozen
from ray_reid.runtime.sections import Table, share


class Agreement(Frozen):
    """Verdicts of filters on the same images; entries are in the order of the filters."""

    filters: tuple[str, ...]
    """In the order in which they measured."""
    images: int
    kept: tuple[int, ...]
    """Images that each by itself keeps."""
    alone: tuple[int, ...]
    """Images that this filter drops and all others keep."""
    same: tuple[tuple[int, ...], ...]
    """Images of which two filters say the same."""
    expected: tuple[tuple[float, ...], ...]
    """Images of which they would say the same by chance, each keeping its own share."""
    all_keep: int
    all_drop: int


def measured(rows: pa.Table) -> pa.Table:
    """Return the rows whose images were made: those that no generator has refused."""
    return rows.filter(
        pa.array(
            [
                reason is None or bool(_said(scores))
                for reason, scores in zip(
                    rows[schema.DROP_REASON].to_pylist(), _scores(rows), strict=True
                )
            ],
            pa.bool_(),
        )
    )


def verdicts(rows: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """Return by filter, in the order in which they measured, which of the measured rows it keeps.

    A filter is left out if it did not measure all that the others did.
    """
    said = [_said(scores) for scores in _scores(measured(rows))]
    names = dict.fromkeys(name for one in said for name in one)
    return {
        name: np.array([one[name] > 0 for one in said], np.bool_)
        for name in names
        if all(name in one for one in said)
    }


def of_rows(rows: pa.Table) -> Agreement | None:
    """Compare the filters; null if none measured an image."""
    found = verdicts(rows)
    if not found:
        return None
    kept = np.stack(list(found.values()))
    count, size = kept.shape
    shares = kept.mean(axis=1)
    chance = np.outer(shares, shares) + np.outer(1 - shares, 1 - shares)
    dropped = (~kept).sum(axis=0)
    return Agreement(
        filters=tuple(found),
        images=size,
        kept=tuple(kept.sum(axis=1).tolist()),
        alone=tuple(int((~kept[n] & (dropped == 1)).sum()) for n in range(count)),
        same=tuple(
            tuple(int((kept[a] == kept[b]).sum()) for b in range(count)) for a in range(count)
        ),
        expected=tuple(tuple((size * row).tolist()) for row in chance),
        all_keep=int((dropped == 0).sum()),
        all_drop=int((dropped == count).sum()),
    )


def table(found: Agreement | None) -> Table | None:
    """Lay the comparison out, with Cohen's kappa behind the share of equal verdicts."""
    if found is None or len(found.filters) < 2:
        return None
    header = ("filter", "keeps", "drops alone", *(f"says as {name}" for name in found.filters))
    rows = [
        (
            name,
            share(found.kept[n], found.images),
            str(found.alone[n]),
            *("" if n == other else _pair(found, n, other) for other in range(len(found.filters))),
        )
        for n, name in enumerate(found.filters)
    ]
    agreed = found.all_keep + found.all_drop
    rows.append(("all of them", share(found.all_keep, found.images), "", *_last(found, agreed)))
    note = (
        f"Each filter by itself on the same {found.images} images. Behind the share of images of "
        "which two filters say the same stands Cohen's kappa: 1 is agreement, 0 that of chance. "
        "The last line: what all keep, and of how many all say the same."
    )
    return Table("Agreement of the filters", header, tuple(rows), note)


def _last(found: Agreement, agreed: int) -> Sequence[str]:
    return (share(agreed, found.images), *[""] * (len(found.filters) - 1))


def _pair(found: Agreement, first: int, second: int) -> str:
    same, expected = found.same[first][second], found.expected[first][second]
    rest = found.images - expected
    # Two filters that keep all, or drop all, have no other choice than to agree.
    # A hair below 0 would be written as -0.00.
    kappa = f"{round((same - expected) / rest, 2) + 0.0:.2f}" if rest > 1e-9 * found.images else "-"
    return f"{share(same, found.images)} ({kappa})"


def _scores(rows: pa.Table) -> list[Any]:
    return [None if pairs is None else dict(pairs) for pairs in rows[schema.SCORES].to_pylist()]


def _said(scores: Any) -> dict[str, float]:
    """Verdicts in the scores of a row, by filter."""
    return {
        name.removeprefix(schema.PASSED): value
        for name, value in (scores or {}).items()
        if name.startswith(schema.PASSED)
    }
