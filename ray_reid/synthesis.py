"""What a recipe says of generation: models, prompts, adaptation, generator, filters, comparison."""

from typing import Any, Literal

from pydantic import Field, field_validator

from ray_reid.resources import StageSpec
from ray_reid.sources import Frozen, Side


class Models(Frozen):
    """Pretrained models by role: a hub id, a local folder, or `miniature:NAME`."""

    text_to_image: str = "miniature:text_to_image"
    """A diffusers text-to-image pipeline (Stable Diffusion 1, 2 or XL)."""
    captioner: str = "miniature:captioner"
    """A transformers image-to-text model (BLIP, BLIP-2 and their kin)."""
    detector: str = "miniature:detector"
    """A transformers object detector, an ultralytics `.pt` file or a folder of ours."""
    image_text: str = "miniature:image_text"
    """An open_clip model: `hf-hub:` id or folder; or `NAME/PRETRAINED` of open_clip's own list."""
    parser: str = "miniature:parser"
    """A transformers model of semantic segmentation that knows clothes (SegFormer)."""
    inpainting: str = "miniature:inpainting"
    """A diffusers inpainting pipeline (Stable Diffusion 1, 2 or XL)."""
    describer: str = "miniature:describer"
    """A transformers image-text-to-text model that answers prompts (LLaVA and its kin, BLIP)."""
    summariser: str | None = None
    """A transformers chat model; only `describe.summary: llm` needs one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of all of them; auto is bf16 on a GPU and fp32 elsewhere."""


class Prompts(Frozen):
    """Attributes to prompts; one combination of attributes is one identity."""

    library: str = "miniature_vehicles.csv"
    """CSV with the columns brand, model, body_style, years and colours, the last two lists with
    `;` between; a path, or the name of a file in jobs/recipes/prompts."""
    template: str = "a {colour} {year} {brand} {model} {body_style} driving down the road"
    """Vehicle-Diff, section III-B."""
    num_identities: int = Field(60, ge=2)
    images_per_identity: int = Field(8, ge=1)


class Lora(Frozen):
    """One fine-tuning of the UNet by low-rank adapters (Hu et al., 2022)."""

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    """Scale of the adapter; null takes the rank."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of Adam; linear warm-up, then polynomial decay to zero."""
    power: float = Field(1.0, gt=0)
    epochs: int = Field(100, ge=1)
    warmup_epochs: float = Field(20.0, ge=0)
    batch_size: int = Field(8, ge=1)
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Layers of the UNet, by the end of their names."""
    keep_epochs: tuple[int, ...] = ()
    """Epochs after which the adapter is kept as a candidate of its own, besides the last."""


class Adapt(Frozen):
    """Fine-tune the text-to-image model on a few unlabelled images of the target cameras."""

    fraction: float = Field(0.01, gt=0, le=1)
    """Share of the real training images that is captioned and fine-tuned on; labels unseen."""
    caption_prefix: str = ""
    """Text that the captioner goes on from; some models need one."""
    caption_stage: StageSpec = StageSpec(batch_size=16)
    trainings: tuple[Lora, ...] = (Lora(),)
    """Each yields candidates."""
    num_prompts: int = Field(10, ge=1)
    images_per_prompt: int = Field(4, ge=1)
    """Images that judge a candidate: num_prompts times this."""
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    """Resources of one fine-tuning."""


class Generate(Frozen):
    """Prompts to images."""

    candidate: str | None = None
    """Name of the adapted model; null takes the best score, `none` the model as it was."""
    guidance: float = Field(8.0, ge=1)
    """Classifier-free guidance scale (Ho and Salimans, 2021); 1 is none."""
    steps: int = Field(50, ge=1)
    """Denoising steps."""
    image_size: tuple[Side, Side] = (1024, 1024)
    """Height and width in pixels."""
    negative_prompt: str = ""
    licence: str | None = None
    """Terms of the images; null joins those of the images that the model was adapted to, if it
    was."""
    quality: int = Field(95, ge=1, le=100)
    """JPEG quality."""
    raw_images: int = Field(0, ge=0)
    """Images to generate as well without the adapter, and with it but without a filter, for
    comparison; they are not trained on."""
    stage: StageSpec = StageSpec(batch_size=8, block_rows=8)


class FilterSpec(Frozen):
    """One filter, by its name in `ray_reid.filters.FILTERS`."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    """Arguments of its constructor."""
    stage: StageSpec = StageSpec(batch_size=16)


class Frechet(Frozen):
    """Frechet distance between features of generated and of real images (Heusel et al., 2017)."""

    extractor: str = "image_text"
    """`image_text` takes that model's image features; `inception` the Inception-v3 of the
    published FID (package torchmetrics), with weights of torch.hub's cache or `inception:FILE`."""
    layer: Literal["64", "192", "768", "2048"] = "2048"
    """Width of the features that Inception-v3 gives; published figures take 2048."""
    num_images: int = Field(500, ge=2)
    """Most images of each set; all sets of a table are cut to the smallest."""


class Compare(Frozen):
    """Trainings that differ in the recipe only, each measured like the run's own."""

    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Dotted overrides of the recipe by the name of the arm; empty compares nothing."""
    seeds: tuple[int, ...] = (0, 1)
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    """Resources of one training; as many run at once as fit."""

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {list(seeds)} must be one or more different numbers")
        return seeds
