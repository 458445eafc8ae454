"""The section `serve`: the HTTP server."""

from pydantic import Field

from ray_reid.recipe.base import Frozen


class Dressers(Frozen):
    """What makes variants of queries for the HTTP server, apart from what searches."""

    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    """Of one replica, which dresses one query at a time."""
    max_queued: int = Field(16, ge=1)
    """Queries that may wait for one; more are refused at once."""
    timeout_s: float = Field(60.0, gt=0)
    """Longest time from asking to the variants of a query."""


class Serve(Frozen):
    """The HTTP server; it changes no result."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    max_upload_mb: float = Field(10.0, gt=0)
    dressers: Dressers | None = Dressers()
    """Of a run with the section `refine`; null serves it without."""
