"""Data sets of people in the clothes of one day."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ray_reid.recipe.base import Frozen

Boxes = Literal["labeled", "detected"]


class Market1501Source(Frozen):
    """The Market-1501 layout: bounding_box_train, query, bounding_box_test."""

    reader: Literal["market1501"] = "market1501"
    root: str
    """The folder that holds the three folders, or a parent of it."""
    name: str = "market1501"
    """Name of the source in identities; a variant in the same layout, such as DG-Market or
    HQ-Market, takes its own."""
    licence: str | None = "research use only (Market-1501)"
    """Terms of the images; a variant has its own."""
    distractors: bool = False
    """Add the 500,000 distractors in the folder `images`, beside the three, to the gallery."""


class DukeMTMCSource(Frozen):
    """DukeMTMC-reID, or Occluded-Duke in the same layout."""

    reader: Literal["dukemtmc"] = "dukemtmc"
    root: str
    """The folder that holds bounding_box_train, query and bounding_box_test, or a parent of it."""
    name: str = "dukemtmc"
    licence: str | None = "withdrawn by its authors in 2019 (DukeMTMC)"
    occluded: bool = False
    """Read Occluded-Duke: the folder Occluded_Duke at or below `root`, else the three folders."""


class MSMT17Source(Frozen):
    """MSMT17 V1, or V2 with blurred faces."""

    reader: Literal["msmt17"] = "msmt17"
    root: str
    """The folder that holds the lists and train and test (V2: mask_train_v2 and mask_test_v2), or
    a parent of it."""
    name: str = "msmt17"
    licence: str | None = "research use only (MSMT17)"
    combine_val: bool = False
    """Train on the images of list_val.txt too, as some published figures do; they show train
    identities. Without it they are not used."""


class CUHK03Source(Frozen):
    """CUHK03 as released: cuhk-03.mat, or the images extracted from it."""

    reader: Literal["cuhk03"] = "cuhk03"
    root: str
    """The folder that holds cuhk03_release and the two cuhk03_new_protocol_config_*.mat files, or
    a parent of it; images_labeled or images_detected beside them takes the place of the first."""
    name: str = "cuhk03"
    licence: str | None = "research use only (CUHK03)"
    boxes: Boxes = "labeled"
    """Boxes drawn by hand, or those of a person detector."""
    protocol: Literal["new", "classic"] = "new"
    """`new` has 767 train and 700 test identities, `classic` 1,367 and 100."""
    split: int = Field(0, ge=0, le=19)
    """Which of the 20 classic splits."""

    @model_validator(mode="after")
    def _one_new_split(self) -> Self:
        if self.protocol == "new" and self.split:
            raise ValueError(
                f"split {self.split} has no effect: the new protocol has one split; set protocol "
                "to classic, or split to 0"
            )
        return self


class CUHK03NPSource(Frozen):
    """CUHK03 in the new protocol and in the folders of Market-1501."""

    reader: Literal["cuhk03_np"] = "cuhk03_np"
    root: str
    """The folder that holds the folders labeled and detected, a parent of it, or one of the two."""
    name: str = "cuhk03_np"
    licence: str | None = "research use only (CUHK03)"
    boxes: Boxes = "labeled"
    """Boxes drawn by hand, or those of a person detector."""


class VIPeRSource(Frozen):
    """VIPeR: two cameras with one image of each person; the split is drawn."""

    reader: Literal["viper"] = "viper"
    root: str
    """The folder that holds cam_a and cam_b, or a parent of it."""
    name: str = "viper"
    licence: str | None = None
    """Terms of the images; null because the set states none."""
    split_seed: int = Field(0, ge=0)
    """Draws the half of the people to train on; published figures are means of ten draws."""
    query_camera: Literal["a", "b"] = "a"
    """The other camera is the gallery; published figures are means of both directions."""


class PRID2011Source(Frozen):
    """PRID2011, one image per person and camera; the split is drawn."""

    reader: Literal["prid2011"] = "prid2011"
    root: str
    """The folder that holds single_shot, a parent of it, or single_shot itself."""
    name: str = "prid2011"
    licence: str | None = "research use only (PRID2011)"
    split_seed: int = Field(0, ge=0)
    """Draws 100 of the 200 people on both cameras to train on; published figures are means of ten
    draws."""
