"""How long is an epoch of progressive pairs, beside one of all generated images (DLCR, Table A5)?

Trains two epochs of either on the tables of a run of the recipe `dlcr`, 64 images a batch, in this
process and without Ray; the second epoch is timed, when every cache is warm. On PRCC, with ten
generated images of each real one, the paper has 65 s and 691 s: 0.094.

    python benchmarks/progressive.py runs/dlcr
"""

import time
from pathlib import Path

import torch
from support.reporting import Figure, arguments, report

from ray_reid import config, fit, loader
from ray_reid.config import Recipe
from ray_reid.run import read_recipe

PAIRS = {"kind": "progressive", "num_identities": 8, "num_instances": 4}
ALL = {"kind": "naive", "batch_size": 64}
# Losses that either sampler can feed; they are a small part of a step.
CHANGES = {
    "train.epochs": 2,
    "train.batches_per_epoch": None,
    "train.loss.metric": "none",
    "train.clothes.weight": 0.0,
}


def epoch(recipe: Recipe, tables: list[Path]) -> tuple[float, int]:
    """Seconds and batches of the second epoch."""
    rows = loader.TrainingRows(tables, recipe.train)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = fit.Fit(recipe, rows, device=device)
    started = 0.0
    for progress in training.run():
        if progress.epoch == 1 and progress.batch == 0:
            started = time.perf_counter()
    return time.perf_counter() - started, training.batches_per_epoch


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    tables = [options.run / job / "observations" for job in ("ingest", "generate")]
    recipe = config.override(read_recipe(options.run), CHANGES)
    (pairs, few), (every, many) = (
        epoch(config.override(recipe, {"train.sampler": sampler}), tables)
        for sampler in (PAIRS, ALL)
    )
    case = f"an epoch of pairs, {few} batches; reference all, {many}"
    report([Figure(case, pairs, "s", every)], options.json)


if __name__ == "__main__":
    main()
