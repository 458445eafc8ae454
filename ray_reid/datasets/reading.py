"""What every reader needs: listing images, building rows, and the rules of a usable test set."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ConfigDict

from ray_reid import images, schema
from ray_reid.recipe.base import Frozen
from ray_reid.runtime import arguments

LOCATOR = "locator"

Row = dict[str, Any]
Entries = tuple[Collection[str], Sequence[Path]]
"""The names in a folder, and the folders among them in order, without hidden ones."""

_LISTED: ContextVar[dict[Path, Entries] | None] = ContextVar("_LISTED", default=None)


class ReaderSource(Frozen):
    """Base of the sources: every reader has a model of the options that a recipe may give it.

    A reader of files has a field `root` too: their folder. A number is taken as text where an
    option is text: a folder may be called 2024.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    reader: str
    """Name of the reader in `READERS`."""


class Named(Protocol):
    """What most sources say about their rows."""

    @property
    def name(self) -> str:
        """Name of the source in identities."""

    @property
    def licence(self) -> str | None:
        """Terms of its images."""


@dataclass(frozen=True)
class Reading:
    """What a source holds, found without decoding an image."""

    rows: list[Row]
    """Columns of the record without the image, and `locator`: where the image is."""
    warnings: list[str]
    """What was left out or cannot be searched, one sentence each, with counts."""


@dataclass(frozen=True)
class Layout:
    """How one data set, or one family of them, lies on a disk."""

    source: type[ReaderSource]
    """The options of its reader."""
    read: Callable[[Any], Reading]
    """Files to rows, without decoding an image."""
    files: Callable[[Any], list[Path]]
    """The files that a reading depends on; a changed one is another input."""
    recognise: Callable[[Path], Any | None]
    """The source of a folder that has this layout, itself or at most two levels below; else null.

    Layouts of the same folders are told apart by the names in them."""
    official: Callable[[Any], Mapping[str, tuple[int, int]]] = lambda _: {}
    """Published numbers of images and identities of a source by split, where they are known."""
    terms: str = ""
    """What its authors ask of users: licence, or that the set was withdrawn."""
    guess: Callable[[Path], Any | None] = lambda _: None
    """The source of a folder that no layout recognises, where its names still fit this reader."""
    whole: bool = False
    """Whether the reader is for all images of `root`, at any depth."""
    aside: Callable[[Any], Collection[str]] = lambda _: ()
    """Names of folders beside those of the layout that hold images which are not for the reader;
    images in any others are counted and named."""
    beside: Callable[[Any], Iterable[str]] = lambda _: ()
    """Texts that a reading depends on beside the files; a changed one is another input."""
    protocol: Callable[[Any], str] = lambda _: "market"
    """The `evaluate.protocol` of a source: the one that its authors' figures are measured by."""


def folder(root: str) -> Path:
    """The absolute path of a source's folder.

    Raises:
        ValueError: If there is no such folder.
    """
    path = arguments.expanded(root).absolute()
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise ValueError(f"folder {root!r} {what}; give the folder that holds the images")
    return path


def list_images(root: Path) -> list[Path]:
    """All image files at any depth in the order of their relative paths, hidden ones left out.

    Raises:
        ValueError: If a folder cannot be listed or a name cannot be stored as UTF-8.
    """
    found = [file for file in walk(root)[0] if is_image(file)]
    for file in found:
        if not _is_utf8(str(file)):
            raise ValueError(f"file name {str(file)!r} is not UTF-8; rename the file")
    return sorted(found, key=lambda file: relative(root, file))


def relative(root: Path, file: Path) -> str:
    """Return the path of a file below a folder, with slashes.

    It does what `Path.relative_to` does, in a thirtieth of the time: there may be a million files.
    """
    return file.as_posix().removeprefix(f"{root.as_posix().rstrip('/')}/")


