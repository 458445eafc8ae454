"""The recipe's filters as stages of a stream, checked before an actor starts."""

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_reid.generation.filters import FILTERS
from ray_reid.models.pretrained import roles
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.stage import Step


def filter_steps(recipe: Recipe) -> list[Step]:
    """The recipe's filters as stages, each with the model of its role.

    Raises:
        ValueError: If a filter or one of its parameters is unknown.
    """
    steps = []
    for spec in recipe.filters:
        if spec.name not in FILTERS:
            raise ValueError(f"unknown filter {spec.name!r}; choose from {sorted(FILTERS)}")
        kind: Any = FILTERS[spec.name]
        model = getattr(recipe.models, kind.ROLE)
        params = {"model": model, "precision": recipe.models.precision, **spec.params}
        stage.check_params(kind, params)
        _check_types(spec.name, kind, spec.params)
        steps.append(Step(kind, params, spec.stage))
    return steps


def check_filters(recipe: Recipe) -> None:
    """Refuse filters that cannot run, before anything does.

    Raises:
        ValueError: If a filter or one of its parameters is unknown, or a model is not there.
    """
    filter_steps(recipe)
    roles.check(recipe.models, *filter_roles(recipe))


def filter_roles(recipe: Recipe) -> tuple[str, ...]:
    """Roles of the models that the recipe's filters load, without those of unknown filters."""
    kinds: list[Any] = [FILTERS[spec.name] for spec in recipe.filters if spec.name in FILTERS]
    return tuple(dict.fromkeys(kind.ROLE for kind in kinds))


def filter_models(recipe: Recipe) -> list[str]:
    """References of the models that the recipe's filters load."""
    return [getattr(recipe.models, role) for role in filter_roles(recipe)]


def filter_entries(recipe: Recipe) -> tuple[str, ...]:
    """Entries of the recipe that name the models of its filters."""
    return tuple(f"models.{role}" for role in filter_roles(recipe))


def _check_types(name: str, kind: type[Any], params: Mapping[str, Any]) -> None:
    """Compare values with the annotations of a filter's constructor.

    Raises:
        ValueError: Names the first that is of another type.
    """
    for key, value in params.items():
        try:
            TypeAdapter(inspect.signature(kind).parameters[key].annotation).validate_python(value)
        except ValidationError as error:
            rule = error.errors()[0]["msg"]
            raise ValueError(f"filter {name}: {key} is {value!r}: {rule}") from error
