"""Recipes: one YAML file, parsed once into frozen models, so that a typo fails before a GPU starts.

A recipe may hold `profiles`: named sets of dotted overrides (`train.epochs: 12`), the same
mechanism as `--set` on the command line. The resolved recipe is saved with the run.
"""

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml
from pydantic import (
    TypeAdapter,
    ValidationError,
)

from ray_reid.recipe import keys
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.shipped import RECIPES
from ray_reid.recipe.view import RecipeView

SOURCES = "ingest.sources."
"""Begins the keys of a source's options."""
TEXT_ERRORS = ("string_type", "path_type", "literal_error", "invalid-json-value")
"""What pydantic says of a number, or another value, where it wants text."""


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
    return change(values | ({"profile": profile} if profile else {}), overrides)


def change(values: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """Apply `key.path=value` overrides in order to what a recipe holds, and check the result.

    Where a recipe wants text, it gets the text as it was typed: `name=0012` is not 10.

    Raises:
        ValueError: If a key is unknown or a value breaks a rule.
    """
    typed = _assigned(values, assignments(overrides))
    try:
        return Recipe.model_validate(typed)
    except ValidationError as error:
        texts = dict(_split(overrides))
        spelled = _assigned(values, [(key, _spelled(text)) for key, text in texts.items()])
        for rule in error.errors():
            key = ".".join(map(str, rule["loc"]))
            text = texts.get(key, _at(spelled, rule["loc"]))
            if rule["type"] in TEXT_ERRORS and isinstance(text, str):
                keys.assign(typed, key, text)
        return validate(typed)


def assignments(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Read `key.path=value` overrides in order: JSON, YAML of JSON's scalars, else text as typed.

    Raises:
        ValueError: If one is not of that form.
    """
    return [(key, _read(key, text)) for key, text in _split(overrides)]


def _read(key: str, text: str) -> Any:
    """The value of one override.

    Only the reader of a source knows which of its options are text, and it reads numbers and truth
    values from text too: what would be spelled otherwise (`1e3`, `1.50`, `true`) stays as typed.
    """
    value = _parse(text)
    otherwise = isinstance(value, (float, bool)) and str(value) != text
    mapping = isinstance(value, (dict, list)) and not text.startswith(("{", "["))
    return text if key.startswith(SOURCES) and (otherwise or mapping) else value


def _split(overrides: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override!r} is not of the form key.path=value")
        found.append((key, text))
    return found


def _assigned(values: Mapping[str, Any], changes: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    changed = copy.deepcopy(dict(values))
    for key, value in changes:
        keys.assign(changed, key, value)
    return changed


def _at(node: Any, where: Sequence[int | str]) -> Any:
    """What lies at a place in nested values; None if the place names more than keys."""
    for part in where:
        if isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif isinstance(node, dict):
            node = node.get(part)
        else:
            return None
    return node


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


class _ScalarsOfJson(yaml.SafeLoader):
    """YAML 1.1 reads `no` as false, `0012` as 10 and `1:30` as 90; here they are text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


_WHOLE = "-?(?:0|[1-9][0-9]*)"
for _kind, _pattern, _first in (
    ("null", "~|null|", ["~", "n", ""]),
    ("bool", "true|false", ["t", "f"]),
    ("int", _WHOLE, list("-0123456789")),
    ("float", _WHOLE + r"(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?", list("-0123456789")),
):
    _ScalarsOfJson.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _first
    )


def _parse(text: str) -> Any:
    """The value of a text; what is neither JSON nor YAML is text."""
    if text.startswith(("[", "{", '"')):
        try:
            return json.loads(text)
        except ValueError:
            pass
    try:
        value = _ScalarsOfJson(text).get_single_data()
    except yaml.YAMLError:
        return text
    # Otherwise without what looks like a comment, or spaces.
    return text if isinstance(value, str) and not text.startswith(('"', "'")) else value


def _spelled(text: str) -> Any:
    """The same with every scalar as it is spelled."""
    try:
        value = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (list, dict)) else text


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
