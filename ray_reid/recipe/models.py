"""The section `models`: pretrained models by role."""

from typing import Literal

from ray_reid.recipe.base import Frozen


class Models(Frozen):
    """Pretrained models by role: a hub id, a local folder, `package:NAME` or `miniature:NAME`."""

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
