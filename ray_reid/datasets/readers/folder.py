"""A user's own folder of crops: a regular expression tells identity and camera from the name."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ray_reid import images, schema
from ray_reid.datasets import lists, patterns, reading, splits, unread
from ray_reid.datasets.reading import Layout, ReaderSource, Reading, Row
from ray_reid.datasets.splits import TEST


class FolderSource(ReaderSource):
    """A user's folder of crops whose names tell identity and camera."""

    reader: Literal["folder"] = "folder"
    root: str
    """The folder; images are found at any depth."""
    pattern: str = patterns.DEFAULT
    """Regular expression searched in the file's base name without its extension, or, if it has a
    slash, in the whole path relative to `root`, such as `(?P<identity>[^/]+)/[^/]+$`. The group
    `identity` is required, `camera`, `view`, `clothes`, `time` and `split` are optional. The
    splits come from the first of: the group `split`; the lists; sub-folders `query` and `gallery`
    beside `train`; sub-folders `train` and `test` (else `val`), all in any case and under their
    usual names (`training`, `Test`, `probe`); a draw of held-out identities."""
    name: str | None = None
    """Name of the source in identities; null takes the folder's name."""
    licence: str | None = None
    train_list: str | None = None
    """Text file under `root` with one image name per line; its images are the train split."""
    test_list: str | None = None
    """Likewise for query and gallery; null with a `train_list` takes all other images."""
    test_fraction: float = Field(0.5, gt=0, lt=1)
    """Share of identities held out when nothing else says what the test images are. A lone
    sub-folder such as `train` says nothing, and must not have images beside it."""
    test_identities: int | None = Field(None, ge=2)
    """Exactly how many identities are held out, in the place of `test_fraction`."""
    query_cameras: tuple[str, ...] = ()
    """Test images of these cameras are queries, the others the gallery. Empty decides for each
    identity: where it has one image per camera, its first camera is the query; otherwise it has
    one query per camera, as in Market-1501, or fewer where the gallery could not answer them."""
    seed: int = Field(0, ge=0)
    """Chooses held-out identities and queries."""

    @field_validator("pattern")
    @classmethod
    def _has_identity(cls, pattern: str) -> str:
        try:
            groups = set(re.compile(pattern).groupindex)
        except re.error as error:
            raise ValueError(f"pattern '{pattern}' is not a regular expression: {error}") from error
        allowed = {"identity", "camera", "view", "clothes", "time", "split"}
        if "identity" not in groups or groups - allowed:
            raise ValueError(
                f"pattern '{pattern}' has groups {sorted(groups)}; it needs (?P<identity>...) "
                f"and may have {sorted(allowed - {'identity'})}"
            )
        return pattern

    @model_validator(mode="after")
    def _held_out_once(self) -> "FolderSource":
        if self.test_identities is not None and "test_fraction" in self.model_fields_set:
            raise ValueError(
                f"test_identities {self.test_identities} and test_fraction {self.test_fraction} "
                "both say how many identities are held out; give one"
            )
        return self


SPLIT_WORDS = ("train", "query", "gallery", TEST)


def read_folder(source: FolderSource) -> Reading:
    """List the images of a folder, their identities and their splits.

    The splits come from the first of: the pattern's group `split`; the lists; sub-folders
    query and gallery beside train; sub-folders train and test (else val); a draw of held-out
    identities.

    Raises:
        ValueError: If there is nothing to train on or to search for, with the reason.
    """
    root, files = _images(source)
    rows, warnings = _rows(files, source, root)
    rows, more = _assign_splits(rows, files, source, root)
    warnings += more
    where = repr(str(root))
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    if any(row[schema.SPLIT] == TEST for row in rows):
        warnings += splits.choose_queries(rows, root, source.seed, source.query_cameras)
    elif source.query_cameras:
        raise ValueError(
            f"query_cameras {list(source.query_cameras)} has no effect: {where} already says "
            "which images are queries"
        )
    return Reading(rows, warnings + reading.check_queries(rows, where))


