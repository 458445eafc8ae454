"""Fine-tuning of tiny untrained models: what moves, what stays, and what comes back from disk."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import nn

from ray_reid import schema, storage
from ray_reid.generation import denoising
from ray_reid.generation.finetune import Judge, fit_and_judge
from ray_reid.generation.frechet import frechet_distance
from ray_reid.generation.generators import vehicle_prompts
from ray_reid.generation.lora import Tuning, schedule
from ray_reid.images import Pixels
from ray_reid.models.pretrained.image_text import ImageText
from ray_reid.models.pretrained.text_to_image import ADAPTER, generate, load_adapter, load_pipeline
from ray_reid.recipe import recipes
from ray_reid.recipe.adapt import Lora
from ray_reid.recipe.recipe import Recipe

SMALL: dict[str, Any] = {"guidance_scale": 3.0, "steps": 2, "image_size": (16, 16)}
MODELS = ("sd", "sdxl", "v")


class Progress:
    """What `fit_and_judge` needs of a Ray actor that is told how far it is."""

    def __init__(self) -> None:
        self.set = self
        self.told: list[tuple[int, int]] = []

    def remote(self, done: int, total: int) -> None:
        self.told.append((done, total))


@pytest.fixture(scope="module")
def home(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_models.stable_diffusion(home / "sd")
    tiny_models.stable_diffusion_xl(home / "sdxl")
    tiny_models.image_text(home / "clip")
    pipeline = load_pipeline(str(home / "sd"))
    pipeline.scheduler = DDIMScheduler(
        prediction_type="v_prediction", steps_offset=1, clip_sample=False
    )
    pipeline.save_pretrained(home / "v")
    return home


def _recipe(home: Path, model: str = "sd", *overrides: str) -> Recipe:
    return recipes.load(
        "vehicle_diff",
        "paper",
        [
            f"models.text_to_image={home / model}",
            f"models.image_text={home / 'clip'}",
            "prompts.num_identities=4",
            "adapt.num_prompts=3",
            "adapt.images_per_prompt=2",
            "generate.steps=2",
            "generate.image_size=[16, 16]",
            "generate.guidance_scale=3",
            "generate.stage={batch_size: 4}",
            *overrides,
        ],
    )


def _lora(**values: Any) -> Lora:
    return Lora(**{"rank": 2, "learning_rate": 0.01, "epochs": 4, "warmup_epochs": 0, **values})


def _pictures(num: int) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(num)]


def _tuning(home: Path, model: str, lora: Lora, num: int = 3) -> Tuning:
    captions = [f"a car {number}" for number in range(num)]
    pipeline = load_pipeline(str(home / model), "fp32")
    return Tuning(pipeline, _pictures(num), captions, lora, _recipe(home, model))


def _weights(part: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights by their names without an adapter."""
    return {
        name.replace(".base_layer", ""): value.detach().clone()
        for name, value in part.state_dict().items()
        if "lora_" not in name
    }


def _measure(tuning: Tuning) -> float:
    """The loss over all images at fixed times and with fixed noise."""
    with torch.no_grad():
        rng = torch.Generator().manual_seed(99)
        rows = torch.arange(tuning.num_images)
        return float(np.mean([float(sum(tuning.losses(rows, rng))) for _ in range(16)]))


# The schedule


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_the_rate_warms_up_linearly_and_decays_as_a_power_to_zero(power: float) -> None:
    lora = Lora(epochs=100, warmup_epochs=20, power=power)
    for epoch in np.linspace(0, 19.9, 50):
        assert schedule(lora, epoch) == pytest.approx(epoch / 20, abs=1e-4)
    for epoch in np.linspace(20, 100, 81):
        expected = (1 - (epoch - 20) / 80) ** power
        assert schedule(lora, epoch) == pytest.approx(expected)
    assert schedule(lora, 0) > 0
    assert schedule(lora, 100) == schedule(lora, 101) == 0


