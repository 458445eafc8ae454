"""Random numbers that belong to a thing and not to the order in which things are drawn."""

import hashlib

import numpy as np


def generator(*parts: str | int) -> np.random.Generator:
    """Make the generator that belongs to `parts`: equal parts give equal draws everywhere."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """Choose one of `choices` with equal chance."""
    return choices[int(rng.integers(len(choices)))]
