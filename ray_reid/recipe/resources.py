"""What a stage or the local Ray instance may use of a machine; no result depends on it."""

from pydantic import Field

from ray_reid.recipe.base import Frozen

RESOURCES = frozenset({
    "resources", "stage", "caption_stage", "parse_stage", "num_cpus", "num_gpus", "loader",
    "loader_processes", "max_failures", "checkpoint_batches",
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
    """The local Ray instance; ignored when the job joins a cluster."""

    num_cpus: int | None = Field(None, ge=1)
    """CPUs that Ray may use; null takes all."""
    object_store_mb: int | None = Field(None, ge=80)
    """Shared memory for blocks in MiB; null lets Ray decide."""