def read_names(source: FolderSource) -> Reading:
    """List the images of a folder and what their names tell, for uses that need no splits.

    Files that are not read are counted in the warnings.

    Raises:
        ValueError: If there is no image, or no name that the pattern matches.
    """
    root, files = _images(source)
    rows, warnings = _rows(files, source, root)
    return Reading(rows, [*warnings, *unread.sentences(root, files, whole=True)])


def files(source: FolderSource) -> list[Path]:
    """The images that a reading depends on; `texts` gives the rest."""
    return reading.list_images(reading.folder(source.root))


def texts(source: FolderSource) -> list[str]:
    """The texts of the lists.

    Raises:
        ValueError: If one cannot be read.
    """
    root = reading.folder(source.root)
    names = [name for name in (source.train_list, source.test_list) if name is not None]
    return [lists.text(root / name) for name in names]


def recognise(root: Path) -> FolderSource | None:
    """None: what names mean is for the user to say, who gives the pattern."""
    del root
    return None


def guess(root: Path) -> FolderSource | None:
    """A folder whose images are all named, or lie in folders, as people often do it."""
    places = [patterns.place_in(root, file) for file in reading.list_images(root)]
    pattern = patterns.guess(places)
    if pattern is None:
        return None
    if pattern == patterns.DEFAULT:
        return FolderSource(root=str(root))
    return FolderSource(root=str(root), pattern=pattern)


def _images(source: FolderSource) -> tuple[Path, list[Path]]:
    root = reading.folder(source.root)
    files = reading.list_images(root)
    if not files:
        others = unread.other_formats(root)
        known = [f"suffixes that are read: {' '.join(sorted(images.SUFFIXES))}"]
        sentence = [f"folder {source.root!r} holds no image", *(others or known)]
        raise ValueError("; ".join(sentence))
    return root, files


def _rows(files: Sequence[Path], source: FolderSource, root: Path) -> tuple[list[Row], list[str]]:
    """The rows of the images whose names match, with the split that the name gives."""
    pattern = re.compile(source.pattern)
    name = source.name or root.name
    places = (patterns.place_in(root, file) for file in files)
    texts = [patterns.searched(source.pattern, place) for place in places]
    found = [(file, pattern.search(text)) for file, text in zip(files, texts, strict=True)]
    rows = [_row(name, root, file, match, source) for file, match in found if match is not None]
    others = [file for file, match in found if match is None]
    if not rows:
        raise ValueError(_no_match(source, files, root))
    if not others:
        return rows, []
    return rows, [
        f"{len(others)} of {len(files)} image names of {str(root)!r} do not match the pattern, "
        f"e.g. {others[0].name!r}; they are left out"
    ]


def _no_match(source: FolderSource, files: Sequence[Path], root: Path) -> str:
    places = [patterns.place_in(root, file) for file in files]
    whole = "/" in source.pattern
    example = places[0].as_posix() if whole else places[0].name
    fitting = patterns.guess(places)
    known = "" if fitting is None else f"; pattern '{fitting}' fits all of them"
    slash = "; a pattern with a slash is searched in the paths, not in the base names"
    return (
        f"pattern '{source.pattern}' matches none of the {len(files)} image names of "
        f"{str(root)!r}, e.g. {example!r}{known}"
        f"{slash if not whole and any(len(place.parts) > 1 for place in places) else ''}"
    )


def _row(name: str, root: Path, file: Path, match: "re.Match[str]", source: FolderSource) -> Row:
    groups = match.groupdict()
    if not groups["identity"]:
        raise ValueError(f"pattern '{source.pattern}' finds no identity in {file.name!r}")
    check_whole_numbers(match, file)
    return reading.file_row(
        name,
        root,
        file,
        identity=schema.qualified_identity(name, groups["identity"]),
        camera=groups.get("camera") or None,
        view=groups.get("view"),
        clothes=groups.get("clothes"),
        time=_time(groups.get("time"), file),
        licence=source.licence,
        split=groups.get("split"),
    )


