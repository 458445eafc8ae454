"""What looks like input and is not read: counted and named, and never left out in silence."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ray_reid import images
from ray_reid.datasets import reading

# Pictures, videos and archives that no reader opens.
OTHER_SUFFIXES = frozenset({
    ".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".ppm", ".pgm", ".pnm", ".tga",
    ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".mp4", ".m4v", ".avi",
    ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".zip", ".tar", ".tgz", ".gz", ".rar", ".7z",
})  # fmt: skip
# What lies beside images and is none; other files are known by how they begin.
COMPANIONS = frozenset({
    ".txt", ".xml", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".md", ".pdf", ".html",
    ".mat", ".m", ".py", ".pkl", ".npy", ".npz", ".h5", ".parquet", ".log", ".db", ".ini", ".sh",
})  # fmt: skip
NUM_NAMED = 4
# Entries that are listed beside a layout: its root may be a disk with other data sets.
MOST_BESIDE = 100_000


def sentences(
    root: Path, files: Iterable[Path], whole: bool = False, aside: Collection[str] = ()
) -> list[str]:
    """Name what lies among the images of a source and is not read, with counts.

    Readers count themselves which images they leave out.

    Args:
        root: The source's folder.
        files: What its reader takes notice of, images and lists.
        whole: Whether `files` are all that `root` has at any depth; else their folders are looked
            at, and images in other folders are counted.
        aside: Names of other folders that are known to hold images which are not for the reader.
    """
    known = {file for file in files if reading.is_image(file)}
    if not known:
        return []
    folders = [root] if whole else sorted(_tops(known))
    found = [] if whole else _beside(root, folders, aside)
    # One sentence for all of them: there may be a folder for each identity.
    place = folders[0] if len(folders) == 1 else folders[0].parent
    listed: list[Path] = []
    again: list[Path] = []
    for folder in folders:
        files_there, folders_again = reading.walk(folder)
        listed += files_there
        again += folders_again
    return [*found, *_other_formats(listed, place), *_links(listed, again, place)]


def other_formats(root: Path) -> list[str]:
    """Name the files of a folder whose formats are not read, with counts."""
    return _other_formats(reading.walk(root)[0], root)


def _tops(files: Iterable[Path]) -> set[Path]:
    """The folders just below the one that holds all of the files; itself if they lie in it."""
    parents = {file.parent for file in files}
    common = min(parents, key=lambda path: len(path.parts))
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    if common in parents:
        return {common}
    depth = len(common.parts) + 1
    return {Path(*parent.parts[:depth]) for parent in parents}


def _beside(root: Path, read: Collection[Path], aside: Collection[str]) -> list[str]:
    """Count the images of `root` that lie outside the folders that are read, by folder."""
    taken = set(read)
    above = {parent for folder in read for parent in folder.parents}
    counts: Counter[str] = Counter()
    listed = 0
    for here, folders, files in os.walk(root) if root in above else ():
        place = Path(here)
        if place in above:
            folders[:] = [n for n in folders if n not in aside and place / n not in taken]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        number = sum(reading.is_image(place / name) for name in files)
        if number:
            counts[_outermost(place, above).relative_to(root).as_posix()] += number
        listed += len(folders) + len(files)
        if listed > MOST_BESIDE:
            break
    if not counts:
        return []
    named = ", ".join(f"{number} in {name!r}" for name, number in counts.most_common(NUM_NAMED))
    most = "at least " if listed > MOST_BESIDE else ""
    return [
        f"{most}{counts.total()} images of {str(root)!r} lie outside the folders that are read "
        f"({named}{' ...' if len(counts) > NUM_NAMED else ''}); they are left out"
    ]


def _outermost(place: Path, above: Collection[Path]) -> Path:
    """The outermost folder around a place that leads to nothing that is read, or the place."""
    if place in above:
        return place
    return next(folder for folder in (place, *place.parents) if folder.parent in above)


def _other_formats(listed: Sequence[Path], root: Path) -> list[str]:
    others = sorted(file for file in listed if not reading.is_image(file) and _is_other(file))
    if not others:
        return []
    counts = Counter(file.suffix.lower() or "no suffix" for file in others)
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in counts.most_common(NUM_NAMED))
    more = " ..." if len(counts) > NUM_NAMED else ""
    example = others[0].relative_to(root).as_posix()
    return [
        f"{len(others)} files of {str(root)!r} are not read ({kinds}{more}), e.g. {example!r}; "
        f"suffixes that are read: {' '.join(sorted(images.SUFFIXES))}"
    ]


def _is_other(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix in OTHER_SUFFIXES:
        return True
    if suffix in COMPANIONS:
        return False
    try:
        with file.open("rb") as opened:
            kind = images.format_of(opened.read(16))
    except OSError:
        return False
    # Two letters begin a BMP file, and many a text.
    return kind not in (None, "BMP")


def _links(listed: Sequence[Path], again: Sequence[Path], root: Path) -> list[str]:
    """Name links that lead nowhere, or to folders that were listed."""
    # Of images that are links, the loader says which lead nowhere.
    links = [file for file in listed if not reading.is_image(file) and file.is_symlink()]
    broken = [file for file in links if not file.exists()]
    found = []
    for named, what in (
        (broken, "lead nowhere"),
        (again, "are other names of folders that are read already, and are not read again"),
    ):
        if named:
            example = min(named).relative_to(root).as_posix()
            found.append(f"{len(named)} links of {str(root)!r} {what}, e.g. {example!r}")
    return found
