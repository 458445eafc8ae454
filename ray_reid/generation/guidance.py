"""Discriminator guidance: a generator's noise corrected towards the real images (Kim et al., 2023).

A discriminator d(x_t, t) tells noised real latents from noised generated ones, so log d / (1 - d)
is the logarithm of the ratio of their densities. The predicted noise is corrected by w times
-sigma_t grad_x log d / (1 - d) (DLCR, section 12).

x_t is alpha_t x_0 + sigma_t noise. The network sees u = alpha_t x_t in its place: the gradient by
x_t is alpha_t times the one by u, so no correction divides by alpha_t, which schedules of zero
terminal signal-to-noise ratio bring to 0. Nor does the true ratio's gradient by u grow there: it
is the difference of the expected real and generated x_0 over sigma_t squared.
"""

import copy
import functools
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor, nn
from torch.nn import functional as F

from ray_reid import places
from ray_reid.images import Pixels
from ray_reid.models.pretrained import latents
from ray_reid.places import Place
from ray_reid.recipe.guidance import Guidance

log = logging.getLogger(__name__)

WEIGHTS, CONFIG = "discriminator.safetensors", "config.json"
# Values that stand for a time; half are sines, half cosines of it.
TOLD = 64
PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a model may predict: the noise, v, or x_0."""


class Discriminator(nn.Module):
    """Logits of being real for noised latents, log d / (1 - d), at any size of the latents.

    No norm between its layers: one would undo the factor alpha_t of what it is shown.
    """

    alphas_cumprod: Tensor
    """(T,) share of the signal's variance at every time of the noise schedule."""

    def __init__(
        self,
        alphas_cumprod: Tensor,
        latent_channels: int,
        channels: Sequence[int],
        num_pixels: int,
    ) -> None:
        """Make an untrained one, which finds all equally likely.

        Args:
            alphas_cumprod: Of the noise schedule.
            channels: Width of each level; every level but the first halves height and width.
            num_pixels: Height times width of the latents that it is trained on.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "latent_channels": latent_channels,
            "channels": list(channels),
            "num_pixels": num_pixels,
        }
        self.register_buffer("alphas_cumprod", alphas_cumprod.detach().float().clone())
        self.told = nn.Sequential(nn.Linear(TOLD, TOLD), nn.SiLU())
        before = [latent_channels, *channels]
        self.levels = nn.ModuleList(
            _Level(before[place], width, stride=1 if place == 0 else 2)
            for place, width in enumerate(channels)
        )
        self.head = nn.Linear(channels[-1], 1)
        for value in self.head.parameters():
            nn.init.zeros_(value)
        # A sum over the image, as a ratio of densities is, so that its gradient is of the same
        # size for larger and smaller images; constant, so that the first logits are of order 1.
        self.scale = math.sqrt(num_pixels) / 2 ** (len(channels) - 1)

    def forward(self, noised: Tensor, times: Tensor) -> Tensor:
        """Logits (N,) of latents x_t, (N, C, h, w), at times (N,) of 0 to T - 1."""
        alpha, _ = self.noise(times)
        return self.log_ratio(alpha[:, None, None, None] * noised, times)

    def log_ratio(self, shown: Tensor, times: Tensor) -> Tensor:
        """The same of alpha_t x_t."""
        told = self.told(_waves(times, len(self.alphas_cumprod)))
        for level in self.levels:
            shown = level(shown, told)
        logits: Tensor = self.head(F.silu(shown).sum((2, 3)) / self.scale)
        return logits[:, 0]

    def noise(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t at times that may lie between the steps of the schedule."""
        last = len(self.alphas_cumprod) - 1
        times = times.clamp(0, last)
        low = times.floor().long()
        known = self.alphas_cumprod
        share = torch.lerp(known[low], known[(low + 1).clamp(max=last)], times.float() - low)
        return share.sqrt(), (1.0 - share).sqrt()

    def gradient(self, noised: Tensor, times: Tensor) -> Tensor:
        """Of the logits by alpha_t x_t: (N, C, h, w) fp32, also where gradients are off."""
        with torch.inference_mode(False), torch.enable_grad():
            alpha, _ = self.noise(times)
            shown = noised.detach().float().clone() * alpha[:, None, None, None]
            shown.requires_grad_()
            (found,) = torch.autograd.grad(self.log_ratio(shown, times).sum(), shown)
        return found


