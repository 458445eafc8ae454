"""How fast is each component of DLCR, and how near is inpainting to what the arithmetic allows?

Masks, descriptions, training and query inpainting and Algorithm 1 beside the paper's figures on an
A100 (Table A6). The models are untrained and built from configurations: Stable Diffusion 1.5
inpainting, a SegFormer-b2, a LLaVA-1.5-7B. Needs neither Ray, nor a network, nor weights.

    python benchmarks/diffusion.py --help
    python benchmarks/diffusion.py                            # full size on a GPU, else miniature
    python benchmarks/diffusion.py --compile --channels-last --batches 10 40 --outfits 1 10

A reference of inpainting is a limit: the rate at which the UNet's multiplications alone, both
halves of classifier-free guidance at every step, would be done by matrix products of the same
precision, measured on this device. fp32 on a GPU multiplies in TF32, products and convolutions.
`outfits` are images of a batch that share a source: its masked latents and their texts'
embeddings are then computed once, not for every image. Choices are measured in turn, again and
again, and the fastest run of each counts. Decoding of files is not in any figure.
Bars are the paper's figures, for the full size alone.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from support import dlcr_models
from support.dlcr_models import PRECISIONS, SCHEDULERS, SIZES
from support.products import in_turn
from support.reporting import Figure, arguments, report
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from ray_reid.models.pretrained import references
from ray_reid.ranking.refine import refine

PAPER = {"masks": 61.6, "descriptions": 4.0, "training": 0.89, "query": 3.33, "refinement": 642.6}
GUIDANCE = 7.5
TOKENS = 77
# A square product of this side keeps a device busy.
SIDE = {"cuda": 8192, "cpu": 2048}
# Bytes that a describer of 7 billion weights needs free, with room for its cache.
DESCRIBER_BYTES = 24e9
PRCC = {"queries": 3543, "gallery": 3384, "identities": 71}
DIMENSIONS, VARIANTS = 512, 6


class Measurement:
    """What all components share."""

    def __init__(self, options: argparse.Namespace, precision: str) -> None:
        self.options, self.precision = options, precision
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype, self.size = PRECISIONS[precision], SIZES[options.size]

    def measure(self) -> Iterator[Figure]:
        """Every component in turn; each lets its model go."""
        torch.manual_seed(0)
        with torch.inference_mode():
            yield from self.masks()
            if self.fits_describer():
                yield from self.descriptions()
            yield from self.inpainted()

    def figures(
        self, component: str, works: dict[str, tuple[int, Callable[[], object]]]
    ) -> Iterator[Figure]:
        """Images a second of works that make so many, by their cases, beside the paper's."""
        bar = PAPER[component] if self.options.size == "full" else None
        taken = self.seconds([work for _, work in works.values()])
        for (case, (images, _)), seconds in zip(works.items(), taken, strict=True):
            name = f"{component}, {self.precision}, {case}"
            yield Figure(name, images / seconds, "images/s", bar=bar)

    def seconds(self, works: list[Callable[[], object]]) -> list[float]:
        """Of the fastest run of each, in turn, after one that is not counted."""

        def whole(work: Callable[[], object]) -> None:
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        for work in works:
            whole(work)
        return in_turn(
            [partial(whole, work) for work in works], self.options.runs, self.options.cpu
        )

    def masks(self) -> Iterator[Figure]:
        """Images to a label of every pixel."""
        model, size = dlcr_models.parser(self.size, self.dtype, self.device), self.size
        side = (size.parsed, size.parsed)

        def work(images: Tensor) -> Tensor:
            logits = model(interpolate(images, side, mode="bilinear")).logits
            labels: Tensor = interpolate(logits.float(), size.image, mode="bilinear").argmax(1)
            return labels.byte().cpu()

        works: dict[str, tuple[int, Callable[[], object]]] = {
            f"batch {batch}": (batch, partial(work, self.images(batch, size.image)))
            for batch in self.options.batches
        }
        yield from self.figures("masks", works)

    def fits_describer(self) -> bool:
        """Whether the describer is measured; says on stderr if it is not."""
        if self.options.size == "miniature":
            return True
        free = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else 0
        if free < DESCRIBER_BYTES or self.precision == "fp32":
            sys.stderr.write(
                f"descriptions are not measured in {self.precision}: they need a GPU with "
                f"{DESCRIBER_BYTES / 1e9:.0f} GB free and 16 bits a weight\n"
            )
            return False
        return True

    def descriptions(self) -> Iterator[Figure]:
        """Images and a question to answers of a constant length; no summary by a second model."""
        model, size = dlcr_models.describer(self.size, self.dtype, self.device), self.size
        works: dict[str, tuple[int, Callable[[], object]]] = {}
        for batch in self.options.batches:
            pixels = self.images(batch, (size.described, size.described))
            asked = torch.full((batch, size.image_tokens + size.asked), 5, device=self.device)
            asked[:, : size.image_tokens] = model.config.image_token_index
            work = partial(
                model.generate,
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                pixel_values=pixels,
                max_new_tokens=size.answered,
                min_new_tokens=size.answered,
                do_sample=False,
                pad_token_id=0,
            )
            works[f"batch {batch}"] = batch, work
        yield from self.figures("descriptions", works)

    def inpainted(self) -> Iterator[Figure]:
        """Training images and queries by every choice, each beside its limit."""
        options, (height, width) = self.options, self.size.image
        pipeline = dlcr_models.inpainting(self.size, self.dtype, self.device)
        peak = self.peak()
        yield Figure(f"matrix products, {self.precision}", peak / 1e12, "TFLOP/s")
        work = {"training": (height, width), "query": (height // 2, width // 2)}
        flops = {name: self.unet_flops(pipeline, image) for name, image in work.items()}
        if options.channels_last:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        if options.compile:
            pipeline.unet = torch.compile(pipeline.unet)
        for (name, image), steps in zip(work.items(), self.size.steps, strict=True):
            yield Figure(
                f"UNet of {name}, a pair of {image[0]}x{image[1]}, {self.precision}",
                flops[name] / 1e9,
                "GFLOP",
            )
            limit = peak / (flops[name] * steps)
            works = {
                f"{scheduler}, batch {batch}, {outfits} of an image": (
                    batch,
                    self.painter(pipeline, image, steps, scheduler, batch, outfits),
                )
                for scheduler in options.schedulers
                for batch in options.batches
                for outfits in options.outfits
            }
            for found in self.figures(name, works):
                yield found
                yield Figure(f"{found.case}; limit", found.measured, found.unit, limit)

    def painter(
        self,
        pipeline: Any,
        image: tuple[int, int],
        steps: int,
        scheduler: str,
        batch: int,
        outfits: int,
    ) -> Callable[[], object]:
        """What makes a batch of images, so many outfits of each source."""
        sources = self.images(batch // outfits, image)
        masks = torch.zeros(len(sources), 1, *image, device=self.device, dtype=self.dtype)
        masks[:, :, image[0] // 4 :] = 1.0
        words = pipeline.text_encoder.config.vocab_size
        texts = torch.randint(0, words, (batch, TOKENS), device=self.device)
        nothing = texts[:1]

        def told(tokens: Tensor) -> Tensor:
            hidden: Tensor = pipeline.text_encoder(tokens)[0]
            return hidden

        noise = SCHEDULERS[scheduler]()
        shared = told(texts), told(nothing).expand(batch, -1, -1)

        def paint() -> object:
            pipeline.scheduler = noise
            known: dict[str, Any] = {}
            if outfits > 1:
                embedded, plain = shared
                around = (sources * 2.0 - 1.0) * (1.0 - masks)
                encoded = pipeline.vae.encode(around).latent_dist.mean
                encoded = encoded * pipeline.vae.config.scaling_factor
                known["masked_image_latents"] = encoded.repeat_interleave(outfits, 0)
            else:
                embedded, plain = told(texts), told(nothing.expand(batch, -1))
            return pipeline(
                prompt_embeds=embedded,
                negative_prompt_embeds=plain,
                image=sources.repeat_interleave(outfits, 0),
                mask_image=masks.repeat_interleave(outfits, 0),
                height=image[0],
                width=image[1],
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                output_type="np",
                **known,
            ).images

        return paint

    def unet_flops(self, pipeline: Any, image: tuple[int, int]) -> int:
        """Multiplications and additions of both halves of classifier-free guidance."""
        height, width = (side // pipeline.vae_scale_factor for side in image)
        make = partial(torch.zeros, device=self.device, dtype=self.dtype)
        told = make(2, TOKENS, self.size.text["hidden_size"])
        # As products, which the counter knows; fused attention it knows on some devices only.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            pipeline.unet(make(2, 9, height, width), 1, encoder_hidden_states=told)
        total: int = counter.get_total_flops()
        return total

    def peak(self) -> float:
        """FLOP/s of large matrix products in this precision."""
        side = SIDE[self.device.type]
        left, right = (torch.randn(side, side, device=self.device).to(self.dtype) for _ in range(2))
        return 2.0 * side**3 / self.seconds([partial(torch.mm, left, right)])[0]

    def images(self, count: int, image: tuple[int, int]) -> Tensor:
        """Noise in 0 to 1."""
        return torch.rand(count, 3, *image, device=self.device).to(self.dtype)


def refinement(runs: int, cpu: bool, whole: bool) -> Figure:
    """Algorithm 1 on the CPU, at PRCC's size or a tenth of it."""
    chance = np.random.default_rng(0)
    queries, gallery = (PRCC[side] // (1 if whole else 10) for side in ("queries", "gallery"))
    query = chance.standard_normal((queries, DIMENSIONS), dtype=np.float32)
    variants = chance.standard_normal((queries, VARIANTS, DIMENSIONS), dtype=np.float32)
    images = chance.standard_normal((gallery, DIMENSIONS), dtype=np.float32)
    identity = chance.integers(PRCC["identities"], size=gallery)
    work = partial(refine, query, variants, images, identity)
    # Compiled code is loaded before a clock starts.
    work()
    case = f"refinement, {queries} x {1 + VARIANTS} x {gallery}"
    bar = PAPER["refinement"] if whole else None
    return Figure(case, queries / in_turn([work], runs, cpu)[0], "queries/s", bar=bar)


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Algorithm 1, then the models in every precision."""
    torch.set_float32_matmul_precision("high")
    references.quiet()
    yield refinement(options.runs, options.cpu, options.size == "full")
    for precision in options.precisions:
        yield from Measurement(options, precision).measure()


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--size", choices=list(SIZES), default="full" if on_gpu else "miniature",
        help="full by default on a GPU, else miniature",
    )  # fmt: skip
    parser.add_argument(
        "--precisions", nargs="+", choices=list(PRECISIONS), default=["bf16" if on_gpu else "fp32"]
    )
    parser.add_argument("--schedulers", nargs="+", choices=list(SCHEDULERS), default=["dpm++"])
    parser.add_argument("--batches", type=int, nargs="+", help="images at once")
    parser.add_argument("--outfits", type=int, nargs="+", help="of them from one source")
    parser.add_argument("--compile", action="store_true", help="compile the UNet")
    parser.add_argument("--channels-last", action="store_true", help="of UNet and autoencoder")
    parser.add_argument("--runs", type=int, default=3, help="runs of which the best counts")
    parser.add_argument("--cpu", action="store_true", help="processor time, for a busy machine")
    options = parser.parse_args()
    if on_gpu and options.cpu:
        parser.error("--cpu counts the processor's time, and this machine has a GPU")
    few = options.size == "miniature"
    options.batches = options.batches or ([2, 4] if few else [10, 40])
    options.outfits = options.outfits or ([1, 2] if few else [1, 10])
    if min(options.runs, *options.batches, *options.outfits) < 1:
        parser.error("--runs, --batches and --outfits must be at least 1")
    for batch in options.batches:
        for outfits in options.outfits:
            if batch % outfits:
                parser.error(f"a batch of {batch} does not hold {outfits} outfits of each image")
    report(measure(options), options.json)


if __name__ == "__main__":
    main()
