"""The section `gallery`: where the live gallery lies."""

from pydantic import field_validator

from ray_reid.recipe.base import Frozen


class LiveGallery(Frozen):
    """The gallery that searches see and people change; it changes no result."""

    path: str | None = None
    """Its directory, on a disk; null takes `gallery` in the run. A run in a bucket needs one."""

    @field_validator("path")
    @classmethod
    def _on_a_disk(cls, path: str | None) -> str | None:
        if path is not None and (not path or "://" in path):
            raise ValueError(f"path {path!r} must be a directory on a disk of this machine")
        return path