@pytest.mark.parametrize("warmup", [0.0, 3.0, 9.0])
def test_the_rate_is_never_above_one_or_below_nothing(warmup: float) -> None:
    lora = Lora(epochs=3, warmup_epochs=warmup)
    rates = [schedule(lora, epoch) for epoch in np.linspace(0, 3, 3001)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert all(math.isfinite(rate) for rate in rates)


def test_the_optimizer_follows_the_schedule(home: Path) -> None:
    lora = _lora(epochs=2, warmup_epochs=1, batch_size=2, learning_rate=0.25)
    tuning = _tuning(home, "sd", lora)
    assert (tuning.batches, tuning.steps) == (2, 4)
    tuning.run_epoch()
    (group,) = tuning.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.25 * schedule(lora, 0.5))
    tuning.run_epoch()
    assert group["lr"] == pytest.approx(0.25 * schedule(lora, 1.5))
    assert tuning.step == tuning.steps


# The training


@pytest.mark.parametrize("model", MODELS)
def test_training_lowers_the_loss_and_moves_nothing_but_the_adapter(home: Path, model: str) -> None:
    lora = _lora(rank=8, epochs=40, learning_rate=0.1, batch_size=1)
    tuning = _tuning(home, model, lora, num=1)
    pipeline = tuning.pipeline
    frozen = ["text_encoder", "vae"] + (["text_encoder_2"] if model == "sdxl" else [])
    before = {name: _weights(getattr(pipeline, name)) for name in ["unet", *frozen]}
    first = _measure(tuning)
    for _ in range(lora.epochs):
        tuning.run_epoch()
    assert math.isfinite(tuning.loss)
    assert _measure(tuning) < 0.97 * first
    for name, weights in before.items():
        after = _weights(getattr(pipeline, name))
        assert after.keys() == weights.keys()
        assert all(torch.equal(after[key], value) for key, value in weights.items()), name
    trained = {name for name, value in pipeline.unet.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name and name.count(".attn") == 1 for name in trained)
    assert len(trained) == len(tuning.trained)


def test_the_target_is_the_noise_or_the_velocity_of_the_scheduler(home: Path) -> None:
    """The loss of a UNet that always says nothing is the mean square of the target."""
    for model in ("sd", "v"):
        tuning = _tuning(home, model, _lora())

        class Silent(nn.Module):
            def forward(self, noisy: torch.Tensor, times: torch.Tensor, **_: Any) -> Any:
                self.seen = (noisy, times)
                return type("Said", (), {"sample": torch.zeros_like(noisy)})

        tuning.pipeline.unet = Silent()
        rows = torch.arange(3)
        (loss,) = tuning.losses(rows, torch.Generator().manual_seed(5))
        found = float(loss)
        rng = torch.Generator().manual_seed(5)
        means = tuning.denoising.means
        latents = means + tuning.denoising.deviations * torch.randn(means.shape, generator=rng)
        noise = torch.randn(means.shape, generator=rng)
        noisy, times = tuning.pipeline.unet.seen
        share = tuning.denoising.noise.alphas_cumprod[times].view(-1, 1, 1, 1)
        torch.testing.assert_close(noisy, share.sqrt() * latents + (1 - share).sqrt() * noise)
        target = share.sqrt() * noise - (1 - share).sqrt() * latents if model == "v" else noise
        assert found == pytest.approx(float(target.square().mean()), rel=1e-5)


# What makes it fit a GPU


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_the_gradient_of_a_step_is_the_same_however_few_images_are_in_memory(
    home: Path, model: str
) -> None:
    found = []
    for values in ({}, {"micro_batch": 2}, {"micro_batch": 1, "gradient_checkpointing": True}):
        tuning = _tuning(home, model, _lora(batch_size=5, **values), num=5)
        for value in tuning.trained:
            # Gradients of the first factor are zero at the start, where the second one is; large
            # factors would amplify roundings.
            rng = torch.Generator().manual_seed(value.numel())
            torch.nn.init.normal_(value, std=0.1, generator=rng)
        loss = tuning.backward(torch.arange(5), torch.Generator().manual_seed(7))
        assert tuning.pipeline.unet.is_gradient_checkpointing == (len(values) == 2)
        found.append((loss, [value.grad.clone() for value in tuning.trained]))
    (whole, expected), *others = found
    assert all(gradient.abs().max() > 0 for gradient in expected)
    for loss, gradients in others:
        assert loss == pytest.approx(whole, rel=1e-5)
        for gradient, other in zip(expected, gradients, strict=True):
            error = 1e-3 * float(gradient.abs().max())
            torch.testing.assert_close(other, gradient, rtol=0, atol=error)


