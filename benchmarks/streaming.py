"""What does one stream of generate, filter, encode and write cost over the work itself?

models: the stages of the recipe vehicle_diff on two cores, beside the CPU seconds that they spend
and beside the same pools one after another. sleepers: stages that sleep, standing for GPUs,
beside the generator's pool alone. memory: ten times as many rows of large images. A stream is
timed from its first batch to its last write; what starts its actors is shown apart.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from support.reporting import Figure, arguments, report
from support.streams import ENCODE, Pretend, plan, run

from ray_reid.generation import generate
from ray_reid.generation.generators.text_to_image import encode
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.resources import Resources, StageSpec
from ray_reid.runtime.cluster import Cluster
from ray_reid.runtime.stage import Step

CORES = 2
ROLES = ("text_to_image", "detector", "image_text")
JPEG = partial(encode, quality=95)
# Seconds a row. Four generators are the bottleneck, as they are with real models.
SLEEPS = {"generate": 0.2, "detection": 0.03, "colour": 0.01}
GENERATORS = 4
# 512 x 512 pixels are 786 kB: 1,200 rows are four stores, 12,000 are 37. Ray Data lets a stream
# fill half of the store, which the few rows must reach as well: in one of 512 MB they end before.
SIDE, STORE_MB, GROWTH = 512, 256, 10
# Here the generators are faster than what follows, so that something must hold them back.
MEMORY_SLEEPS = {"generate": 0.004, "detection": 0.008, "colour": 0.001}
# Limits on measured / reference, set before measuring.
WORK_BAR, POOL_BAR, MEMORY_BAR = 1.15, 1.05, 1.2


def models(folder: Path, rows: int, recipe: Recipe) -> Iterator[Figure]:
    """Stream prompts through real models at once, then through one stage after another."""
    names = ("generate", *(spec.name for spec in recipe.filters))
    steps = dict(zip(names, generate.steps(recipe, None), strict=True))
    quality = partial(encode, quality=recipe.generate.quality)
    source = generate.prompts_plan(recipe, "benchmark", None).slice(0, rows)
    once = run(source, steps, folder / "once", quality)
    alone = {}
    for name, step in steps.items():
        last = quality if name == names[-1] else None
        alone[name] = run(source, {name: step}, folder / name, last)
        source = folder / name
    work = once.busy() / CORES
    yield Figure(
        f"models, {rows} rows; reference work / {CORES} cores", once.working, "s", work, WORK_BAR
    )
    yield Figure("models with start-up; reference the same", once.whole, "s", work)
    spent = once.watch.cpu(once.first)
    yield Figure("models, CPU of all processes; reference work", spent, "s", once.busy())
    stolen = once.watch.stolen(once.first)
    yield Figure("models, CPU the host gave to others; reference work", stolen, "s", once.busy())
    after = sum(one.working for one in alone.values())
    yield Figure("models, stage after stage; reference one stream", after, "s", once.working)
    after = sum(one.whole for one in alone.values())
    yield Figure("models, the same with start-up", after, "s", once.whole)
    for name in (*names, ENCODE):
        apart = sum(one.busy(name) for one in alone.values())
        yield Figure(f"work of {name}, core-seconds; reference apart", once.busy(name), "s", apart)


def sleepers(folder: Path, rows: int) -> Iterator[Figure]:
    """Stream rows through stages that only sleep, then through the generator's pool alone."""
    steps = pretended(SLEEPS, GENERATORS, 64)
    first = {"generate": steps["generate"]}
    alone = run(plan(rows), first, folder / "alone")
    whole = run(plan(rows), steps, folder / "whole", JPEG)
    case = f"sleepers, {rows} rows; reference generators alone"
    yield Figure(case, whole.working, "s", alone.working, POOL_BAR)
    ideal = rows * SLEEPS["generate"] / GENERATORS
    yield Figure("generators alone; reference their sleep", alone.working, "s", ideal)
    yield Figure("sleepers with start-up; reference the same", whole.whole, "s", alone.whole)


def memory(folder: Path, rows: int) -> Iterator[Figure]:
    """Stream ten times as many rows, and compare the peaks."""
    steps, peaks = pretended(MEMORY_SLEEPS, 2, SIDE), []
    # The first stream starts the workers that stay and imports what they keep.
    for number, count in enumerate((8, rows, GROWTH * rows)):
        place = folder / str(number)
        peaks.append(run(plan(count), steps, place / "out", JPEG).watch)
    _, few, many = peaks
    assert min(few.memory, few.store) > 0, "nothing was sampled"
    growth = f"{GROWTH * rows} rows; reference {rows} rows"
    for name, measured, reference in (
        ("processes", many.memory, few.memory),
        ("object store", many.store, few.store),
    ):
        yield Figure(
            f"memory of {name}, {growth}", measured / 1e6, "MB", reference / 1e6, MEMORY_BAR
        )


def pretended(sleeps: dict[str, float], generators: int, side: int) -> dict[str, Step]:
    """Stages that sleep, in the pools of a recipe."""

    def step(name: str, actors: int, made: int | None) -> Step:
        spec = StageSpec(actors=actors, num_cpus=0.1, batch_size=8, block_rows=8)
        return Step(Pretend, {"seconds": sleeps[name], "side": made}, spec)

    return {
        "generate": step("generate", generators, side),
        "detection": step("detection", 1, None),
        "colour": step("colour", 1, None),
    }


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Start Ray on two cores and measure the parts that are wanted."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    resources = Resources(num_cpus=CORES, object_store_mb=STORE_MB)
    with (
        tempfile.TemporaryDirectory(prefix="streaming-") as directory,
        Cluster(resources) as cluster,
    ):
        folder = Path(directory)
        cluster.start()
        if "sleepers" in options.only:
            yield from sleepers(folder / "sleepers", options.sleeper_rows)
        if "models" in options.only:
            yield from models(folder / "models", options.rows, recipe_of(options))
        if "memory" in options.only:
            yield from memory(folder / "memory", options.memory_rows)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The miniature profile of vehicle_diff, with enough prompts."""
    overrides = []
    if options.models is not None:
        overrides = [f"models.{role}={(options.models / role).resolve()}" for role in ROLES]
    recipe = recipes.load("vehicle_diff", "miniature", [*overrides, *options.set])
    each = -(-options.rows // recipe.prompts.num_identities)
    enough = f"prompts.images_per_identity={each}"
    return recipes.load("vehicle_diff", "miniature", [*overrides, enough, *options.set])


def main() -> None:
    parser = arguments(__doc__)
    parts = ("sleepers", "models", "memory")
    parser.add_argument("--only", action="append", choices=parts, help="measure this part alone")
    parser.add_argument("--rows", type=int, default=2048, help="images of the real models")
    parser.add_argument("--sleeper-rows", type=int, default=800, help="rows of the sleepers")
    parser.add_argument("--memory-rows", type=int, default=1200, help="rows, and ten times as many")
    parser.add_argument("--models", type=Path, help=f"folder of {', '.join(ROLES)}")
    parser.add_argument("--set", action="append", default=[], help="override of the recipe, a.b=c")
    options = parser.parse_args()
    options.only = options.only or parts
    if min(options.rows, options.sleeper_rows, options.memory_rows) < 1:
        parser.error("--rows, --sleeper-rows and --memory-rows must be positive")
    report(measure(options), options.json)


if __name__ == "__main__":
    main()
