"""A recipe of which only declared sections can be read, so that no result rests on the others."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.resources import RESOURCES


class UndeclaredError(RuntimeError):
    """A job has read a part of the recipe that its key does not hash: a mistake in the job."""


def restrict(recipe: Recipe, sections: Iterable[str], reader: str) -> Recipe:
    """Return a recipe that raises `UndeclaredError` where anything else is read.

    Args:
        recipe: All of it, or a view, which then shows what both allow.
        sections: What may be read: sections (`train`) or single entries (`generate.steps`).
            Entries that are resources may be read wherever an entry beside them may.
        reader: Who reads, for the message.
    """
    # It has every attribute of a recipe and raises where a recipe would answer.
    names = frozenset(sections)
    if isinstance(recipe, RecipeView):
        return cast(Recipe, recipe.narrowed(names, reader))
    return cast(Recipe, RecipeView(recipe, names, reader))


class RecipeView:
    """A model of the recipe, whole or a section, of which some entries can be read."""

    __slots__ = ("_model", "_names", "_place", "_reader")

    def __init__(self, model: Frozen, names: frozenset[str], reader: str, place: str = "") -> None:
        """Guard a model.

        Args:
            model: What is read.
            names: Dotted names of its entries that may be read.
            reader: Who reads.
            place: Dotted name of the model in the recipe, with a dot at its end.
        """
        self._model, self._names, self._reader, self._place = model, names, reader, place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            # Before it is unpickled, not even its own slots are there.
            raise AttributeError(name)
        if name not in type(self._model).model_fields:
            raise AttributeError(f"'{self._place}{name}' is no entry of the recipe")
        value = getattr(self._model, name)
        if name in self._names or name in RESOURCES:
            return value
        inner = _inside(self._names, name)
        # Of a list, single positions cannot be shown.
        if not inner or not (value is None or isinstance(value, Frozen)):
            raise UndeclaredError(
                f"{self._reader} reads '{self._place}{name}' of the recipe without declaring it; "
                f"it declares {sorted(self._place + known for known in self._names)}: add it to "
                "the sections of the job, because its key must change with all that it reads"
            )
        # Of a section that is null, so is every entry.
        return (
            value
            if value is None
            else RecipeView(value, inner, self._reader, f"{self._place}{name}.")
        )

    def model_copy(self, *, update: Mapping[str, Any]) -> "RecipeView":
        """Replace some entries; what is set here may be read here."""
        names = self._names | update.keys()
        return RecipeView(self._model.model_copy(update=update), names, self._reader, self._place)

    def model_dump(self, *, mode: str = "python", exclude: Iterable[str] = ()) -> dict[str, Any]:
        """Return the entries that may be read, resources among them."""
        left_out = set(exclude)
        values: dict[str, Any] = {}
        for name, value in self._model.model_dump(mode=mode).items():
            if name in left_out:
                continue
            if name in self._names or name in RESOURCES:
                values[name] = value
            elif inner := _inside(self._names, name):
                section = getattr(self._model, name)
                if section is None:
                    values[name] = None
                elif isinstance(section, Frozen):
                    values[name] = RecipeView(section, inner, self._reader).model_dump(mode=mode)
        return values

    def over(self, model: Frozen, set_here: Iterable[str]) -> "RecipeView":
        """Return the same view of another recipe, in which some entries have been set."""
        return RecipeView(model, self._names.union(set_here), self._reader, self._place)

    def narrowed(self, names: frozenset[str], reader: str) -> "RecipeView":
        """Return a view for another reader that shows what both may read."""
        shown = _covered(names, self._names) | _covered(self._names, names)
        return RecipeView(self._model, shown, reader, self._place)

    def whole(self) -> Frozen:
        """Return the guarded model, to make another of it; reading it is what the view prevents."""
        return self._model


def _covered(names: frozenset[str], by: frozenset[str]) -> frozenset[str]:
    """Return the names that are among others or lie in one of them."""
    return frozenset(
        name for name in names if any(name == one or name.startswith(f"{one}.") for one in by)
    )


def _inside(names: Iterable[str], section: str) -> frozenset[str]:
    """Return the names that lie in a section, without its own."""
    start = f"{section}."
    return frozenset(name.removeprefix(start) for name in names if name.startswith(start))