def test_frozen_weights_may_be_bf16_and_the_adapter_stays_fp32(home: Path, tmp_path: Path) -> None:
    lora = _lora(rank=8, epochs=40, learning_rate=0.1, batch_size=1, frozen="bf16")
    tuning = _tuning(home, "sdxl", lora, num=1)
    types = {name: value.dtype for name, value in tuning.pipeline.unet.named_parameters()}
    own = {name for name, kind in types.items() if kind == torch.float32}
    assert own == {name for name in types if "lora_" in name}
    assert {kind for name, kind in types.items() if name not in own} == {torch.bfloat16}
    first = _measure(tuning)
    for _ in range(lora.epochs):
        tuning.run_epoch()
    assert _measure(tuning) < 0.97 * first
    tuning.save(tmp_path)
    load_adapter(load_pipeline(str(home / "sdxl"), "fp32"), tmp_path)


def test_captions_are_encoded_a_few_at_a_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("sd", "sdxl"):
        whole = _tuning(home, model, _lora(), num=5).denoising.conditions
        monkeypatch.setattr(denoising, "CAPTIONS", 2)
        pipeline = load_pipeline(str(home / model), "fp32")
        encode, sizes = pipeline.encode_prompt, []

        def watched(
            prompt: list[str], encode: Any = encode, sizes: list[int] = sizes, **asked: Any
        ) -> Any:
            sizes.append(len(prompt))
            return encode(prompt=prompt, **asked)

        pipeline.encode_prompt = watched
        captions = [f"a car {number}" for number in range(5)]
        found = Tuning(
            pipeline, _pictures(5), captions, _lora(), _recipe(home, model)
        ).denoising.conditions
        assert sizes == [2, 2, 1]
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value)
        monkeypatch.undo()


def test_only_the_blocks_of_the_recipe_are_adapted(home: Path, tmp_path: Path) -> None:
    parts = {}
    for name, blocks in (("all", None), ("decoder", ("up_blocks",))):
        tuning = _tuning(home, "sd", _lora(epochs=1, blocks=blocks))
        tuning.save(tmp_path / name)
        parts[name] = {key.split(".")[1] for key in load_file(tmp_path / name / ADAPTER)}
        load_adapter(load_pipeline(str(home / "sd"), "fp32"), tmp_path / name)
    assert parts == {"all": {"down_blocks", "mid_block", "up_blocks"}, "decoder": {"up_blocks"}}
    with pytest.raises(ValueError, match=r"no layer in \['up_blocks'\] .* one of \['nothing'\]"):
        _tuning(home, "sd", _lora(blocks=("up_blocks",), target_modules=("nothing",)))


# The adapter on disk


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_saved_adapter_does_what_the_trained_one_did(
    home: Path, tmp_path: Path, model: str, alpha: float | None
) -> None:
    tuning = _tuning(home, model, _lora(epochs=1, learning_rate=0.3, alpha=alpha))
    tuning.run_epoch()
    tuning.save(tmp_path / "adapter")
    tuning.pipeline.unet.eval()
    asked: tuple[Any, ...] = (["a red car", "a bus"], [1, 2])
    trained = np.stack(generate(tuning.pipeline, *asked, **SMALL)).astype(int)
    fresh = load_pipeline(str(home / model), "fp32")
    bare = np.stack(generate(fresh, *asked, **SMALL)).astype(int)
    load_adapter(fresh, tmp_path / "adapter")
    loaded = np.stack(generate(fresh, *asked, **SMALL)).astype(int)
    moved = abs(trained - bare).mean()
    assert moved > 0.5
    # Half precision on disk.
    assert abs(loaded - trained).mean() < 0.1 * moved


