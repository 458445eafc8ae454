"""Sweep files: which values of a recipe are tried, on which seeds, and what is given up early.

A sweep is known whole before anything runs: drawn values depend on the sweep's own seed and on
their number alone, so that asking for more of them changes none of the earlier ones.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from ray_reid.recipe import recipes
from ray_reid.recipe.base import Frozen
from ray_reid.recipe.returns import Returns
from ray_reid.recipe.shipped import SWEEPS

TABLE, CSV, PICTURE, CURVES = "table.json", "table.csv", "sweep.png", "epochs.png"
"""What a sweep leaves in its folder `tune-NAME` of the run directory."""
Metric = Literal["mAP", "rank-1", "rank-5", "subject-rank-5", "mINP"]


class Draw(Frozen):
    """Where the values of a parameter are drawn from; exactly one of the four."""

    uniform: tuple[float, float] | None = None
    """Lowest and highest value."""
    loguniform: tuple[float, float] | None = None
    """Likewise; equally likely in every factor of ten."""
    integer: tuple[int, int] | None = None
    """Lowest and highest whole number, both of them possible."""
    choice: tuple[Any, ...] | None = None
    """All values, equally likely."""

    @property
    def kind(self) -> str:
        """Which of the four."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one(self) -> "Draw":
        known = list(type(self).model_fields)
        given = [name for name in known if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"values are drawn from {given or 'nothing'}; choose one of {known}")
        values = getattr(self, given[0])
        if given[0] == "choice":
            if len(values) < 2:
                raise ValueError(f"choice {list(values)} must list two or more values")
        elif not values[0] < values[1] or (given[0] == "loguniform" and values[0] <= 0):
            above = " above zero" if given[0] == "loguniform" else ""
            raise ValueError(f"{given[0]} {list(values)} must be a lower and a higher value{above}")
        return self

    def value(self, rng: np.random.Generator) -> Any:
        """Draw once; numbers are rounded to four digits, which a table can show."""
        if self.choice is not None:
            return self.choice[int(rng.integers(len(self.choice)))]
        if self.integer is not None:
            return int(rng.integers(self.integer[0], self.integer[1] + 1))
        if self.uniform is not None:
            return _rounded(rng.uniform(*self.uniform), self.uniform)
        assert self.loguniform is not None, "one of the four is given"
        low, high = np.log(self.loguniform)
        return _rounded(float(np.exp(rng.uniform(low, high))), self.loguniform)


class Scheduler(Frozen):
    """Whether trials that do worse than others are stopped before their last epoch."""

    kind: Literal["none", "asha"] = "none"
    """`asha` is asynchronous successive halving (Li et al., MLSys 2020)."""
    grace: int = Field(1, ge=1)
    """Epochs that every trial may train."""
    reduction: float = Field(3.0, gt=1)
    """Of so many trials one goes on, at `grace` epochs and at every multiple by this number."""


