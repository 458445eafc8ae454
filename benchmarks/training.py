"""How fast is training, beside a loop written by hand, torchreid, one process and no Ray?

loop: `ray_reid.training.fit` beside a plain PyTorch loop on the same network, images, precision and
threads, whose images come from a DataLoader with PIL and torchvision; beside the network alone on
one batch that never leaves memory; and the parts that explain the difference. The networks are
that of the drawn world and the field's standard one, a ResNet-50 on 256 x 128 pixels. augment: what
RandAugment takes of a step of 512 images. peer: the standard one beside torchreid, its own engine
where PYTHONPATH leads to it (the wheel on PyPI also wants gdown and tensorboard), else its step
reproduced. start: seconds until the first batch, and memory. workers: two processes beside one on
the same batch. --ray: the train job on Ray Train beside the loop written by hand.

Takes a GPU where there is one. On a busy machine idle OpenMP threads must not spin, hence PASSIVE.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from support import cases
from support.alone import all_do, alone
from support.cases import Case
from support.reporting import Figure, arguments, report
from support.turns import Step, seconds_per_step

if TYPE_CHECKING:
    import torch

    from ray_reid.recipe.recipe import Recipe
    from ray_reid.training.fit import Fit

SECTIONS = ("loop", "augment", "peer", "start", "workers")
# Set before measuring. Nobody should lose by leaving a loop of their own, ...
LOOP_BAR = 0.95
# ... and who leaves torchreid should notice.
PEER_BAR = 2.0
# RandAugment is to be hidden behind the network, at the batch of Diffusion-ReID's pre-training.
AUGMENT_BAR = 0.15
LARGE_BATCH = 512
# Of the processes that are started to look at memory, beyond the first batch.
STEPS = 3
RAY_EPOCHS = 2


class Measurement:
    """The tables, drawn once, and what all sections share."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory, self.options = directory, options
        self.seconds, self.processes = options.seconds, options.processes
        self.changes = [
            f"train.loader_processes={options.processes}",
            f"train.compile={str(options.compile).lower()}",
        ]
        self.miniature = cases.miniature()
        self.standard = cases.standard(options.backbone, tuple(options.size))

    def table(self, case: Case) -> Path:
        """The images of a case."""
        table = self.directory / case.kind / "observations"
        return table if table.exists() else case.draw(table, self.options.num_images)

    def loop(self) -> Iterator[Figure]:
        """Our loop against one written by hand, against the network alone, and its parts."""
        from support import bare

        for case in (self.miniature, self.standard):
            recipe, table = case.recipe(*self.changes), self.table(case)
            fit = cases.fit_of(recipe, table)
            batch, name = fit.plan(0).shape[2], _name(case, fit.dtype)
            images, labels = fixed_batch(fit)
            num_classes = len(fit.rows.chosen.identities)
            steps: dict[str, Step] = {
                "loop": partial(next, fit.run()),
                "bare": bare.loop(recipe, table, fit.device, self.processes),
                "network": bare.fixed(recipe, images, labels, num_classes, fit.device),
            }
            mean = seconds_per_step(steps, 0.8 * self.seconds, ahead=4 * self.processes)
            ours = batch / mean["loop"]
            yield Figure(
                f"{name}, loop; reference bare loop",
                ours,
                "images/s",
                batch / mean["bare"],
                LOOP_BAR,
            )
            limit = batch / mean["network"]
            yield Figure(f"{name}, loop; reference network alone", ours, "images/s", limit)
            whole = mean["loop"] * 1000
            for part, took in seconds_per_step(parts(fit), 0.2 * self.seconds).items():
                case_ = f"{case}, {part}, a batch of {batch}; reference loop"
                yield Figure(case_, took * 1000, "ms", whole)

    def augment(self) -> Iterator[Figure]:
        """What RandAugment takes of a step of many images, with all that comes after it."""
        identities = min(LARGE_BATCH, self.options.num_images) // 4
        changes = [
            *self.changes,
            "train.augment.rand_augment=2",
            f"train.sampler={{num_identities: {identities}, num_instances: 4}}",
            # A step of so many images must fit the memory; it changes nothing of what is measured.
            f"train.accumulate={max(1, identities // 8)}",
        ]
        for case in (self.miniature, self.standard):
            fit = cases.fit_of(case.recipe(*changes), self.table(case))
            stored, _ = cases.opened(fit)[fit.plan(0)[0, 0]]
            steps: dict[str, Step] = {
                "step": partial(next, fit.run()),
                "augment": partial(augmented, fit, stored),
            }
            mean = seconds_per_step(steps, self.seconds)
            batch = fit.plan(0).shape[2]
            yield Figure(
                f"{_name(case, fit.dtype)}, RandAugment, a batch of {batch}; reference loop",
                mean["augment"] * 1000,
                "ms",
                mean["step"] * 1000,
                AUGMENT_BAR,
            )

    def peer(self) -> Iterator[Figure]:
        """The standard network against torchreid, in the recipe's precision and in float32."""
        from support import peer

        case, table = self.standard, self.table(self.standard)
        fits = [
            cases.fit_of(case.recipe(*self.changes, f"train.precision={precision}"), table)
            for precision in ("auto", "fp32")
        ]
        theirs, step = peer.step(fits[0].recipe, table, fits[0].device, self.processes)
        steps: dict[str, Step] = {str(n): partial(next, fit.run()) for n, fit in enumerate(fits)}
        mean = seconds_per_step(steps | {"peer": step}, self.seconds, ahead=4 * self.processes)
        batch = fits[0].plan(0).shape[2]
        for number, (fit, bar) in enumerate(zip(fits, (PEER_BAR, None), strict=True)):
            precision = fit.recipe.train.precision
            yield Figure(
                f"{_name(case, fit.dtype)}, precision {precision}; reference {theirs}",
                batch / mean[str(number)],
                "images/s",
                batch / mean["peer"],
                bar,
            )

    def start(self) -> Iterator[Figure]:
        """Seconds from a process's start until its first batch is done, and its memory."""
        for case in (self.miniature, self.standard):
            recipe, table = case.recipe(*self.changes), self.table(case)
            first, peak = {}, {}
            for side in ("ours", "bare"):
                with alone(side, recipe, table, self.options.threads) as (process,):
                    process.ask("step")
                    first[side] = time.time() - process.started
                    for _ in range(STEPS):
                        process.ask("step")
                    peak[side] = process.ask("peak")
            yield Figure(f"{case}, first batch; reference bare", first["ours"], "s", first["bare"])
            yield Figure(f"{case}, memory; reference bare", peak["ours"], "MB", peak["bare"])

    def workers(self) -> Iterator[Figure]:
        """One process with all threads against two that share them and the batch."""
        threads = self.options.threads
        for case in (self.miniature, self.standard):
            recipe, table = case.recipe(*self.changes), self.table(case)
            each = max(1, threads // 2)
            with (
                alone("ours", recipe, table, threads) as one,
                alone("ours", recipe, table, each, workers=2) as two,
            ):
                # All processes do equally many steps, because the clock is here.
                steps: dict[str, Step] = {
                    "one": partial(all_do, one, "step"),
                    "two": partial(all_do, two, "step"),
                    "unshared": partial(all_do, two, "unshared"),
                }
                mean = seconds_per_step(steps, self.seconds)
            sampler = recipe.train.sampler
            batch = sampler.num_identities * sampler.num_instances
            yield Figure(
                f"{case}, 2 workers of {each} threads; reference 1 of {threads}",
                batch / mean["two"],
                "images/s",
                batch / mean["one"],
            )
            yield Figure(
                f"{case}, 2 workers, a step; reference gradients not exchanged",
                mean["two"] * 1000,
                "ms",
                mean["unshared"] * 1000,
            )

    def ray(self) -> Iterator[Figure]:
        """The train job on Ray Train, checkpoints and all, against the loop written by hand."""
        from support import on_ray

        case, threads = self.miniature, self.options.threads
        changes = [
            *self.changes,
            f"train.epochs={RAY_EPOCHS}",
            f"train.batches_per_epoch={self.options.ray_batches}",
            f"train.cpus_per_worker={threads}",
        ]
        recipe, table = case.recipe(*changes), self.table(case)
        steps = RAY_EPOCHS * self.options.ray_batches - 1
        # Before and after, because a machine's speed drifts.
        one, rest = self._alone("bare", recipe, table, steps)
        started, done = on_ray.batch_times(recipe, table, self.directory / "train", threads)
        _, again = self._alone("bare", recipe, table, steps)
        yield Figure(
            f"{case}, first batch on Ray Train; reference bare", done[0] - started, "s", one
        )
        batch = recipe.train.sampler.num_identities * recipe.train.sampler.num_instances
        yield Figure(
            f"{case}, then on Ray Train; reference bare loop",
            batch * steps / (done[-1] - done[0]),
            "images/s",
            2 * batch * steps / (rest + again),
            LOOP_BAR,
        )

    def _alone(self, side: str, recipe: "Recipe", table: Path, steps: int) -> tuple[float, float]:
        """Seconds until the first batch of a process of its own, and of so many more batches."""
        with alone(side, recipe, table, self.options.threads) as (process,):
            process.ask("step")
            first, begun = time.time() - process.started, time.time()
            for _ in range(steps):
                process.ask("step")
            return first, time.time() - begun


def _name(case: Case, dtype: object) -> str:
    return f"{case}, {str(dtype).removeprefix('torch.')}, {cases.device().type}"


def fixed_batch(fit: "Fit") -> "tuple[torch.Tensor, torch.Tensor]":
    """The first batch of the plan as the network sees it, without augmentation."""
    images, labels = cases.opened(fit)[fit.plan(0)[0, 0]]
    images = (images.to(fit.device).float() / 255).contiguous(memory_format=fit.layout)
    return images, labels.to(fit.device)


def augmented(fit: "Fit", stored: "torch.Tensor") -> float:
    """Augment a batch of bytes as the recipe has it."""
    from ray_reid.training.augment import augment

    # One number read back waits for the device.
    return float(augment(stored.to(fit.device), fit.spec.augment, (0, 0))[0, 0, 0, 0])


def parts(fit: "Fit") -> dict[str, Step]:
    """What the loop does beside the network, each on the same batch."""
    import torch

    from ray_reid.training.losses import pairs_of

    rows, planned = cases.opened(fit), fit.plan(0)[0, 0]
    stored, labels = rows[planned]
    with torch.no_grad():
        images, _ = fixed_batch(fit)
        outputs = [None if one is None else one.requires_grad_() for one in fit.network(images)]
    labels = labels.to(fit.device)

    def losses() -> float:
        loss = fit.loss(pairs_of(outputs), labels)["loss"]
        torch.autograd.backward(loss)
        return float(loss.detach())

    return {
        "decode": lambda: rows[planned],
        "augment": partial(augmented, fit, stored),
        "losses": losses,
    }


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Measure the sections that were asked for."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="training-") as directory:
        cases.keep_caches_in(Path(directory))
        found = Measurement(Path(directory), options)
        for section in options.only:
            yield from getattr(found, section)()
        if options.ray:
            yield from found.ray()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS, help="sections")
    parser.add_argument("--ray", action="store_true", help="measure Ray Train too, which starts it")
    parser.add_argument("--ray-batches", type=int, default=40, help="of an epoch, with --ray")
    parser.add_argument("--seconds", type=float, default=60.0, help="to measure a comparison for")
    parser.add_argument("--num-images", type=int, default=512, help="images to draw of each kind")
    parser.add_argument("--processes", type=int, default=0, help="that decode, on both sides")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--compile", action="store_true", help="compile the network, both sides")
    parser.add_argument("--backbone", default="resnet50", help="of the standard network")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 128), help="of its images: height and width"
    )
    options = parser.parse_args()
    if options.num_images < cases.MIN_IMAGES:
        parser.error(f"--num-images {options.num_images} is less than {cases.MIN_IMAGES}")
    if options.seconds <= 0 or options.threads < 1 or options.processes < 0:
        parser.error("--seconds and --threads must be positive, --processes not negative")
    report(measure(options), options.json)


if __name__ == "__main__":
    main()
