"""What a job says of itself: a frozen model, kept in its manifest and logged to MLflow.

A job has its own model beside its function. Only what rooms read that do not import each other
stands here.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from ray_reid.recipe.base import Frozen
from ray_reid.storage import Fingerprint


class Facts(Frozen):
    """What every job may say; a job that says more has a model of its own beside its function."""

    params: dict[str, str | float | bool | None] = Field(default_factory=dict)
    """Logged as parameters."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Logged as figures."""
    history: tuple[dict[str, float], ...] = ()
    """Figures of each epoch, whose number is the entry `epoch`."""
    pictures: dict[str, str] = Field(default_factory=dict)
    """File names of pictures in the job's directory, and their captions."""
    model: str | None = None
    """Directory of a model package in the job's directory, to be registered."""
    fingerprint: Fingerprint | None = None
    """Of the table that the job publishes."""
    shared: tuple[str, ...] = ()
    """Tables in the run's folder `trials/references` that the result was made with."""


Kind = TypeVar("Kind", bound=Facts)


def parse(job: str, values: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """Read the facts in a manifest.

    Raises:
        ValueError: If another version of the package wrote them.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        rule = error.errors()[0]
        where = ".".join(map(str, rule["loc"]))
        raise ValueError(
            f"the manifest of job {job!r} is of another version: {where!r}: {rule['msg']}; run the "
            "job again"
        ) from error


class Cost(Frozen):
    """What a stream of stages took for its rows, in the attempt that finished it."""

    rows: int = Field(ge=1)
    """Done in this attempt; a resumed one finds the others done."""
    seconds: float = Field(ge=0)
    """From the start of the actors to the last row written."""
    device: Literal["GPU", "CPU"]
    devices: float = Field(ge=0)
    """GPUs that all actors held; where they held none, CPUs of the whole cluster."""

    def hours(self, rows: int) -> float:
        """Return the device-hours of so many rows."""
        return rows * self.seconds * self.devices / self.rows / 3600


VARIANTS = "variants"
"""The job that makes queries in other clothes, and the table of their embeddings."""


class VariantCounts(Frozen):
    """How many queries have variants."""

    queries: int = 0
    with_variants: int = 0
    made: int = 0
    """Images."""
    without: dict[str, int] = Field(default_factory=dict)
    """Queries that nobody could dress, by reason."""


class VariantsFacts(Facts):
    """What the job says that makes the variants."""

    generator: str | None = None
    counts: VariantCounts = VariantCounts()
    num_variants: int = 0
    """Of one query."""
    seconds_per_query: float | None = None
    """Of one actor."""
