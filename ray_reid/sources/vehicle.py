"""Data sets of vehicles."""

from typing import Literal

from ray_reid.sources.base import Frozen


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
