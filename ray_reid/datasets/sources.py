"""Sources: what a recipe says of its data sets, validated by their readers before any job runs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ray_reid.datasets import reading, unread
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.reading import ReaderSource, Reading
from ray_reid.recipe import keys, recipes
from ray_reid.recipe.ingest import SourceSpec
from ray_reid.runtime import arguments

KEY = "ingest.sources"
"""Where a recipe lists its sources."""


def resolve(specs: Sequence[SourceSpec]) -> tuple[ReaderSource, ...]:
    """Validate every source of a recipe by the model of its reader, which fills in its defaults.

    Raises:
        ValueError: If a reader or an option is unknown, or a value breaks a rule; names the key.
    """
    return tuple(_typed(spec, f"{KEY}.{place}") for place, spec in enumerate(specs))


def single(root: Path, reader: str, options: Sequence[str] = ()) -> ReaderSource:
    """Make a source from the name of its reader and `option=value`, as a recipe would.

    Raises:
        ValueError: If the reader or an option is unknown, or a value breaks a rule.
    """
    values: dict[str, Any] = {"reader": reader, "root": str(root)}
    for option in options:
        if "=" not in option:
            raise ValueError(f"--set {option!r} must be option=value")
        ((_, value),) = recipes.assignments([f"{KEY}.0.{option}"])
        values[option.partition("=")[0]] = value
    (source,) = resolve(
        recipes.validate({"name": "one", "ingest": {"sources": [values]}}).ingest.sources
    )
    return source


def read(source: ReaderSource) -> Reading:
    """Read the rows of one source, without decoding an image.

    Raises:
        ValueError: If the source cannot be used.
    """
    layout = READERS[source.reader]
    found = layout.read(source)
    root = folder(source)
    if root is None:
        return found
    more = unread.sentences(root, layout.files(source), layout.whole, layout.aside(source))
    return replace(found, warnings=[*found.warnings, *more])


def recognise(root: Path) -> list[ReaderSource]:
    """Return every layout that a folder has, as a source; else what its names fit, if anything.

    Raises:
        ValueError: If there is no such folder.
    """
    place = reading.folder(str(root))
    with reading.listed_once():
        found = [source for layout in READERS.values() if (source := layout.recognise(place))]
        if found:
            return found
        # The first is the more telling one: folders of splits come before names of any form.
        guesses = (layout.guess(place) for layout in READERS.values())
        return [guess for guess in guesses if guess is not None][:1]


def recognised(root: Path, ways: str) -> ReaderSource:
    """Return the one source that a folder is.

    Args:
        ways: How to say what it is, for the sentence about a folder that is none or several.

    Raises:
        ValueError: If there is no such folder, it has no known layout, or more than one.
    """
    found = recognise(root)
    if len(found) == 1:
        return found[0]
    if found:
        readers = [source.reader for source in found]
        raise ValueError(f"{str(root)!r} looks like each of {readers}; choose one with --reader")
    others = unread.other_formats(reading.folder(str(root)))
    raise ValueError(
        "; ".join([
            f"{str(root)!r} has none of the known layouts", *others,
            f"give --reader, one of {list(READERS)}, or for your own names {ways}",
        ])
    )  # fmt: skip


def told(specs: Sequence[SourceSpec]) -> list[str]:
    """Say of each source of a recipe what it is; equal sources are told alike.

    Roots are absolute, options that have their defaults are left out.
    """
    return [_told(spec) for spec in specs]


def _told(spec: SourceSpec) -> str:
    try:
        (source,) = resolve([spec])
    except ValueError:
        # A run of another release may hold what its reader no longer takes.
        return json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    root = getattr(source, "root", None)
    where = "" if root is None else f" {str(arguments.expanded(root).absolute())!r}"
    return f"{source.reader}{where}{_options(source)}"


def described(source: ReaderSource) -> str:
    """Name the reader of a source and the options that differ from its defaults."""
    return source.reader + _options(source)


def _options(source: ReaderSource) -> str:
    options = source.model_dump(mode="json", exclude_defaults=True, exclude={"reader", "root"})
    # Patterns as they are typed: `repr` would double their backslashes.
    texts = {
        name: f"'{value}'" if isinstance(value, str) else repr(value)
        for name, value in options.items()
    }
    return "".join(f", {name} {text}" for name, text in texts.items())


def files(source: ReaderSource) -> list[Path]:
    """List the files that a reading depends on; drawings depend on none.

    Raises:
        ValueError: If a folder does not exist.
    """
    return READERS[source.reader].files(source)


def folder(source: ReaderSource) -> Path | None:
    """Give the absolute folder of a source's files; None for drawings, which have none.

    Raises:
        ValueError: If there is no such folder.
    """
    root: str | None = getattr(source, "root", None)
    return None if root is None else reading.folder(root)


def _typed(spec: SourceSpec, key: str) -> ReaderSource:
    """Validate one source; `key` is where the recipe has it."""
    layout = READERS.get(spec.reader)
    if layout is None:
        raise ValueError(
            f"recipe key '{key}.reader' is {spec.reader!r}: unknown reader; choose from "
            f"{list(READERS)}"
        )
    try:
        return layout.source.model_validate(spec.model_dump())
    except ValidationError as error:
        raise ValueError(keys.sentence(error, layout.source, (key, spec.reader))) from error
