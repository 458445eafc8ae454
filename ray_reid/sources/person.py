"""Data sets of people in the clothes of one day."""

from typing import Literal

from ray_reid.sources.base import Frozen


class Market1501Source(Frozen):
    """The Market-1501 layout: bounding_box_train, query, bounding_box_test."""

    reader: Literal["market1501"] = "market1501"
    root: str
    """The folder that holds the three folders, or a parent of it."""
    name: str = "market1501"
    licence: str | None = "research use only (Market-1501)"
