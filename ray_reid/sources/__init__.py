"""What a recipe may read: one model per reader of `datasets/`, in a module per field."""

from typing import Annotated

from pydantic import Field

from ray_reid.sources.base import Frozen, Side
from ray_reid.sources.general import FolderSource, MiniatureSource
from ray_reid.sources.person import Market1501Source
from ray_reid.sources.vehicle import VehicleXSource

__all__ = [
    "FolderSource",
    "Frozen",
    "Market1501Source",
    "MiniatureSource",
    "Side",
    "Source",
    "VehicleXSource",
]

Source = Annotated[
    MiniatureSource | FolderSource | Market1501Source | VehicleXSource,
    Field(discriminator="reader"),
]
