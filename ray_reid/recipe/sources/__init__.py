"""What a recipe may read: one model per reader of `datasets/`, in a module per field."""

from typing import Annotated

from pydantic import Field

from ray_reid.recipe.base import Frozen, Side
from ray_reid.recipe.sources.clothes import (
    CCVIDSource,
    DLCRSource,
    LaSTSource,
    LTCCSource,
    PRCCSource,
    VCClothesSource,
)
from ray_reid.recipe.sources.general import (
    FolderSource,
    ImageFolderSource,
    MiniatureSource,
    OMLSource,
    ParquetSource,
)
from ray_reid.recipe.sources.person import (
    CUHK03NPSource,
    CUHK03Source,
    DukeMTMCSource,
    Market1501Source,
    MSMT17Source,
    PRID2011Source,
    VIPeRSource,
)
from ray_reid.recipe.sources.vehicle import (
    CityFlowSource,
    CompCarsSource,
    VehicleIDSource,
    VehicleXSource,
    VeRi776Source,
    VERIWildSource,
)

__all__ = [
    "CCVIDSource",
    "CUHK03NPSource",
    "CUHK03Source",
    "CityFlowSource",
    "CompCarsSource",
    "DLCRSource",
    "DukeMTMCSource",
    "FolderSource",
    "Frozen",
    "ImageFolderSource",
    "LTCCSource",
    "LaSTSource",
    "MSMT17Source",
    "Market1501Source",
    "MiniatureSource",
    "OMLSource",
    "PRCCSource",
    "PRID2011Source",
    "ParquetSource",
    "Side",
    "Source",
    "VCClothesSource",
    "VERIWildSource",
    "VIPeRSource",
    "VeRi776Source",
    "VehicleIDSource",
    "VehicleXSource",
]

Source = Annotated[
    MiniatureSource
    | FolderSource
    | ImageFolderSource
    | OMLSource
    | ParquetSource
    | Market1501Source
    | DukeMTMCSource
    | MSMT17Source
    | CUHK03Source
    | CUHK03NPSource
    | VIPeRSource
    | PRID2011Source
    | VehicleXSource
    | VeRi776Source
    | VehicleIDSource
    | VERIWildSource
    | CityFlowSource
    | CompCarsSource
    | PRCCSource
    | LTCCSource
    | VCClothesSource
    | CCVIDSource
    | LaSTSource
    | DLCRSource,
    Field(discriminator="reader"),
]
