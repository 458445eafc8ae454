"""The section `evaluate`: embeddings to figures."""

from typing import Literal

from pydantic import Field, model_validator

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.postprocess import Step, check_order

RANDOM_QUERIES = ("vehicleid", "vehicleid_inverse")
"""Protocols that draw their queries from the gallery too."""


class OpenSet(Frozen):
    """Thresholds for the answers match, possible and unknown, from false-match rates."""

    match_far: float = Field(1e-3, gt=0, lt=0.5)
    """Share of the pairs of two identities that may pass as a match."""
    possible_far: float = Field(1e-2, gt=0, lt=0.5)
    """Share that may pass as a possible match or a match."""

    @model_validator(mode="after")
    def _order(self) -> "OpenSet":
        if self.match_far > self.possible_far:
            raise ValueError(
                f"match_far {self.match_far:g} must not be larger than possible_far "
                f"{self.possible_far:g}"
            )
        return self


class Evaluate(Frozen):
    """Embeddings to metrics, pictures and the report."""

    protocol: Literal[
        "market",
        "track",
        "image_to_track",
        "clothes",
        "clothes_changing",
        "ccvid",
        "ccvid_changing",
        "prcc",
        "prcc_single_shot",
        "vc_clothes",
        "vc_clothes_changing",
        "vehicleid",
        "vehicleid_inverse",
        "cuhk03_classic",
        "drawn_halves",
        "reassociation",
    ] = "market"
    """Which images ask, which answer and which are junk; see `protocols`."""
    average_precision: Literal["rectangle", "trapezoid"] = "rectangle"
    """Mean of the precisions at the true matches, or that of the Market-1501 authors' code."""
    both_directions: bool = False
    """Also search the queries with the gallery, and report the mean of both directions; for the
    protocol `market` alone."""
    by_source: bool = False
    """Search the queries of every source in the gallery of that source alone, and report each; the
    headline is the mean over the sources (domain generalisation)."""
    postprocess: tuple[Step, ...] = ()
    """What is done to the rankings of the trained model before they are scored, in this order; see
    docs/postprocessing.md."""
    open_set: OpenSet | None = OpenSet()
    """Thresholds for match, possible and unknown at these false-match rates; null makes none."""
    num_ranked: int = Field(8, ge=1, le=100)
    """Queries in the ranked-list picture."""
    top_k: int = Field(8, ge=1, le=100)
    """Gallery images beside each of them."""
    num_maps: int = Field(6, ge=0)
    """Images in the activation-map picture."""
    max_tsne: int = Field(600, ge=0)
    """Images in the t-SNE picture; 0 leaves it out."""

    @model_validator(mode="after")
    def _directions(self) -> "Evaluate":
        if self.both_directions and self.protocol != "market":
            raise ValueError(
                f"both_directions goes with the protocol 'market', not with {self.protocol!r}"
            )
        if self.both_directions and self.by_source:
            raise ValueError("both_directions and by_source are two means; choose one of them")
        return self

    @model_validator(mode="after")
    def _steps_follow(self) -> "Evaluate":
        check_order(self.postprocess)
        return self
