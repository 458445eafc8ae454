"""Every role through models of the real classes, tiny and untrained, and the refusals."""

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ray_reid.images import Pixels
from ray_reid.models.networks.encoders import load_encoder
from ray_reid.models.pretrained import clip_models, detector, inpainting, references, roles
from ray_reid.models.pretrained.captioner import Captioner
from ray_reid.models.pretrained.image_text import ImageText
from ray_reid.models.pretrained.text_to_image import ADAPTER, generate, load_adapter, load_pipeline
from ray_reid.recipe import recipes
from ray_reid.recipe.models import Models
from ray_reid.recipe.shipped import RECIPES

COMMIT = "0123456789abcdef" + 24 * "0"
SMALL: dict[str, Any] = {"guidance_scale": 3.0, "steps": 2, "image_size": (16, 24)}


@pytest.fixture(scope="module")
def home(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_models.stable_diffusion(home / "sd")
    tiny_models.stable_diffusion_xl(home / "sdxl")
    tiny_models.blip2(home / "blip2")
    tiny_models.yolos(home / "yolos")
    tiny_models.image_text(home / "clip")
    return home


def _pictures(num: int) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(num)]


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_an_image_depends_on_its_prompt_and_seed_alone(home: Path, name: str) -> None:
    pipeline = load_pipeline(str(home / name))
    both = generate(pipeline, ["a red car", "a blue bus"], [1, 2], **SMALL)
    alone = generate(pipeline, ["a blue bus"], [2], **SMALL)
    other = generate(pipeline, ["a blue bus"], [3], **SMALL)
    assert both[0].shape == (16, 24, 3)
    np.testing.assert_array_equal(both[1], alone[0])
    assert (alone[0] != other[0]).any()


def test_without_a_negative_prompt_a_pipeline_takes_its_own_in_place_of_an_empty_text(
    home: Path, tiny_models: ModuleType, tmp_path: Path
) -> None:
    """SDXL was trained with zeros there; an empty text has an embedding, and Stable Diffusion 1
    embeds one either way."""
    pipeline = load_pipeline(str(home / "sdxl"))
    told: list[dict[str, Any]] = []

    def watched(pipeline: Any) -> None:
        encode = pipeline.encode_prompt

        def encoding(*args: Any, **kwargs: Any) -> Any:
            told.append({"found": encode(*args, **kwargs)})
            return told[-1]["found"]

        pipeline.encode_prompt = encoding

    watched(pipeline)
    generate(pipeline, ["a red car", "a bus"], [1, 2], **SMALL)
    assert [float(abs(told[0]["found"][place]).max()) for place in (1, 3)] == [0.0, 0.0]
    generate(pipeline, ["a red car", "a bus"], [1, 2], negative_prompt="blurred", **SMALL)
    assert float(abs(told[1]["found"][1]).max()) > 0.1
    painter = tiny_models.inpainting_xl(tmp_path / "inpainting_xl")
    pipeline = inpainting.load_pipeline(str(painter), "fp32")
    watched(pipeline)
    pictures, masks = _pictures(1), [np.ones((30, 40), np.bool_)]
    inpainting.inpaint(pipeline, pictures, masks, ["a coat"], [1], **SMALL)
    assert float(abs(told[2]["found"][1]).max()) == 0.0


def test_an_image_that_the_safety_checker_refused_is_none(home: Path) -> None:
    pipeline = load_pipeline(str(home / "sd"))
    both = generate(pipeline, ["a red car", "a bus"], [1, 2], **SMALL)

    def checked(**asked: Any) -> SimpleNamespace:
        found = pipeline(**asked)
        found.images[0] = 0.0
        return SimpleNamespace(images=found.images, nsfw_content_detected=[True, False])

    made = generate(lambda prompts, **asked: checked(prompt=prompts, **asked),
                    ["a red car", "a bus"], [1, 2], **SMALL)  # fmt: skip
    assert made[0] is None
    np.testing.assert_array_equal(made[1], both[1])


def test_a_blip2_goes_on_from_the_prefix(home: Path) -> None:
    model = Captioner(str(home / "blip2"))
    told = model.caption(_pictures(2), prefix="a", max_words=4)
    assert len(told) == 2
    assert all(caption.startswith("a") for caption in told)


