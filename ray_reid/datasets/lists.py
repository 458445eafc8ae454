"""Text files that name the train and test images of a folder, one name per line."""

from collections.abc import Sequence
from pathlib import Path

from ray_reid.datasets import reading
from ray_reid.datasets.splits import TEST
from ray_reid.recipe.sources import FolderSource


def texts(source: FolderSource) -> list[str]:
    """The texts of a folder's lists.

    Raises:
        ValueError: If one cannot be read.
    """
    root = reading.folder(source.root)
    names = [name for name in (source.train_list, source.test_list) if name is not None]
    return [_text(root / name) for name in names]


def named_images(files: Sequence[Path], source: FolderSource, root: Path) -> dict[str, set[str]]:
    """Relative paths of the images that each list names, by split: `train`, `test` or both.

    Args:
        files: All images below `root`.

    Raises:
        ValueError: If a list cannot be read, names no image or more than one, or both lists
            name the same.
    """
    index = _index(files, root)
    given = {"train": source.train_list, TEST: source.test_list}
    named = {s: _listed(root, name, index) for s, name in given.items() if name is not None}
    both = sorted(named.get("train", set()) & named.get(TEST, set()))
    if both:
        raise ValueError(
            f"{len(both)} images are in both {source.train_list} and {source.test_list}, "
            f"e.g. {both[0]!r}; an image is either trained on or tested on"
        )
    return named


def _index(files: Sequence[Path], root: Path) -> dict[str, list[str]]:
    """Relative paths of all images by what a list may call them: base name or relative path."""
    index: dict[str, list[str]] = {}
    for file in files:
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
