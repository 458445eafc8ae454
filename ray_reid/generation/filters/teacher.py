"""The teachers of the source data sets, as the filters `reid` and `classifier` ask them."""

from collections.abc import Iterator, Mapping, Sequence

from ray_reid import places, schema
from ray_reid.generation.teaching import read_false_matches, read_features, sources_of
from ray_reid.places import Place
from ray_reid.ranking.belonging import Against, Identities
from ray_reid.schema import Batch


class Teacher:
    """The ReID model of one source, and what it makes of the source's training images."""

    def __init__(self, source: str, folder: Place) -> None:
        """Load the folder of a source in the result of the job `teachers`."""
        from ray_reid.models import package

        self.source = source
        self.model = package.load(folder)
        self.label_of = {name: label for label, name in enumerate(self.model.identities)}
        rows, embedding = read_features(folder)
        self.images = Identities(embedding, rows[schema.IDENTITY].to_pylist())


def thresholds(result: str, against: Against, far: float) -> dict[str, float]:
    """Return the similarity that a share of impostor pairs lies above, by source.

    Raises:
        ValueError: If a source has too few pairs for the rate.
    """
    found = {}
    for source, folder in sources_of(places.place(result)).items():
        try:
            found[source] = read_false_matches(folder)[against].threshold(far)
        except ValueError as error:
            raise ValueError(f"filter reid, source {source!r}: {error}") from error
    return found


def teachers_of(result: str) -> dict[str, Teacher]:
    """Load every teacher in the result of the job `teachers`, by source."""
    found = sources_of(places.place(result))
    return {source: Teacher(source, folder) for source, folder in found.items()}


def by_source(
    teachers: Mapping[str, Teacher], batch: Batch, rows: Sequence[int], name: str
) -> Iterator[tuple[Teacher, list[int]]]:
    """Give each teacher, and the positions in `rows` of the images of its identities.

    Raises:
        ValueError: If no teacher has seen an identity.
    """
    owner = {identity: source for source, one in teachers.items() for identity in one.images.names}
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        identity = batch[schema.IDENTITY][row]
        if identity not in owner:
            raise ValueError(
                f"filter {name}: no teacher has seen the identity {identity!r}; there are those of "
                f"{sorted(teachers)}, each of the train images of its source"
            )
        groups.setdefault(owner[identity], []).append(place)
    for source, positions in sorted(groups.items()):
        yield teachers[source], positions
