"""Plain values that travel with a network's weights, so that a package needs nothing beside it."""

import json
from typing import Any

import torch
from torch import Tensor


def packed(value: Any) -> Tensor:
    """A JSON value as uint8, to be kept in a buffer."""
    return torch.tensor(list(json.dumps(value, sort_keys=True).encode()), dtype=torch.uint8)


def unpacked(buffer: Tensor) -> Any:
    """The value that `packed` was given; tuples have become lists."""
    return json.loads(bytes(buffer.tolist()))
