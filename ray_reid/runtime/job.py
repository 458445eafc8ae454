"""A job: the function that does the work, and all that a run must know to do it once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.view import restrict
from ray_reid.runtime.facts import Facts, parse
from ray_reid.runtime.sections import Section

Kind = TypeVar("Kind", bound=Facts)


@dataclass(frozen=True)
class Work:
    """What a job is given: the recipe, its inputs, and a directory of its own to fill."""

    recipe: Recipe
    """Raises `UndeclaredError` where a job reads what it has not declared."""
    out: Place
    """Its own result until that is complete; holds what an earlier, killed attempt left."""
    inputs: Mapping[str, Place]
    """Result of each job it needs."""
    facts: Mapping[str, Mapping[str, Any]]
    """What those jobs said of themselves, as their manifests hold it; see `facts_of`."""
    trials: Place | None = None
    """Where the run keeps finished trials by their content; null keeps them in `out`."""

    def facts_of(self, job: str, kind: type[Kind]) -> Kind:
        """Return what a job that this one needs said of itself."""
        return parse(job, self.facts[job], kind)


@dataclass(frozen=True)
class Job:
    """One step of a pipeline."""

    name: str
    work: Callable[[Work], Facts]
    needs: tuple[str, ...] = ()
    unread: Callable[[Recipe], frozenset[str]] | None = None
    """Returns the jobs in `needs` whose results the job does not read under a recipe."""
    sections: tuple[str, ...] = ()
    """What of the recipe it reads: sections, or single entries (`generate.steps`). It sees nothing
    else, and its key hashes all of it."""
    also: Callable[[Recipe], tuple[str, ...]] | None = None
    """What it reads besides, where the recipe asks for it."""
    covered: tuple[str, ...] = ()
    """What it may read because `outside` hashes all that this does to its result."""
    check: Callable[[Recipe], None] | None = None
    """Refuses an impossible recipe before any job of the pipeline runs."""
    outside: Callable[[Recipe], str] | None = None
    """Fingerprint of what it reads that no job made."""
    format: int = 1
    """Raised when its results change though the recipe and the inputs do not: part of the key."""
    scratch: tuple[str, ...] = ()
    """Entries of `out` that only a resumed attempt needs; no part of the result."""
    uses_ray: bool = True
    facts: type[Facts] = Facts
    """Model of what it says of itself."""
    report: Callable[[Any], Section] | None = None
    """What its facts contribute to the report."""

    def inputs(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the jobs whose results it reads under a recipe."""
        unread = frozenset[str]() if self.unread is None else self.unread(recipe)
        return tuple(name for name in self.needs if name not in unread)

    def declared(self, recipe: Recipe) -> tuple[str, ...]:
        """Return what of a recipe its key hashes."""
        return (*self.sections, *(() if self.also is None else self.also(recipe)))

    def view(self, recipe: Recipe) -> Recipe:
        """Return what it may read of a recipe; anything else raises `UndeclaredError`."""
        readable = (*self.declared(recipe), *self.covered)
        return restrict(recipe, readable, f"job {self.name!r}")
