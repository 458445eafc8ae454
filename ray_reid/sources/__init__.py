"""What a recipe may read: one model per reader of `datasets/`, in a module per field."""

from typing import Annotated

from pydantic import Field

from ray_reid.sources.base import Frozen, Side
from ray_reid.sources.general import FolderSource, MiniatureSource
from ray_reid.sources.person import Market1501Source
from ray_reid.sources.vehicle import (
    CityFlowSource,
    CompCarsSource,
    VehicleIDSource,
    VehicleXSource,
    VeRi776Source,
    VERIWildSource,
)

__all__ = [
    "CityFlowSource",
    "CompCarsSource",
    "FolderSource",
    "Frozen",
    "Market1501Source",
    "MiniatureSource",
    "Side",
    "Source",
    "VERIWildSource",
    "VeRi776Source",
    "VehicleIDSource",
    "VehicleXSource",
]

Source = Annotated[
    MiniatureSource
    | FolderSource
    | Market1501Source
    | VehicleXSource
    | VeRi776Source
    | VehicleIDSource
    | VERIWildSource
    | CityFlowSource
    | CompCarsSource,
    Field(discriminator="reader"),
]
