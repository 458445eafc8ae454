"""A user's own folder of crops: a regular expression tells identity and camera from the name."""

import re
from collections.abc import Sequence
from pathlib import Path

from ray_reid import schema
from ray_reid.config import FolderSource
from ray_reid.datasets import reading, splits
from ray_reid.datasets.reading import Reading, Row
from ray_reid.datasets.splits import TEST

SPLIT_FOLDERS = ("train", "query", "gallery")
SPLIT_WORDS = ("train", "query", "gallery", TEST)


def read_folder(source: FolderSource) -> Reading:
    """List the images of a folder, their identities and their splits.

    The splits come from the first of: the pattern's group `split`; the lists; sub-folders
    train, query and gallery; a draw of held-out identities.

    Raises:
        ValueError: If there is nothing to train on or to search for, with the reason.
    """
    root = reading.folder(source.root)
    files = reading.list_images(root)
    if not files:
        raise ValueError(f"folder {source.root!r} holds no image (.jpg, .png, .bmp, .webp)")
    rows, warnings = _rows(files, source, root)
    rows, more = _assign_splits(rows, source, root)
    warnings += more
    where = repr(str(root))
    _check_disjoint(rows, where)
    reading.check_training(rows, where)
    if any(row[schema.SPLIT] == TEST for row in rows):
        warnings += splits.choose_queries(rows, source, root)
    elif source.query_cameras:
        raise ValueError(
            f"query_cameras {list(source.query_cameras)} has no effect: {where} already says "
            "which images are queries"
        )
    return Reading(rows, warnings + reading.check_queries(rows, where))


def files(source: FolderSource) -> list[Path]:
    """The images that a reading depends on; `lists` gives the rest."""
    return reading.list_images(reading.folder(source.root))


def lists(source: FolderSource) -> list[str]:
    """The texts of its lists.

    Raises:
        ValueError: If one cannot be read.
    """
    root = reading.folder(source.root)
    names = [name for name in (source.train_list, source.test_list) if name is not None]
    return [_text(root / name) for name in names]


def _rows(files: Sequence[Path], source: FolderSource, root: Path) -> tuple[list[Row], list[str]]:
    """The rows of the images whose names match, with the split that the name gives."""
    pattern = re.compile(source.pattern)
    name = source.name or root.name
    found = [(file, pattern.search(file.stem)) for file in files]
    rows = [_row(name, root, file, match, source) for file, match in found if match is not None]
    others = [file for file, match in found if match is None]
    if not rows:
        raise ValueError(
            f"pattern {source.pattern!r} matches none of the {len(files)} image names of "
            f"{str(root)!r}, e.g. {files[0].name!r}"
        )
    if not others:
        return rows, []
    return rows, [
        f"{len(others)} of {len(files)} image names of {str(root)!r} do not match the pattern, "
        f"e.g. {others[0].name!r}; they are left out"
    ]


def _row(name: str, root: Path, file: Path, match: "re.Match[str]", source: FolderSource) -> Row:
    groups = match.groupdict()
    if not groups["identity"]:
        raise ValueError(f"pattern {source.pattern!r} finds no identity in {file.name!r}")
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


def _time(text: str | None, file: Path) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise ValueError(
            f"the group `time` finds {text!r} in {file.name!r}, which is not a number of seconds"
        ) from error


def _assign_splits(
    rows: list[Row], source: FolderSource, root: Path
) -> tuple[list[Row], list[str]]:
    if "split" in re.compile(source.pattern).groupindex:
        return _from_names(rows), []
    if source.train_list is not None or source.test_list is not None:
        return _from_lists(rows, source, root)
    if all((root / name).is_dir() for name in ("query", "gallery")):
        return _from_folders(rows, root)
    identities = {row[schema.IDENTITY] for row in rows}
    test = splits.held_out(identities, source.test_fraction, source.seed)
    for row in rows:
        row[schema.SPLIT] = TEST if row[schema.IDENTITY] in test else "train"
    return rows, []


def _from_names(rows: list[Row]) -> list[Row]:
    for row in rows:
        if row[schema.SPLIT] not in SPLIT_WORDS:
            raise ValueError(
                f"the group `split` finds {row[schema.SPLIT]!r} in "
                f"{Path(row[reading.LOCATOR]).name!r}; it must be one of {list(SPLIT_WORDS)}"
            )
    return rows


def _from_folders(rows: list[Row], root: Path) -> tuple[list[Row], list[str]]:
    for row in rows:
        top = Path(row[reading.LOCATOR]).relative_to(root).parts[0]
        row[schema.SPLIT] = top if top in SPLIT_FOLDERS else None
    return _assigned(rows, f"are outside the sub-folders {list(SPLIT_FOLDERS)} of {str(root)!r}")


def _from_lists(rows: list[Row], source: FolderSource, root: Path) -> tuple[list[Row], list[str]]:
    index = _index(root)
    given = {"train": source.train_list, TEST: source.test_list}
    named = {s: _listed(root, name, index) for s, name in given.items() if name is not None}
    both = sorted(named.get("train", set()) & named.get(TEST, set()))
    if both:
        raise ValueError(
            f"{len(both)} images are in both {source.train_list} and {source.test_list}, "
            f"e.g. {both[0]!r}; an image is either trained on or tested on"
        )
    # With one list, all other images are the other split.
    rest = None if len(named) == 2 else ({"train", TEST} - named.keys()).pop()
    for row in rows:
        place = Path(row[reading.LOCATOR]).relative_to(root).as_posix()
        row[schema.SPLIT] = next((s for s, places in named.items() if place in places), rest)
    return _assigned(rows, f"are in neither {source.train_list} nor {source.test_list}")


def _index(root: Path) -> dict[str, list[str]]:
    """Relative paths of all images by what a list may call them: base name or relative path."""
    index: dict[str, list[str]] = {}
    for file in reading.list_images(root):
        place = file.relative_to(root).as_posix()
        for key in {place, file.name}:
            index.setdefault(key, []).append(place)
    return index


def _listed(root: Path, name: str, index: dict[str, list[str]]) -> set[str]:
    """Relative paths of the images that a list names."""
    lines = _text(root / name).splitlines()
    entries = [line.strip().removeprefix("./").replace("\\", "/") for line in lines]
    entries = [entry for entry in entries if entry and not entry.startswith("#")]
    absent = [entry for entry in entries if entry not in index]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(entries)} names in {name} are no image of {str(root)!r}, "
            f"the first is {absent[0]!r}"
        )
    for entry in entries:
        if entry not in index[entry] and len(index[entry]) > 1:
            raise ValueError(
                f"{entry!r} in {name} names {len(index[entry])} images, {index[entry][:2]} ...; "
                f"write paths relative to {str(root)!r}"
            )
    return {entry if entry in index[entry] else index[entry][0] for entry in entries}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"cannot read the list {str(file)!r}: {reason}") from error


def _assigned(rows: list[Row], why: str) -> tuple[list[Row], list[str]]:
    kept = [row for row in rows if row[schema.SPLIT] is not None]
    if len(kept) == len(rows):
        return rows, []
    return kept, [f"{len(rows) - len(kept)} of {len(rows)} images {why}; they are left out"]


def _check_disjoint(rows: Sequence[Row], where: str) -> None:
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for row in rows:
        sides[row[schema.SPLIT] == "train"].add(row[schema.IDENTITY])
    both = sorted(sides[True] & sides[False])
    if both:
        raise ValueError(
            f"{len(both)} identities of {where} are in both train and test, "
            f"e.g. {both[0].partition(':')[2]!r}: ReID is tested on identities never trained on"
        )