def walk(root: Path) -> tuple[list[Path], list[Path]]:
    """List all files at any depth, hidden ones left out, and folders that were listed before.

    Linked folders are followed; one that leads to a folder that was listed already, such as a
    parent, is not entered.

    Raises:
        ValueError: If a folder cannot be listed.
    """
    found: list[Path] = []
    again: list[Path] = []
    visited: set[str] = set()
    for here, folders, files in os.walk(root, onerror=_unlistable, followlinks=True):
        real = os.path.realpath(here)
        # Of two names of one folder, the same one counts on every machine.
        folders[:] = sorted(n for n in folders if not n.startswith(".") and real not in visited)
        if real in visited:
            again.append(Path(here))
        else:
            found += [Path(here, name) for name in files if not name.startswith(".")]
        visited.add(real)
    return found, again


def is_image(file: Path) -> bool:
    """Return whether a file is named as the formats are that are read."""
    # `._name.jpg` is macOS's resource fork of `name.jpg`, not an image.
    return not file.name.startswith(".") and file.suffix.lower() in images.SUFFIXES


@contextmanager
def listed_once() -> Iterator[None]:
    """List each folder once in the block, in which every layout looks at the same folders."""
    token = _LISTED.set({})
    try:
        yield
    finally:
        _LISTED.reset(token)


def levels(top: Path) -> Iterator[Sequence[Path]]:
    """Yield a folder, its sub-folders, and theirs: where the folder of a layout may lie.

    Files are not asked one by one what they are: there may be a million of them.
    """
    yield [top]
    yield _entries(top)[1]
    yield [inner for outer in _entries(top)[1] for inner in _entries(outer)[1]]


def locate(root: str, wanted: Sequence[str], layout: str) -> Path:
    """Find the folder that holds all of `wanted`, at `root` or at most two levels below it.

    Args:
        root: Where a user says that the data set is.
        wanted: Folders and files that it holds, relative to it.
        layout: Name of the layout, for the sentence.

    Raises:
        ValueError: If there is none, or more than one; says what is missing.
    """
    top = folder(root)
    nearest, least = top, _missing(top, wanted)
    for layer in levels(top):
        missing = {path: _missing(path, wanted) for path in layer}
        found = [path for path, names in missing.items() if not names]
        if len(found) > 1:
            names = [str(path.relative_to(top)) for path in found]
            raise ValueError(f"{str(top)!r} holds {len(found)} sets, {names}; give one as root")
        if found:
            return found[0]
        for path, names in missing.items():
            if len(names) < len(least):
                nearest, least = path, names
    raise ValueError(
        f"no {layout} layout in {str(top)!r}: {str(nearest)!r} lacks {least}; tried the folder "
        "itself, its sub-folders and theirs"
    )


def found(root: Path, wanted: Sequence[str]) -> Path | None:
    """As `locate`, but null where there is none or more than one."""
    try:
        return locate(str(root), wanted, "")
    except ValueError:
        return None


def left_out(files: Sequence[Path], why: str, where: str) -> list[str]:
    """Say how many images are not used, and why; nothing if it is none."""
    if not files:
        return []
    return [f"{len(files)} images of {where} {why}, e.g. {files[0].name!r}; they are left out"]


def read_text(file: Path, encoding: str = "utf-8-sig") -> str:
    """A list or label file of a data set.

    Raises:
        ValueError: If it cannot be read or is not of this encoding.
    """
    try:
        return file.read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or f"it is not {encoding.removesuffix('-sig')}"
        raise ValueError(f"cannot read {str(file)!r}: {reason}") from error


def file_row(source: str, root: Path, file: Path, **columns: Any) -> Row:
    """The row of an image file: its id, path and locator beside the given columns."""
    place = relative(root, file)
    return {
        schema.OBSERVATION_ID: schema.observation_id(source, place),
        schema.SOURCE: source,
        schema.PATH: place,
        LOCATOR: str(file),
        **columns,
    }


