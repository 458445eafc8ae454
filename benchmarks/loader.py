"""How fast do decoded and augmented batches come, beside torch's DataLoader with torchvision?

Ours decodes whole batches in the worker processes and augments them here; the peer decodes and
augments image by image in its worker processes, and here its batches are only taken. Both have
the same JPEG images of 256 x 128 pixels, batches and number of worker processes, and the strong
baseline's augmentation (Luo et al., 2019): flip, pad, crop and erase.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from support import cases
from support.cases import Case
from support.reporting import Figure, arguments, report
from support.turns import Step, seconds_per_step

from ray_reid.recipe.recipe import Recipe

# Set before measuring: nobody should lose by it.
BAR = 1.0
WORKERS = (1, 2)
# Repeats of the plan, so that the loader does not come to an end.
EPOCHS = 1_000


def ours(recipe: Recipe, table: Path, processes: int) -> Step:
    """Our loader: batches of bytes, augmented here as a training does."""
    from ray_reid.training import fit, loader
    from ray_reid.training.augment import augment

    rows = loader.TrainingRows([table], recipe.train)
    plan = np.concatenate([fit.plan(recipe, rows.chosen, 0)] * EPOCHS)
    loaded = enumerate(loader.execute(rows, plan, 0, processes=processes))

    def step() -> object:
        number, (images, _) = next(loaded)
        return augment(images, recipe.train.augment, (0, 0, number, 0))

    return step


def theirs(recipe: Recipe, table: Path, processes: int) -> Step:
    """The DataLoader as most projects have it."""
    from support import bare

    return partial(next, bare.batches(recipe, table, processes))


def single(recipe: Recipe, table: Path) -> dict[str, Step]:
    """What either does with a batch, here and without worker processes."""
    from support import bare

    from ray_reid.training import fit, loader
    from ray_reid.training.augment import augment

    rows = loader.TrainingRows([table], recipe.train)
    planned = fit.plan(recipe, rows.chosen, 0)[0, 0]
    images, _ = rows[planned]
    found, _ = bare.images(recipe, table, bare.transforms(recipe.train))
    return {
        "decode": lambda: rows[planned],
        "augment": lambda: augment(images, recipe.train.augment, (0,)),
        "peer": lambda: [found[row] for row in planned.tolist()],
    }


def measure(case: Case, options: argparse.Namespace) -> Iterator[Figure]:
    """Measure both with one and two worker processes, then what a batch is made of."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    # The cores belong to the worker processes.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loader-") as directory:
        cases.keep_caches_in(Path(directory))
        table = case.draw(Path(directory) / "observations", options.num_images)
        recipe = case.recipe()
        batch = recipe.train.sampler.num_identities * recipe.train.sampler.num_instances
        size = f"{case.size[0]}x{case.size[1]}"
        for processes in WORKERS:
            steps = {make.__name__: make(recipe, table, processes) for make in (ours, theirs)}
            mean = seconds_per_step(steps, options.seconds / 3, ahead=4 * processes + 4)
            yield Figure(
                f"{size}, {processes} worker processes; reference DataLoader",
                batch / mean["ours"],
                "images/s",
                batch / mean["theirs"],
                BAR,
            )
        mean = seconds_per_step(single(recipe, table), options.seconds / 3)
        for part in ("decode", "augment"):
            case_ = f"{size}, {part}, a batch of {batch}; reference both by torchvision"
            yield Figure(case_, mean[part] * 1000, "ms", mean["peer"] * 1000)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="to measure for, in all")
    parser.add_argument("--num-images", type=int, default=512, help="images to draw")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), help="height and width")
    options = parser.parse_args()
    if options.num_images < cases.MIN_IMAGES:
        parser.error(f"--num-images {options.num_images} is less than {cases.MIN_IMAGES}")
    if options.seconds <= 0:
        parser.error("--seconds must be positive")
    report(measure(cases.standard("resnet50", tuple(options.size)), options), options.json)


if __name__ == "__main__":
    main()
