"""The section `gallery`: where the live gallery lies."""

from pydantic import field_validator

from ray_reid.recipe.base import Frozen


class LiveGallery(Frozen):
    """The gallery that searches see and people change; it changes no result."""

    path: str | None = None
    """Its directory, from the root or from `~`; null takes `gallery` in the run."""

    @field_validator("path")
    @classmethod
    def _on_a_disk(cls, path: str | None) -> str | None:
        # Every replica of a server has a working directory of its own.
        if path is not None and not path.startswith(("/", "~")):
            raise ValueError(f"path {path!r} must be a directory on a disk, from / or from ~")
        return path