def test_a_transformers_detector_gives_boxes_best_first(home: Path) -> None:
    model = detector.load(str(home / "yolos"))
    assert model.labels() == ["person", "car", "bus", "truck"]
    found = model.detect(_pictures(2), 0.0)
    assert [len(boxes) for boxes in found] == [4, 4]
    confidences = [box.confidence for box in found[0]]
    assert confidences == sorted(confidences, reverse=True)
    assert all(box.right > box.left and box.bottom > box.top for box in found[0])
    assert model.detect(_pictures(2), 1.0) == [[], []]


def test_image_and_text_embeddings_share_a_unit_sphere(home: Path) -> None:
    model = ImageText(str(home / "clip"))
    pictures, texts = model.embed_images(_pictures(3)), model.embed_texts(["a car", "a bus"])
    assert pictures.shape[1] == texts.shape[1]
    for found in (pictures, texts):
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_a_reference_that_leads_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"choose from .*miniature:"):
        references.resolve("miniature:nothing")
    with pytest.raises(ValueError, match="is not there"):
        references.resolve(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"models\.text_to_image .* cannot be loaded"):
        load_pipeline(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "load", [load_pipeline, Captioner, detector.load, ImageText], ids=lambda one: one.__name__
)
def test_a_hub_id_without_a_network_is_one_sentence(
    load: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'nobody/nothing': .* HF_HUB_OFFLINE .*local folder"):
        load("nobody/nothing")  # type: ignore[operator]


@pytest.mark.parametrize(
    "load", [load_pipeline, Captioner, detector.load, ImageText], ids=lambda one: one.__name__
)
def test_a_hub_that_does_not_answer_is_asked_once(
    load: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody listens there; the loaders themselves would try for minutes.
    closed = partial(references.HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(references, "HfApi", closed)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"'nobody/nothing': .*the hub does not answer .*folder"):
        load("nobody/nothing")  # type: ignore[operator]
    assert time.monotonic() - started < 20


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that takes connections and never answers; the models that it was asked for."""
    asked: list[str] = []

    class Hub:
        def model_info(self, name: str, timeout: float) -> None:
            asked.append(name)
            time.sleep(60)

    monkeypatch.setattr(references, "HfApi", Hub)
    monkeypatch.setattr(references, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(references.constants, "HF_HUB_OFFLINE", False)
    return asked


@pytest.mark.parametrize(
    ("role", "reference", "asked"),
    [
        ("text_to_image", "nobody/nothing", "nobody/nothing"),
        ("image_text", "hf-hub:nobody/nothing", "nobody/nothing"),
        ("image_text", "ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_a_model_that_is_not_there_is_refused_with_its_key_before_anything_runs(
    silent_hub: list[str], role: str, reference: str, asked: str
) -> None:
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"^models\.{role} '{reference}': .*within 0\.2 s.*give a"
    ):
        roles.check(Models(**{role: reference}), role)
    assert time.monotonic() - started < 5
    assert silent_hub == [asked]


def test_a_cached_model_is_taken_from_the_cache_where_the_hub_is_silent(
    silent_hub: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(references, "_cached", lambda name: "config.json")
    # Every file of both would else be asked for, and waited for.
    roles.check(Models(captioner="some/captioner", parser="some/parser"), "captioner", "parser")
    assert silent_hub == ["some/captioner"]
    assert caplog.messages == [
        "some/captioner is taken from the hub's cache, because the hub does not answer (nothing "
        "within 0.2 s)"
    ]
    assert references.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(references, "_cached", lambda name: None)
    # The user has set no such variable.
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set or the hub did not answer before"):
        roles.check(Models(parser="another/parser"), "parser")


@pytest.mark.parametrize("load", [ImageText, load_encoder], ids=lambda one: one.__name__)
def test_weights_of_another_activation_than_the_model_has_are_refused_with_the_right_name(
    load: Callable[[str], object],
) -> None:
    for reference, rule, choice in (
        ("ViT-L-14/openai", "with QuickGELU, but .* 'ViT-L-14' with GELU",
         "'ViT-L-14-quickgelu/openai'"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "no weights", "'openai'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"'{reference}': .*{rule}.*choose .*{choice}"):
            load(reference)


def test_every_pair_of_open_clips_list_is_built_right_or_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import open_clip

    monkeypatch.setattr(references, "knock", lambda found: None)
    refused = offered = 0
    for name, tag in open_clip.list_pretrained():
        settings = (open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name))
        trained, built = (bool(one.get("quick_gelu")) for one in settings)
        if trained == built:
            clip_models.check(f"{name}/{tag}")
            continue
        refused += 1
        with pytest.raises(
            ValueError, match=r"trained with .*; (choose '|choose from \[|give a)"
        ) as said:
            clip_models.check(f"{name}/{tag}")
        # What is offered in its place is not refused in turn.
        for other in re.findall("'([^']+/[^']+)'", str(said.value)):
            offered += 1
            clip_models.check(other)
    assert refused > 0
    assert offered > 0


def test_the_shipped_recipes_name_no_weights_that_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(references, "knock", lambda found: None)
    for file in RECIPES.glob("*.yaml"):
        for profile in recipes.read_yaml(file)["profiles"]:
            recipe = recipes.load(file.stem, profile)
            for reference in (recipe.models.image_text, recipe.train.semantic.encoder):
                if reference is not None:
                    clip_models.check(reference)


def test_a_fingerprint_follows_the_content(
    home: Path, tiny_models: ModuleType, tmp_path: Path
) -> None:
    first = references.fingerprint(str(home / "clip"))
    again = tiny_models.image_text(tmp_path / "clip")
    assert references.fingerprint(str(again)) == first
    (again / "open_clip_config.json").write_text("{}")
    assert references.fingerprint(str(again)) != first


@pytest.mark.parametrize("name", ["weights.pt", "folder/weights.bin"])
def test_a_file_of_weights_for_a_model_of_open_clips_list_is_named_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    found = set()
    for content in ("one", "other"):
        (tmp_path / name).write_text(content)
        found |= {references.fingerprint(f"RN50/{place}") for place in (name, tmp_path / name)}
    assert len(found) == 2
    # It is there: neither is it missing, nor was it looked for on the hub.
    with pytest.raises(ValueError, match=rf"^models\.image_text 'RN50/{name}' .* else$"):
        ImageText(f"RN50/{name}")
    with pytest.raises(ValueError, match=r"'RN50/none/weights\.pt'"):
        references.fingerprint("RN50/none/weights.pt")


@pytest.fixture
def open_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that has every model at one commit; the models that it was asked for."""
    asked: list[str] = []

    class Hub:
        def model_info(self, name: str, timeout: float) -> SimpleNamespace:
            asked.append(name)
            return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(references, "HfApi", Hub)
    monkeypatch.setattr(references.constants, "HF_HUB_OFFLINE", False)
    for known in (references._ask, references._commit_on_hub):
        known.cache_clear()
    yield asked
    for known in (references._ask, references._commit_on_hub):
        known.cache_clear()


def test_the_hub_is_asked_once_for_a_model_that_several_roles_and_settings_name(
    open_hub: list[str],
) -> None:
    models = Models(captioner="some/captioner", parser="some/parser", detector="some/parser")
    for _ in range(3):
        roles.check(models, "captioner", "parser", "detector")
    assert open_hub == ["some/captioner", "some/parser"]


def test_a_bare_key_of_a_damaged_file_is_said_with_its_type() -> None:
    for error, sentence in ((KeyError(94), "KeyError: 94"), (RuntimeError("no such file"), "no")):
        with (
            pytest.raises(ValueError, match=rf"^k 'miniature:parser' cannot be loaded: {sentence}"),
            references.refusing("k", "miniature:parser"),
        ):
            raise error


def test_a_hub_model_has_the_same_name_before_and_after_it_is_fetched(
    open_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert references.fingerprint("hf-hub:some/model") == COMMIT[:12]
    assert references.fingerprint("some/model") == COMMIT[:12]
    assert open_hub == ["some/model"]
    fetched = tmp_path / COMMIT / "config.json"
    monkeypatch.setattr(references, "_cached", lambda _: str(fetched))
    assert references.fingerprint("some/model") == COMMIT[:12]


def test_an_adapter_of_another_model_is_refused(home: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = load_pipeline(str(home / "sd"))
    with pytest.raises(ValueError, match="no adapter in"):
        load_adapter(pipeline, tmp_path)
    place = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    layers = {
        f"{place}.lora.down.weight": torch.zeros(2, 99),
        f"{place}.lora.up.weight": torch.zeros(77, 2),
    }
    StableDiffusionPipeline.save_lora_weights(
        str(tmp_path), unet_lora_layers=layers, weight_name=ADAPTER
    )
    with pytest.raises(ValueError, match="was made for another model"):
        load_adapter(pipeline, tmp_path)
