"""The miniature describer: a BLIP that answers the default prompt of `describe`."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizer, BlipForConditionalGeneration

from ray_reid.miniature.trainers import captioner
from ray_reid.miniature.trainers.drawings import to_tensor
from ray_reid.miniature.trainers.parser import relit
from ray_reid.miniature.trainers.people import People
from ray_reid.miniature.trainers.steps import batches, minimise
from ray_reid.recipe.describe import Describe

BATCH = 64
STEPS = 3000
LENGTH = 48
PIECE = re.compile(r"\w+|[^\w\s]")


def train(drawn: People, seed: int, out: Path) -> None:
    """Train on drawings of both domains to name what is worn, and save in fp16."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    prompt = Describe().prompt
    answers = [" | ".join(map(str, worn)) for worn in drawn.clothes]
    words = sorted({word for text in [prompt, *answers] for word in PIECE.findall(text.lower())})
    processor = captioner.processor(words, out)
    tokenizer = processor.tokenizer
    model = BlipForConditionalGeneration(captioner.config(len(tokenizer), tokenizer, LENGTH))
    tokens, mask, asked = _told(tokenizer, prompt, answers)
    pupil = _Pupil(model.train(), drawn.clothes.tolist())
    rng = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for rows in batches(len(drawn), BATCH, STEPS, seed):
            images = relit(to_tensor(drawn.images[rows.numpy()]), rng)
            images = F.interpolate(images, (64, 64), mode="bilinear", align_corners=False)
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=rng) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
            yield lambda images=images, rows=rows: pupil(  # type: ignore[misc]
                (images - captioner.MEAN) / captioner.STD, tokens[rows], mask[rows], asked, rows
            )

    minimise("describer", pupil.parameters(), losses(), STEPS, 1e-3, weight_decay=0.05)
    model.eval().half().save_pretrained(out)
    processor.save_pretrained(out)


class _Pupil(nn.Module):
    """The model with teachers of its vision: heads that tell colour and kind of every part."""

    def __init__(self, model: BlipForConditionalGeneration, worn: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.model = model
        # Colour and kind of upper, lower and footwear: the first word and the rest.
        columns = [
            [row[part].split(" ", 1)[which] for row in worn]
            for part in range(len(worn[0]))
            for which in (0, 1)
        ]
        names = [sorted(set(column)) for column in columns]
        self.labels = torch.tensor(
            [[known.index(value) for value in column]
             for column, known in zip(columns, names, strict=True)]
        )  # fmt: skip
        self.heads = nn.ModuleList([nn.Linear(captioner.WIDTH, len(known)) for known in names])

    def forward(
        self, pixels: Tensor, tokens: Tensor, mask: Tensor, asked: int, rows: Tensor
    ) -> Tensor:
        """Loss of the answers, which begin behind `asked` tokens, and of the heads."""
        unread = torch.arange(tokens.shape[1]) < asked
        with torch.autocast("cpu", torch.bfloat16):
            found = self.model(
                pixel_values=pixels,
                input_ids=tokens,
                attention_mask=mask,
                labels=tokens.masked_fill((mask == 0) | unread, -100),
            )
        seen = found.image_embeds.float().mean(dim=1)
        loss: Tensor = found.loss.float()
        for head, labels in zip(self.heads, self.labels, strict=True):
            loss = loss + 0.5 * F.cross_entropy(head(seen), labels[rows])
        return loss


def _told(
    tokenizer: BertTokenizer, prompt: str, answers: Sequence[str]
) -> tuple[Tensor, Tensor, int]:
    """Tokens and mask of prompts with answers, and the number of those that are asked."""
    told = tokenizer(
        [f"{prompt} {answer}" for answer in answers], padding="longest", return_tensors="pt"
    )
    tokens: Tensor = told["input_ids"]
    assert tokens.shape[1] <= LENGTH, "prompt and answer fit"
    # The decoder's own sign begins, as in `BlipForConditionalGeneration.generate`.
    tokens[:, 0] = tokenizer.convert_tokens_to_ids("[DEC]")
    asked = len(tokenizer(prompt)["input_ids"]) - 1
    return tokens, told["attention_mask"], asked
