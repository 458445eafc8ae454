"""Images of 16-bit greys that use little of their range: decoding leaves few grey levels."""

from collections.abc import Sequence

from ray_reid import images, schema
from ray_reid.datasets import drawings, loading

# Fewer grey levels than this are too few to tell pictures apart.
MIN_LEVELS = 64
# Images of a source that `ingest` looks at; the doctor looks at all.
SAMPLE = 64
REMEDY = "write them with 8 bits, scaled from one range for the whole set; queries likewise"


def little_range(ranges: Sequence[tuple[int, int] | None]) -> list[str]:
    """Say that too few grey levels are left once the upper 8 of 16 bits are kept.

    Args:
        ranges: Lowest and highest value of each image of 16-bit greys; None for any other image.
    """
    deep = [found for found in ranges if found is not None]
    if not deep:
        return []
    low, high = min(low for low, _ in deep), max(high for _, high in deep)
    levels = (high >> 8) - (low >> 8) + 1
    if levels >= MIN_LEVELS:
        return []
    return [
        f"{len(deep):,} images are 16-bit with little range, {low} to {high}: decoding keeps the "
        f"upper 8 bits, and so {levels} grey levels"
    ]


def sampled(locators: Sequence[str]) -> list[str]:
    """Say the same of some images, evenly spread over all; drawings have 8 bits."""
    files = [locator for locator in locators if not locator.startswith(drawings.PREFIX)]
    step = max(1, len(files) // SAMPLE)
    loaded = [loading.load(locator) for locator in files[::step][:SAMPLE]]
    usable = [row[schema.IMAGE] for row in loaded if row.get(schema.DROP_REASON) is None]
    found = little_range([images.grey_range(encoded) for encoded in usable])
    return [f"of {len(usable)} images looked at, {text}; {REMEDY}" for text in found]
