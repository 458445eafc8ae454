"""A new token of a prompt, whose embedding is trained beside a model or alone.

Textual Inversion (Gal et al., ICLR 2023): the identity token that is no word of the tokenizer.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_reid.models.pretrained import identity_tokens


class TokenEmbedding:
    """A vector that takes the place of a token's row in the table of a text encoder."""

    def __init__(self, tokenizer: Any, encoder: Any, token: str, begun: Tensor) -> None:
        """Put a vector over the row of a token that the tokenizer knows by now.

        Args:
            tokenizer: Of a pipeline.
            encoder: The text encoder that goes with it.
            token: The new token.
            begun: (D,) what the vector begins with.
        """
        self.table: nn.Embedding = encoder.get_input_embeddings()
        self.number: int = tokenizer.convert_tokens_to_ids(token)
        self.begun = begun.float()
        self.vector = nn.Parameter(self.begun.clone())
        self.table.register_forward_hook(self._placed)

    def _placed(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        here = (inputs[0] == self.number)[..., None]
        return torch.where(here, self.vector.to(output.dtype), output)

    @torch.no_grad()
    def restore(self) -> None:
        """Begin anew."""
        self.vector.copy_(self.begun)

    @torch.no_grad()
    def keep(self) -> None:
        """Write the vector into the table of the encoder."""
        self.table.weight[self.number] = self.vector.to(self.table.weight)


def token_embeddings(pipeline: Any, token: str, words: str) -> list[TokenEmbedding]:
    """Give a new token a trainable embedding in every text encoder of a pipeline.

    Raises:
        ValueError: If there are no words to begin with.
    """
    begun = identity_tokens.added_token(pipeline, token, words)
    pairs = identity_tokens.text_encoders(pipeline)
    return [TokenEmbedding(*pair, token, one) for pair, one in zip(pairs, begun, strict=True)]


def save_token(pipeline: Any, embeddings: list[TokenEmbedding], token: str, folder: Path) -> None:
    """Write the embedding of a token beside an adapter, for `identity_tokens.load_token`."""
    for one in embeddings:
        one.keep()
    identity_tokens.save_token(pipeline, token, folder)
