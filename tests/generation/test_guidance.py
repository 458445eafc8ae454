"""Discriminator guidance: what is learned of two Gaussians, and what it does to their noise."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForInpainting,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from PIL import Image
from torch import Tensor

from ray_reid.generation import guidance
from ray_reid.generation.guidance import Discriminator, guide, train_discriminator
from ray_reid.recipe import recipes
from ray_reid.recipe.guidance import Guidance

SHAPE = (2, 4, 4)
# Means of the real and the generated latents, both of variance 1 and independent elements.
MEAN = 0.3
BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
SPEC = Guidance(channels=(16, 16), steps=400, batch_size=64, learning_rate=3e-3)


class Exact(Discriminator):
    """Knows the ratio: at any time both densities are Gaussians of variance 1."""

    def log_ratio(self, shown: Tensor, times: Tensor) -> Tensor:
        return 2 * MEAN * shown.sum((1, 2, 3))


def _latents(mean: float, count: int, seed: int) -> Tensor:
    return mean + torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def _exact(scheduler: Any) -> Discriminator:
    return Exact(scheduler.alphas_cumprod, SHAPE[0], (4,), SHAPE[1] * SHAPE[2]).eval()


@pytest.fixture(scope="module")
def learned() -> Discriminator:
    real, generated = _latents(MEAN, 4000, 1), _latents(-MEAN, 4000, 2)
    return train_discriminator(real, generated, DDIMScheduler(**BETAS), SPEC, seed=0)


def _sample(scheduler: Any, discriminator: Discriminator | None, weight: float = 1.0) -> Tensor:
    """Latents from the perfect model of the generated ones, whatever it is to predict."""
    pipeline = SimpleNamespace(scheduler=scheduler)
    if discriminator is not None:
        guide(pipeline, discriminator, weight)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(50)
    noised = _latents(0.0, 512, 3) * scheduler.init_noise_sigma
    known = scheduler.alphas_cumprod
    for time in scheduler.timesteps:
        shown = scheduler.scale_model_input(noised, time)
        alpha, sigma = known[int(time)].sqrt(), (1 - known[int(time)]).sqrt()
        # By Tweedie's formula, for a variance of 1; x_0 and v without a division by alpha.
        noise = sigma * (shown + alpha * MEAN)
        clean = alpha * shown - sigma.square() * MEAN
        predictions = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": alpha * noise - sigma * clean,
        }
        predicted = predictions[scheduler.config.prediction_type]
        noised = scheduler.step(predicted, time, noised).prev_sample
    return noised


def test_the_learned_correction_points_where_the_densities_say(learned: Discriminator) -> None:
    scheduler = DDIMScheduler(**BETAS)
    for time in (50, 300, 600, 950):
        share = scheduler.alphas_cumprod[time]
        noised = share.sqrt() * _latents(-MEAN, 256, 5) + (1 - share).sqrt() * _latents(0, 256, 6)
        found = guidance.correction(learned, noised, time, "epsilon")
        # -sigma times the gradient of the true log ratio, 2 alpha MEAN, in every element.
        wanted = -(1 - share).sqrt() * 2 * share.sqrt() * MEAN
        assert found.mean() / wanted == pytest.approx(1.0, abs=0.3)
        cosine = torch.cosine_similarity(found.flatten(1), wanted.expand(256, 32)).mean()
        assert cosine > 0.85


def test_guidance_moves_the_generated_mean_to_the_real_one(learned: Discriminator) -> None:
    scheduler = DDIMScheduler(**BETAS, clip_sample=False)
    assert _sample(scheduler, None).mean().item() == pytest.approx(-MEAN, abs=0.03)
    assert _sample(scheduler, _exact(scheduler)).mean().item() == pytest.approx(MEAN, abs=0.03)
    assert _sample(scheduler, learned).mean().item() == pytest.approx(MEAN, abs=0.15)
    half = _sample(scheduler, _exact(scheduler), 0.5)
    assert half.mean().item() == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("build", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_models_that_predict_noise_and_v_are_guided_to_the_same_latents(
    build: Callable[..., Any],
) -> None:
    # At whole times, at which the toy's own levels of noise are the scheduler's.
    plain: dict[str, Any] = {"timestep_spacing": "trailing"}
    if build is not EulerDiscreteScheduler:
        plain["clip_sample"] = False
    noise, v = (
        _sample(made, _exact(made))
        for made in (
            build(**BETAS, **plain, prediction_type=predicted)
            for predicted in ("epsilon", "v_prediction")
        )
    )
    assert torch.allclose(noise, v, atol=1e-3)
    assert noise.mean().item() == pytest.approx(MEAN, abs=0.05)


# PNDM has no models that predict images.
@pytest.mark.parametrize(
    ("build", "predicted"),
    [
        *((DDIMScheduler, predicted) for predicted in guidance.PREDICTIONS),
        *((DDPMScheduler, predicted) for predicted in guidance.PREDICTIONS),
        *((DPMSolverMultistepScheduler, predicted) for predicted in guidance.PREDICTIONS),
        *((PNDMScheduler, predicted) for predicted in guidance.PREDICTIONS[:2]),
    ],
)
def test_every_scheduler_is_guided_whatever_its_model_predicts(
    build: Callable[..., Any], predicted: str
) -> None:
    extra: dict[str, Any] = {}
    if build in (DDIMScheduler, DDPMScheduler):
        extra = {"clip_sample": False}
    if build is PNDMScheduler:
        extra = {"skip_prk_steps": True}
    scheduler = build(**BETAS, **extra, prediction_type=predicted)
    assert _sample(scheduler, _exact(scheduler)).mean().item() == pytest.approx(MEAN, abs=0.06)


def test_a_schedule_that_ends_without_signal_is_guided_without_a_division_by_zero() -> None:
    scheduler = DDIMScheduler(
        **BETAS,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    assert scheduler.alphas_cumprod[-1] == 0
    made = _sample(scheduler, _exact(scheduler))
    assert made.isfinite().all()
    assert made.mean().item() == pytest.approx(MEAN, abs=0.05)
    trained = train_discriminator(
        _latents(MEAN, 64, 1), _latents(-MEAN, 64, 2), scheduler, _small(steps=5), seed=0
    )
    change = guidance.correction(trained, _latents(0, 8, 3), 999, "v_prediction")
    assert change.isfinite().all()
    assert change.abs().max() > 0
    assert guidance.correction(trained, _latents(0, 8, 3), 999, "epsilon").abs().max() == 0


def _small(**changes: Any) -> Guidance:
    return Guidance(**{"channels": (8, 8), "steps": 20, "batch_size": 8, **changes})


def test_the_gradient_is_that_of_the_logits_by_their_latents(learned: Discriminator) -> None:
    noised = _latents(0.1, 6, 7)
    times = torch.tensor([0, 1, 30, 400, 700, 999])
    asked = noised.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(learned(asked, times).sum(), asked)
    alpha = learned.noise(times)[0][:, None, None, None]
    with torch.inference_mode():
        found = alpha * learned.gradient(noised, times)
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (16, 4)])
def test_latents_of_any_size_can_be_judged(learned: Discriminator, size: tuple[int, int]) -> None:
    found = learned.gradient(torch.randn(3, 2, *size), torch.tensor([0, 500, 999]))
    assert found.shape == (3, 2, *size)
    assert found.isfinite().all()


def test_a_time_between_two_steps_has_noise_between_theirs(learned: Discriminator) -> None:
    alpha, sigma = learned.noise(torch.tensor([10.0, 10.25, 11.0, 5000.0]))
    assert alpha[0] > alpha[1] > alpha[2] > alpha[3]
    assert alpha[3] == learned.alphas_cumprod[-1].sqrt()
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones(4))


def test_training_is_reproducible_and_leaves_the_global_seed_alone() -> None:
    real, generated = _latents(MEAN, 50, 1), _latents(-MEAN, 70, 2)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        train_discriminator(real, generated, DDIMScheduler(**BETAS), _small(), seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(3), wanted)
    noised, times = _latents(0, 4, 3), torch.tensor([1, 100, 500, 900])
    assert torch.equal(first(noised, times), again(noised, times))
    assert not torch.equal(first(noised, times), other(noised, times))


def test_cross_entropy_is_lower_than_that_of_guessing_if_there_is_something_to_tell(
    learned: Discriminator,
) -> None:
    real, generated = _latents(MEAN, 500, 11), _latents(-MEAN, 500, 12)
    guessing = Discriminator(learned.alphas_cumprod, 2, (4,), 16)
    assert guidance.cross_entropy(guessing, real, generated, 0) == pytest.approx(np.log(2))
    assert guidance.cross_entropy(learned, real, generated, 0) < 0.6
    assert guidance.cross_entropy(learned, generated, real, 0) > 0.8


def test_a_saved_discriminator_comes_back_the_same(learned: Discriminator, tmp_path: Path) -> None:
    guidance.save(learned, tmp_path / "kept")
    again = guidance.load(tmp_path / "kept")
    noised, times = _latents(0, 4, 3), torch.tensor([1, 100, 500, 900])
    assert torch.equal(again(noised, times), learned(noised, times))
    assert torch.equal(again.gradient(noised, times), learned.gradient(noised, times))
    (tmp_path / "kept" / guidance.WEIGHTS).write_bytes(b"torn")
    with pytest.raises(ValueError, match="no discriminator can be read from"):
        guidance.load(tmp_path / "kept")
    with pytest.raises(ValueError, match="no discriminator can be read from"):
        guidance.load(tmp_path / "absent")


@pytest.fixture(scope="module")
def pipeline(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tiny_models.inpainting(tmp_path_factory.mktemp("models") / "inpainting")
    made = AutoPipelineForInpainting.from_pretrained(place)
    made.set_progress_bar_config(disable=True)
    return made


def _painted(pipeline: Any) -> Any:
    grey = Image.new("RGB", (16, 32), (90, 140, 30))
    mask = Image.new("L", (16, 32), 255)
    return pipeline(
        ["a red coat", "a blue coat"],
        image=[grey, grey],
        mask_image=[mask, mask],
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        num_inference_steps=3,
        guidance_scale=4.0,
        height=32,
        width=16,
        output_type="np",
    ).images


def test_weight_zero_paints_the_same_images_to_the_bit_and_any_other_does_not(
    pipeline: Any,
) -> None:
    images = [np.full((32, 16, 3), value, dtype=np.uint8) for value in (40, 200)]
    latents = guidance.encode_latents(pipeline, images, (32, 16))
    assert latents.shape == (2, 4, 16, 8)
    discriminator = train_discriminator(
        latents[:1], latents[1:], pipeline.scheduler, _small(learning_rate=1e-2), seed=0
    )
    plain, scheduler = _painted(pipeline), pipeline.scheduler
    guide(pipeline, discriminator, 0.0)
    assert np.array_equal(_painted(pipeline), plain)
    guide(pipeline, discriminator, 100.0)
    guided = _painted(pipeline)
    assert np.isfinite(guided).all()
    assert np.abs(guided - plain).max() > 1e-4
    assert pipeline.scheduler is not scheduler
    # Again is not twice, and off is as before.
    guide(pipeline, discriminator, 100.0)
    assert np.array_equal(_painted(pipeline), guided)
    guide(pipeline, discriminator, 0.0)
    assert np.array_equal(_painted(pipeline), plain)


def test_an_image_is_guided_the_same_in_any_batch(pipeline: Any) -> None:
    discriminator = train_discriminator(
        _latents(MEAN, 9, 1).repeat(1, 2, 1, 1), _latents(-MEAN, 9, 2).repeat(1, 2, 1, 1),
        pipeline.scheduler, _small(), seed=0,
    )  # fmt: skip
    noised = _latents(0, 5, 3).repeat(1, 2, 1, 1)
    whole = guidance.correction(discriminator, noised, 400, "epsilon")
    alone = guidance.correction(discriminator, noised[3:4], 400, "epsilon")
    assert torch.allclose(whole[3:4], alone, atol=1e-6)


def test_what_cannot_be_guided_is_refused_in_one_sentence(learned: Discriminator) -> None:
    def attach(scheduler: Any, weight: float = 1.0) -> None:
        guide(SimpleNamespace(scheduler=scheduler), learned, weight)

    with pytest.raises(ValueError, match=r"guidance\.weight -1 must be 0 or more"):
        attach(DDIMScheduler(**BETAS), -1.0)
    with pytest.raises(ValueError, match="is not the one that the discriminator was trained with"):
        attach(DDIMScheduler())
    with pytest.raises(ValueError, match="has no noise schedule alphas_cumprod; choose"):
        attach(FlowMatchEulerDiscreteScheduler())
    flow = DPMSolverMultistepScheduler(**BETAS, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match=r"'flow_prediction' cannot be guided; choose from"):
        attach(flow)
    with pytest.raises(ValueError, match="have 3 channels but the discriminator was trained on 2"):
        guidance.correction(learned, torch.zeros(1, 3, 4, 4), 10, "epsilon")
    good = _latents(0, 4, 1)
    for real, sentence in (
        (good[:0], r"real latents must be \(N, C, h, w\), not \(0, 2, 4, 4\)"),
        (good[:, :1], r"real latents are \(1, 4, 4\) but generated ones \(2, 4, 4\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train_discriminator(real, good, DDIMScheduler(**BETAS), _small(), seed=0)


def test_recipes_have_guidance_off_unless_asked_for() -> None:
    assert recipes.load("baseline").guidance.weight == 0
    changed = recipes.load("baseline", None, ["guidance.weight=0.7", "guidance.channels=[8, 16]"])
    assert (changed.guidance.weight, changed.guidance.channels) == (0.7, (8, 16))
    with pytest.raises(ValueError, match=r"guidance\.weight' is -1"):
        recipes.load("baseline", None, ["guidance.weight=-1"])
