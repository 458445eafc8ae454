"""Untrained models of the real classes, small enough for a test: the same files, no sense."""

import json
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

WIDTH = 16
LETTERS = [chr(code) for code in range(33, 127)]


def clip_tokenizer() -> CLIPTokenizer:
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        model_max_length=77,
    )


def text_config(words: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=16,
    )


def unet(**params: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=2,
        **params,
    )


def stable_diffusion(path: Path, seed: int = 0, width: int = WIDTH) -> Path:
    """Stable Diffusion 1: predicts the noise."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    config = text_config(len(tokenizer))
    config.hidden_size = width
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=width),
        scheduler=PNDMScheduler(skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path)
    return path


def inpainting(path: Path) -> Path:
    """Stable Diffusion 1 inpainting: the UNet also sees the mask and what is around it."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    StableDiffusionInpaintPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(len(tokenizer))),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=WIDTH, in_channels=9, out_channels=4),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)
    return path


def segformer(path: Path, names: Sequence[str]) -> Path:
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[4, 4, 4, 4],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        sr_ratios=[1, 1, 1, 1],
        decoder_hidden_size=4,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    SegformerForSemanticSegmentation(config).save_pretrained(path)
    SegformerImageProcessor(size={"height": 32, "width": 16}).save_pretrained(path)
    return path


def llama(path: Path) -> Path:
    torch.manual_seed(0)
    path.mkdir(parents=True)
    words = ["<pad>", "</s>", *LETTERS, *(f"\u0120{letter}" for letter in LETTERS), "\u010a"]
    GPT2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        pad_token="<pad>",
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
    ).save_pretrained(path)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def stable_diffusion_xl(path: Path) -> Path:
    return _xl(path, StableDiffusionXLPipeline, in_channels=4)


def inpainting_xl(path: Path) -> Path:
    return _xl(path, StableDiffusionXLInpaintPipeline, in_channels=9)


def _xl(path: Path, kind: type, in_channels: int) -> Path:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    config = text_config(len(tokenizer))
    pipeline = kind(
        vae=vae(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=WIDTH + 6 * 4,
            in_channels=in_channels,
            out_channels=4,
        ),
        scheduler=EulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(path)
    return path


def _gpt2_tokenizer(*special: str) -> GPT2Tokenizer:
    words = ["<pad>", "</s>", "<image>", *LETTERS, *(f"\u0120{letter}" for letter in LETTERS)]
    return GPT2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        pad_token="<pad>",
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        additional_special_tokens=list(special),
    )


def blip2(path: Path) -> Path:
    torch.manual_seed(0)
    path.mkdir(parents=True)
    tokenizer = _gpt2_tokenizer()
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={**shape, "intermediate_size": 16, "image_size": 16, "patch_size": 8},
        qformer_config={
            **shape, "intermediate_size": 16, "encoder_hidden_size": 8, "vocab_size": 10,
            "cross_attention_frequency": 1,
        },
        text_config={
            "model_type": "opt", **shape, "ffn_dim": 16, "vocab_size": len(tokenizer),
            "max_position_embeddings": 64, "word_embed_proj_dim": 8, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 1,
        },
        num_query_tokens=2,
        image_token_index=2,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    model.save_pretrained(path)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    Blip2Processor(images, tokenizer, num_query_tokens=2).save_pretrained(path)
    return path


def llava_next(path: Path) -> Path:
    torch.manual_seed(0)
    path.mkdir(parents=True)
    tokenizer = _gpt2_tokenizer("<image>")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    places = [[16, 32], [32, 16]]
    config = LlavaNextConfig(
        vision_config={
            "model_type": "clip_vision_model", **shape, "intermediate_size": 16, "image_size": 16,
            "patch_size": 8,
        },
        text_config={
            "model_type": "llama", **shape, "intermediate_size": 16, "vocab_size": len(tokenizer),
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
        },
        image_grid_pinpoints=places,
        image_token_index=2,
        vision_feature_layer=-1,
    )  # fmt: skip
    LlavaNextForConditionalGeneration(config).save_pretrained(path)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=places,
    )  # fmt: skip
    LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(path)  # fmt: skip
    return path


def yolos(path: Path) -> Path:
    """A transformers detector with COCO's names of vehicles."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=4,
        id2label={0: "person", 1: "car", 2: "bus", 3: "truck"},
        label2id={"person": 0, "car": 1, "bus": 2, "truck": 3},
    )
    YolosForObjectDetection(config).save_pretrained(path)
    size = {"shortest_edge": 32, "longest_edge": 32}
    YolosImageProcessor(size=size).save_pretrained(path)
    return path


def image_text(path: Path) -> Path:
    torch.manual_seed(0)
    path.mkdir(parents=True)
    model = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 4, "patch_size": 8},
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    built = open_clip.CLIP(model["embed_dim"], model["vision_cfg"], model["text_cfg"])
    save_file(built.state_dict(), path / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return path
