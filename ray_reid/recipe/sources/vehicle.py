"""Data sets of vehicles."""

from typing import Literal

from pydantic import Field

from ray_reid.recipe.base import Frozen


class VehicleXSource(Frozen):
    """Synthetic vehicles in the layout of VehicleX; all of them are for training."""

    reader: Literal["vehiclex"] = "vehiclex"
    root: str
    """The folder; images such as 00001_c006_1.jpg are found at any depth."""
    labels: str | None = None
    """XML file under `root`; null takes the only one, at most two levels below."""
    name: str = "vehiclex"
    licence: str | None = None
    """Terms of the images; null where they are not known."""


class VeRi776Source(Frozen):
    """VeRi-776: image_train, image_query, image_test and what lies beside them."""

    reader: Literal["veri776"] = "veri776"
    root: str
    """The folder that holds the three folders, or a parent of it."""
    name: str = "veri776"
    licence: str | None = "research use only, no redistribution (VeRi-776)"


class VehicleIDSource(Frozen):
    """PKU VehicleID: the folders image and train_test_split; no cameras."""

    reader: Literal["vehicleid"] = "vehicleid"
    root: str
    """The folder that holds the two folders, or a parent of it."""
    test_size: Literal[800, 1600, 2400, 3200, 6000, 13164] = 800
    """Vehicles to test on: which of the lists test_list_N.txt is read."""
    name: str = "vehicleid"
    licence: str | None = "non-commercial research only, on request (PKU VehicleID)"


class VERIWildSource(Frozen):
    """VERI-Wild: the folders images and train_test_split."""

    reader: Literal["veriwild"] = "veriwild"
    root: str
    """The folder that holds the two folders, or a parent of it."""
    test_size: Literal[3000, 5000, 10000] = 3000
    """Vehicles to test on: which of the lists test_N.txt and test_N_query.txt are read."""
    name: str = "veriwild"
    licence: str | None = "non-commercial research and education only (VERI-Wild)"


class CityFlowSource(Frozen):
    """CityFlow-ReID and CityFlowV2-ReID, track 2 of the AI City Challenges of 2019 to 2022."""

    reader: Literal["cityflow"] = "cityflow"
    root: str
    """The folder that holds image_train and train_label.xml, or a parent of it."""
    hold_out: float = Field(0.0, ge=0, lt=1)
    """Share of the train identities that become query and gallery in place of the official test
    images, whose labels are not public; 0 trains on all and reads the official test images."""
    seed: int = Field(0, ge=0)
    """Chooses the identities held out, and their queries."""
    name: str = "cityflow"
    licence: str | None = "research use only (AI City Challenge)"


class CompCarsSource(Frozen):
    """CompCars: cars of the web, a model of one year is a class; all of them are for training."""

    reader: Literal["compcars"] = "compcars"
    root: str
    """The folder that holds data/image, or a parent of it."""
    crop: bool = True
    """Cut out the car by its box in data/label; false takes whole photographs."""
    surveillance: bool = False
    """Add sv_data/image: fronts of cars seen by street cameras, a model is a class."""
    name: str = "compcars"
    licence: str | None = "non-commercial research only (CompCars)"
