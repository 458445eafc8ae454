"""How near does the training loop come to the bare network, and what takes the rest?

Trains the miniature network on drawn 64x64 images with `ray_reid.fit` alone, no Ray, beside a
plain PyTorch loop of the same network on one batch that never leaves the device's memory. Takes
a GPU where there is one. On a busy machine idle OpenMP threads must not spin, hence PASSIVE.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from support.reporting import Figure, arguments, report

from ray_reid import config, schema, storage

if TYPE_CHECKING:
    import torch

    from ray_reid.fit import Fit
    from ray_reid.loader import TrainingRows

SIZE = (64, 64)
CAMERAS, IMAGES_PER_CAMERA = 2, 2
# One batch of the recipe: 16 identities.
MIN_IMAGES = 16 * CAMERAS * IMAGES_PER_CAMERA
# Enough that the loop never ends by itself; the clock stops it.
EPOCHS = 1_000_000
WARM_UP = 2
BLOCK_SECONDS = 0.5
# Set before measuring: a fifth may go to sampling, decoding, augmenting and the metric loss.
BAR = 0.8

Step = Callable[[], object]


def prepare(directory: Path, num_images: int, processes: int) -> "Fit":
    """Draw the images, write the table and build the training."""
    import torch

    from ray_reid.fit import Fit
    from ray_reid.loader import TrainingRows
    from ray_reid.miniature import street_observations

    drawn = street_observations(
        "vehicle",
        num_train=num_images // (CAMERAS * IMAGES_PER_CAMERA),
        num_test=0,
        images_per_camera=IMAGES_PER_CAMERA,
        cameras_per_identity=CAMERAS,
        seed=0,
        size=SIZE,
    )
    storage.write(directory / "observations", schema.observations(list(drawn)))
    overrides = [f"train.epochs={EPOCHS}", f"train.loader_processes={processes}"]
    recipe = config.load("baseline", "miniature", overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = TrainingRows([directory / "observations"], recipe.train)
    return Fit(recipe, rows, device=device)


def bare_step(fit: "Fit") -> Step:
    """Forward, cross-entropy, backward and optimiser of an equal network on a fixed batch."""
    import torch
    import torch.nn.functional as F

    from ray_reid.networks import ReidNetwork
    from ray_reid.networks.precision import autocast

    network = ReidNetwork(fit.spec, len(fit.rows.chosen.identities)).to(fit.device).train()
    network = network.to(memory_format=torch.channels_last)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=fit.spec.learning_rate)
    images, labels = fixed_batch(fit)

    def step() -> float:
        with autocast(fit.dtype, fit.device):
            _, logits = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        # Reading the loss waits for the device, as every loop that logs it does.
        return float(loss.detach())

    return step


def opened(fit: "Fit") -> "TrainingRows":
    """The rows of the training, which are decoded in this process."""
    from ray_reid.loader import TrainingRows

    assert isinstance(fit.rows, TrainingRows), "prepare opens the tables here"
    return fit.rows


def fixed_batch(fit: "Fit") -> "tuple[torch.Tensor, torch.Tensor]":
    """The first batch of the plan as the network sees it, without augmentation."""
    import torch

    images, labels = opened(fit)[fit.plan(0)[0, 0]]
    images = (images.to(fit.device).float() / 255).contiguous(memory_format=torch.channels_last)
    return images, labels.to(fit.device)


def seconds_per_step(steps: dict[str, Step], budget: float, ahead: int = 0) -> dict[str, float]:
    """Mean seconds of each step; short blocks in turn, so that all see the same machine.

    Args:
        ahead: Steps that may have been prepared while another block ran; they are not counted.
    """
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    length = min(BLOCK_SECONDS, budget / len(steps))
    spent, done = dict.fromkeys(steps, 0.0), dict.fromkeys(steps, 0)
    while sum(spent.values()) < budget:
        for name, step in steps.items():
            for _ in range(ahead):
                step()
            start, block = time.perf_counter(), 0.0
            while block < length:
                step()
                done[name] += 1
                block = time.perf_counter() - start
            spent[name] += block
    return {name: spent[name] / done[name] for name in steps}


def parts(fit: "Fit") -> dict[str, Step]:
    """What the loop does beside the network, each on the same batch."""
    import torch

    from ray_reid.augment import augment

    rows, planned = opened(fit), fit.plan(0)[0, 0]
    images, labels = fixed_batch(fit)
    with torch.no_grad():
        outputs = [output.requires_grad_() for output in fit.network(images)]

    def augmented() -> float:
        # One number read back waits for the device.
        return float(augment(images, fit.spec.augment, (0, 0))[0, 0, 0, 0])

    def losses() -> float:
        loss = fit.loss(*outputs, labels)["loss"]
        torch.autograd.backward(loss)
        return float(loss.detach())

    return {"decode": lambda: rows[planned], "augment": augmented, "losses": losses}


def measure(seconds: float, num_images: int, processes: int, threads: int) -> Iterator[Figure]:
    """Measure the loop against the bare network, then what the loop does beside it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="training-") as directory:
        os.environ["RAY_REID_CACHE"] = f"{directory}/rows"
        fit = prepare(Path(directory), num_images, processes)
        batch = fit.plan(0).shape[2]
        name = f"{fit.spec.backbone} {SIZE[0]}x{SIZE[1]}, {str(fit.dtype).removeprefix('torch.')}"
        loops: dict[str, Step] = {"loop": partial(next, fit.run()), "bare": bare_step(fit)}
        mean = seconds_per_step(loops, 0.8 * seconds, ahead=4 * processes)
        yield Figure(
            f"{name}, {fit.device.type}, loop; reference bare network",
            batch / mean["loop"],
            "images/s",
            batch / mean["bare"],
            BAR,
        )
        whole = mean["loop"] * 1000
        for part, took in seconds_per_step(parts(fit), 0.2 * seconds).items():
            yield Figure(f"{part}, a batch of {batch}; reference loop", took * 1000, "ms", whole)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure for, in all")
    parser.add_argument("--num-images", type=int, default=1024, help="images to draw")
    parser.add_argument("--processes", type=int, default=0, help="that decode beside the loop")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    options = parser.parse_args()
    if options.num_images < MIN_IMAGES:
        parser.error(f"--num-images {options.num_images} is less than {MIN_IMAGES}")
    if options.seconds <= 0 or options.threads < 1 or options.processes < 0:
        parser.error("--seconds and --threads must be positive, --processes not negative")
    report(
        measure(options.seconds, options.num_images, options.processes, options.threads),
        options.json,
    )


if __name__ == "__main__":
    main()
