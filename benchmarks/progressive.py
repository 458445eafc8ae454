"""How long is an epoch of progressive pairs, beside one of all generated images (DLCR, Table A5)?

Trains two epochs of either by the recipe `dlcr`, 64 images a batch, in this process and without
Ray; the second epoch is timed, when every cache is warm. Drawn people stand for the real images,
and copies of them for the generated ones: what is in an image changes no time. On PRCC, with ten
generated images of each real one, the paper has 65 s and 691 s: 0.094.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from support.reporting import Figure, arguments, report

from ray_reid import schema, storage
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.training import fit, loader

PEOPLE = 8
"""In a batch."""
PAIRS = {"kind": "progressive", "num_identities": PEOPLE, "num_instances": 4}
ALL = {"kind": "naive", "batch_size": 64}
# Losses that either sampler can feed; they are a small part of a step.
CHANGES = {
    "train.epochs": 2,
    "train.batches_per_epoch": None,
    "train.loss.metric": "none",
    "train.clothes.weight": 0.0,
}


def tables(people: int, outfits: int, place: Path) -> list[Path]:
    """Real images of so many people before eight cameras, and `outfits` versions of each."""
    from ray_reid.miniature import street_observations

    real = [
        row
        for row in street_observations("pedestrian", people, 0, 2, 8, seed=0, size=(96, 48))
        if row[schema.SPLIT] == "train"
    ]
    made = [
        {
            **row,
            schema.OBSERVATION_ID: schema.observation_id(row[schema.OBSERVATION_ID], number),
            schema.PARENT: row[schema.OBSERVATION_ID],
            schema.ORIGIN: "synthetic",
        }
        for row in real
        for number in range(outfits)
    ]
    found = []
    for name, rows in (("real", real), ("made", made)):
        storage.write(place / name, schema.observations(rows))
        found.append(place / name)
    return found


def epoch(recipe: Recipe, places: list[Path]) -> tuple[float, int]:
    """Seconds and batches of the second epoch."""
    rows = loader.TrainingRows(places, recipe.train)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = fit.Fit(recipe, rows, device=device)
    started = 0.0
    for progress in training.run():
        if progress.epoch == 1 and progress.batch == 0:
            started = time.perf_counter()
    return time.perf_counter() - started, training.batches_per_epoch


def measure(options: argparse.Namespace) -> Figure:
    recipe = recipes.load("dlcr", "miniature", options.set)
    recipe = recipes.override(recipe, CHANGES)
    with tempfile.TemporaryDirectory() as folder:
        places = tables(options.people, options.outfits, Path(folder))
        (pairs, few), (every, many) = (
            epoch(recipes.override(recipe, {"train.sampler": sampler}), places)
            for sampler in (PAIRS, ALL)
        )
    case = f"an epoch of pairs, {few} batches; reference all, {many}"
    return Figure(case, pairs, "s", every)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--people", type=int, default=24, help="each has 16 real images")
    parser.add_argument("--outfits", type=int, default=10, help="versions of each of them")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="a value of the recipe"
    )
    options = parser.parse_args()
    if options.people < PEOPLE:
        parser.error(f"--people {options.people} is less than the {PEOPLE} of a batch")
    report([measure(options)], options.json)


if __name__ == "__main__":
    main()
