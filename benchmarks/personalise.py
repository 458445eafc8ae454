"""What does one identity take: fine-tuning, generating, filtering, and restoring the model?

    python benchmarks/personalise.py                  # full size on a GPU, else miniature
    python benchmarks/personalise.py --steps 100      # more of the 1,000 steps are measured
    python benchmarks/personalise.py --ray            # the stream of the job, miniature, two cores

The models are untrained and built from configurations: a Stable Diffusion 1 at full size. Needs
neither Ray (but for --ray), nor a network, nor weights. A fine-tuning is measured on some of its
steps, from which the seconds of all follow; so are generated images, from one batch. A part of an
identity is held against what the whole identity takes: at most 2 % for restoring the model.
`reading` is the same model read from a disk, in place of restoring it. On a GPU the peak of the
memory is held against a card of 24 GB. With --ray, `idle` is the time in which an actor had no
identity, between its first and the last of all.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import personal_models
from support.personal_models import SIZES, PersonalSize
from support.reporting import Figure, arguments, best, report, timed

from ray_reid.generation.personal_tuning import IdentityTuner, Subject
from ray_reid.images import Pixels
from ray_reid.models.pretrained import references
from ray_reid.models.pretrained.text_to_image import load_pipeline
from ray_reid.recipe.personalise import Personalise

RESTORING_BAR, IDLE_BAR, CARD_MB = 0.02, 0.10, 24_000.0
PROMPT, CLASS = "a photo of a qz person", "a photo of a person"


def alone(options: argparse.Namespace, mode: str, folder: Path) -> Iterator[Figure]:
    """One identity in this process."""
    size, on_gpu = SIZES[options.size], torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    device = references.device()
    pipeline = personal_models.text_to_image(size, device)
    stored = folder / mode
    pipeline.save_pretrained(stored)
    tuner = IdentityTuner(
        pipeline, spec(options, size, mode, options.steps), size.image, references.dtype("auto")
    )
    rng = np.random.default_rng(0)
    known = tuner.encode(pictures(rng, size.references, size.image))
    instances = pictures(rng, size.instances, size.output)

    def tune() -> None:
        subject = Subject(tuner.encode(instances), PROMPT, known, CLASS)
        tuner.tune(subject, 1, 1 if on_gpu else None)

    def generated(count: int) -> None:
        tuner.generate([PROMPT] * count, list(range(count)), settings(size), options.batch)

    restoring = best(lambda: tuner.restore(1), options.runs + 1)
    # The first call loads what the others use.
    tune()
    tuner.restore(1)
    tuning = best(tune, options.runs) / options.steps * size.tuning_steps
    generated(options.batch)
    generating = best(lambda: generated(options.batch), options.runs) / options.batch * size.images
    total = restoring + tuning + generating
    case = f"{mode}, {options.size}"
    yield Figure(f"{case}: fine-tuning, {size.tuning_steps} steps", tuning, "s", total)
    yield Figure(f"{case}: generating {size.images} images", generating, "s", total)
    yield Figure(f"{case}: restoring", restoring, "s", total, RESTORING_BAR)
    yield Figure(f"{case}: identities", 3600 / total, "identities/h")
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 1e6
        yield Figure(f"{case}: peak memory; reference a 24-GB card", peak, "MB", CARD_MB, 1.0)
    reading = timed(lambda: load_pipeline(str(stored), "fp32"))
    yield Figure(f"{case}: restoring; reference reading", restoring, "s", reading)


def spec(options: argparse.Namespace, size: PersonalSize, mode: str, steps: int) -> Personalise:
    """The section of a recipe: that of the paper profile at full size."""
    return Personalise.model_validate({
        "mode": mode,
        "steps": steps,
        "learning_rate": size.learning_rate[mode],
        "batch_size": size.batch_size,
        "gradient_checkpointing": options.size == "full",
    })  # fmt: skip


def settings(size: PersonalSize) -> dict[str, Any]:
    """Of the pipeline."""
    return {
        "guidance_scale": 7.5,
        "steps": size.denoising_steps,
        "image_size": size.image,
        "negative_prompt": "",
    }


def pictures(rng: np.random.Generator, count: int, size: tuple[int, int]) -> list[Pixels]:
    """Noise."""
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def streamed(identities: int, actors: int, folder: Path) -> Iterator[Figure]:
    """Many identities through the stream of the job, with a filter."""
    from support.personal_stream import IDENTITY, personal_run, vehicles

    from ray_reid.recipe.resources import Resources
    from ray_reid.runtime.cluster import Cluster

    recipe = vehicles(actors)
    with Cluster(Resources(num_cpus=2)) as cluster:
        cluster.start()
        done, rows = personal_run(folder, recipe, identities)
    calls = [call for call in done.calls if call.stage == IDENTITY]
    first, last = min(call.start for call in calls), max(call.end for call in calls)
    held = (last - first) * actors
    busy = sum(call.end - call.start for call in calls)
    case = f"stream of {identities} identities"
    for name in ("tuning", "generating", "restoring"):
        taken = sum(rows[f"{name}_seconds"].to_pylist())
        bar = RESTORING_BAR if name == "restoring" else None
        yield Figure(f"{case}: {name}; reference the actors' time", taken, "s", held, bar)
    filtering = sum(
        call.end - call.start for call in done.calls if call.stage not in (IDENTITY, "encode")
    )
    yield Figure(f"{case}: filtering, beside them", filtering, "s", held)
    idle = max(held - busy, 1e-3)
    yield Figure(f"{case}: idle; reference the actors' time", idle, "s", held, IDLE_BAR)
    yield Figure(f"{case}: identities", identities / done.working * 3600, "identities/h")


def measure(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Each mode alone, or the stream."""
    references.quiet()
    if options.ray:
        yield from streamed(options.identities, options.actors, folder)
        return
    for mode in options.modes:
        yield from alone(options, mode, folder)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--size", choices=list(SIZES), default="full" if on_gpu else "miniature",
        help="full by default on a GPU, else miniature",
    )  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--steps", type=int, default=20, help="steps of a fine-tuning to measure")
    parser.add_argument("--batch", type=int, default=8, help="images generated at once")
    parser.add_argument("--runs", type=int, default=2, help="runs of which the best counts")
    parser.add_argument("--ray", action="store_true", help="the stream of the job, miniature")
    parser.add_argument("--identities", type=int, default=24, help="of the stream")
    parser.add_argument("--actors", type=int, default=2, help="of the stream")
    options = parser.parse_args()
    counts = (options.steps, options.batch, options.runs, options.identities, options.actors)
    if min(counts) < 1:
        parser.error("--steps, --batch, --runs, --identities and --actors must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        report(measure(options, Path(folder)), options.json)


if __name__ == "__main__":
    main()
