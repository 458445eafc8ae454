"""The recipe's filters as stages of a stream, checked before an actor starts."""

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_reid.generation.filters import FILTERS
from ray_reid.models.pretrained import roles
from ray_reid.places import Place
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.stage import Step

NO_INPUTS: Mapping[str, Place] = MappingProxyType({})


def filter_steps(recipe: Recipe, inputs: Mapping[str, Place] = NO_INPUTS) -> list[Step]:
    """The recipe's filters as stages, each with the model of its role or the result of its job.

    Args:
        recipe: Its filters and its models are read.
        inputs: Results of other jobs by name, of which filters may need some.

    Raises:
        ValueError: If a filter or one of its parameters is unknown, or its job is not there.
    """
    steps = []
    for spec in recipe.filters:
        if spec.name not in FILTERS:
            raise ValueError(f"unknown filter {spec.name!r}; choose from {sorted(FILTERS)}")
        kind = FILTERS[spec.name]
        params = {**_given(recipe, spec.name, inputs), **spec.params}
        stage.check_params(kind, params)
        _check_types(spec.name, kind, spec.params)
        steps.append(Step(kind, params, spec.stage))
    return steps


def check_filters(recipe: Recipe, jobs: Collection[str] = ()) -> None:
    """Refuse filters that cannot run, before anything does.

    Args:
        recipe: Its filters and its models are read.
        jobs: Names of the jobs whose results the filters will be given.

    Raises:
        ValueError: If a filter or one of its parameters is unknown, or its job or a model is not
            there.
    """
    filter_steps(recipe, {job: Path(job) for job in jobs})
    roles.check(recipe.models, *filter_roles(recipe))


def check_given(recipe: Recipe, inputs: Mapping[str, Place]) -> None:
    """Refuse filters that cannot do what they are asked with what other jobs made, at once.

    Raises:
        ValueError: If a filter says so.
    """
    for step, spec in zip(filter_steps(recipe, inputs), recipe.filters, strict=True):
        kind: Any = FILTERS[spec.name]
        if hasattr(kind, "check_given"):
            kind.check_given(**step.params)


def filter_roles(recipe: Recipe) -> tuple[str, ...]:
    """Roles of the models that the recipe's filters load, without those of unknown filters."""
    kinds: list[Any] = [FILTERS[spec.name] for spec in recipe.filters if spec.name in FILTERS]
    return tuple(dict.fromkeys(kind.ROLE for kind in kinds if hasattr(kind, "ROLE")))


def filter_jobs(recipe: Recipe) -> tuple[str, ...]:
    """Jobs whose results the recipe's filters need, without those of unknown filters."""
    kinds: list[Any] = [FILTERS[spec.name] for spec in recipe.filters if spec.name in FILTERS]
    return tuple(dict.fromkeys(kind.JOB for kind in kinds if hasattr(kind, "JOB")))


def filter_models(recipe: Recipe) -> list[str]:
    """References of the models that the recipe's filters load."""
    return [getattr(recipe.models, role) for role in filter_roles(recipe)]


def filter_entries(recipe: Recipe) -> tuple[str, ...]:
    """Entries of the recipe that name the models of its filters."""
    return tuple(f"models.{role}" for role in filter_roles(recipe))


def _given(recipe: Recipe, name: str, inputs: Mapping[str, Place]) -> dict[str, Any]:
    """What a filter is given beside its parameters: `ROLE` names a model, `JOB` a job's result."""
    kind: Any = FILTERS[name]
    given: dict[str, Any] = {}
    if hasattr(kind, "ROLE"):
        given = {"model": getattr(recipe.models, kind.ROLE), "precision": recipe.models.precision}
    if hasattr(kind, "JOB"):
        if kind.JOB not in inputs:
            raise ValueError(
                f"filter {name!r} asks the models of the job {kind.JOB!r}, which this recipe has "
                "not; leave the filter out, or take the recipe 'diffusion_reid'"
            )
        given[kind.JOB] = str(inputs[kind.JOB].resolve())
    return given


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
