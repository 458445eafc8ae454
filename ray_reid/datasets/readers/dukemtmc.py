"""DukeMTMC-reID (Zheng et al., ICCV 2017) and Occluded-Duke (Miao et al., ICCV 2019).

bounding_box_train/0001_c2_f0046182.jpg   identity 1, camera 2 of 8, frame; 16,522 images
query/, bounding_box_test/                2,228 and 17,661 images

Its authors withdrew the recordings in 2019, so every reading says so.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ray_reid.datasets import market_form, reading
from ray_reid.datasets.market_form import FOLDERS, Names
from ray_reid.datasets.reading import Layout, ReaderSource, Reading


class DukeMTMCSource(ReaderSource):
    """DukeMTMC-reID, or Occluded-Duke in the same layout."""

    reader: Literal["dukemtmc"] = "dukemtmc"
    root: str
    """The folder that holds bounding_box_train, query and bounding_box_test, or a parent of it."""
    name: str = "dukemtmc"
    licence: str | None = "withdrawn by its authors in 2019 (DukeMTMC)"
    occluded: bool = False
    """Read Occluded-Duke: the folder Occluded_Duke at or below `root`, else the three folders."""


OCCLUDED = "Occluded_Duke"
NAMES = Names(
    re.compile(r"(?P<identity>\d+)_c(?P<camera>\d+)_f\d+"), "0001_c2_f0046182.jpg", roles={}
)


def read_dukemtmc(source: DukeMTMCSource) -> Reading:
    """List the three folders; people seen by one camera only are an ordinary part of the gallery.

    Raises:
        ValueError: If a folder is missing, a split is empty, train and test share an identity,
            or no query can be answered.
    """
    place = _locate(source)
    where = repr(str(place))
    rows, warnings = market_form.read_folders(source, place, NAMES, place)
    withdrawn = f"DukeMTMC, in {where}, was withdrawn by its authors in 2019; see its terms"
    return Reading(rows, [withdrawn, *warnings, *market_form.check(rows, where)])


def files(source: DukeMTMCSource) -> list[Path]:
    """The files that a reading depends on."""
    return market_form.files(_locate(source))


def recognise(root: Path) -> DukeMTMCSource | None:
    """A folder with the three folders and names like 0001_c2_f0046182.jpg."""
    place = reading.found(root, tuple(FOLDERS.values()))
    if place is None or not market_form.has_names(place, NAMES):
        return None
    if "occluded" in place.name.lower():
        return DukeMTMCSource(root=str(root), name="occluded_duke", occluded=True)
    return DukeMTMCSource(root=str(root))


def _locate(source: DukeMTMCSource) -> Path:
    wanted = tuple(FOLDERS.values())
    if source.occluded:
        # The parent may be DukeMTMC-reID itself, whose own three folders are nearer.
        parent = reading.found(reading.folder(source.root), [f"{OCCLUDED}/{n}" for n in wanted])
        if parent is not None:
            return parent / OCCLUDED
    return reading.locate(source.root, wanted, "DukeMTMC-reID")


def _official(source: DukeMTMCSource) -> Mapping[str, tuple[int, int]]:
    if source.occluded:
        return {}
    return {"train": (16522, 702), "query": (2228, 702), "gallery": (17661, 1110)}


LAYOUT = Layout(
    DukeMTMCSource, read_dukemtmc, files, recognise, _official, "withdrawn by its authors in 2019"
)
