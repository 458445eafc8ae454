"""The part of a recipe that says how training batches are put together."""

from typing import Literal

from pydantic import Field, model_validator

from ray_reid.sources import Frozen

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
    """Epochs after which `progressive` draws from one more quarter of the versions: N of DLCR."""

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

    def check_workers(self, num_workers: int, metric: str) -> None:
        """Refuse a batch that the workers cannot share.

        Raises:
            ValueError: If it has no equal parts, or too small ones for the metric loss.
        """
        if self.batch_size is not None:
            if self.batch_size % num_workers:
                raise ValueError(
                    f"sampler.batch_size {self.batch_size} must be a multiple of num_workers "
                    f"{num_workers}"
                )
            return
        if self.num_identities % num_workers:
            raise ValueError(
                f"sampler.num_identities {self.num_identities} must be a multiple of "
                f"num_workers {num_workers}"
            )
        share = self.num_identities // num_workers
        if share < 2 and metric != "none":
            raise ValueError(
                f"sampler.num_identities {self.num_identities} over num_workers "
                f"{num_workers} leaves {share} identity on each, and loss.metric "
                f"{metric!r} needs 2"
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
