"""The section `teachers`: the ReID models by which generated images are filtered and judged."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.train import Train

ONE_TRAINING: dict[str, Any] = {
    "stages": (), "sources": (), "target": "identity", "mixing": "real", "validation": 0.0,
    "num_workers": 1, "loader": "local", "labels": "given", "start": None,
}  # fmt: skip
"""What a teacher's training cannot change: it is one training of one source in one process."""


class Teachers(Frozen):
    """One ReID model of each source data set (Diffusion-ReID, section 3.2)."""

    packages: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Model packages to take as teachers, by the name of their source; the teachers of all other
    sources are trained here."""
    train: Train = Train()
    """Training of a teacher on the train split of its source."""
    judge: Literal["halves"] | Annotated[str, Field(min_length=1)] | None = "halves"
    """Models that have seen no image of an identity that they judge, for the figure "identity
    kept" of the review. `halves` trains two more models of each source, each on half of its
    identities; a package must be trained on other sources; null measures nothing."""
    judged_images: int = Field(2000, ge=1)
    """Generated images, kept and dropped ones each, and real ones that are searched by them."""
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    """Resources of one training; trainings run side by side."""

    @model_validator(mode="after")
    def _is_one_training(self) -> "Teachers":
        for name, value in ONE_TRAINING.items():
            if getattr(self.train, name) != value:
                raise ValueError(
                    f"teachers.train.{name} is {getattr(self.train, name)!r}, but a teacher is "
                    f"trained at once, in one process, on labelled images of its source; it must "
                    f"be {value!r}"
                )
        return self
