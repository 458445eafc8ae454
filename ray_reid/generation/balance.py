"""How many images each identity gets, and what the work of all of them costs: arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from ray_reid.recipe.personalise import Balance, Personalise

BACKWARD = 2.0
"""Cost of a backward pass in forward passes."""


def images_to_make(real: Sequence[int], balance: Balance) -> list[int]:
    """Return how many images to generate of each identity, from how many real ones it has.

    Identities with few get more, until the curve of images per identity is flat (Diffusion-ReID,
    Fig. 5). With `total` the identities with the fewest are filled up to one level, as water
    fills a vessel, and exactly `total` images are made, unless `least` and `most` do not allow it.

    Args:
        real: Real images of each identity.
        balance: Section of the recipe.

    Returns:
        Images of each identity, in its order.
    """
    if balance.target is not None:
        return [_bounded(balance.target - number, balance) for number in real]
    assert balance.total is not None, "a balance has a target or a total"
    level = _level(real, balance)
    made = [_bounded(level - number, balance) for number in real]
    # One more lifts those at the level above it; the first of them take what is left.
    left = balance.total - sum(made)
    for place, number in enumerate(real):
        more = _bounded(level + 1 - number, balance) - made[place]
        if left > 0 and more > 0:
            made[place] += 1
            left -= 1
    return made


def _bounded(number: int, balance: Balance) -> int:
    most = number if balance.most is None else min(number, balance.most)
    return max(most, balance.least)


def _level(real: Sequence[int], balance: Balance) -> int:
    """The highest level to which `total` images fill all identities."""
    assert balance.total is not None
    low, high = 0, max(real, default=0) + balance.total
    while low < high:
        middle = (low + high + 1) // 2
        if sum(_bounded(middle - number, balance) for number in real) <= balance.total:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Rates:
    """What one actor needs."""

    tuning: float
    """Seconds of fine-tuning an identity."""
    generating: float
    """Seconds of generating an image."""
    image_bytes: float
    """Of an image in the table."""
    restoring: float = 0.0
    """Seconds of restoring the model, an identity."""


@dataclass(frozen=True)
class Projection:
    """What a number of identities and images costs."""

    identities: int
    images: int
    actors: int
    tuning_hours: float
    generating_hours: float
    gpu_hours: float
    gigabytes: float

    @property
    def hours(self) -> float:
        """Of all, on so many actors side by side."""
        return self.tuning_hours + self.generating_hours

    @property
    def identities_per_hour(self) -> float:
        """Of all actors together."""
        return self.identities / self.hours if self.hours else 0.0

    def told(self) -> str:
        """Say it in one line."""
        return (
            f"{self.identities_per_hour:,.0f} identities/h, {self.identities:,} identities and "
            f"{self.images:,} images to go: {_hours(self.tuning_hours)} of fine-tuning + "
            f"{_hours(self.generating_hours)} of generation on {self.actors} actors, "
            f"{self.gpu_hours:,.1f} GPU-hours, {self.gigabytes:,.2f} GB"
        )


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def project(identities: int, images: int, rates: Rates, actors: int, num_gpus: float) -> Projection:
    """Return what so many identities and images cost.

    Args:
        identities: To be fine-tuned to.
        images: Of all of them together.
        rates: Of one actor.
        actors: Side by side; no more of them work than there are identities.
        num_gpus: Of one actor.
    """
    side_by_side = max(1, min(actors, identities))
    tuning = identities * (rates.tuning + rates.restoring) / 3600
    generating = images * rates.generating / 3600
    return Projection(
        identities=identities,
        images=images,
        actors=side_by_side,
        tuning_hours=tuning / side_by_side,
        generating_hours=generating / side_by_side,
        gpu_hours=(tuning + generating) * num_gpus,
        gigabytes=images * rates.image_bytes / 1e9,
    )


def tuning_seconds(
    spec: Personalise, image_seconds: float, denoising_steps: int, guidance_scale: float
) -> float:
    """Estimate the seconds of one fine-tuning from those of a generated image of the same size.

    An image is `denoising_steps` forward passes of the UNet, twice as many with guidance. A step
    of the optimiser is a forward and a backward pass for each of its images, and a forward pass
    more with gradient checkpointing.
    """
    forward = image_seconds / (denoising_steps * (2 if guidance_scale > 1 else 1))
    rows = spec.batch_size * (2 if spec.prior_weight > 0 else 1)
    passes = 1 + BACKWARD + (1 if spec.gradient_checkpointing else 0)
    return spec.steps * rows * passes * forward
