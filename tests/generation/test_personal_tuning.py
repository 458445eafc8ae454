"""One model, tuned to one identity after the other: what moves, what comes back, what is kept."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ray_reid.generation.personal_tuning import IdentityTuner, Subject, UntunableError
from ray_reid.images import Pixels
from ray_reid.models.pretrained.identity_tokens import EMBEDDING
from ray_reid.models.pretrained.text_to_image import generate, load_adapter, load_pipeline
from ray_reid.recipe.personalise import Personalise

SMALL: dict[str, Any] = {"guidance_scale": 3.0, "steps": 2, "image_size": (16, 16)}
PROMPT, CLASS = "a qz car", "a car"


@pytest.fixture(scope="module")
def home(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_models.stable_diffusion(home / "sd")
    tiny_models.stable_diffusion_xl(home / "sdxl")
    return home


def _spec(mode: str, **values: Any) -> Personalise:
    rate = {"full": 1e-3, "lora": 1e-1}[mode]
    return Personalise.model_validate(
        {"mode": mode, "steps": 5, "learning_rate": rate, "batch_size": 2, **values}
    )


def _tuner(model: Path, spec: Personalise, precision: torch.dtype = torch.float32) -> IdentityTuner:
    return IdentityTuner(load_pipeline(str(model), "fp32"), spec, (16, 16), precision)


def _pictures(num: int, seed: int) -> list[Pixels]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(num)]


def _subject(tuner: IdentityTuner, seed: int = 0, prior: bool = True) -> Subject:
    known = tuner.encode(_pictures(4, 100 + seed)) if prior else None
    return Subject(tuner.encode(_pictures(3, seed)), PROMPT, known, CLASS if prior else "")


def _made(tuner: IdentityTuner) -> list[Pixels | None]:
    return tuner.generate([PROMPT] * 3, [1, 2, 3], SMALL, batch_size=2)


def _state(tuner: IdentityTuner) -> list[torch.Tensor]:
    parts = (tuner.pipeline.unet, tuner.pipeline.vae, tuner.pipeline.text_encoder)
    return [value.detach().clone() for part in parts for value in part.state_dict().values()]


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize(
    "spec", [_spec("full"), _spec("lora"), _spec("full", text_encoder=True)], ids=lambda s: s.mode
)
def test_a_restored_model_is_what_it_was_to_the_bit(home: Path, model: str, spec: Any) -> None:
    tuner = _tuner(home / model, spec)
    tuner.restore(7)
    before, untuned = _state(tuner), _made(tuner)
    plain = generate(load_pipeline(str(home / model), "fp32"), [PROMPT] * 3, [1, 2, 3], **SMALL)
    np.testing.assert_array_equal(np.stack(untuned), np.stack(plain))
    assert np.isfinite(tuner.tune(_subject(tuner), 1, None))
    tuned = _made(tuner)
    assert (np.stack(tuned) != np.stack(untuned)).any()
    tuner.restore(7)
    assert all(torch.equal(*pair) for pair in zip(_state(tuner), before, strict=True))
    np.testing.assert_array_equal(np.stack(_made(tuner)), np.stack(untuned))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_an_identity_does_not_depend_on_those_before_it(home: Path, mode: str) -> None:
    tuner, fresh = (_tuner(home / "sd", _spec(mode)) for _ in range(2))
    tuner.restore(3)
    tuner.tune(_subject(tuner, seed=5), 9, None)
    found = []
    for one in (tuner, fresh):
        one.restore(4)
        loss = one.tune(_subject(one), 1, None)
        found.append((loss, _made(one)))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(np.stack(found[0][1]), np.stack(found[1][1]))


def test_what_the_recipe_names_moves_and_nothing_else(home: Path) -> None:
    for spec, moved in (
        (_spec("full"), {"unet"}),
        (_spec("full", text_encoder=True), {"unet", "text_encoder"}),
        (_spec("lora", text_encoder=True), {"unet", "text_encoder"}),
    ):
        tuner = _tuner(home / "sd", spec)
        parts = ("unet", "vae", "text_encoder")
        before = {
            part: [value.detach().clone() for value in getattr(tuner.pipeline, part).parameters()]
            for part in parts
        }
        tuner.tune(_subject(tuner), 1, None)
        after = {part: list(getattr(tuner.pipeline, part).parameters()) for part in parts}
        changed = {
            part
            for part in parts
            if not all(torch.equal(*pair) for pair in zip(before[part], after[part], strict=True))
        }
        assert changed == moved


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_is_that_of_the_identity_and_lambda_times_that_of_the_references(
    home: Path, weight: float
) -> None:
    tuner = _tuner(home / "sd", _spec("full", prior_weight=weight))
    denoising, num_instances, weights = tuner._denoising(_subject(tuner))
    assert num_instances == 3
    rows = torch.tensor([0, 2, 3, 6])
    loss = sum(denoising.losses(rows, torch.Generator().manual_seed(5), None, weights))
    rng = torch.Generator().manual_seed(5)
    shape = denoising.means[rows].shape
    encoded = denoising.means[rows] + denoising.deviations[rows] * torch.randn(shape, generator=rng)
    noise = torch.randn(shape, generator=rng)
    times = torch.randint(0, 1000, (4,), generator=rng)
    squares = []
    for row in range(4):
        share = denoising.noise.alphas_cumprod[times[row]]
        noisy = share.sqrt() * encoded[row] + (1 - share).sqrt() * noise[row]
        text = tuner.pipeline.encode_prompt(PROMPT if row < 2 else CLASS, "cpu", 1, False)[0]
        said = tuner.pipeline.unet(noisy[None], times[row], encoder_hidden_states=text).sample
        squares.append(float((said - noise[row]).square().mean().detach()))
    expected = np.mean(squares[:2]) + weight * np.mean(squares[2:])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_gradient_is_the_same_however_few_images_are_in_memory(home: Path, mode: str) -> None:
    found = []
    for values, micro_batch in (({}, None), ({}, 3), ({"gradient_checkpointing": True}, 1)):
        tuner = _tuner(home / "sd", _spec(mode, text_encoder=mode == "full", **values))
        tuner.pipeline.unet.train()
        denoising, _, weights = tuner._denoising(_subject(tuner))
        rng = torch.Generator().manual_seed(2)
        for loss in denoising.losses(torch.tensor([0, 1, 4, 5]), rng, micro_batch, weights):
            loss.backward()
        found.append([value.grad.clone() for value in tuner.trained if value.grad is not None])
    whole, *others = found
    assert whole
    for gradients in others:
        for gradient, other in zip(whole, gradients, strict=True):
            error = 1e-3 * float(gradient.abs().max()) + 1e-9
            torch.testing.assert_close(other, gradient, rtol=0, atol=error)


def test_without_a_prior_no_reference_is_needed(home: Path) -> None:
    tuner = _tuner(home / "sd", _spec("lora", prior_weight=0))
    assert np.isfinite(tuner.tune(_subject(tuner, prior=False), 1, None))


def test_a_loss_that_is_no_number_is_one_sentence(home: Path) -> None:
    tuner = _tuner(home / "sd", _spec("lora"))
    subject = _subject(tuner)
    subject.instances[0][:] = torch.nan
    with pytest.raises(UntunableError, match=r"^the loss of step 1 is nan$"):
        tuner.tune(subject, 1, None)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_half_precision_trains_and_comes_back(home: Path, mode: str) -> None:
    tuner = _tuner(home / "sd", _spec(mode), torch.bfloat16)
    assert {value.dtype for value in tuner.trained} == {torch.float32}
    assert tuner.pipeline.vae.dtype == torch.bfloat16
    tuner.restore(1)
    untuned = _made(tuner)
    tuner.tune(_subject(tuner), 1, None)
    assert (np.stack(_made(tuner)) != np.stack(untuned)).any()
    tuner.restore(1)
    np.testing.assert_array_equal(np.stack(_made(tuner)), np.stack(untuned))


def test_a_saved_adapter_does_what_the_tuned_model_did(home: Path, tmp_path: Path) -> None:
    tuner = _tuner(home / "sd", _spec("lora", lora={"rank": 2, "alpha": 6}))
    untuned = np.stack(_made(tuner)).astype(int)
    tuner.tune(_subject(tuner), 1, None)
    tuned = np.stack(_made(tuner)).astype(int)
    tuner.save(tmp_path)
    fresh = load_pipeline(str(home / "sd"), "fp32")
    load_adapter(fresh, tmp_path)
    loaded = np.stack(generate(fresh, [PROMPT] * 3, [1, 2, 3], **SMALL)).astype(int)
    moved = abs(tuned - untuned).mean()
    assert moved > 0.3
    assert abs(loaded - tuned).mean() < 0.1 * moved


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_a_new_token_is_trained_saved_and_begins_anew(
    home: Path, tmp_path: Path, model: str
) -> None:
    token, prompt = "<identity>", "a <identity> car"
    spec = _spec("lora")
    tuner = IdentityTuner(
        load_pipeline(str(home / model), "fp32"), spec, (16, 16), torch.float32, (token, "car")
    )
    pipeline = tuner.pipeline
    assert pipeline.tokenizer.tokenize(prompt).count(token) == 1
    begun = [one.vector.detach().clone() for one in tuner.embeddings]
    table = pipeline.text_encoder.get_input_embeddings().weight
    words = pipeline.tokenizer("car", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(begun[0], table[words].mean(dim=0))
    frozen = table.detach().clone()
    subject = Subject(tuner.encode(_pictures(2, 0)), prompt, tuner.encode(_pictures(2, 1)), CLASS)
    assert np.isfinite(tuner.tune(subject, 1, 1))
    pairs = list(zip(tuner.embeddings, begun, strict=True))
    assert all((one.vector != old).any() for one, old in pairs)
    assert torch.equal(table, frozen)
    tuner.save(tmp_path)
    kept = load_file(tmp_path / EMBEDDING)
    assert list(kept) == ([token] if model == "sd" else ["clip_g", "clip_l"])
    saved = kept[token if model == "sd" else "clip_l"]
    assert torch.equal(saved[0], tuner.embeddings[0].vector)
    tuner.restore(1)
    assert all(torch.equal(one.vector, old) for one, old in pairs)


def test_a_layer_that_the_unet_lacks_is_refused(home: Path) -> None:
    with pytest.raises(ValueError, match=r"^personalise\.lora: no layer .* one of \['nothing'\]"):
        _tuner(home / "sd", _spec("lora", lora={"target_modules": ["nothing"]}))


def test_keep_adapters_needs_adapters() -> None:
    with pytest.raises(ValueError, match=r"keep_adapters true .* mode 'full' trains whole weights"):
        Personalise(keep_adapters=True)
    with pytest.raises(ValueError, match=r"keep_adapters true .* text_encoder true trains whole"):
        _spec("lora", keep_adapters=True, text_encoder=True)


def test_lambda_below_zero_is_refused() -> None:
    from ray_reid.recipe import recipes

    with pytest.raises(
        ValueError, match=r"'personalise.prior_weight' is -1.*greater than or equal to 0"
    ):
        recipes.load("diffusion_reid", "miniature", ["personalise.prior_weight=-1"])
