"""Validation while training: a search among training identities that the training does without.

What is chosen by it has not seen the test images: neither the epoch whose weights are kept, nor
the trials that a sweep stops early or ranks.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import places, schema, storage
from ray_reid.datasets import splits
from ray_reid.places import Place
from ray_reid.ranking import scoring
from ray_reid.ranking.scoring import Side
from ray_reid.recipe.evaluate import Evaluate
from ray_reid.recipe.recipe import Recipe

if TYPE_CHECKING:
    from ray_reid.models.package import Model
    from ray_reid.training.fit import Fit

# Every training holds out the same ones, so that all can be compared.
SEED = 0
COLUMNS = (*scoring.COLUMNS, schema.VIEW, schema.ORIGIN)
NOTED = ("mAP", "rank-1")
"""What an epoch's entry of a history holds of them, with the prefix."""
PREFIX = "validation_"
DECIDING = f"{PREFIX}mAP"


class Validation:
    """Held-out identities of a table as queries and gallery."""

    def __init__(self, table: str | Place, held_out: Collection[str], spec: Evaluate) -> None:
        """Read which real images of `held_out` ask and which answer.

        Raises:
            ValueError: If no query has a true match.
        """
        self.held_out = frozenset(held_out)
        # Every trainable row, because these are what the trainings' row caches number.
        found = storage.read(table, COLUMNS, storage.TRAINABLE)
        wanted = pc.and_(
            pc.is_in(found[schema.IDENTITY], value_set=pa.array(sorted(held_out), pa.string())),
            pc.equal(found[schema.ORIGIN], "real"),
        )
        self._numbers = np.flatnonzero(wanted.to_numpy()).tolist()
        self._rows = _split(found.filter(wanted))
        # The rule that any set of identities can answer, and the embeddings as they are.
        plain = {
            "protocol": "market",
            "both_directions": False,
            "by_source": False,
            "postprocess": (),
        }
        self._spec = spec.model_copy(update=plain)
        self._table = table
        self._score(np.zeros((len(self._numbers), 1), np.float32))

    def counts(self) -> dict[str, int]:
        """How many identities and images are held out."""
        return {"identities": len(self.held_out), "images": len(self._numbers)}

    def follow(self, fit: "Fit") -> dict[str, float]:
        """Search with the network of a training that has just ended an epoch; it goes on the same.

        Returns:
            All metrics; `NOTED` are added to the epoch's entry of the history too.
        """
        from ray_reid.models import package

        identities = fit.rows.chosen.identities
        # A network of its own: the training's keeps its mode, and the random numbers of a batch
        # are seeded by its place.
        model = package.unsaved(fit.recipe, identities, fit.network.state_dict(), str(fit.device))
        asked = fit.recipe.embed
        found = self.score(model, asked.flip, asked.scales)
        fit.progress.history[-1] |= {f"{PREFIX}{name}": found[name] for name in NOTED}
        return found

    def score(
        self, model: "Model", flip: bool | None = None, scales: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Metrics of the images as a model sees them; null views are those of its recipe."""
        from ray_reid.training import loader

        cache = storage.RowCache(self._table, places.node_cache(), loader.TRAINABLE)
        names = (schema.SOURCE, schema.CAMERA, schema.VIEW)
        source, camera, view = (self._rows[name].to_pylist() for name in names)
        sides = schema.qualified_cameras(source, camera), view
        return self._score(
            model.embed(
                [cache.image(row) for row in self._numbers], flip, scales=scales, sides=sides
            )
        )

    def _score(self, vectors: NDArray[np.float32]) -> dict[str, float]:
        query, gallery = sides(self._rows, vectors)
        return scoring.flatten(scoring.score(query, gallery, schema.EMBEDDING, self._spec))


def of_recipe(recipe: Recipe, tables: Sequence[Place]) -> Validation | None:
    """The search that `train.validation` asks for; none where it is 0.

    The identities are of the sources that the last stage trains on, and of the first table.

    Raises:
        ValueError: If they are too few, or could not be searched.
    """
    from ray_reid.training import loader

    share, spec = recipe.train.validation, recipe.train.trainings()[-1][1]
    if not share:
        return None
    # Whatever is wrong with the sources is said of them, not of too few identities.
    loader.labels(tables, spec)
    try:
        found = held_out(tables[0], share, spec.sources)
        return Validation(tables[0], found, recipe.evaluate)
    except ValueError as error:
        raise ValueError(
            f"train.validation {share:g} of the real training identities cannot be held out and "
            f"searched: {error}"
        ) from error


def left_out(recipe: Recipe, tables: Sequence[Place]) -> frozenset[str]:
    """The identities that `train.validation` holds out of every stage.

    Raises:
        ValueError: If they are too few, or could not be searched.
    """
    search = of_recipe(recipe, tables)
    return search.held_out if search else frozenset()


def held_out(table: str | Place, share: float, sources: Collection[str] = ()) -> frozenset[str]:
    """Choose a share of the real training identities; those added later move no other.

    Args:
        sources: Names of the sources that they are from; empty takes all.

    Raises:
        ValueError: If there are fewer than four.
    """
    where = storage.REAL & pc.field(schema.SOURCE).isin(list(sources)) if sources else storage.REAL
    names = storage.read(table, [schema.IDENTITY], where)[schema.IDENTITY].unique().to_pylist()
    return frozenset(splits.held_out(set(names), share, SEED))


def kept(history: Sequence[Mapping[str, float]], keep: str) -> int:
    """Place in a history of the epoch whose weights are kept: `keep` of a recipe.

    The best has the highest mAP of the validation, the earliest of equal ones; without a
    validation the last is kept.
    """
    if keep == "last" or DECIDING not in history[-1]:
        return len(history) - 1
    return max(range(len(history)), key=lambda place: history[place][DECIDING])


def note(history: Sequence[Mapping[str, float]]) -> str:
    """What a progress bar says of the last epoch; nothing without a validation."""
    if not history or DECIDING not in history[-1]:
        return ""
    return f"validation mAP {100 * history[-1][DECIDING]:.1f} %"


def sides(
    rows: pa.Table,
    vectors: NDArray[np.float32],
    others: Mapping[str, NDArray[np.float32]] | None = None,
) -> tuple[Side, Side]:
    """Queries and gallery of rows that carry a split, with their embeddings and `others` by column.

    Raises:
        ValueError: If one of them is empty.
    """
    # The floor without learning belongs to the images and is the same for every training.
    nothing = np.zeros((len(rows), 1), np.float32)
    columns = {schema.EMBEDDING: vectors, schema.REFERENCE_EMBEDDING: nothing, **(others or {})}
    for name, values in columns.items():
        rows = rows.append_column(name, schema.to_table({name: values})[name])
    return scoring.read_sides(rows)


def _split(rows: pa.Table) -> pa.Table:
    """Of each identity the first image of every other camera asks; the rest answers."""
    names = (schema.IDENTITY, schema.CAMERA, schema.OBSERVATION_ID)
    columns = [rows[name].to_pylist() for name in names]
    seen: dict[str, list[str | None]] = {}
    queries = set()
    for row in sorted(range(len(rows)), key=lambda row: [str(column[row]) for column in columns]):
        cameras = seen.setdefault(columns[0][row], [])
        if columns[1][row] not in cameras:
            cameras.append(columns[1][row])
            if len(cameras) % 2:
                queries.add(row)
    split = ["query" if row in queries else "gallery" for row in range(len(rows))]
    place = rows.schema.get_field_index(schema.SPLIT)
    return rows.set_column(place, rows.schema.field(schema.SPLIT), pa.array(split, pa.string()))