class _Level(nn.Module):
    """A convolution and a residual block that is told the time."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(before, width, 3, stride=stride, padding=1)
        self.time = nn.Linear(TOLD, width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        # Without norms a residual block is stable if it starts as the identity.
        for value in self.outer.parameters():
            nn.init.zeros_(value)

    def forward(self, shown: Tensor, told: Tensor) -> Tensor:
        shown = self.enter(shown) + self.time(told)[:, :, None, None]
        inner: Tensor = self.outer(F.silu(self.inner(F.silu(shown))))
        return shown + inner


def train_discriminator(
    real: Tensor, generated: Tensor, scheduler: Any, spec: Guidance, seed: int
) -> Discriminator:
    """Train on latents noised to uniform times by the scheduler's own schedule.

    Every step shows as many real as generated ones, however many there are, so the logits are
    the log ratio of the densities. The same arguments give the same weights on the same device.

    Args:
        real: (N, C, h, w) latents of real images, from `encode_latents`.
        generated: (M, C, h, w) latents of generated images, which must have come the same way,
            or the discriminator learns what way they came.
        scheduler: Of the pipeline that will be guided.

    Raises:
        ValueError: If there are no latents, their shapes differ, or the scheduler has no schedule.
    """
    for name, given in (("real", real), ("generated", generated)):
        if given.ndim != 4 or not len(given):
            raise ValueError(f"{name} latents must be (N, C, h, w), not {tuple(given.shape)}")
    if real.shape[1:] != generated.shape[1:]:
        raise ValueError(
            f"real latents are {tuple(real.shape[1:])} but generated ones "
            f"{tuple(generated.shape[1:])}; encode both at one size"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pixels = real.shape[2] * real.shape[3]
        made = Discriminator(_schedule(scheduler), real.shape[1], spec.channels, pixels)
    made.to(real.device)
    optimizer = torch.optim.AdamW(made.parameters(), lr=spec.learning_rate)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, spec.learning_rate, total_steps=spec.steps + 1, cycle_momentum=False
    )
    rng = torch.Generator().manual_seed(seed)
    for step in range(spec.steps):
        loss = _cross_entropy(made, real, generated, spec.batch_size, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()
        if (step + 1) % max(1, spec.steps // 10) == 0:
            log.debug("step %d: cross-entropy %.3f", step + 1, loss.item())
    return made.eval().requires_grad_(False)


def cross_entropy(
    discriminator: Discriminator, real: Tensor, generated: Tensor, seed: int, num_draws: int = 256
) -> float:
    """Mean cross-entropy on latents, best those held out of the training, at uniform times.

    log 2 = 0.693 is a discriminator that cannot tell them apart, and guides nowhere; more is one
    that knows its training images by heart.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return _cross_entropy(discriminator, real, generated, num_draws, rng).item()


def _cross_entropy(
    discriminator: Discriminator, real: Tensor, generated: Tensor, size: int, rng: torch.Generator
) -> Tensor:
    """Of `size` draws of each kind."""
    drawn = [
        given[torch.randint(0, len(given), (size,), generator=rng).to(given.device)]
        for given in (real, generated)
    ]
    clean = torch.cat(drawn).float()
    times = torch.randint(0, len(discriminator.alphas_cumprod), (2 * size,), generator=rng)
    noise = torch.randn(clean.shape, generator=rng).to(clean.device)
    times = times.to(clean.device)
    alpha, sigma = (level[:, None, None, None] for level in discriminator.noise(times))
    logits = discriminator(alpha * clean + sigma * noise, times)
    is_real = torch.arange(2 * size, device=clean.device) < size
    return F.binary_cross_entropy_with_logits(logits, is_real.float())