class Sweep(Frozen):
    """One sweep file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Of its folder in the run directory; null takes the name of the file."""
    recipe: str | None
    """Name of a recipe, or a .yaml file; null takes that of the run."""
    profile: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted overrides of the recipe that all trials have in common."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every setting is trained with each of them."""
    seeded: tuple[str, ...] = ()
    """Dotted recipe keys that take the seed too, such as `ingest.sources.0.split_seed` of a set
    whose published figures are means over drawn splits."""
    parameters: dict[str, tuple[Any, ...] | Draw] = Field(default_factory=dict)
    """Dotted recipe key to a list of values, which makes a grid, or to a `Draw`."""
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """In place of parameters: dotted overrides by the name of the arm."""
    returns: Returns | None = None
    """In place of parameters: what a generated image is worth."""
    num_samples: int = Field(1, ge=1)
    """Times that the grid is tried, each time with freshly drawn values."""
    search_seed: int = Field(0, ge=0)
    """Chooses the drawn values."""
    scheduler: Scheduler = Scheduler()
    validation: float = Field(0.0, ge=0, le=0.5)
    """Share of the real training identities that is not trained on, but searched after every
    epoch; settings are then ranked by it and not by the test images. 0 holds out none."""
    tested: str | None = None
    """Name of the source whose test images are scored, and whose identities are held out; null
    takes those of all. Where the settings read unlike sources, it keeps the test the same."""
    metric: Metric = "mAP"
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    """Resources of one trial; as many run at once as fit."""

    @field_validator("scheduler", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("parameters", mode="before")
    @classmethod
    def _lists_or_draws(cls, values: Any) -> Any:
        """Parse here, where the kind of each value tells which rule to explain."""
        return {key: _values(key, value) for key, value in dict(values).items()}

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds {list(seeds)} must be one or more different numbers from 0")
        return seeds

    @model_validator(mode="after")
    def _belong_together(self) -> "Sweep":
        given = [bool(self.parameters), bool(self.arms), self.returns is not None]
        if sum(given) != 1:
            raise ValueError("a sweep has either parameters or arms, or returns, and one of them")
        if self.returns is not None:
            self._compare_to_the_end()
        if self.num_samples > 1 and not self.drawn:
            raise ValueError(
                f"num_samples {self.num_samples} needs a parameter that is drawn; lists and arms "
                "are tried once"
            )
        if self.scheduler.kind == "asha" and not self.validation:
            raise ValueError(
                "scheduler asha needs a validation above 0: trials are judged on training "
                "identities held out, never on the test images"
            )
        return self

    def _compare_to_the_end(self) -> None:
        """Refuse what would leave trainings unlike that are compared query by query."""
        if self.validation:
            raise ValueError(
                f"validation {self.validation:g} holds identities out, but returns ranks nothing; "
                "set it to 0"
            )
        if self.seeded:
            raise ValueError(
                f"seeded {list(self.seeded)} changes what each seed reads, but returns compares "
                "the same queries; leave it out"
            )
        if self.metric != "mAP":
            raise ValueError(f"metric is {self.metric!r}, but returns compares mAP; leave it out")

    @property
    def drawn(self) -> list[str]:
        """The parameters that are drawn."""
        return [key for key, values in self.parameters.items() if isinstance(values, Draw)]


@dataclass(frozen=True)
class Setting:
    """One point of a sweep."""

    name: str
    changes: Mapping[str, Any]
    """Dotted overrides of the sweep's recipe."""


def load(sweep: str) -> Sweep:
    """Read a sweep by its name in jobs/sweeps or by its path.

    Raises:
        ValueError: If there is no such file, or a key or value breaks a rule.
    """
    path = Path(sweep)
    if not path.is_file():
        path = SWEEPS / f"{sweep.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in SWEEPS.glob("*.yaml"))
        raise ValueError(f"unknown sweep {sweep!r}; choose from {names} or give a .yaml file")
    values = recipes.read_yaml(path, "sweep")
    try:
        return Sweep.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise ValueError(f"sweep {path}: {_sentence(error)}") from error


def settings(sweep: Sweep) -> list[Setting]:
    """Every point of a sweep, each once, in the order of the file."""
    if sweep.arms:
        return [Setting(name, dict(changes)) for name, changes in sweep.arms.items()]
    keys = list(sweep.parameters)
    short = _short_names(keys)
    found: dict[str, Setting] = {}
    for number in range(sweep.num_samples):
        columns = [_column(sweep, key, number) for key in keys]
        for values in itertools.product(*columns):
            changes = dict(zip(keys, values, strict=True))
            named = (f"{short[key]}={spell(value)}" for key, value in changes.items())
            # What is drawn twice is tried once.
            found.setdefault(
                json.dumps(changes, sort_keys=True), Setting(", ".join(named), changes)
            )
    return list(found.values())


def spell(value: Any) -> str:
    """A value as tables and pictures show it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _column(sweep: Sweep, key: str, number: int) -> Sequence[Any]:
    values = sweep.parameters[key]
    if not isinstance(values, Draw):
        return values
    # A stream for each key and number: neither moves the others.
    named = hashlib.blake2b(key.encode(), digest_size=8).digest()
    place = [sweep.search_seed, number, int.from_bytes(named, "big")]
    return [values.value(np.random.default_rng(place))]


def _values(key: str, value: Any) -> Any:
    if isinstance(value, list):
        texts = [json.dumps(one, sort_keys=True, default=str) for one in value]
        if not value or len(set(texts)) < len(texts):
            raise ValueError(f"the values of {key!r} must be one or more different ones: {value}")
        return tuple(value)
    if not isinstance(value, dict):
        raise ValueError(
            f"{key!r} is {value!r}; give a list of values, or one of {list(Draw.model_fields)}"
        )
    try:
        return Draw.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"{key!r}: {_rule(error, Draw)}") from error


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of dotted keys, as few as tell them apart."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [other for other in keys if other != key]
        short[key] = next(
            (end for end in ends if not any(f".{o}".endswith(f".{end}") for o in others)), key
        )
    return short


def _rounded(value: float, bounds: tuple[float, float]) -> float:
    return min(max(float(f"{value:.4g}"), bounds[0]), bounds[1])


def _sentence(error: ValidationError) -> str:
    return _rule(error, Sweep)


def _rule(error: ValidationError, model: type[Frozen]) -> str:
    """The first broken rule; an unknown key comes with those there are."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        inner: dict[Any, type[Frozen]] = {"scheduler": Scheduler, "returns": Returns}
        owner = inner.get(first["loc"][0], model) if len(first["loc"]) > 1 else model
        return f"unknown key {key!r}; choose from {sorted(owner.model_fields)}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return rule
    return f"{key!r} is {first['input']!r}: {rule}"
