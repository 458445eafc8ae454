"""The prompt library of Vehicle-Diff (section III-B): attributes of vehicles to prompts.

One combination of colour, production year, brand, model and body style is one identity.
"""

import csv
import io
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_reid.datasets import reading
from ray_reid.recipe.prompts import Prompts
from ray_reid.recipe.shipped import LIBRARIES
from ray_reid.runtime import arguments

COLUMNS = ("brand", "model", "body_style", "years", "colours")
# In the order in which an identity's name gives them.
ATTRIBUTES = ("colour", "year", "brand", "model", "body_style")
YEAR = re.compile(r"[0-9]{4}")


@dataclass(frozen=True)
class VehicleType:
    """One row of a library: a model, and the years and colours it comes in."""

    brand: str
    model: str
    body_style: str
    years: tuple[int, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Identity:
    """One combination of attributes, and the prompt that asks for it."""

    name: str
    """Slug of the attributes, such as `blue_2017_orvella_pim_hatchback`; differs between any two
    combinations of a library."""
    attributes: Mapping[str, str]
    """The values of `ATTRIBUTES`."""
    prompt: str


def read_library(path: str | Path) -> list[VehicleType]:
    """Read a CSV of vehicles with the columns `COLUMNS`, in any order.

    Args:
        path: A file, or the name of one in jobs/recipes/prompts.

    Raises:
        ValueError: If there is no such file or one of its lines breaks a rule; names the line.
    """
    file = _find(path)
    encoded = file.read_bytes()
    try:
        text = encoded.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = encoded.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file.name}, line {line}: is not UTF-8; save it as UTF-8") from error
    return _vehicles(file.name, text)


def identities(spec: Prompts, seed: int) -> list[Identity]:
    """Choose the combinations to generate, without replacement.

    The order depends on the seed and each combination alone, so the first of a larger number are
    those of a smaller one.

    Raises:
        ValueError: If the library has fewer combinations, or the template cannot be filled or
            gives two of them the same prompt.
    """
    check_template(spec.template)
    found = {slug(values): values for values in _combinations(read_library(spec.library))}
    if spec.num_identities > len(found):
        raise ValueError(
            f"prompts.num_identities {spec.num_identities} is more than the {len(found)} "
            f"combinations of {spec.library!r}; ask for fewer or add rows"
        )
    order = sorted(found, key=lambda name: (reading.share(seed, name), name))
    chosen = [
        Identity(name, found[name], spec.template.format(**found[name]))
        for name in order[: spec.num_identities]
    ]
    _check_prompts_differ(chosen, spec.template)
    return chosen


