"""The section `index`: embeddings to a gallery."""

from typing import Literal

from pydantic import Field, model_validator

from ray_reid.recipe.base import Frozen


class Index(Frozen):
    """Gallery embeddings to a searchable index."""

    splits: tuple[Literal["query", "gallery"], ...] = Field(("gallery",), min_length=1)
    """Which of the embedded images can be found."""
    kind: Literal["flat", "ivf", "hnsw"] = "flat"
    """Search all vectors, lists of similar ones, or a graph; the latter two are approximate."""
    nlist: int | None = Field(None, ge=1)
    """Lists of the kind `ivf`; null takes a quarter of the root of the rows."""
    nprobe: int | None = Field(None, ge=1)
    """Lists that a search looks into; null takes half of them."""
    num_links: int = Field(32, ge=2, le=128)
    """Links of each vector in the graph of the kind `hnsw`, its M."""
    ef_search: int = Field(128, ge=1)
    """Candidates that a search in that graph keeps, its efSearch."""

    @model_validator(mode="after")
    def _of_kind(self) -> "Index":
        owner = {"nlist": "ivf", "nprobe": "ivf", "num_links": "hnsw", "ef_search": "hnsw"}
        for name in sorted(self.model_fields_set & owner.keys()):
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and self.kind != owner[name]:
                raise ValueError(f"{name} goes with the kind {owner[name]!r}, not {self.kind!r}")
        if self.nlist is not None and self.nprobe is not None and self.nprobe > self.nlist:
            raise ValueError(f"nprobe is {self.nprobe}, more than the {self.nlist} of nlist")
        return self
