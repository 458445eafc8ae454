"""The part of a recipe that says what is done to a ranking, and how its answers are decided."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from ray_reid.recipe.base import Frozen


class QueryExpansion(Frozen):
    """Replace each query by a mean of what is near it."""

    name: Literal["query_expansion"] = "query_expansion"
    kind: Literal["dbscan", "aqe", "alpha_qe"] = "dbscan"
    """`dbscan`: the mean of the other queries of its cluster (VehicleNet, section IV-C). `aqe`: the
    sum of itself and its nearest gallery images (Chum et al., 2007). `alpha_qe`: likewise, each
    weighted by a power of its similarity (Radenovic et al., 2019)."""
    eps: float = Field(0.1, gt=0, lt=2)
    """Cosine distance within which DBSCAN joins two queries; where it is too large, chains of them
    become one cluster."""
    min_samples: int = Field(2, ge=1)
    """Queries within `eps`, itself included, that make one the core of a cluster."""
    k: int = Field(5, ge=1)
    """Gallery images of `aqe` and `alpha_qe`."""
    alpha: float = Field(3.0, ge=0)
    """Power of `alpha_qe`; 0 is `aqe` without images of negative similarity."""


class CameraVerification(Frozen):
    """Exclude gallery images that look as if taken by the query's camera."""

    name: Literal["camera_verification"] = "camera_verification"
    kind: Literal["kmeans", "dbscan", "label"] = "kmeans"
    """How images are grouped by camera: by clusters of what `embed.camera_model` makes of them
    (VehicleNet, section IV-C), or by the column `camera`."""
    num_clusters: int | None = Field(None, ge=2)
    """Of k-means; null takes the number of cameras in the labels."""
    eps: float = Field(0.1, gt=0, lt=2)
    """Cosine distance within which DBSCAN joins two images."""
    min_samples: int = Field(5, ge=1)
    """Images within `eps`, itself included, that make one the core of a cluster."""


class TemporalWindow(Frozen):
    """Exclude gallery images of the query's source that are far from it in time."""

    name: Literal["temporal_window"] = "temporal_window"
    tau: float = Field(gt=0)
    """Largest time between two images, in the unit of the column `time` (seconds)."""


class Rerank(Frozen):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017); see `rerank`."""

    name: Literal["rerank"] = "rerank"
    k1: int = Field(20, ge=1)
    """Neighbours that must be mutual."""
    k2: int = Field(6, ge=1)
    """Nearest rows of which a row takes the mean encoding."""
    lambda_value: float = Field(0.3, ge=0, le=1)
    """Share of the original distance in the result."""
    neighbours: Literal["exact", "approximate"] = "exact"
    """How they are searched."""


Step = Annotated[
    QueryExpansion | CameraVerification | TemporalWindow | Rerank, Field(discriminator="name")
]


def check_order(steps: Sequence[Step]) -> None:
    """Refuse steps that cannot follow each other.

    Excluding images goes anywhere, as does re-ranking once. Only what changes embeddings must come
    before what has made distances of them.

    Raises:
        ValueError: Names the step.
    """
    reranked = False
    for step in steps:
        if reranked and step.name in ("rerank", "query_expansion"):
            raise ValueError(
                f"postprocess: {step.name!r} needs embeddings, but 'rerank' has made distances of "
                "them before; put it in front, and 'rerank' in the list once"
            )
        reranked |= step.name == "rerank"


def describe(step: Step) -> str:
    """A step as people write it in one line: its name, and what it was told."""
    used = {
        "dbscan": ("kind", "eps", "min_samples"),
        "aqe": ("kind", "k"),
        "alpha_qe": ("kind", "k", "alpha"),
        "kmeans": ("kind", "num_clusters"),
        "label": ("kind",),
    }
    values = step.model_dump(exclude={"name"})
    names = used.get(values.get("kind", ""), tuple(values))
    return f"{step.name}({', '.join(f'{name}={values[name]}' for name in names)})"
