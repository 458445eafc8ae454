"""docs/fidelity.md against the recipes: the page says what a published profile really holds."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ray_reid.recipe import recipes
from ray_reid.recipe.shipped import RECIPES, SWEEPS

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
# How a machine is used, which no paper decides.
RESOURCES = (
    "stage", "num_cpus", "num_gpus", "num_workers", "use_gpu", "cpus_per_worker",
    "loader_processes", "dressers",
)  # fmt: skip
HEADING = re.compile(r"### .*: `(\w+)`, `(\w+)`$")


class Row(NamedTuple):
    """A row of a table of values."""

    recipe: str
    profile: str
    what: str
    paper: str
    ours: str
    why: str
    where: str

    @property
    def key(self) -> str | None:
        """The key of the recipe that holds the value, where it is one."""
        match = re.fullmatch(r"`([a-z_]+(\.\w+)*)`", self.where)
        return match[1] if match and "/" not in self.where and hasattr_key(match[1]) else None

    @property
    def value(self) -> str | None:
        """What the recipe holds, where the page gives it as it is written in YAML."""
        match = re.fullmatch(r"`(.+)`", self.ours)
        return match[1] if match else None


def hasattr_key(key: str) -> bool:
    """Whether a dotted name begins with a section of a recipe."""
    return key.split(".")[0] in recipes.Recipe.model_fields


def rows() -> list[Row]:
    """The rows of all tables of values."""
    found: list[Row] = []
    place: tuple[str, str] | None = None
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            match = HEADING.match(line)
            place = (match[1], match[2]) if match else None
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if place and cells and cells[0] != "what" and not set(cells[0]) <= {"-"}:
            found.append(Row(*place, *cells))
    return found


ROWS = rows()
PROFILES = sorted({(row.recipe, row.profile) for row in ROWS})


def written(recipe: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A recipe's file: what stands outside the profiles, and the profiles."""
    whole = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    return whole, whole.pop("profiles")


def leaf(values: Any, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


def holds(said: Any, held: Any) -> bool:
    """Whether the recipe holds what the page says; of a section, the page may name a part."""
    if isinstance(said, dict) and isinstance(held, dict):
        return all(name in held and holds(said[name], held[name]) for name in said) and (
            bool(said) or not held
        )
    if isinstance(said, list) and isinstance(held, list):
        return len(said) == len(held) and all(map(holds, said, held))
    return bool(said == held)


@pytest.mark.parametrize(("recipe", "profile"), PROFILES)
def test_values_of_the_page_are_those_of_the_recipe(recipe: str, profile: str) -> None:
    values = recipes.load(recipe, profile).model_dump(mode="json")
    told = {
        row.key: row.value
        for row in ROWS
        if (row.recipe, row.profile) == (recipe, profile) and row.key and row.value
    }
    wrong = {
        key: (said, leaf(values, key))
        for key, said in told.items()
        if not holds(yaml.safe_load(said), leaf(values, key))
    }
    assert told
    assert not wrong


def test_a_value_that_is_not_the_papers_says_why() -> None:
    assert [row for row in ROWS if not row.why and row.paper != row.ours and row.value] == []


@pytest.mark.parametrize(("recipe", "profile"), PROFILES)
def test_every_value_that_a_published_profile_sets_stands_on_the_page(
    recipe: str, profile: str
) -> None:
    whole, profiles = written(recipe)
    stated = profiles[profile]
    if profile == "paper":
        stated = whole | stated
    else:
        stated = {
            key: value for key, value in stated.items() if profiles["paper"].get(key) != value
        }
    keys = [row.key for row in ROWS if (row.recipe, row.profile) == (recipe, profile) and row.key]
    missing = [
        key
        for key in recipes.flatten(stated)
        if key not in ("name", "seed")
        and not any(part.endswith(RESOURCES) for part in key.split("."))
        and not any(f"{key}.".startswith(f"{told}.") for told in keys)
    ]
    assert missing == []


def test_every_published_profile_and_every_sweep_stands_on_the_page() -> None:
    published = {
        (file.stem, name)
        for file in RECIPES.glob("*.yaml")
        for name, profile in written(file.stem)[1].items()
        if (profile or {}).get("train.use_gpu")
    }
    assert published == set(PROFILES)
    named = set(re.findall(r"`tune (\w+)`", PAGE.read_text()))
    assert named == {file.stem for file in SWEEPS.glob("*.yaml")}


def test_every_file_that_the_page_names_is_there() -> None:
    files = [row.where.strip("`") for row in ROWS if "/" in row.where]
    assert files
    assert [name for name in files if not (PAGE.parents[1] / name).is_file()] == []
