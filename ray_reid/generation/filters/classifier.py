"""Keep images that a closed-set classifier takes for their identity (CCTF of Diffusion-ReID)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid import schema
from ray_reid.generation.filters.marking import Verdict, made_rows, marked, pixels_of
from ray_reid.generation.filters.teacher import Teacher, by_source, teachers_of
from ray_reid.schema import Batch


class ClassifierFilter:
    """Mark images of which the teacher's classifier is not sure that they show their identity.

    The confidence is the softmax share of the row's identity among all that the teacher of its
    source was trained on.
    """

    JOB = "teachers"

    def __init__(self, teachers: str, threshold: float = 0.5) -> None:
        """Load the teachers once per actor.

        Args:
            teachers: Result of the job `teachers`.
            threshold: Least confidence. The paper gives none: 0.5 asks that the identity is
                likelier than all others together.
        """
        self.teachers, self.threshold = teachers_of(teachers), threshold

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Mark a batch.

        Raises:
            ValueError: If a row's identity is not one of the classifier.
        """
        rows = made_rows(batch)
        sure = np.empty(len(rows))
        for teacher, places in by_source(self.teachers, batch, rows, "classifier"):
            own = [rows[place] for place in places]
            names = [batch[schema.IDENTITY][row] for row in own]
            shares = teacher.model.probabilities(pixels_of(batch, own))
            sure[places] = shares[np.arange(len(own)), _labels(teacher, names)]
        verdicts = []
        for share in map(float, sure):
            reason = f"classifier: {share:.2f} sure of the identity, below {self.threshold:g}"
            verdicts.append(
                Verdict({"classifier": share}, reason if share < self.threshold else None)
            )
        return marked(batch, rows, verdicts, "classifier")


def _labels(teacher: Teacher, names: list[str]) -> list[int]:
    unknown = [name for name in names if name not in teacher.label_of]
    if unknown:
        raise ValueError(
            f"filter classifier: the teacher of {teacher.source!r} has no class of identity "
            f"{unknown[0]!r}; train that teacher here, or leave the filter out"
        )
    return [teacher.label_of[name] for name in names]
