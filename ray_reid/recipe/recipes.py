"""Recipes: one YAML file, parsed once into frozen models, so that a typo fails before a GPU starts.

A recipe may hold `profiles`: named sets of dotted overrides (`train.epochs: 12`), the same
mechanism as `--set` on the command line. The resolved recipe is saved with the run.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import (
    TypeAdapter,
    ValidationError,
)

from ray_reid.recipe import keys
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.shipped import RECIPES
from ray_reid.recipe.view import RecipeView


def load(recipe: str, profile: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, apply a profile, then `key.path=value` overrides in order.

    Raises:
        ValueError: If the recipe, the profile or a key is unknown, or a value breaks a rule.
    """
    values = _find(recipe)
    profiles = _profiles(recipe, values.pop("profiles", {}))
    if profile is None:
        profile = next(iter(profiles), None)
    elif profile not in profiles:
        raise ValueError(f"unknown profile {profile!r} of {recipe!r}; choose from {list(profiles)}")
    for key, value in (profiles.get(profile or "") or {}).items():
        keys.assign(values, key, value)
    for key, value in assignments(overrides):
        keys.assign(values, key, value)
    return validate(values | ({"profile": profile} if profile else {}))


def assignments(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Read `key.path=value` overrides in order, the values as YAML.

    Raises:
        ValueError: If one is not of that form.
    """
    found = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override!r} is not of the form key.path=value")
        found.append((key, _parse(key, text)))
    return found


def validate(values: Mapping[str, Any]) -> Recipe:
    """Check a resolved recipe; the first broken rule is the message.

    Raises:
        ValueError: Names the key, the value, the rule and, for an unknown key, the choices.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ValueError(keys.sentence(error, Recipe)) from error


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Change a resolved recipe by dotted keys, as a profile changes the one in a file.

    Raises:
        ValueError: If a key is unknown or a value breaks a rule.
    """
    values = (recipe.whole() if isinstance(recipe, RecipeView) else recipe).model_dump(mode="json")
    for key, value in changes.items():
        keys.assign(values, key, value)
    changed = validate(values)
    # What a job makes of its view shows no more than the view does, and what is set here.
    return (
        cast(Recipe, recipe.over(changed, changes)) if isinstance(recipe, RecipeView) else changed
    )


def dump(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML; loading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)


def _profiles(recipe: str, profiles: Any) -> dict[str, dict[str, Any] | None]:
    try:
        return TypeAdapter(dict[str, dict[str, Any] | None]).validate_python(profiles or {})
    except ValidationError as error:
        rule = f"profiles of {recipe!r} must map names to overrides like train.epochs: 3"
        raise ValueError(rule) from error


def _find(recipe: str) -> dict[str, Any]:
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise ValueError(f"unknown recipe {recipe!r}; choose from {names} or give a .yaml file")
    return read_yaml(path)


def read_yaml(path: Path, kind: str = "recipe") -> dict[str, Any]:
    """Read a recipe file as it is written, or a file of another `kind`.

    Raises:
        ValueError: If it is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{kind} {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{kind} {path} must be a mapping of sections, not {type(values).__name__}"
        )
    return values


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {key}: {text!r} is not a YAML value") from error


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Spell nested values by dotted names, as `--set` takes them; a list of scalars is one."""
    items: Iterable[tuple[str, Any]]
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list) and any(isinstance(value, (dict, list)) for value in values):
        items = ((str(position), value) for position, value in enumerate(values))
    else:
        return {prefix: str(values)}
    flat: dict[str, str] = {}
    for name, value in items:
        flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat
