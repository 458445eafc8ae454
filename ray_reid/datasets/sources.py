"""Sources: what a recipe says of its data sets, validated by their readers before any job runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ray_reid.datasets import reading
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.reading import ReaderSource, Reading
from ray_reid.recipe import keys, recipes
from ray_reid.recipe.ingest import SourceSpec

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
        values |= recipes.assignments([option])
    (source,) = resolve(
        recipes.validate({"name": "one", "ingest": {"sources": [values]}}).ingest.sources
    )
    return source


def read(source: ReaderSource) -> Reading:
    """Read the rows of one source, without decoding an image.

    Raises:
        ValueError: If the source cannot be used.
    """
    return READERS[source.reader].read(source)


def recognise(root: Path) -> list[ReaderSource]:
    """Return every layout that a folder has, as a source; none, or several, is for a person.

    Raises:
        ValueError: If there is no such folder.
    """
    place = reading.folder(str(root))
    found = (layout.recognise(place) for layout in READERS.values())
    return [source for source in found if source is not None]


def recognised(root: Path, ways: str) -> ReaderSource:
    """Return the one source that a folder is.

    Args:
        root: The folder.
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
    raise ValueError(
        f"{str(root)!r} has none of the known layouts; give --reader, one of {list(READERS)}, or "
        f"for your own names {ways}"
    )


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
