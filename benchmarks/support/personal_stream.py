"""The stream of the personalise job over the miniature world, and what its actors did."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_reid import images, places, schema, storage
from ray_reid.generation import identity_plan, personalise
from ray_reid.generation.filters.steps import filter_steps
from ray_reid.generation.generators.identities import encode
from ray_reid.generation.identity_plan import Prompted
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from support.streams import Run, run

IDENTITY = "identity"


def vehicles(actors: int) -> Recipe:
    """The recipe of the profile `vehicles`, without references, which are made before."""
    return recipes.load(
        "diffusion_reid",
        "vehicles",
        [
            "personalise.prior_weight=0",
            # As many rows of a step as with references.
            "personalise.batch_size=8",
            f"personalise.stage={{actors: {actors}, num_cpus: 0.4, batch_size: 8}}",
            "filters=[{name: colour, stage: {num_cpus: 0.1, batch_size: 16}}]",
        ],
    )


def personal_run(folder: Path, recipe: Recipe, identities: int) -> tuple[Run, pa.Table]:
    """Stream identities of noise; returns what was logged, and the seconds of the rows."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "observation_id": f"{identity:04d}-{number}",
            "image": images.encode(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
            "identity": f"made:{identity:04d}",
            "source": "made",
            "split": "train",
            "attributes": {"colour": "red"},
        }
        for identity in range(identities)
        for number in range(4)
    ]
    table = places.place(str(folder / "observations"))
    storage.write(table, schema.observations(rows))
    prompted = [
        Prompted(name, "made", tuple(f"{name[-4:]}-{number}" for number in range(4)), "a car", "")
        for name in sorted({str(row["identity"]) for row in rows})
    ]
    plan = identity_plan.identities_plan(recipe, table, prompted, {})
    names = [spec.name for spec in recipe.filters]
    steps = {
        IDENTITY: personalise.identity_step(recipe, table, None, folder),
        **dict(zip(names, filter_steps(recipe), strict=True)),
    }
    done = run(
        plan, steps, folder / "out", partial(encode, quality=recipe.generate.quality),
        by=schema.IDENTITY,
    )  # fmt: skip
    columns = [schema.IDENTITY, *personalise.PARTS]
    return done, storage.read(folder / "out", columns, kept_only=False)