def check_whole_numbers(match: "re.Match[str]", file: Path) -> None:
    """Refuse a group that stops inside a number: cameras 1 and 15 would become one."""
    pattern = match.re.pattern
    for group in match.re.groupindex:
        value, rest = match[group] or "", match.string[match.end(group) :]
        if not (value[-1:].isdecimal() and rest[:1].isdecimal()):
            continue
        # A width that is written out, such as `\d{4}`, is meant.
        if not re.search(rf"\(\?P<{group}>[^)]*\{{\d+\}}", pattern):
            raise ValueError(
                f"the group `{group}` of pattern '{pattern}' finds {value!r} in {file.name!r}, "
                f"but the number goes on with {rest[0]!r}; write \\d+, or \\d{{1}} for a field of "
                "fixed width"
            )


def _time(text: str | None, file: Path) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise ValueError(
            f"the group `time` finds {text!r} in {file.name!r}, which is not a number of seconds"
        ) from error


def _assign_splits(
    rows: list[Row], files: Sequence[Path], source: FolderSource, root: Path
) -> tuple[list[Row], list[str]]:
    told = _told_splits(rows, files, source, root)
    if told is None:
        identities = {row[schema.IDENTITY] for row in rows}
        number = source.test_identities
        test = splits.held_out(identities, source.test_fraction, source.seed, number)
        for row in rows:
            row[schema.SPLIT] = TEST if row[schema.IDENTITY] in test else "train"
        return rows, []
    idle = sorted({"test_fraction", "test_identities"} & source.model_fields_set)
    if idle:
        raise ValueError(
            f"{idle[0]} has no effect: {str(root)!r} already says which images are for testing"
        )
    return told


def _told_splits(
    rows: list[Row], files: Sequence[Path], source: FolderSource, root: Path
) -> tuple[list[Row], list[str]] | None:
    """The rows with the splits that names, lists or folders say, and warnings; null if none do."""
    if "split" in re.compile(source.pattern).groupindex:
        return _from_names(rows), []
    if source.train_list is not None or source.test_list is not None:
        return _from_lists(rows, files, source, root)
    places = [patterns.place_in(root, Path(row[reading.LOCATOR])) for row in rows]
    found = splits.of_folders(places, root)
    return _from_folders(rows, found, root) if found else None


def _from_names(rows: list[Row]) -> list[Row]:
    for row in rows:
        if row[schema.SPLIT] not in SPLIT_WORDS:
            raise ValueError(
                f"the group `split` finds {row[schema.SPLIT]!r} in "
                f"{Path(row[reading.LOCATOR]).name!r}; it must be one of {list(SPLIT_WORDS)}"
            )
    return rows


def _from_folders(
    rows: list[Row], found: Sequence[str | None], root: Path
) -> tuple[list[Row], list[str]]:
    for row, split in zip(rows, found, strict=True):
        row[schema.SPLIT] = split
    tops = {(row[schema.SPLIT] != "train", _top(row, root)) for row in rows if row[schema.SPLIT]}
    used = [top for _, top in sorted(tops)]
    return _assigned(rows, f"are outside the sub-folders {used} of {str(root)!r}")


def _top(row: Row, root: Path) -> str:
    """The top-level folder that an image is in; the image itself if it is in none."""
    return patterns.place_in(root, Path(row[reading.LOCATOR])).parts[0]


def _from_lists(
    rows: list[Row], files: Sequence[Path], source: FolderSource, root: Path
) -> tuple[list[Row], list[str]]:
    named = lists.named_images(files, root, source.train_list, source.test_list)
    # With one list, all other images are the other split.
    rest = None if len(named) == 2 else ({"train", TEST} - named.keys()).pop()
    for row in rows:
        place = Path(row[reading.LOCATOR]).relative_to(root).as_posix()
        row[schema.SPLIT] = next((s for s, places in named.items() if place in places), rest)
    return _assigned(rows, f"are in neither {source.train_list} nor {source.test_list}")


def _assigned(rows: list[Row], why: str) -> tuple[list[Row], list[str]]:
    kept = [row for row in rows if row[schema.SPLIT] is not None]
    if len(kept) == len(rows):
        return rows, []
    return kept, [f"{len(rows) - len(kept)} of {len(rows)} images {why}; they are left out"]


LAYOUT = Layout(FolderSource, read_folder, files, recognise, guess=guess, whole=True, beside=texts)
