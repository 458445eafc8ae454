"""What a stage or the local Ray instance may use of a machine; no result depends on it."""

from pydantic import Field

from ray_reid.recipe.base import Frozen

RESOURCES = frozenset({
    "resources", "stage", "caption_stage", "parse_stage", "reference_stage", "num_cpus",
    "num_gpus", "loader",
    "loader_processes", "max_failures", "checkpoint_batches", "micro_batch",
    "gradient_checkpointing",
})  # fmt: skip
"""Entries of a recipe that change how fast a result comes but not the result."""


class StageSpec(Frozen):
    """Resources of one stage; they change how fast a result comes, and only its rounding."""

    actors: int = Field(1, ge=1)
    """Most actors that may run the stage; the pool starts with all of them where they find room,
    and elsewhere grows from one."""
    num_cpus: float = Field(1.0, ge=0)
    """CPUs of one actor."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs of one actor; a fraction shares a GPU."""
    batch_size: int = Field(64, ge=1)
    """Rows of one call."""
    block_rows: int = Field(256, ge=1)
    """Rows of one block of a stream: the unit that is scheduled, and that a resumed job keeps."""


class Resources(Frozen):
    """The Ray that a job runs on."""

    num_cpus: int | None = Field(None, ge=1)
    """CPUs that a local Ray instance may use; null takes all. A cluster that is joined has its
    own."""
    object_store_mb: int | None = Field(None, ge=80)
    """Shared memory of a local instance for blocks in MiB; null lets Ray decide."""
    patience_s: float | None = Field(600.0, gt=0)
    """Seconds after which work ends in which nothing moves because Ray, local or a cluster, lacks
    the CPUs or GPUs for it; null waits for ever. Work that computes is never ended."""
