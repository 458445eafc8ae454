"""Text files that name the train and test images of a folder, one name per line."""

from collections.abc import Sequence
from pathlib import Path

from ray_reid.datasets.splits import TEST


def named_images(
    files: Sequence[Path], root: Path, train_list: str | None, test_list: str | None
) -> dict[str, set[str]]:
    """Relative paths of the images that each list names, by split: `train`, `test` or both.

    Args:
        files: All images below `root`.
        train_list: Name of the list of train images, relative to `root`; None where there is none.
        test_list: Likewise for query and gallery.

    Raises:
        ValueError: If a list cannot be read, names no image or more than one, or both lists
            name the same.
    """
    index = _index(files, root)
    given = {"train": train_list, TEST: test_list}
    named = {s: _listed(root, name, index) for s, name in given.items() if name is not None}
    both = sorted(named.get("train", set()) & named.get(TEST, set()))
    if both:
        raise ValueError(
            f"{len(both)} images are in both {train_list} and {test_list}, "
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
    lines = text(root / name).splitlines()
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


def text(file: Path) -> str:
    """The text of a list.

    Raises:
        ValueError: If it cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"cannot read the list {str(file)!r}: {reason}") from error
