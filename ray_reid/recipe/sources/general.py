"""Sources of a user's own: drawings, and folders and tables of any names."""

import re
from typing import Literal

from pydantic import Field, field_validator

from ray_reid.recipe.base import Frozen, Side


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
    long_tail: float = Field(0.0, ge=0)
    """Train identity n, from 1, keeps n ** -long_tail of its images, at least two; 0 keeps all."""
    image_size: tuple[Side, Side] = (64, 64)
    """Height and width of the drawn images in pixels."""
    seed: int = Field(0, ge=0)
    """Another seed is another world: other vehicles or people, under other cameras."""
    name: str | None = None
    """Name of the source in identities; null takes `miniature-street-` and the kind."""


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


class ImageFolderSource(Frozen):
    """`<split>/<identity>/<image>`, as torchvision's ImageFolder reads one split."""

    reader: Literal["imagefolder"] = "imagefolder"
    root: str
    """The folder that holds the splits, or a parent of it. `train_all`, or else `train`, is
    trained on; queries are chosen from `test` (else `val`) where `query` and `gallery` are
    missing."""
    train: Literal["train_all", "train"] | None = None
    """The folder to train on; null takes the first of both that exists."""
    query: Literal["query", "multi-query"] = "query"
    """The folder of the queries."""
    camera: str | None = None
    """Regular expression with the group `camera`, searched in the file's base name without its
    extension; null means that no image has a camera."""
    name: str | None = None
    """Name of the source in identities; null takes the name of `root`."""
    licence: str | None = None
    seed: int = Field(0, ge=0)
    """Chooses queries where the folders do not."""

    @field_validator("camera")
    @classmethod
    def _has_camera(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = set(re.compile(pattern).groupindex)
        except re.error as error:
            raise ValueError(f"camera {pattern!r} is not a regular expression: {error}") from error
        if groups != {"camera"}:
            raise ValueError(
                f"camera {pattern!r} has groups {sorted(groups)}; it needs (?P<camera>...) alone"
            )
        return pattern


class OMLSource(Frozen):
    """A table of images as OpenMetricLearning (OML) defines it."""

    reader: Literal["oml"] = "oml"
    root: str
    """The folder that the paths in the table are relative to."""
    table: str | None = None
    """CSV file under `root`; null takes the only one directly in it."""
    name: str = "oml"
    licence: str | None = None


class ParquetSource(Frozen):
    """Tables whose columns have the names of the record (docs/record.md)."""

    reader: Literal["parquet"] = "parquet"
    root: str
    """The folder that the column `path` is relative to, and that holds the tables."""
    table: str | None = None
    """Parquet file, or folder of them, under `root`; null takes all of `root`."""
    name: str = "parquet"
    """Name of the source where the tables have no column `source`."""
    licence: str | None = None
    """Terms of the images where the tables have no column `licence`, or null in it."""