def test_the_same_seed_trains_the_same_adapter_and_another_seed_another(
    home: Path, tmp_path: Path
) -> None:
    found = []
    for name, overrides in (("one", ()), ("two", ()), ("other", ("seed=1",))):
        recipe = _recipe(home, "sd", *overrides)
        pipeline = load_pipeline(recipe.models.text_to_image, "fp32")
        # What was drawn before must not matter.
        torch.rand(len(name))
        tuning = Tuning(pipeline, _pictures(3), ["a", "b", "c"], _lora(), recipe)
        tuning.run_epoch()
        tuning.save(tmp_path / name)
        found.append((tmp_path / name / ADAPTER).read_bytes())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_a_training_goes_on_where_it_was_killed(home: Path, tmp_path: Path, model: str) -> None:
    lora = _lora(epochs=4, learning_rate=0.1)
    whole = _tuning(home, model, lora)
    for _ in range(2):
        whole.run_epoch()
    torch.save(whole.state(), tmp_path / "state.pt")
    for _ in range(2):
        whole.run_epoch()
    whole.save(tmp_path / "whole")
    rest = _tuning(home, model, lora)
    rest.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (rest.epoch, rest.step) == (2, whole.step // 2)
    for _ in range(2):
        rest.run_epoch()
    rest.save(tmp_path / "rest")
    assert (tmp_path / "rest" / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    assert rest.loss == whole.loss


# Judging


def test_a_candidate_is_scored_by_distance_and_by_the_colour_that_was_asked_for(
    home: Path, tmp_path: Path
) -> None:
    recipe, target = _recipe(home), _pictures(5)
    judge = Judge(recipe, target, recipe.models.text_to_image, "models.text_to_image")
    wanted = vehicle_prompts.identities(recipe.prompts, recipe.seed)[:3]
    assert judge.prompts == [one.prompt for one in wanted] * 2
    judge.judge(tmp_path / "none", adapted=False, loss=0.5)
    result = json.loads((tmp_path / "none" / "judged.json").read_text())
    assert list(result) == ["fid", "agreement", "loss"]
    sheet = np.load(tmp_path / "none" / "images.npz")
    assert sheet["images"].shape == (6, 16, 16, 3)
    assert sheet["colours"].tolist() == [one.attributes["colour"] for one in wanted] * 2
    model = ImageText(str(home / "clip"))
    found, real = model.embed_images(list(sheet["images"])), model.embed_images(target)
    assert result["fid"] == pytest.approx(frechet_distance(found, real), abs=1e-5)
    right = 0
    for vector, colour in zip(found, sheet["colours"], strict=True):
        said = {name: model.embed_texts([f"a {name} vehicle"])[0] for name in judge.names}
        right += max(said, key=lambda name, v=vector: float(v @ said[name])) == colour
    assert result["agreement"] == pytest.approx(right / 6, abs=1e-4)


def test_images_that_the_safety_checker_refused_count_against_a_candidate(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(_recipe(home), _pictures(5), str(home / "sd"), "adapt.trainings.1.model")
    judge.judge(tmp_path / "whole", adapted=False)
    refused = {0, 4}
    made = judge._generate
    monkeypatch.setattr(
        judge,
        "_generate",
        lambda pipeline: [None if n in refused else one for n, one in enumerate(made(pipeline))],
    )
    judge.judge(tmp_path / "some", adapted=False)
    whole, some = (np.load(tmp_path / name / "images.npz")["images"] for name in ("whole", "some"))
    assert not some[0].any()
    np.testing.assert_array_equal(some[1], whole[1])
    result = json.loads((tmp_path / "some" / "judged.json").read_text())
    seen = [one for number, one in enumerate(whole) if number not in refused]
    embed = ImageText(str(home / "clip")).embed_images
    expected = frechet_distance(embed(seen), embed(_pictures(5)))
    assert result["fid"] == pytest.approx(expected, abs=1e-5)
    assert result["agreement"] <= 4 / 6
    refused |= {1, 2, 3}
    with pytest.raises(
        ValueError, match=r"^adapt\.trainings\.1\.model .* refused 5 of 6 .* 'none'"
    ):
        judge.judge(tmp_path / "none", adapted=False)


def test_a_candidate_of_another_model_is_trained_and_judged_with_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "ray_reid.generation.finetune.load_pipeline",
        lambda model, precision, key: (
            loaded.append((key, model)) or load_pipeline(model, precision, key)
        ),
    )
    rows = [{"observation_id": str(n), "image": _encoded(image), "source": "s", "split": "train"}
            for n, image in enumerate(_pictures(2))]  # fmt: skip
    storage.write(
        tmp_path / "images", schema.observations(rows).select(["observation_id", "image"])
    )
    told = {"observation_id": np.array(["0", "1"], object), "caption": np.array(["a", "b"], object)}
    storage.write(tmp_path / "captions", schema.to_table(told))
    other = str(home / "sdxl")
    lora = _lora(epochs=1, model=other)
    trainings = [_lora().model_dump(mode="json"), lora.model_dump(mode="json")]
    recipe = recipes.override(_recipe(home), {"adapt.trainings": trainings})
    fit_and_judge(recipe, tmp_path, "rank2", lora, Progress())
    # Where it cannot be loaded, this key is named.
    assert loaded == [("adapt.trainings.1.model", other)] * 2


def test_every_kept_state_is_judged_and_the_bar_is_told(home: Path, tmp_path: Path) -> None:
    recipe = _recipe(home)
    rows = [{"observation_id": str(n), "image": _encoded(image), "source": "s", "split": "train"}
            for n, image in enumerate(_pictures(3))]  # fmt: skip
    table = schema.observations(rows)
    storage.write(tmp_path / "images", table.select(["observation_id", "image"]))
    captions = [f"a car {number}" for number in range(3)]
    told = {"observation_id": table["observation_id"].to_pylist(), "caption": captions}
    columns = {name: np.array(values, dtype=object) for name, values in told.items()}
    storage.write(tmp_path / "captions", schema.to_table(columns))
    meter = Progress()
    lora = _lora(epochs=3, batch_size=2, keep_epochs=(1, 3, 7))
    fit_and_judge(recipe, tmp_path, "rank2", lora, meter)
    assert meter.told == [(2, 6), (4, 6), (6, 6)]
    folders = {path.name for path in (tmp_path / "candidates").iterdir()}
    assert folders == {"rank2-epoch1", "rank2-epoch3"}
    layers = [load_file(tmp_path / "candidates" / name / ADAPTER) for name in sorted(folders)]
    assert layers[0].keys() == layers[1].keys()
    assert any(not torch.equal(layers[0][key], layers[1][key]) for key in layers[0])
    # As after a kill: the last state is done, so nothing is trained or judged again.
    judged = tmp_path / "candidates" / "rank2-epoch3" / "judged.json"
    before = judged.stat().st_mtime_ns
    fit_and_judge(recipe, tmp_path, "rank2", lora, Progress())
    assert judged.stat().st_mtime_ns == before
    fit_and_judge(recipe, tmp_path, "none", None, meter)
    assert not (tmp_path / "candidates" / "none" / ADAPTER).exists()
    sheets = [np.load(tmp_path / "candidates" / name / "images.npz")["images"]
              for name in ("none", "rank2-epoch3")]  # fmt: skip
    assert (sheets[0] != sheets[1]).any()


def _encoded(image: Pixels) -> bytes:
    from ray_reid import images

    return images.encode(image)


def test_an_sdxl_is_told_sizes_as_its_own_pipeline_tells_them(home: Path) -> None:
    tuning = _tuning(home, "sdxl", _lora())
    pipeline = tuning.pipeline
    width = pipeline.text_encoder_2.config.projection_dim
    expected: Callable[..., Any] = pipeline._get_add_time_ids
    ids = expected((16, 16), (0, 0), (16, 16), torch.float32, width)
    torch.testing.assert_close(tuning.denoising.conditions["time_ids"], ids.repeat(3, 1))
    hidden, _, pooled, _ = pipeline.encode_prompt(["a car 1"], do_classifier_free_guidance=False)
    torch.testing.assert_close(tuning.denoising.conditions["hidden"][1:2], hidden)
    torch.testing.assert_close(tuning.denoising.conditions["text_embeds"][1:2], pooled)
