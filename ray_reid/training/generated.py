"""Which generated images are trained on: those that the filters kept, or others in their place."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_reid import schema
from ray_reid.recipe.train import Train


def looks_at_dropped(spec: Train) -> bool:
    """Return whether dropped images decide which ones are trained on."""
    return spec.synthetic_of != "kept" or spec.synthetic_images is not None


def drawn(rows: pa.Table, spec: Train) -> pa.Table:
    """Choose among generated images as `train.synthetic_of` and `synthetic_images` say.

    Args:
        rows: Of trainable images, real and generated. Where `looks_at_dropped`, dropped ones are
            among them and their `drop_reason` is a column.

    Returns:
        All real images that are not dropped, and the chosen ones, in the same order.

    Raises:
        ValueError: If there are fewer generated images than are to be drawn.
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
    passed = [row for row in looked_at if kept[row]]
    chosen = {"kept": passed, "all": looked_at, "random": looked_at[: len(passed)]}
    trained = kept & ~synthetic
    trained[chosen[spec.synthetic_of]] = True
    return rows.filter(pa.array(trained))


def _is_image(reason: str | None) -> bool:
    """Whether a row shows what a model has made, and not a failure to make anything."""
    return reason is None or reason.partition(":")[0] not in schema.NOT_MADE
