"""What looks like input and is not read: counted and named, and never left out in silence."""

from collections import Counter
from collections.abc import Iterable, Sequence
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


def sentences(root: Path, files: Iterable[Path], whole: bool = False) -> list[str]:
    """Name what lies among the images of a source and is not read, with counts.

    Readers count themselves which images they leave out.

    Args:
        root: The source's folder.
        files: What its reader takes notice of, images and lists.
        whole: Whether to look at all of `root`, or at the folders of `files` alone.
    """
    known = {file for file in files if reading.is_image(file)}
    if not known:
        return []
    found: list[str] = []
    for folder in [root] if whole else _tops(known):
        listed, again = reading.walk(folder)
        found += [*_other_formats(listed, folder), *_links(listed, again, folder)]
    return found


def other_formats(root: Path) -> list[str]:
    """Name the files of a folder whose formats are not read, with counts."""
    return _other_formats(reading.walk(root)[0], root)


def _tops(files: Iterable[Path]) -> list[Path]:
    """The folders just below the one that holds all of the files; itself if they lie in it."""
    parents = {file.parent for file in files}
    common = min(parents, key=lambda path: len(path.parts))
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    if common in parents:
        return [common]
    depth = len(common.parts) + 1
    return sorted({Path(*parent.parts[:depth]) for parent in parents})


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
