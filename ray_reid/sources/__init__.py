"""What a recipe may read: one model per reader of `datasets/`, in a module per field."""

from typing import Annotated

from pydantic import Field

from ray_reid.sources.base import Frozen, Side
from ray_reid.sources.clothes import (
    CCVIDSource,
    DLCRSource,
    LaSTSource,
    LTCCSource,
    PRCCSource,
    VCClothesSource,
)
from ray_reid.sources.general import (
    FolderSource,
    ImageFolderSource,
    MiniatureSource,
    OMLSource,
    ParquetSource,
)
from ray_reid.sources.person import Market1501Source
from ray_reid.sources.vehicle import VehicleXSource

__all__ = [
    "CCVIDSource",
    "DLCRSource",
    "FolderSource",
    "Frozen",
    "ImageFolderSource",
    "LTCCSource",
    "LaSTSource",
    "Market1501Source",
    "MiniatureSource",
    "OMLSource",
    "PRCCSource",
    "ParquetSource",
    "Side",
    "Source",
    "VCClothesSource",
    "VehicleXSource",
]

Source = Annotated[
    MiniatureSource
    | FolderSource
    | ImageFolderSource
    | OMLSource
    | ParquetSource
    | Market1501Source
    | PRCCSource
    | LTCCSource
    | VCClothesSource
    | CCVIDSource
    | LaSTSource
    | DLCRSource
    | VehicleXSource,
    Field(discriminator="reader"),
]