def share(*parts: str | int) -> float:
    """A number in [0, 1) that depends on `parts` alone: the stable way to choose at random."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    # 53 bits are what a float holds; more could round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def unanswerable(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Queries that no gallery image can answer: none has their identity and another camera.

    An image without a camera is comparable with every other (the Market rule removes nothing).
    """
    rows = list(rows)
    gallery: dict[str | None, set[str | None]] = {}
    for row in rows:
        if row[schema.SPLIT] == "gallery" and row[schema.IDENTITY] is not None:
            gallery.setdefault(row[schema.IDENTITY], set()).add(row[schema.CAMERA])
    return [row for row in rows if row[schema.SPLIT] == "query" and not _answers(row, gallery)]


def check_queries(rows: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Say how many queries cannot be answered.

    Returns:
        No sentence, or one with the count.

    Raises:
        ValueError: If there is no query, or none that can be answered.
    """
    queries = sum(row[schema.SPLIT] == "query" for row in rows)
    lost = unanswerable(rows)
    if not queries:
        raise ValueError(f"{where} has no query image; evaluation needs query and gallery images")
    if not lost:
        return []
    example = f"e.g. {lost[0][schema.IDENTITY]!r} on camera {lost[0][schema.CAMERA]!r}"
    rule = "gallery image of the same identity from another camera"
    if len(lost) == queries:
        raise ValueError(f"none of the {queries} queries of {where} has a {rule} ({example})")
    return [f"{len(lost)} of {queries} queries of {where} have no {rule}, {example}"]


def one_tested(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say that a test shows one identity only; nothing of any other test."""
    tested = {
        row[schema.IDENTITY]
        for row in rows
        if row[schema.SPLIT] in ("query", "gallery") and row.get(schema.ROLE) != "junk"
    }
    if len(tested) != 1:
        return []
    return [
        f"query and gallery show one identity, {next(iter(tested))!r}: every answer is right, so "
        "this is no test; test on more identities"
    ]


def check_training(rows: Iterable[Mapping[str, Any]], where: str) -> None:
    """Check that there is something to tell apart; images for tests alone are not trained on.

    Raises:
        ValueError: If there are train images, but of fewer than two identities.
    """
    found = {row[schema.IDENTITY] for row in rows if row[schema.SPLIT] == "train"}
    train = found - {None}
    if found and len(train) < 2:
        raise ValueError(f"{where} has {len(train)} train identities; training needs at least 2")


def check_disjoint(rows: Iterable[Mapping[str, Any]], where: str) -> None:
    """Check that nothing is tested on an identity it was trained on.

    Raises:
        ValueError: If an identity is in train and in another split.
    """
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for row in rows:
        # Junk and distractors have no identity to share.
        if row[schema.IDENTITY] is not None:
            sides[row[schema.SPLIT] == "train"].add(row[schema.IDENTITY])
    both = sorted(sides[True] & sides[False])
    if both:
        raise ValueError(
            f"{len(both)} identities of {where} are in both train and test, "
            f"e.g. {both[0].partition(':')[2]!r}: ReID is tested on identities never trained on"
        )


def _missing(place: Path, wanted: Sequence[str]) -> list[str]:
    names, _ = _entries(place)
    return [
        name
        for name in wanted
        if name.partition("/")[0] not in names or not (place / name).exists()
    ]


def _entries(place: Path) -> Entries:
    known = _LISTED.get()
    if known is not None and place in known:
        return known[place]
    try:
        with os.scandir(place) as entries:
            inner = {entry.name: entry.is_dir() for entry in entries}
    except OSError:
        inner = {}
    folders = sorted(name for name, is_dir in inner.items() if is_dir and name[0] != ".")
    found = inner.keys(), [place / name for name in folders]
    if known is not None:
        known[place] = found
    return found


def _unlistable(error: OSError) -> None:
    # os.walk would skip the folder, and its images would be missing without a word.
    raise ValueError(
        f"folder {str(error.filename)!r} cannot be listed: {error.strerror}; make it readable or "
        "move it elsewhere"
    ) from error


def _answers(query: Mapping[str, Any], gallery: Mapping[str | None, set[str | None]]) -> bool:
    cameras = gallery.get(query[schema.IDENTITY], set())
    camera = query[schema.CAMERA]
    return bool(cameras) if camera is None else bool(cameras - {camera})


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
