"""Keep images whose ReID feature is that of their identity (Re-ID CTF of Diffusion-ReID)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid import schema
from ray_reid.generation.filters.marking import Verdict, made_rows, marked, pixels_of
from ray_reid.generation.filters.teacher import by_source, teachers_of, thresholds
from ray_reid.ranking.belonging import Against
from ray_reid.schema import Batch


class ReidFilter:
    """Mark images that the teacher of their source does not find similar to their identity."""

    JOB = "teachers"

    def __init__(
        self,
        teachers: str,
        against: Against = "centroid",
        threshold: float | None = None,
        far: float = 0.01,
    ) -> None:
        """Load the teachers once per actor.

        Args:
            teachers: Result of the job `teachers`.
            against: Whether the similarity is that to the centroid of the identity's real training
                images, or to the nearest of them.
            threshold: Least cosine similarity, the same for all sources; null calibrates one for
                each. The paper gives none.
            far: False-match rate that a calibrated threshold is for: the share of the source's own
                images that would pass for an identity which they do not show.

        Raises:
            ValueError: If a source has too few pairs for the rate.
        """
        self.teachers, self.against = teachers_of(teachers), against
        self.thresholds = (
            thresholds(teachers, against, far)
            if threshold is None
            else dict.fromkeys(self.teachers, threshold)
        )

    @staticmethod
    def check_given(
        teachers: str,
        against: Against = "centroid",
        threshold: float | None = None,
        far: float = 0.01,
    ) -> None:
        """Refuse a rate before an actor loads anything; arguments as those of the constructor."""
        if threshold is None:
            thresholds(teachers, against, far)

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Mark a batch.

        Raises:
            ValueError: If no teacher has seen a row's identity.
        """
        rows = made_rows(batch)
        found, least = np.empty(len(rows)), np.empty(len(rows))
        for teacher, places in by_source(self.teachers, batch, rows, "reid"):
            own = [rows[place] for place in places]
            vectors = teacher.model.embed(pixels_of(batch, own))
            names = [batch[schema.IDENTITY][row] for row in own]
            found[places] = teacher.images.own_similarity(vectors, names, self.against)
            least[places] = self.thresholds[teacher.source]
        verdicts = []
        for similarity, threshold in zip(found.tolist(), least.tolist(), strict=True):
            reason = (
                f"reid: similarity {similarity:.3f} to the {self.against} of its identity, below "
                f"{threshold:.3f}"
            )
            verdicts.append(
                Verdict({"reid": similarity}, reason if similarity < threshold else None)
            )
        return marked(batch, rows, verdicts, "reid")
