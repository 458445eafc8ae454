"""The part of a recipe that says how images without labels are clustered and learned."""

from typing import TYPE_CHECKING

from pydantic import Field

from ray_reid.recipe.base import Frozen

if TYPE_CHECKING:
    from ray_reid.recipe.train import Train


class Clusters(Frozen):
    """Pseudo-labels of `train.labels: clusters` (Dai et al., ACCV 2022).

    Before every epoch all images are embedded, and DBSCAN groups them by the Jaccard distance of
    their k-reciprocal neighbours (Zhong et al., CVPR 2017). A memory keeps a vector for each
    cluster, and the loss compares every image with all of them.
    """

    sources: tuple[str, ...] = ()
    """Sources whose images are clustered; the others of `train.sources` keep their labels and are
    learned beside them. Empty clusters all."""
    eps: float = Field(0.6, gt=0, lt=1)
    """Largest Jaccard distance of neighbours in DBSCAN; 0.6 is usual on Market-1501, 0.7 on
    MSMT17."""
    min_samples: int = Field(4, ge=2)
    """Images, itself included, that an image needs within `eps` to begin a cluster."""
    k1: int = Field(30, ge=1)
    """Neighbours that must be mutual."""
    k2: int = Field(6, ge=1)
    """Nearest images whose neighbourhoods are averaged."""
    momentum: float = Field(0.1, ge=0, lt=1)
    """Share of a cluster's vector that stays when an image of the cluster is trained on."""
    temperature: float = Field(0.05, gt=0)
    """Of the contrastive loss; lower weighs the nearest clusters more."""


def check(spec: "Train") -> None:
    """Refuse what needs labels, or as many classes in every epoch, where labels are clusters.

    Raises:
        ValueError: Names the key and what to set it to.
    """
    if spec.labels == "given":
        return
    must: tuple[tuple[str, object, bool, str], ...] = (
        ("target", spec.target, spec.target == "identity", "'identity'"),
        ("mixing", spec.mixing, spec.mixing == "real", "'real'"),
        ("sampler.kind", spec.sampler.kind, spec.sampler.kind == "identity", "'identity'"),
        ("validation", spec.validation, not spec.validation, "0"),
        ("clothes.weight", spec.clothes.weight, not spec.clothes.weight, "0"),
        ("loss.auxiliary", spec.loss.auxiliary, not spec.loss.auxiliary, "0"),
        ("augment.mixup", spec.augment.mixup, not spec.augment.mixup, "0"),
        ("augment.cutmix", spec.augment.cutmix, not spec.augment.cutmix, "0"),
    )
    for key, value, fits, wanted in must:
        if not fits:
            raise ValueError(
                f"labels 'clusters' does without labels and classifiers, so {key} must be "
                f"{wanted}, not {value!r}"
            )
    if spec.batches_per_epoch is None:
        raise ValueError(
            "labels 'clusters' needs batches_per_epoch, such as 200: clusters change from epoch to "
            "epoch, and with them the images that an epoch would pass over"
        )
    if spec.real_fraction < 1 and spec.real_fraction_of != "images":
        raise ValueError(
            f"labels 'clusters' takes a share of single images: real_fraction_of must be 'images', "
            f"not {spec.real_fraction_of!r}"
        )
    strange = sorted(set(spec.clusters.sources) - set(spec.sources))
    if spec.sources and strange:
        raise ValueError(
            f"clusters.sources names {strange[0]!r}, which is not trained on; choose from "
            f"sources {list(spec.sources)}"
        )
