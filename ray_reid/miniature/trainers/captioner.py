"""The miniature captioner: a BLIP of a few million parameters, in transformers' format."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from ray_reid.miniature.trainers.drawings import Drawings, to_tensor, vary
from ray_reid.miniature.trainers.steps import batches, minimise

BATCH = 64
STEPS = 5000
WIDTH = 128
LENGTH = 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
MEAN, STD = 0.5, 0.25
# Share of varied drawings in the second half; the others stay as they were drawn.
VARIED = 0.6


def train(drawn: Drawings, seed: int, out: Path) -> None:
    """Train on varied showroom drawings to say their captions, and save in fp16."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    words = sorted({word.lower() for caption in drawn.captions for word in caption.split()})
    made = processor(words, out)
    tokenizer = made.tokenizer
    model = BlipForConditionalGeneration(config(len(tokenizer), tokenizer, LENGTH)).train()
    told = tokenizer(
        [str(caption) for caption in drawn.captions], padding="max_length", truncation=True,
        max_length=LENGTH, return_tensors="pt",
    )  # fmt: skip
    longest = int(told["attention_mask"].sum(1).max())
    tokens, mask = told["input_ids"][:, :longest], told["attention_mask"][:, :longest]
    # A caption begins with the decoder's own sign.
    tokens[:, 0] = tokenizer.convert_tokens_to_ids("[DEC]")
    pupil = _Pupil(model, len(tokenizer))
    rng = torch.Generator().manual_seed(seed)
    boxes = torch.from_numpy(drawn.boxes)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for step, rows in enumerate(batches(len(drawn), BATCH, STEPS, seed)):
            plain = to_tensor(drawn.images[rows.numpy()])
            # First the drawings as they are: shapes are learned sooner without noise and haze.
            share = min(VARIED, 2.0 * VARIED * step / STEPS)
            varied = torch.rand(len(rows), 1, 1, 1, generator=rng) < share
            images = torch.where(varied, vary(plain, boxes[rows], rng), plain)
            yield lambda images=images, rows=rows: pupil(  # type: ignore[misc]
                (images - MEAN) / STD, tokens[rows], mask[rows]
            )

    minimise("captioner", pupil.parameters(), losses(), STEPS, 1e-3, weight_decay=0.05)
    model.eval().half().save_pretrained(out)
    made.save_pretrained(out)


class _Pupil(nn.Module):
    """The captioner with a teacher of its vision: a head that says which words a caption has.

    Through the decoder alone, a transformer of this size needs many more drawings to see shapes.
    """

    def __init__(self, model: BlipForConditionalGeneration, words: int) -> None:
        super().__init__()
        self.model = model
        self.words = nn.Linear(WIDTH, words)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = self.model(
                pixel_values=pixels,
                input_ids=tokens,
                attention_mask=mask,
                labels=tokens.masked_fill(mask == 0, -100),
            )
        there = torch.zeros(len(tokens), self.words.out_features)
        there.scatter_add_(1, tokens, mask.float())
        guessed = self.words(found.image_embeds.float().mean(dim=1))
        taught = F.binary_cross_entropy_with_logits(guessed, there.clamp(max=1.0), reduction="none")
        loss: Tensor = found.loss.float() + taught.sum(dim=1).mean()
        return loss


def processor(words: Sequence[str], out: Path) -> BlipProcessor:
    """A processor that knows these words whole and any other by its letters; writes `vocab.txt`."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    letters += [str(digit) for digit in range(10)]
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    vocabulary = [*SPECIAL, *words, *(piece for piece in pieces if piece not in words)]
    file = out / "vocab.txt"
    file.write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizer(vocab=str(file), bos_token="[DEC]")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    images = BlipImageProcessor(
        size={"height": 64, "width": 64}, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    return BlipProcessor(images, tokenizer)


def config(vocabulary: int, tokenizer: BertTokenizer, length: int) -> BlipConfig:
    """A BLIP of a few million parameters for texts of at most `length` tokens."""
    shape = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 512}
    return BlipConfig(
        # Its default of 1e-10 is for weights that are loaded: nothing is learned from there.
        vision_config={
            **shape, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8,
            "initializer_range": 0.05,
        },
        text_config={
            **shape, "num_hidden_layers": 3, "vocab_size": vocabulary, "encoder_hidden_size": WIDTH,
            "max_position_embeddings": length, "projection_dim": 128,
            "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
            "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        projection_dim=128, image_text_hidden_size=128,
    )  # fmt: skip
