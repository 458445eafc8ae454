"""Dotted keys of recipes: setting them, and saying in one sentence which one is wrong."""

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ray_reid.recipe.postprocess import Step


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.0.c` in nested mappings and lists; the models check the result."""
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            node = node[_position(key, part, node)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            raise ValueError(f"{'.'.join(parents[:depth])} is a value, so {key!r} cannot be set")
    if isinstance(node, list):
        node[_position(key, last, node)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ValueError(f"{'.'.join(parents)} is a value, so {key!r} cannot be set")


def _position(key: str, part: str, node: list[Any]) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"{part!r} in {key!r} must be a position from 0 to {len(node) - 1}")
    return int(part)


def sentence(error: ValidationError, of: type[BaseModel], within: Sequence[int | str] = ()) -> str:
    """The first broken rule of a model with its key; an unknown key comes with those there are.

    Args:
        error: Of the model's validation.
        of: The model.
        within: Key of the model in the recipe, and its kind; empty for the recipe itself.
    """
    first = error.errors()[0]
    where = first["loc"]
    key = ".".join(map(str, (*within, *where)))
    if first["type"] == "extra_forbidden":
        return f"unknown recipe key {key!r}; choose from {_choices(where, of)}"
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        # What spans sections names its keys itself.
        return f"recipe key {key!r}: {rule}" if key else rule
    return f"recipe key {key!r} is {first['input']!r}: {rule}"


def _choices(where: Sequence[int | str], of: type[BaseModel]) -> list[str]:
    """Names of the fields beside an unknown key."""
    steps = {kind.model_fields["name"].default: kind for kind in get_args(get_args(Step)[0])}
    model = of
    for part in (part for part in where[:-1] if isinstance(part, str)):
        field = model.model_fields.get(part)
        inner: Any = field.annotation if field is not None else steps.get(part)
        # A list of steps has no fields of its own; the name of its kind comes next.
        # A section that may be null is a union with None.
        for kind in (inner, *get_args(inner)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    return sorted(model.model_fields)
