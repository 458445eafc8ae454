"""What a recipe may read: one model per reader of `datasets/`; and the base of recipe models."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Height or width of an image in pixels; less shows nothing, and some backbones fail on it.
Side = Annotated[int, Field(ge=8)]


class Frozen(BaseModel):
    """Base of every recipe model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MiniatureSource(Frozen):
    """Drawn street images (ray_reid.miniature); no files needed."""

    reader: Literal["miniature"] = "miniature"
    kind: Literal["vehicle", "pedestrian"] = "vehicle"
    num_train: int = Field(120, ge=2)
    """Identities to train on."""
    num_test: int = Field(60, ge=2)
    """Identities in query and gallery; none of them is trained on."""
    cameras_per_identity: int = Field(4, ge=2)
    images_per_camera: int = Field(2, ge=2)
    image_size: tuple[Side, Side] = (64, 64)
    """Height and width of the drawn images in pixels."""
    seed: int = Field(0, ge=0)


class FolderSource(Frozen):
    """A user's folder of crops whose names tell identity and camera."""

    reader: Literal["folder"] = "folder"
    root: str
    """The folder; images are found at any depth."""
    pattern: str = r"(?P<identity>.+)_cam(?P<camera>\d+)"
    """Regular expression searched in the file's base name without its extension; the group
    `identity` is required, `camera`, `view`, `clothes`, `time` and `split` are optional. The
    splits come from the first of: the group `split`; the lists; sub-folders `query` and `gallery`
    beside `train`; sub-folders `train` and `test` (else `val`); a draw of held-out identities."""
    name: str | None = None
    """Name of the source in identities; null takes the folder's name."""
    licence: str | None = None
    train_list: str | None = None
    """Text file under `root` with one image name per line; its images are the train split."""
    test_list: str | None = None
    """Likewise for query and gallery; null with a `train_list` takes all other images."""
    test_fraction: float = Field(0.5, gt=0, lt=1)
    """Share of identities held out when nothing else says what the test images are. A lone
    sub-folder such as `train` says nothing, and must not have images beside it."""
    query_cameras: tuple[str, ...] = ()
    """Test images of these cameras are queries, the others the gallery. Empty decides for each
    identity: where it has one image per camera, its first camera is the query; otherwise it has
    one query per camera, as in Market-1501, or fewer where the gallery could not answer them."""
    seed: int = Field(0, ge=0)
    """Chooses held-out identities and queries."""

    @field_validator("pattern")
    @classmethod
    def _has_identity(cls, pattern: str) -> str:
        try:
            groups = set(re.compile(pattern).groupindex)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
        allowed = {"identity", "camera", "view", "clothes", "time", "split"}
        if "identity" not in groups or groups - allowed:
            raise ValueError(
                f"pattern {pattern!r} has groups {sorted(groups)}; it needs (?P<identity>...) "
                f"and may have {sorted(allowed - {'identity'})}"
            )
        return pattern


class Market1501Source(Frozen):
    """The Market-1501 layout: bounding_box_train, query, bounding_box_test."""

    reader: Literal["market1501"] = "market1501"
    root: str
    """The folder that holds the three folders, or a parent of it."""
    name: str = "market1501"
    licence: str | None = "research use only (Market-1501)"


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


Source = Annotated[
    MiniatureSource | FolderSource | Market1501Source | VehicleXSource,
    Field(discriminator="reader"),
]
