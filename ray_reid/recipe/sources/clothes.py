"""Data sets of people who change their clothes, and images that were generated from them."""

from typing import Literal

from pydantic import Field, model_validator

from ray_reid.recipe.base import Frozen


class PRCCSource(Frozen):
    """PRCC: the gallery is camera A, the queries are B (same clothes) and C (other clothes)."""

    reader: Literal["prcc"] = "prcc"
    root: str
    """The folder that holds `rgb`, that folder itself (or `sketch`), or a parent of them."""
    val: bool = False
    """Whether the folder `val`, other images of the same people, joins the train split."""
    name: str = "prcc"
    licence: str | None = "academic research only (PRCC)"


class LTCCSource(Frozen):
    """LTCC: names tell identity, outfit and camera."""

    reader: Literal["ltcc"] = "ltcc"
    root: str
    """The folder that holds train, query and test, or a parent of it."""
    train_on: Literal["all", "clothes_changing"] = "all"
    """Whether to leave out people of one outfit, whom `info/cloth-change_id_train.txt` does not
    name, as some papers do; CAL trains on all."""
    name: str = "ltcc"
    licence: str | None = "research use only, no redistribution of derivatives (LTCC)"


class VCClothesSource(Frozen):
    """VC-Clothes: people and streets of a game, four cameras."""

    reader: Literal["vc_clothes"] = "vc_clothes"
    root: str
    """The folder that holds train, query and gallery, or a parent of it."""
    name: str = "vc_clothes"
    licence: str | None = "Apache-2.0"


class CCVIDSource(Frozen):
    """CCVID: tracklets of three sessions, one row per frame."""

    reader: Literal["ccvid"] = "ccvid"
    root: str
    """The folder that holds train.txt, query.txt and gallery.txt, or a parent of it."""
    every: int = Field(1, ge=1)
    """Take each n-th frame of a tracklet, the first one always."""
    name: str = "ccvid"
    licence: str | None = "CC BY-NC-SA 4.0"


class LaSTSource(Frozen):
    """LaST: people of films; without cameras, and with outfits in the train split only."""

    reader: Literal["last"] = "last"
    root: str
    """The folder that holds train, val and test, or a parent of it."""
    test: Literal["val", "test"] = "test"
    """The folder whose queries and gallery are searched."""
    name: str = "last"
    licence: str | None = "academic research only (LaST)"


class DLCRSource(Frozen):
    """Images that DLCR generated for the train split of another set: the same people, redressed."""

    reader: Literal["dlcr"] = "dlcr"
    root: str
    """The folder with the tree of the parent set, or a parent of it."""
    parent: Literal["prcc", "ltcc", "vc_clothes", "ccvid", "last"]
    """The reader of the set whose images were redressed."""
    parent_name: str | None = None
    """The `name` of that source in the recipe: identities and parents are written in it. Null
    takes `parent`, which is the default name of each."""
    form: Literal["strips", "images"] = "strips"
    """Variants of an image side by side in one file, as released; or one file per variant below
    <clothes id>/<identity>/, as the authors' generator writes them for PRCC."""
    variants: int = Field(10, ge=1)
    """Images in a strip."""
    name: str | None = None
    """Null takes `<parent>_dlcr`."""
    licence: str | None = None
    """Terms of the images; null takes those of the parent set."""

    @model_validator(mode="after")
    def _has_form(self) -> "DLCRSource":
        if self.form == "images" and self.parent != "prcc":
            raise ValueError(f"form 'images' is known of parent 'prcc', not of {self.parent!r}")
        return self
