"""The part of a recipe that says how training batches are put together."""

from typing import Literal

from pydantic import Field, model_validator

from ray_reid.recipe.base import Frozen

P_X_K = ("identity", "progressive")
"""Kinds whose batches are P identities with K images each."""


class Sampler(Frozen):
    """Which rows make a batch; docs/samplers.md tells the kinds apart."""

    kind: Literal["identity", "naive", "class_balanced", "source_balanced", "progressive"] = (
        "identity"
    )
    """`identity`: P x K (Hermans et al., 2017). `naive`: every image once per epoch.
    `class_balanced`: identities equally likely. `source_balanced`: every source has an equal part
    of a batch. `progressive`: P x K real images, each with a generated version (DLCR)."""
    num_identities: int = Field(16, ge=2)
    """P, in one batch over all workers; of `identity` and `progressive`."""
    num_instances: int = Field(4, ge=2)
    """K; an identity with fewer images repeats them."""
    batch_size: int | None = Field(None, ge=2)
    """Images in one batch over all workers, where P x K does not say it."""
    widen_every: int = Field(5, ge=1)
    """Epochs after which `progressive` draws from one more partition of the versions: N of DLCR."""
    partitions: int = Field(4, ge=1)
    """Equal parts of an image's versions that `progressive` opens one after the other; 1 opens
    all at the start."""

    @model_validator(mode="after")
    def _size_is_said_once(self) -> "Sampler":
        if self.kind in P_X_K and self.batch_size is not None:
            raise ValueError(
                f"batch_size {self.batch_size} has no meaning for kind {self.kind!r}, whose batch "
                f"is num_identities x num_instances; set it to null"
            )
        if self.kind not in P_X_K and self.batch_size is None:
            raise ValueError(f"kind {self.kind!r} needs a batch_size, such as 64")
        return self

    def check_workers(self, num_workers: int, parts: int, alone: bool) -> None:
        """Refuse a batch that the workers, or the parts of a worker's batch, cannot share.

        Args:
            num_workers: Each has an equal share of every batch.
            parts: Each worker computes its share in this many.
            alone: Whether one identity in a part is enough, as it is for a classifier.

        Raises:
            ValueError: If the parts are not equal, or too small for a metric loss.
        """
        pieces = num_workers * parts
        over = f"num_workers {num_workers}" + (f" and accumulate {parts}" if parts > 1 else "")
        if self.batch_size is not None:
            if self.batch_size % pieces:
                raise ValueError(
                    f"sampler.batch_size {self.batch_size} must be a multiple of {over}"
                )
            return
        if self.num_identities % pieces:
            raise ValueError(
                f"sampler.num_identities {self.num_identities} must be a multiple of {over}"
            )
        share = self.num_identities // pieces
        if share < 2 and not alone:
            raise ValueError(
                f"sampler.num_identities {self.num_identities} over {over} leaves {share} "
                f"identity in each part, and a metric loss needs 2, or loss.gather"
            )

    def check_mixing(self, mixing: str) -> None:
        """Refuse a mixing of real and synthetic images that this kind cannot make.

        Raises:
            ValueError: If pairs lack one of their sides, or this kind cannot fill halves.
        """
        if self.kind == "progressive" and mixing != "shuffled":
            raise ValueError(
                f"sampler.kind 'progressive' pairs real images with synthetic ones, so mixing "
                f"must be 'shuffled', not {mixing!r}"
            )
        if mixing == "balanced" and self.kind not in ("identity", "naive"):
            raise ValueError(
                f"mixing 'balanced' halves the batches of sampler.kind 'identity' or 'naive', not "
                f"of {self.kind!r}"
            )