def guide(pipeline: Any, discriminator: Discriminator, weight: float) -> None:
    """Have a diffusers pipeline make images that look more real to the discriminator.

    The pipeline gets a copy of its scheduler, whose `step` corrects what the model predicts
    (after classifier-free guidance) before it goes on; a scheduler that is set later guides
    nothing. Calling again replaces weight and discriminator.

    Args:
        weight: w; 1 is the whole log ratio, 0 leaves the pipeline as it was without guidance.

    Raises:
        ValueError: If the weight is negative, or the scheduler has another noise schedule or
            predicts what cannot be corrected.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"guidance.weight {weight:g} must be 0 or more")
    # That of an earlier guidance, which had a scheduler of its own.
    vars(pipeline.scheduler).pop("step", None)
    if weight == 0:
        return
    _check(pipeline.scheduler, discriminator)
    scheduler = pipeline.scheduler = copy.deepcopy(pipeline.scheduler)
    plain = scheduler.step

    # The pipelines look at the signature for `eta` and `generator`, which `wraps` keeps.
    @functools.wraps(plain)
    def step(predicted: Tensor, time: Any, noised: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Schedulers of exploding variance hand on x_t / alpha_t; this is what the model is shown.
        shown = scheduler.scale_model_input(noised, time)
        change = correction(discriminator, shown, time, scheduler.config.prediction_type)
        return plain(
            predicted + (weight * change).to(predicted.dtype), time, noised, *args, **kwargs
        )

    scheduler.step = step


def correction(
    discriminator: Discriminator, noised: Tensor, time: float | Tensor, prediction_type: str
) -> Tensor:
    """What weight 1 adds to a prediction of the noise, of v or of x_0: (N, C, h, w) fp32.

    Args:
        noised: (N, C, h, w) x_t of a schedule that preserves the variance.
        time: Of all of them.
        prediction_type: One of PREDICTIONS.

    Raises:
        ValueError: If the latents have other channels than those of the training.
    """
    wanted = discriminator.config["latent_channels"]
    if noised.shape[1] != wanted:
        raise ValueError(
            f"latents have {noised.shape[1]} channels but the discriminator was trained on {wanted}"
        )
    discriminator.to(noised.device)
    times = torch.as_tensor(time, device=noised.device).reshape(-1).expand(len(noised))
    alpha, sigma = (level[:, None, None, None] for level in discriminator.noise(times))
    # With x_t held, x_0 = (x_t - sigma noise) / alpha and v = alpha noise - sigma x_0 =
    # (noise - sigma x_t) / alpha; the alpha of the gradient by x_t has gone into `gradient`.
    strength = {"epsilon": -sigma * alpha, "v_prediction": -sigma, "sample": sigma.square()}
    return strength[prediction_type] * discriminator.gradient(noised, times)


def encode_latents(pipeline: Any, images: Sequence[Pixels], image_size: tuple[int, int]) -> Tensor:
    """Mean latents of images as the pipeline's UNet knows them, (N, C, h, w) fp32 on the CPU.

    Args:
        images: (H, W, 3) uint8 each, of any sizes.
        image_size: Height and width in pixels at which the pipeline generates.
    """
    return latents.encode(pipeline, images, image_size)[0]


def save(discriminator: Discriminator, place: Place) -> None:
    """Write the weights and, last, what they are of into a folder."""
    place.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in discriminator.state_dict().items()}
    with places.created(place / WEIGHTS) as sink:
        sink.write(serialized(weights))
    places.write_text(place / CONFIG, json.dumps(discriminator.config) + "\n")


def load(place: Place) -> Discriminator:
    """Read what `save` has written, onto the CPU.

    Raises:
        ValueError: If it is not there or not whole.
    """
    try:
        config = json.loads((place / CONFIG).read_text())
        weights = load_file(places.fetched(place / WEIGHTS))
        found = Discriminator(weights["alphas_cumprod"], **config)
        found.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"no discriminator can be read from {str(place)!r}: {first}") from error
    return found.eval().requires_grad_(False)


def _schedule(scheduler: Any) -> Tensor:
    known = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(known, Tensor):
        raise ValueError(
            f"{type(scheduler).__name__} has no noise schedule alphas_cumprod; choose a scheduler "
            "that has one, such as DDIMScheduler or DPMSolverMultistepScheduler"
        )
    return known


def _check(scheduler: Any, discriminator: Discriminator) -> None:
    """Refuse a scheduler that the discriminator does not fit."""
    known, own = _schedule(scheduler), discriminator.alphas_cumprod.cpu()
    if known.shape != own.shape or not torch.allclose(known.cpu().float(), own, atol=1e-5):
        raise ValueError(
            f"the noise schedule of the pipeline's {type(scheduler).__name__} is not the one that "
            "the discriminator was trained with; train one with this scheduler"
        )
    predicted = scheduler.config.prediction_type
    if predicted not in PREDICTIONS:
        raise ValueError(
            f"prediction_type {predicted!r} cannot be guided; choose from {list(PREDICTIONS)}"
        )


def _waves(times: Tensor, num_times: int) -> Tensor:
    """(N, TOLD) sines and cosines of times; their periods are 4 T to T / 25."""
    rates = torch.logspace(0, 2, TOLD // 2, device=times.device) * (math.pi / 2)
    angles = times.float()[:, None] / num_times * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
