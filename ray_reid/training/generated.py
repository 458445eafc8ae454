"""Which generated images are trained on: those that the filters kept, or others in their place."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_reid import schema
from ray_reid.recipe.train import Train


def looks_at_dropped(spec: Train) -> bool:
    """Return whether dropped images decide which ones are trained on."""
    asked = (spec.synthetic_images, spec.synthetic_filters)
    return spec.synthetic_of != "kept" or any(one is not None for one in asked)


def drawn(rows: pa.Table, spec: Train) -> pa.Table:
    """Choose among generated images as `train.synthetic_of` and `synthetic_images` say.

    Args:
        rows: Of trainable images, real and generated. Where `looks_at_dropped`, dropped ones are
            among them, and `drop_reason` and `scores` are columns.

    Returns:
        All real images that are not dropped, and the chosen ones, in the same order.

    Raises:
        ValueError: If there are fewer generated images than are to be drawn, or a filter that is
            to decide has said nothing of one.
    """
    if not looks_at_dropped(spec):
        return rows
    reasons = rows[schema.DROP_REASON].to_pylist()
    kept = np.array([reason is None for reason in reasons], dtype=bool)
    synthetic = pc.equal(rows[schema.ORIGIN], "synthetic").to_numpy().astype(bool)
    made = [row for row in np.flatnonzero(synthetic) if _is_image(reasons[row])]
    if spec.synthetic_images is not None and spec.synthetic_images > len(made):
        raise ValueError(
            f"train.synthetic_images is {spec.synthetic_images}, but {len(made)} generated images "
            "can be drawn; choose at most that"
        )
    ids = rows[schema.OBSERVATION_ID].to_pylist()
    order = sorted(made, key=lambda row: schema.observation_id(spec.synthetic_draw, ids[row]))
    looked_at = order[: spec.synthetic_images]
    if spec.synthetic_filters is None:
        passed = [row for row in looked_at if kept[row]]
    else:
        scores = rows[schema.SCORES].to_pylist(maps_as_pydicts="strict")
        passed = [row for row in looked_at if _passes(scores[row], spec.synthetic_filters)]
    chosen = {"kept": passed, "all": looked_at, "random": looked_at[: len(passed)]}
    trained = kept & ~synthetic
    trained[chosen[spec.synthetic_of]] = True
    return rows.filter(pa.array(trained))


def _passes(scores: Mapping[str, float] | None, filters: Sequence[str]) -> bool:
    """Whether each of some filters by itself keeps an image."""
    known = scores or {}
    for name in filters:
        if schema.PASSED + name not in known:
            asked = sorted(
                key.removeprefix(schema.PASSED) for key in known if key.startswith(schema.PASSED)
            )
            raise ValueError(
                f"synthetic_filters names {name!r}, but the generated images have verdicts "
                f"of {asked} only; choose from these, or add it to filters and generate again"
            )
    return all(known[schema.PASSED + name] for name in filters)


def _is_image(reason: str | None) -> bool:
    """Whether a row shows what a model has made, and not a failure to make anything."""
    return reason is None or reason.partition(":")[0] not in schema.NOT_MADE
