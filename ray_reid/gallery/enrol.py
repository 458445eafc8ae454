"""A folder of images to rows of a live gallery."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_reid import schema
from ray_reid.datasets import reading, sources
from ray_reid.datasets.loading import CORRUPT, load
from ray_reid.datasets.readers.folder import FolderSource, read_names
from ray_reid.datasets.reading import LOCATOR, Row
from ray_reid.gallery.embedded.segment import COLUMNS
from ray_reid.gallery.searcher import Searcher
from ray_reid.recipe.ingest import SourceSpec
from ray_reid.recipe.recipe import Recipe

# Each batch is one write: all of it is enrolled, or nothing of it.
BATCH = 128


@dataclass(frozen=True)
class Enrolled:
    """What became of the images of a folder."""

    images: int
    """Those enrolled."""
    identities: int
    cameras: int
    left_out: tuple[str, ...]
    """The other images with the reasons, one sentence each."""


def folder_source(
    recipe: Recipe,
    folder: Path,
    pattern: str | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> FolderSource:
    """Say how the images of a folder are named.

    Args:
        recipe: Of the run; its folder sources say how images are named, without a pattern.
        folder: The images, at any depth.
        pattern: As the option of the reader `folder`.
        name: Source of the observations; None takes the folder's name.
        licence: Terms of the images.

    Raises:
        ValueError: If the pattern breaks a rule, or the recipe has several.
    """
    values = {"root": str(folder), "pattern": pattern, "name": name, "licence": licence}
    if pattern is None:
        specs = [spec for spec in recipe.ingest.sources if spec.reader == "folder"]
        known = {source.pattern for source in map(_typed, specs)}
        if len(known) > 1:
            raise ValueError(
                f"the recipe names images by the patterns {sorted(known)}; choose with --pattern"
            )
        values["pattern"] = next(iter(known), None)
    given = {key: value for key, value in values.items() if value is not None}
    return _typed(SourceSpec.model_validate({"reader": "folder", **given}))


def enrol(searcher: Searcher, source: FolderSource) -> Enrolled:
    """Embed the images of a folder and enrol them; those that are there already are replaced.

    An image keeps its id as long as the name of the source and its place in the folder are the
    same, which the ingest job makes ids of too.

    Args:
        searcher: With a gallery that this process writes.
        source: The folder.

    Raises:
        ValueError: If no image can be read or no name fits, or the gallery refuses a write; what
            was written before stays.
    """
    reading = read_names(source)
    left_out = list(reading.warnings)
    done: list[Row] = []
    for start in range(0, len(reading.rows), BATCH):
        rows = [_loaded(row) for row in reading.rows[start : start + BATCH]]
        bad = [row for row in rows if row.get(schema.DROP_REASON)]
        left_out += [_sentence(row, source) for row in bad]
        good = [
            {name: row.get(name) for name in COLUMNS} | {schema.SPLIT: "gallery"}
            for row in rows
            if not row.get(schema.DROP_REASON)
        ]
        searcher.enrol(good)
        done += [{**row, schema.IMAGE: None} for row in good]
    if not done:
        first = left_out[len(reading.warnings)]
        raise ValueError(f"no image of {source.root!r} can be read; the first: {first}")
    return Enrolled(len(done), *_counts(done), tuple(left_out))


def _typed(spec: SourceSpec) -> FolderSource:
    (source,) = sources.resolve([spec])
    assert isinstance(source, FolderSource)
    return source


def _loaded(row: Row) -> Row:
    return {**row, **load(row[LOCATOR])}


def _sentence(row: Row, source: FolderSource) -> str:
    place = Path(row[LOCATOR]).relative_to(reading.folder(source.root))
    return f"{place}: {row[schema.DROP_REASON].removeprefix(f'{CORRUPT}: ')}"


def _counts(rows: Sequence[Row]) -> tuple[int, int]:
    identities = {row[schema.IDENTITY] for row in rows}
    cameras = {row[schema.CAMERA] for row in rows} - {None}
    return len(identities), len(cameras)