def check_template(template: str) -> None:
    """Check that a template holds attributes in braces, plain, and nothing else in braces.

    Raises:
        ValueError: Names what is wrong, with the choices.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"prompts.template {template!r} is not a template: {error}") from error
    fields = [(name, form, conversion) for _, name, form, conversion in parts if name is not None]
    for name, form, conversion in fields:
        if name not in ATTRIBUTES:
            raise ValueError(
                f"prompts.template {template!r} has the unknown field {name!r}; choose from "
                f"{list(ATTRIBUTES)}"
            )
        if form or conversion:
            raise ValueError(
                f"prompts.template {template!r} formats the field {name!r}; write {{{name}}} alone"
            )
    if not fields:
        raise ValueError(
            f"prompts.template {template!r} has no field; give at least one of {list(ATTRIBUTES)}"
        )


def slug(attributes: Mapping[str, str]) -> str:
    """Name a combination: its values in lower case, `-` for what is no letter or digit."""
    return "_".join(_plain(attributes[name]) for name in ATTRIBUTES)


def _combinations(vehicles: Iterable[VehicleType]) -> Iterator[dict[str, str]]:
    for vehicle in vehicles:
        for year in vehicle.years:
            for colour in vehicle.colours:
                values = (colour, str(year), vehicle.brand, vehicle.model, vehicle.body_style)
                yield dict(zip(ATTRIBUTES, values, strict=True))


def _check_prompts_differ(chosen: Sequence[Identity], template: str) -> None:
    """Refuse a template that hides what tells two identities apart: both would be one vehicle."""
    seen: dict[str, str] = {}
    for identity in chosen:
        other = seen.setdefault(identity.prompt, identity.name)
        if other != identity.name:
            absent = [name for name in ATTRIBUTES if f"{{{name}}}" not in template]
            raise ValueError(
                f"prompts.template {template!r} gives {other!r} and {identity.name!r} the same "
                f"prompt; add the missing fields {absent}, or leave the difference out of the "
                "library"
            )


def _find(path: str | Path) -> Path:
    places = list(dict.fromkeys([arguments.expanded(path), LIBRARIES / path]))
    for place in places:
        if place.is_file():
            return place
    tried = " and ".join(str(place) for place in places)
    names = sorted(file.name for file in LIBRARIES.glob("*.csv"))
    raise ValueError(
        f"no prompt library {str(path)!r}: looked for {tried}; give a CSV file or choose from "
        f"{names}"
    )


def _vehicles(name: str, text: str) -> list[VehicleType]:
    """All rows of a library; every complaint begins with the file and the line."""
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    vehicles: dict[tuple[str, ...], VehicleType] = {}
    header: list[str] = []
    try:
        for cells in lines:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = _header(cells)
                continue
            vehicle = _vehicle(header, cells)
            key = tuple(map(_plain, (vehicle.brand, vehicle.model, vehicle.body_style)))
            if key in vehicles:
                called = f"{vehicle.brand} {vehicle.model} {vehicle.body_style}"
                raise ValueError(f"{called!r} is there twice; write its years and colours once")
            vehicles[key] = vehicle
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name}, line {lines.line_num}: {error}") from error
    if not vehicles:
        raise ValueError(
            f"{name}, line {lines.line_num}: the file ends without a vehicle; give the columns "
            f"{','.join(COLUMNS)} and at least one row"
        )
    return list(vehicles.values())


def _header(cells: list[str]) -> list[str]:
    for cell in cells:
        if cell not in COLUMNS:
            raise ValueError(f"unknown column {cell!r}; the columns are {','.join(COLUMNS)}")
        if cells.count(cell) > 1:
            raise ValueError(f"column {cell!r} is there twice")
    missing = [column for column in COLUMNS if column not in cells]
    if missing:
        raise ValueError(f"column {missing[0]!r} is missing; the columns are {','.join(COLUMNS)}")
    return cells


def _vehicle(header: Sequence[str], cells: Sequence[str]) -> VehicleType:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells in {len(header)} columns; quote a cell with a comma")
    row = dict(zip(header, cells, strict=True))
    for column, cell in row.items():
        if not cell:
            raise ValueError(f"{column} is empty")
    for column in ("brand", "model", "body_style"):
        if not _plain(row[column]):
            raise ValueError(f"{column} {row[column]!r} has no letter or digit")
    years = _entries("years", row["years"])
    for year in years:
        if not YEAR.fullmatch(year):
            raise ValueError(f"year {year!r} is no number of four digits")
    colours = _entries("colours", row["colours"])
    return VehicleType(
        row["brand"], row["model"], row["body_style"], tuple(map(int, years)), tuple(colours)
    )


def _entries(column: str, cell: str) -> list[str]:
    entries = [entry.strip() for entry in cell.split(";")]
    plain = [_plain(entry) for entry in entries]
    if not any(plain):
        raise ValueError(f"{column} {cell!r} holds none; give at least one, with ; between")
    for entry, name in zip(entries, plain, strict=True):
        if not name:
            raise ValueError(f"{column} {cell!r} has an empty entry; write ; between entries only")
        if plain.count(name) > 1:
            raise ValueError(f"{column} {cell!r} has {entry!r} twice")
    return entries


def _plain(value: str) -> str:
    # No `_` remains, so that the joined names of two combinations differ if the parts do.
    return re.sub(r"[\W_]+", "-", value.casefold()).strip("-")
